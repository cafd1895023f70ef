"""Networks of 8 x 8 digits: perceptrons trained by denoising score matching on the images of some classes.

They use the preconditioning of Karras et al. (2022). Like the exact kernel experts they model images blurred by noise of width
``h = digits.BANDWIDTH``: at noise level sigma the network denoises at ``tau = sqrt(sigma^2 + h^2)``. So noise levels, step sizes and grids are those
of the exact experts, and no network is ever asked about less noise than it was trained on.

``python benchmarks/train_zoo.py`` trains them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from popflow.compose.backward_kernel import LossTable, measure
from popflow.compose.experts import from_network
from popflow.compose.schedule import Level
from popflow.compose.target import Expert, Loss
from popflow.compose.zoo import digits
from popflow.compose.zoo.digits import BANDWIDTH, EVENT, Digits
from popflow.core import Streams
from popflow.core.checkpoint import load_tensors
from popflow.learn.networks import MLP

DATA = Path(__file__).parent / "data"
NO_CLASS = 10
"""Label of the class-conditional network that means "any digit"."""
SIGMA_DATA = 0.5


TRAINING: dict[str, Callable[[], Digits]] = {
    "digits-even": lambda: digits.training().of(digits.EVEN),
    "digits-odd": lambda: digits.training().of(digits.ODD),
    "digits-prime": lambda: digits.training().of(digits.PRIME),
    "digits-half-a": lambda: digits.halves()[0],
    "digits-half-b": lambda: digits.halves()[1],
    "digits-all": digits.training,
    "digits-class": digits.training,
}
"""Training images of each network, by name."""
CONDITIONAL = ("digits-class",)
"""Networks that take labels."""


class Denoiser(nn.Module):
    """The raw network ``F(x, log tau, label)``, images in and out, ``x = y / sqrt(tau^2 + sigma_data^2)``."""

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


@dataclass(frozen=True, eq=False)
class LabelledExpert(Expert):
    """An expert that knows the denoising loss of each of its labels."""

    losses: Mapping[int, LossTable] = field(default_factory=dict)

    def given(self, cond: Tensor, name: str | None = None, loss: Loss | None = None) -> Expert:
        """Return the same model under a label."""
        return replace(self, cond=cond, name=name or self.name, loss=loss or self.losses.get(int(cond)))


def load(name: str, device: torch.device | str = "cpu", chunk: int | None = None) -> Expert:
    """Load one of the networks as an expert, with its denoising loss; see `popflow.compose.zoo.load`."""
    conditional = name in CONDITIONAL
    with torch.random.fork_rng(devices=[]):  # layers draw their first parameters from the global generator
        network = Denoiser(conditional)
    tensors, about = load_tensors(DATA / f"{name}.safetensors")
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
    network.to(device).requires_grad_(False)
    losses = {int(label): LossTable(tuple(about["levels"]), tuple(each)) for label, each in about["losses"].items()}
    plain = from_network(network, Blurred(), EVENT, output=blurred_output, name=name, chunk=chunk)
    labelled = LabelledExpert(plain.model, plain.event, None, name, plain.space, None, chunk, losses[NO_CLASS], losses)
    return labelled.given(torch.tensor(NO_CLASS, device=device)) if conditional else replace(plain, loss=losses[NO_CLASS])


def measured_losses(name: str, levels: Sequence[float]) -> dict[int, list[float]]:
    """Denoising losses of a network on its training images, blurred as it models them, by label; `NO_CLASS` for all of its images."""
    data, expert, found = TRAINING[name](), load(name), {}
    for label in (*(digits.ALL if name in CONDITIONAL else ()), NO_CLASS):
        x, rng = (data if label == NO_CLASS else data.of([label])).images, Streams(0)
        x = x.repeat(1 + 4000 // len(x), 1, 1, 1)
        one = expert if expert.cond is None else expert.given(torch.full_like(expert.cond, label))
        found[label] = list(measure(one, x + BANDWIDTH * rng.normal("blur", x), levels, rng).losses)
    return found
