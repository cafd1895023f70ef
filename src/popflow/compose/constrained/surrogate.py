r"""A surrogate of measured values: an ensemble of perceptrons, its mean as prediction and its spread, calibrated, as uncertainty.

Every member starts from its own parameters and sees its own batches; all members are one batched matrix product. The standard deviation over members is
too small as an error, by a factor that held-out rows show: ``c^2 = mean((y - m)^2) / mean(s^2)``, so that uncertainties ``c s`` and errors have the same mean
square. (The mean of the ratios would be a bad choice: for ``M`` Gaussian members ``E[1 / s^2]`` is ``(M - 1) / (M - 3)`` times too large, and infinite for three.)

For guidance at large noise a clean surrogate says little: `Guide` learns ``E[y | x + sigma eps]``, one network for all noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from popflow.compose.constrained.denoiser import SIGMA_MAX, SIGMA_MIN, ResidualMLP
from popflow.core import Streams
from popflow.core.checks import at_least_one
from popflow.learn import cosine, fit


class Ensemble(nn.Module):
    """Perceptrons of one shape, evaluated together.

    Args:
        dim: Coordinates of a row.
        out: Values of a row.
        members: Perceptrons.
        width: Hidden width.
        depth: Hidden layers.

    Shapes:
        x ``[rows, dim]``, or ``[members, rows, dim]`` with rows of their own -> ``[members, rows, out]``.

    Example:
        >>> Ensemble(3, 2, members=4)(torch.zeros(5, 3)).shape
        torch.Size([4, 5, 2])
    """

    def __init__(self, dim: int, out: int = 1, *, members: int = 4, width: int = 256, depth: int = 2):
        super().__init__()
        at_least_one(dim=dim, out=out, members=members, width=width, depth=depth)
        sizes = [dim, *[width] * depth, out]
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(members, a, b) / math.sqrt(a)) for a, b in pairwise(sizes)])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(members, 1, b)) for b in sizes[1:]])

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate all members."""
        h = x if x.ndim == 3 else x.expand(len(self.weights[0]), *x.shape)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, F.silu(h) if k else h, weight)
        return h


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Prediction and uncertainty of values in the user's units.

    Attributes:
        ensemble: The members, which predict standardised values.
        mean: Means of the training values, ``[out]``.
        std: Their standard deviations.
        factor: ``c``, ``[out]``: what calibrates the spread of the members.
        score: ``R^2`` on held-out rows, ``[out]``; NaN without any.
    """

    ensemble: Ensemble
    mean: Tensor
    std: Tensor
    factor: Tensor
    score: Tensor

    def members(self, x: Tensor) -> Tensor:
        """Return the standardised predictions ``[members, rows, out]`` of rows ``[rows, dim]``, in pieces that fit the cache."""
        return torch.cat([self.ensemble(part) for part in x.split(4096)], 1)

    def standardised(self, x: Tensor, kappa: float = 0.0) -> Tensor:
        """Return ``m + kappa c s`` of rows, standardised, ``[rows, out]``; differentiable."""
        values = self.members(x)
        mean = values.mean(0)
        if not kappa or len(values) == 1:
            return mean
        return mean + kappa * self.factor.to(mean) * (values.var(0) + 1e-12).sqrt()

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and calibrated uncertainties ``[rows, out]``; uncertainties are NaN for a single member."""
        with torch.no_grad():
            values = self.members(x).double()
        spread = values.std(0) if len(values) > 1 else torch.full_like(values[0], math.nan)
        return self.mean + self.std * values.mean(0), self.std * self.factor * spread


def learn_surrogate(
    x: Tensor,
    y: Tensor,
    held: tuple[Tensor, Tensor],
    *,
    steps: int,
    rng: Streams,
    members: int = 4,
    width: int = 256,
    depth: int = 2,
    batch: int = 256,
    lr: float = 1e-3,
    record: Iterable[Callable[[Any], None]] = (),
    checkpoint: str | Path | None = None,
    bar: bool = False,
) -> Surrogate:
    """Fit an ensemble to values.

    Args:
        x: Coordinates of rows, ``[n, dim]``.
        y: Their values, ``[n, out]``.
        held: Rows and values that calibrate the uncertainty; may be empty.
        steps: Training steps.
        rng: Random streams.
        members: Members.
        width: Hidden width.
        depth: Hidden layers.
        batch: Rows of a batch, for each member.
        lr: Highest learning rate.
        record: As in `popflow.learn.fit`.
        checkpoint: As in `popflow.learn.fit`.
        bar: As in `popflow.learn.fit`.

    Raises:
        ValueError: when a column of values is constant.
    """
    mean, std = y.double().mean(0), y.double().std(0)
    constant = (std <= 1e-12 * mean.abs().clamp_min(1)).nonzero().flatten().tolist()
    if constant or len(y) < 2:
        raise ValueError(
            f"y is constant ({float(y[0].flatten()[0]):g} in all {len(y)} rows): there is nothing to learn. Fix: give other values, or an objective."
        )
    with rng.layers("surrogate"):
        net = Ensemble(x.shape[1], y.shape[1], members=members, width=width, depth=depth).to(x.device)
    target = ((y.double() - mean) / std).float()

    def batches(rng: Streams) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (members, batch), generator=rng("batch"), device=x.device)
        return x[rows], target[rows]

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        found = functional_call(net, params, (batch[0],))
        return (found - batch[1]).square().mean((1, 2)).sum(), {}

    _train(net, loss, batches, steps, lr, rng=rng, record=record, checkpoint=checkpoint, bar=bar)
    one = torch.ones_like(std)
    made = Surrogate(net, mean, std, one, one * math.nan)
    if not len(held[0]):
        return made
    predicted, spread = made.predict(held[0])
    error = held[1].double() - predicted
    factor = (error.square().mean(0) / spread.square().mean(0).clamp_min(1e-300)).sqrt() if members > 1 else one
    score = 1 - error.square().mean(0) / (held[1].double() - mean).square().mean(0).clamp_min(1e-300)
    return Surrogate(net, mean, std, factor, score)


@dataclass(frozen=True, eq=False)
class Guide:
    """``E[y | x + sigma eps]``, standardised.

    Attributes:
        network: Takes noisy rows, scaled to unit variance, and ``log sigma``.
    """

    network: ResidualMLP

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        """Return the expected values ``[rows, out]`` given noisy rows ``[rows, dim]``."""
        return self.network(y / math.sqrt(1 + sigma**2), y.new_full((len(y),), math.log(max(sigma, SIGMA_MIN))))


def learn_guide(
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    rng: Streams,
    width: int = 256,
    depth: int = 3,
    batch: int = 256,
    lr: float = 1e-3,
    record: Iterable[Callable[[Any], None]] = (),
    checkpoint: str | Path | None = None,
    bar: bool = False,
) -> Guide:
    """Fit a guide to standardised values ``y [n, out]`` of rows ``x [n, dim]``; noise levels are uniform in their logarithm."""
    with rng.layers("guide"):
        net = ResidualMLP(x.shape[1], y.shape[1], width, depth).to(x.device)

    def batches(rng: Streams) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(x), (batch,), generator=rng("batch"), device=x.device)
        sigma = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** rng.uniform("sigma", (batch,), x.dtype)
        noisy = x[rows] + sigma[:, None] * rng.normal("noise", x[rows])
        return noisy / (1 + sigma.square()).sqrt()[:, None], sigma.log(), y[rows]

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        return (functional_call(net, params, batch[:2]) - batch[2]).square().mean(), {}

    _train(net, loss, batches, steps, lr, rng=rng, record=record, checkpoint=checkpoint, bar=bar)
    return Guide(net)


def _train(net: nn.Module, loss: Callable[..., Any], batches: Callable[[Streams], Any], steps: int, lr: float, **given: Any) -> None:
    """Fit a network's parameters, which it then holds, frozen; further arguments are those of `popflow.learn.fit`."""
    optimizer, parameters = partial(torch.optim.AdamW, lr=lr, weight_decay=0.0), dict(net.named_parameters())
    found = fit(
        loss, parameters, batches, steps=steps, optimizer=optimizer, schedule=cosine(steps), checkpoint_every=500, compile=False, **given
    )
    net.load_state_dict(found.params, strict=False)
    net.requires_grad_(False).eval()
