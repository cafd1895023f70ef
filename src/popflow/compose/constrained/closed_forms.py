r"""Problems whose answers are known: Gaussian mixtures tilted by a quadratic, and Branin's function inside an ellipse of data.

For ``p = sum_k w_k N(m_k, s^2 I)`` and ``h = (x - c)^T A (x - c) / 2``,

    p exp(-beta h)  proportional to  sum_k w'_k N(mu_k, Lambda^-1)
    Lambda = I / s^2 + beta A        mu_k = Lambda^-1 (m_k / s^2 + beta A c)
    log w'_k = log w_k - (|m_k|^2 / s^2 + beta c^T A c - mu_k^T Lambda mu_k) / 2
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.experts import gaussian_mixture
from popflow.compose.target import Expert
from popflow.core import Streams

MINIMA = torch.tensor([[-math.pi, 12.275], [math.pi, 2.275], [9.42478, 2.475]], dtype=torch.float64)
"""The minima of Branin's function, where it is 0.397887. The first two lie in the ellipse."""


@dataclass(frozen=True, eq=False)
class TiltedMixture:
    """The mixture and the quadratic.

    Attributes:
        means: ``m_k``, ``[K, d]``.
        weights: ``w_k``, ``[K]``.
        std: ``s``.
        centre: ``c``, ``[d]``; ``A`` is the identity.
    """

    means: Tensor
    weights: Tensor
    std: float
    centre: Tensor

    def expert(self) -> Expert:
        """Return the mixture with its exact score."""
        return gaussian_mixture(self.means, self.std, self.weights)

    def draw(self, n: int, rng: Streams) -> Tensor:
        """Draw from the mixture, ``[n, d]``."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=rng("component"))
        centres = self.means[which]
        return centres + self.std * rng.normal("component", centres)

    def h(self, x: Tensor) -> Tensor:
        """Return the quadratic of rows ``[..., d]``."""
        return (x - self.centre.to(x)).square().sum(-1) / 2

    def truth(self, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean ``[d]``, covariance ``[d, d]`` and weights of the modes ``[K]`` of the tilted mixture.

        >>> [round(w, 3) for w in three_modes().truth(4.0)[2].tolist()]
        [0.0, 0.902, 0.098]
        """
        means, c = self.means.double(), self.centre.double()
        precision = 1 / self.std**2 + beta
        mu = (means / self.std**2 + beta * c) / precision
        log_w = self.weights.double().log() - (means.square().sum(1) / self.std**2 - precision * mu.square().sum(1)) / 2
        w = log_w.softmax(0)
        mean = w @ mu
        away = mu - mean
        return mean, torch.eye(len(c), dtype=torch.float64) / precision + (w[:, None] * away).T @ away, w

    def modes(self, beta: float, x: Tensor, weights: Tensor) -> Tensor:
        """Return the weight of each mode among weighted rows: expected memberships under the tilted mixture, ``[K]``."""
        means, c = self.means.double(), self.centre.double()
        precision = 1 / self.std**2 + beta
        mu = (means / self.std**2 + beta * c) / precision
        log = self.truth(beta)[2].log() - precision / 2 * torch.cdist(x.double(), mu).square()
        return weights.double() @ log.softmax(1)


def three_modes() -> TiltedMixture:
    """Return three modes of width 0.4 in the plane, and a quadratic about (1, 1)."""
    return TiltedMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]]), torch.tensor([0.4, 0.4, 0.2]), 0.4, torch.tensor([1.0, 1.0]))


def branin(x: Tensor) -> Tensor:
    """Branin's function of rows ``[..., 2]``.

    >>> [round(value, 4) for value in branin(MINIMA).tolist()]
    [0.3979, 0.3979, 0.3979]
    """
    a, b = x[..., 0], x[..., 1]
    return (b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * torch.cos(a) + 10


def ellipse(x: Tensor) -> Tensor:
    """Squared radius of rows ``[..., 2]`` in the rotated ellipse of the data: at most 1 inside."""
    angle = math.radians(25)
    dx, dy = x[..., 0] + 0.2, x[..., 1] - 7.5
    along, across = dx * math.cos(angle) + dy * math.sin(angle), dx * math.sin(angle) - dy * math.cos(angle)
    return (along / 3.6) ** 2 + (across / 8.0) ** 2


def branin_rows() -> Tensor:
    """Return the 6040 of 10 000 uniform rows in [-5, 5] x [0, 15] that lie in the ellipse (those of Kong et al.), ``[6040, 2]`` in float64.

    >>> len(branin_rows())
    6040
    """
    import numpy as np

    draws = np.random.RandomState(42)
    x = torch.from_numpy(np.stack([draws.uniform(-5, 5, 10_000), draws.uniform(0, 15, 10_000)], 1))
    return x[ellipse(x) <= 1]
