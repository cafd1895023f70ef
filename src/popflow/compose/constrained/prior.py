r"""The prior ``p(x)``: draws from it, and moves that leave it invariant.

**The noise-denoise move.** Noise a row to a level, ``y = x + sigma eps``, and draw a clean row of the posterior ``p(x' | y)`` by the reverse diffusion from that
level. The pair ``(x, y)`` has the density ``p(x) N(y; x, sigma^2)``, in which ``x`` and ``x'`` play the same part: the move is reversible with respect to
``p``, whatever the level. No density has to be known, so it can be the proposal of a Metropolis rule in which ``p`` cancels (`tempering`).

**The reverse step** from level ``sigma`` to ``tau`` is Gaussian. With ``D = E[x | y]`` and the mean posterior variance ``r_j sigma^2`` of each coordinate,

    mean  D + (tau / sigma)^2 (y - D)
    variance  tau^2 (1 - (tau / sigma)^2)  +  (1 - (tau / sigma)^2)^2 sigma^2 r_j(sigma)

which are the true mean and, averaged over ``y``, the true variance of ``p(y_tau | y_sigma)`` (Bao et al., *Analytic-DPM*, ICLR 2022). The usual choices are its
limits ``r = 0`` and ``r = 1``. ``r`` is measured on rows when the prior is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, positive

from popflow.compose.target import Expert, scores
from popflow.core import Streams

_LEVELS, _FLOOR = 32, 0.03


@dataclass(frozen=True, eq=False)
class Prior:
    """A diffusion model of rows.

    Attributes:
        expert: Its score at every noise level; samples have the shape ``[dim]``.
        sigma_min: Least noise level.
        sigma_max: Largest noise level, at which noised rows are as good as Gaussian.
        grid: ``log sigma`` of the table of posterior variances, ascending.
        spread: ``r_j(sigma)``, ``[levels, dim]``.
        snap: Returns the valid row nearest to a sample: whole categories.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> expert = gaussian_mixture(torch.tensor([[-1.0], [1.0]]), 0.3)
        >>> prior = Prior.of(expert, torch.tensor([[-1.0], [1.0]]).repeat(500, 1), rng=Streams(0))
        >>> x = prior.draw(2000, Streams(0), steps=40)
        >>> abs(float(x.square().mean()) - 1.09) < 0.05
        True
    """

    expert: Expert
    sigma_min: float
    sigma_max: float
    grid: Tensor
    spread: Tensor
    snap: Callable[[Tensor], Tensor] = positive

    @staticmethod
    def of(
        expert: Expert,
        rows: Tensor,
        *,
        rng: Streams,
        sigma_min: float = 0.01,
        sigma_max: float = 10.0,
        snap: Callable[[Tensor], Tensor] = positive,
    ) -> Prior:
        """Make a prior of an expert; rows ``[n, dim]`` that it models serve to measure its posterior variances."""
        rows = rows[:2000]
        rows = rows.repeat(math.ceil(512 / len(rows)), 1) if len(rows) < 512 else rows
        grid = torch.linspace(math.log(sigma_min), math.log(sigma_max), _LEVELS, dtype=torch.float64)
        spread = []
        for sigma in grid.exp().tolist():
            y = rows + sigma * rng.normal("spread", rows)
            clean = y + sigma**2 * scores([expert], y, sigma)[0]
            spread.append(((rows - clean).square().mean(0) / sigma**2).clamp(0, 1))
        return Prior(expert, sigma_min, sigma_max, grid, torch.stack(spread).double(), snap)

    @property
    def dim(self) -> int:
        """Coordinates of a row."""
        return self.expert.event[0]

    def score(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Return ``grad log p`` of rows ``[..., dim]``, at the least noise level unless another one is given."""
        return scores([self.expert], x, self.sigma_min if sigma is None else sigma)[0]

    def draw(self, n: int, rng: Streams, steps: int = 60, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw rows ``[n, dim]``."""
        start = torch.empty(n, self.dim, dtype=dtype, device=self.spread.device)
        y = math.sqrt(1 + self.sigma_max**2) * rng.normal("prior", start)
        return self.reverse(y, self.sigma_max, steps, rng)

    def renoise(self, x: Tensor, sigma: float, steps: int, rng: Streams) -> Tensor:
        """Noise rows ``[..., dim]`` to a level and denoise them: a move that is reversible with respect to ``p``."""
        return self.reverse(x + sigma * rng.normal("renoise", x), sigma, steps, rng)

    def reverse(self, y: Tensor, sigma: float, steps: int, rng: Streams) -> Tensor:
        """Draw clean rows of ``p(x | y)`` for ``y [..., dim]`` at a noise level."""
        levels = self.levels(sigma, steps)
        for now, then in pairwise(levels):
            clean = y + now**2 * scores([self.expert], y, now)[0]
            keep = (then / now) ** 2
            variance = then**2 * (1 - keep) + (1 - keep) ** 2 * now**2 * self._spread(now)
            y = clean + keep * (y - clean) + variance.sqrt().to(y) * rng.normal("reverse", y)
        return self.snap(y)

    def levels(self, sigma: float, steps: int) -> list[float]:
        """Return ``steps`` noise levels from ``sigma`` down, and 0: dense in ``log sigma`` where ``r`` is far from 0 and from 1.

        In both limits the Gaussian step is exact, however long it is.
        """
        low = min(self.sigma_min, sigma / 2)
        at = torch.linspace(math.log(sigma), math.log(low), 8 * _LEVELS, dtype=torch.float64)
        r = torch.stack([self._spread(math.exp(one)) for one in at.tolist()])
        density = (r * (1 - r)).mean(1).sqrt() + _FLOOR
        passed = torch.cat([torch.zeros(1, dtype=torch.float64), ((density[1:] + density[:-1]) / 2).cumsum(0)])
        wanted = torch.linspace(0, float(passed[-1]), max(steps, 2), dtype=torch.float64)
        k = torch.searchsorted(passed, wanted).clamp(1, len(passed) - 1)
        share = (wanted - passed[k - 1]) / (passed[k] - passed[k - 1])
        return [*torch.lerp(at[k - 1], at[k], share).exp().tolist(), 0.0]

    def _spread(self, sigma: float) -> Tensor:
        """Interpolate the table of posterior variances, linear in ``log sigma``; ``[dim]``."""
        place = (math.log(sigma) - float(self.grid[0])) / float(self.grid[1] - self.grid[0])
        low = min(max(int(place), 0), len(self.grid) - 2)
        return torch.lerp(self.spread[low], self.spread[low + 1], min(max(place - low, 0.0), 1.0))
