"""Learn the score of a Boltzmann distribution at every noise level from samples and forces.

Noised samples ``y = x_0 + sigma z`` (``z`` centred, in ``(n - 1) d`` dimensions) give two unbiased targets for ``grad log q(y, sigma)``: denoising,
``-z/sigma``, and the score of the clean sample, ``f = -grad E(x_0)/T``, which any translation carries along. Their conditional means are equal and
they are uncorrelated, so the combination of least variance is

    s* = w f - (1 - w) z / sigma,   w = 1 / (1 + J sigma^2),   J = E|f|^2 / ((n - 1) d)   (Fisher information of a coordinate)

whose mean square is ``J / (1 + J sigma^2)`` a coordinate. At small noise, where the stiff repulsion has to be learned, its variance is below that of denoising
by orders of magnitude. The loss is the error of the preconditioned network in units of that size.

Source: Vincent (2011); De Bortoli et al., *Target score matching*, arXiv:2402.08667 (2024); Karras et al. (2022) for the preconditioning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from popflow.compose.particles.energies import Cluster, apart
from popflow.compose.particles.network import PairNetwork, size
from popflow.core import Streams
from popflow.learn.learner import Loss

Batch = tuple[Tensor, Tensor, Tensor]
"""``y``, the noise level of each row, and ``s*``."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of ``exp(-E/T)`` and their scores.

    Attributes:
        x: Centred configurations ``[N, n, d]``.
        score: ``-grad E(x) / T``, shaped like it.
        information: ``J``, mean square of a coordinate of the score.
        spread: Standard deviation of a coordinate of ``x``.
    """

    x: Tensor
    score: Tensor
    information: float
    spread: float


def samples_of(system: Cluster, temperature: float, x: Tensor) -> Samples:
    """Return samples with their scores, in float32; forces are computed in float64."""
    x = apart(system, system.space.check(x.double()))
    score = system.energy_and_force(x)[1] / temperature
    count = len(x) * system.space.dim
    return Samples(x.float(), score.float(), float(score.square().sum() / count), float((x.square().sum() / count).sqrt()))


def noised(samples: Samples, rows: int, levels: Callable[[Tensor], Tensor]) -> Callable[[Streams], Batch]:
    """Return a function that draws batches; ``levels`` maps uniform numbers in [0, 1) to noise levels."""

    def draw(rng: Streams) -> Batch:
        index = torch.randint(len(samples.x), (rows,), generator=rng("rows"))
        x_0, score = samples.x[index], samples.score[index]
        sigma = levels(rng.uniform("level", (rows,), torch.float32))
        z = rng.normal("noise", x_0)
        z, level = z - z.mean(1, keepdim=True), sigma.view(-1, 1, 1)
        w = 1 / (1 + samples.information * level**2)
        return x_0 + level * z, sigma, w * score - (1 - w) * z / level

    return draw


def score_matching(network: PairNetwork, spread: float) -> Loss:
    """Mean square error of ``F(c_in y, log(sigma)/4)`` in units of `size`; the target of F follows from ``D = y + sigma^2 s*``.

    ``D = c_skip y + c_out F`` with ``sigma_data = spread``: ``F* = y sigma/(spread r) + sigma r s*/spread``, ``r^2 = sigma^2 + spread^2``.
    """

    def loss(params: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        y, sigma, score = batch
        level = sigma.view(-1, 1, 1)
        total = (level**2 + spread**2).sqrt()
        wanted = level / spread * (y / total + total * score)
        out = functional_call(network, params, (y / total, sigma.log() / 4))
        wrong = ((out - wanted) / size(level, network.stiff)).square()
        low = wrong.detach().mean((1, 2))[sigma < network.stiff].sum() / len(sigma)
        return wrong.mean(), {"stiff": low}

    return loss


def mostly_below(knee: float, lowest: float, highest: float, share: float = 0.75) -> Callable[[Tensor], Tensor]:
    """Noise levels log-uniform between ``lowest`` and ``knee`` with probability ``share``, otherwise between ``knee`` and ``highest``.

    >>> mostly_below(1.0, 0.01, 100.0, 0.5)(torch.tensor([0.0, 0.25, 0.5, 0.75])).log10().tolist()
    [-2.0, -1.0, 0.0, 1.0]
    """
    if not 0 < lowest < knee < highest < math.inf or not 0 < share < 1:
        raise ValueError(
            f"lowest={lowest}, knee={knee}, highest={highest}, share={share}, wanted 0 < lowest < knee < highest and a share in (0, 1)."
        )

    def levels(u: Tensor) -> Tensor:
        below = lowest * (knee / lowest) ** (u / share)
        return torch.where(u < share, below, knee * (highest / knee) ** ((u - share) / (1 - share)))

    return levels
