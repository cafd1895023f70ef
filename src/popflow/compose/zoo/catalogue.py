"""The zoo: small diffusion models, most of them of 8 x 8 digits, that come with the library, so that compositions can be tried at once.

Each expert is a perceptron (`popflow.learn.networks.MLP`) trained by denoising score matching on the images of some classes of
`popflow.compose.zoo.digits.training`, with the preconditioning of Karras et al. (2022). Like the exact kernel experts they model images blurred
by noise of the width ``h = digits.BANDWIDTH``: at the noise level sigma the network denoises at ``tau = sqrt(sigma^2 + h^2)``. Same levels,
same step sizes, same grids as the exact ones; and no network is ever asked about less noise than it has learned from.

Two experts are of another kind: models of particle systems that know their temperature, `popflow.compose.particles.models`.

``python -m popflow.compose.zoo.train`` trains them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from popflow.compose.experts import from_network
from popflow.compose.particles import models
from popflow.compose.schedule import Level
from popflow.compose.target import Expert
from popflow.compose.zoo import digits
from popflow.compose.zoo.digits import BANDWIDTH, EVENT, Digits
from popflow.core.checkpoint import load_tensors
from popflow.core.errors import unknown
from popflow.learn.networks import MLP

DATA = Path(__file__).parent / "data"
NO_CLASS = 10
"""Label of the conditional expert that means "any digit"."""
SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Entry:
    """What an expert of the zoo has learned from: its training images, and whether it saw their labels."""

    data: Callable[[], Digits]
    conditional: bool = False


def _classes(*classes: int) -> Digits:
    return digits.training().of(classes)


ENTRIES = {
    "digits-even": Entry(partial(_classes, *digits.EVEN)),
    "digits-odd": Entry(partial(_classes, *digits.ODD)),
    "digits-prime": Entry(partial(_classes, *digits.PRIME)),
    "digits-half-a": Entry(lambda: digits.halves()[0]),
    "digits-half-b": Entry(lambda: digits.halves()[1]),
    "digits-all": Entry(digits.training),
    "digits-class": Entry(digits.training, conditional=True),
}
"""The experts by name."""


class Denoiser(nn.Module):
    """The raw network ``F(x, log tau, label)`` of one expert, images in and out, ``x = y / sqrt(tau^2 + sigma_data^2)``."""

    def __init__(self, conditional: bool = False):
        super().__init__()
        self.net = MLP(math.prod(EVENT), width=192, depth=3, classes=NO_CLASS if conditional else 0)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate image by image."""
        return self.net(x.flatten(1), t, cond).reshape(x.shape)


@dataclass(frozen=True)
class Blurred:
    """Schedule of a preconditioned network of data blurred by ``h``: ``alpha = 1/sqrt(tau^2 + sigma_data^2)``, time ``log tau``.

    >>> round(Blurred().sigma(Blurred().time(0.7)), 9)
    0.7
    """

    def alpha(self, sigma: Level) -> Level:
        """Return the scale of the network's input."""
        return (sigma**2 + BANDWIDTH**2 + SIGMA_DATA**2) ** -0.5

    def time(self, sigma: Level) -> Level:
        """Return ``log tau``."""
        square = sigma**2 + BANDWIDTH**2
        return (square.log() if isinstance(square, Tensor) else math.log(square)) / 2

    def sigma(self, time: Level) -> Level:
        """Invert `time`."""
        return (((2 * time).exp() if isinstance(time, Tensor) else math.exp(2 * time)) - BANDWIDTH**2) ** 0.5


def blurred_output(out: Tensor, x: Tensor, alpha: float, s: float) -> Tensor:
    """Return epsilon of ``D = c_skip y + c_out F`` at tau, for noise of sigma: ``s x - s (sigma_data / tau) F``."""
    tau = math.sqrt(alpha**-2 - SIGMA_DATA**2)
    return s * x - s * SIGMA_DATA / tau * out


def names() -> tuple[str, ...]:
    """Return the names of the experts."""
    return (*ENTRIES, *models.MODELS)


def load(name: str, *, device: torch.device | str = "cpu", chunk: int | None = None) -> Expert:
    """Load an expert of the zoo.

    ``"digits-class"`` takes labels: ``expert.given(torch.tensor(3))``; as loaded it models any digit (label `NO_CLASS`). ``"lj13"`` and ``"dw4"``
    are Boltzmann distributions at T = 2; ``expert ** (2 / T)`` is that at T.

    Args:
        name: One of `names`: the classes (or the disjoint half of the images) that it has learned.
        device: Where its parameters live.
        chunk: Rows per call.

    Raises:
        ValueError: for an unknown name, naming the closest.

    Example:
        >>> from popflow.compose import feynman_kac, karras, sample, zoo
        >>> from popflow.core import Streams
        >>> even, prime = zoo.load("digits-even"), zoo.load("digits-prime")
        >>> sample(feynman_kac(even * prime), karras(5, 0.1, 10.0), particles=4, rng=Streams(0)).x.shape
        torch.Size([1, 4, 1, 8, 8])
    """
    if name not in names():
        raise ValueError(unknown("expert", name, names()))
    if name in models.MODELS:
        return models.load(name, DATA, device=device, chunk=chunk or models.CHUNK)
    conditional = ENTRIES[name].conditional
    with torch.random.fork_rng(devices=[]):  # layers draw their first parameters from the global generator
        network = Denoiser(conditional)
    tensors, _ = load_tensors(DATA / f"{name}.safetensors")
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
    network.to(device).requires_grad_(False)
    cond = torch.tensor(NO_CLASS, device=device) if conditional else None
    return from_network(network, Blurred(), EVENT, output=blurred_output, cond=cond, name=name, chunk=chunk)
