r"""How typical a row is of the data: a score from the denoiser, calibrated against held-out rows.

The diffusion bound on the log-density of a row is, up to a constant (Kingma et al., *Variational diffusion models*, 2021),

    log p(x)  >=  - int d(log sigma)  E_eps |x - D(x + sigma eps, sigma)|^2 / sigma^2

an integral of how badly the row is recovered from noise. The score of a row is this integral with a sum over fixed noises. Its feasibility is the share
of held-out rows that score no better,

    (1 + #{held-out rows with score <= score of x}) / (1 + n)

a conformal p-value: for rows of the data's own distribution it is uniform, so that at most a share ``a`` of them has a feasibility below ``a``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.constrained.prior import Prior
from popflow.compose.target import scores
from popflow.core import Streams

LEVELS, NOISES = 12, 8
_HIGHEST = 2.0


@dataclass(frozen=True, eq=False)
class Feasibility:
    """A calibrated score.

    Attributes:
        prior: The prior.
        noises: Fixed noises, ``[LEVELS, NOISES, dim]``.
        held: Sorted scores of the held-out rows.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> x = Streams(0).normal("data", torch.empty(1000, 1))
        >>> prior = Prior.of(gaussian_mixture(torch.zeros(1, 1), 1.0), x, rng=Streams(0))
        >>> typical, odd = Feasibility.of(prior, x, Streams(1))(torch.tensor([[0.0], [5.0]])).tolist()
        >>> typical > 0.5, odd < 0.01
        (True, True)
    """

    prior: Prior
    noises: Tensor
    held: Tensor

    @staticmethod
    def of(prior: Prior, rows: Tensor, rng: Streams) -> Feasibility:
        """Calibrate on rows ``[n, dim]`` that the prior was not trained on."""
        half = rng.normal("feasibility", torch.empty(LEVELS, NOISES // 2, prior.dim, dtype=torch.float32, device=rows.device))
        noises = torch.cat([half, -half], 1)  # in pairs: a row gains nothing by leaning towards the mean of the noises
        made = Feasibility(prior, noises, torch.empty(0, dtype=torch.float64))
        return Feasibility(prior, noises, made.score(rows).sort().values)

    def score(self, x: Tensor) -> Tensor:
        """Return minus the integral for rows ``[n, dim]``, in float64: high is typical."""
        low, high = math.log(self.prior.sigma_min), math.log(_HIGHEST)
        width, total = (high - low) / LEVELS, []
        for part in x.split(4096):
            sums = torch.zeros(len(part), dtype=torch.float64, device=x.device)
            for k, noise in enumerate(self.noises):
                sigma = math.exp(low + (k + 0.5) * width)
                y = (part + sigma * noise[:, None].to(x)).flatten(0, 1)  # all noises of a level at once
                clean = y + sigma**2 * scores([self.prior.expert], y, sigma)[0]
                away = part - clean.unflatten(0, (len(noise), len(part)))
                sums -= (away.square().sum(-1) / sigma**2).double().mean(0) * width
            total.append(sums)
        return torch.cat(total)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the feasibility of rows, in (0, 1]."""
        below = torch.searchsorted(self.held.to(x.device), self.score(x), right=True)
        return (1 + below).double() / (1 + len(self.held))
