"""How accurate steps are, by a second evaluation on a few particles, and levels that are placed by it.

A step takes the backward kernel M of an expert for a Gaussian. The residual of Bayes' rule, ``R(y') = log M(y'|y) - log N(y; y', h) - log q'(y') / q(y)``, would be zero for
the true kernel. Its slope takes one more evaluation, at the end of the step:

    grad R  =  (s - dy (1 - c)/h) / c  -  s'(y'),         spread of R over the step  ~  std of 1/2 <grad R, y' - y - h s>

(exact where R is quadratic), in nats. It is zero for isotropic Gaussians at any step length, and falls with the step as ``log(sigma/sigma')`` for other experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from popflow.compose.backward_kernel import Variance, denoising_loss, kernel_variances
from popflow.compose.target import Expert, scores
from popflow.core import State, Streams

LOOK = 8
"""Particles of a look at the accuracy of a step."""
_RATIO = 1.25
"""Ratio of neighbouring levels at which the accuracy is probed to place levels."""


def step_spread(experts: Sequence[Expert], y: Tensor, sigma: float, sigma_next: float, variance: Variance, rng: Streams) -> Tensor:
    """Standard deviation of the residual of each expert over a step from ``y [n, *event]``, ``[M]`` in nats; flat spaces alone.

    Two evaluations of each expert; stream ``look``.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> pair = [gaussian_mixture(torch.tensor(m), 0.5) for m in ([[0.0]], [[-2.0], [2.0]])]
        >>> y = 2 * torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
        >>> one, two = step_spread(pair, y, 2.0, 1.0, "optimal", Streams(0)).tolist()
        >>> one < 1e-5, two > 0.05
        (True, True)
    """
    space, h = experts[0].home, sigma**2 - sigma_next**2
    s, out = scores(experts, y, sigma), []
    for k, c in enumerate(kernel_variances(experts, sigma, sigma_next, variance, y)):
        off = (h * c) ** 0.5 * space.project(rng.normal("look", y))
        dy = h * s[k] + off
        slope = (s[k] - dy * ((1 - c) / h)) / c - scores([experts[k]], space.move(y, dy), sigma_next)[0]
        out.append((slope * off).flatten(1).double().sum(1).std() / 2)
    return torch.stack(out)


def looking(
    experts: Sequence[Expert],
    levels: Tensor,
    variance: Variance,
    evaluations: int,
    exponents: Callable[[float], Sequence[float]] | None = None,
) -> Callable[[State], Tensor] | None:
    """Return a function of states that gives the discretisation of the step that follows, ``sqrt(sum beta_i^2 spread_i^2)``, and 0 where it does not look.

    It looks at `LOOK` particles every so many steps that it costs at most one in a hundred evaluations. Random numbers of its own leave those of the run alone.

    Args:
        experts: The experts of the run.
        levels: Its noise levels.
        variance: Width of its kernels; ``local`` counts as ``optimal``.
        evaluations: Evaluations of one expert in one step of the run.
        exponents: ``beta_i`` at a level; None for 1.

    Returns:
        None for runs too small for a single look, and in spaces that are not flat.
    """
    every = math.ceil(200 * LOOK / max(evaluations, 1))
    if every >= len(levels) or evaluations < LOOK or not experts[0].home.flat:
        return None

    def look(state: State) -> Tensor:
        k, total = state.k, torch.zeros((), dtype=torch.float64)
        if k % every or k + 1 >= len(levels) or float(levels[k + 1]) <= 0:
            return total
        rows, rng = state.pop.x.flatten(0, len(state.pop.batch)), Streams(k, state.pop.x.device)
        some = rows[torch.randperm(len(rows), generator=rng("rows"), device=rng.device)[:LOOK]]
        spread = step_spread(experts, some, float(levels[k]), float(levels[k + 1]), variance, rng)
        beta = [1.0] * len(experts) if exponents is None else exponents(float(levels[k]))
        return (torch.as_tensor(beta).to(spread) * spread).square().sum().sqrt()

    return look


def over_steps(looks: Tensor) -> float:
    """Discretisation of a whole run from its trace, as if steps were independent, ``sqrt(sum of squares)``: steps not looked at count as the mean of the others."""
    seen = looks[looks > 0].double()
    return float((seen.square().mean() * max(len(looks) - 1, 1)).sqrt()) if len(seen) else 0.0


def auto_levels(
    experts: Sequence[Expert], steps: int, sigma_min: float, sigma_max: float, *, particles: int = 32, like: Tensor | None = None
) -> Tensor:
    """Place ``steps + 1`` levels so that every step has the same share of the experts' residuals, decreasing, float64.

    Each expert sends a few particles down levels a factor 5/4 apart and tells the `step_spread` there, which grows as the logarithm of the ratio of levels; levels lie at equal
    parts of its integral over ``log sigma``, to which one half of its mean is added so that no stretch is crossed in few steps.

    Args:
        experts: The experts, in flat space.
        steps: Number of steps.
        sigma_min: Last level.
        sigma_max: First level.
        particles: Particles of the probe; each costs three evaluations a level.
        like: For device and dtype.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> thin = gaussian_mixture(torch.tensor([[-1.0], [1.0]]), 0.05)
        >>> levels = auto_levels([thin], 40, 0.01, 20.0)
        >>> int(((levels > 0.2) & (levels < 2.0)).sum()) > 15  # where it is decided which of the two
        True
    """
    space = experts[0].home
    if not space.flat:
        raise ValueError(f"levels='auto' in {space}, wanted a flat space: elsewhere steps are those of Euler-Maruyama, take linear ones.")
    if steps < 1 or not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"steps={steps}, sigma_min={sigma_min}, sigma_max={sigma_max}, wanted steps >= 1 and 0 < sigma_min < sigma_max.")
    count = max(1, math.ceil(math.log(sigma_max / sigma_min, _RATIO)))
    probe = [sigma_max * (sigma_min / sigma_max) ** (k / count) for k in range(count + 1)]
    rng = Streams(0, "cpu" if like is None else like.device)
    dtype = torch.float32 if like is None else like.dtype
    total = torch.zeros(count, dtype=torch.float64)
    for expert in experts:
        y = space.start(torch.empty(particles, *space.event, dtype=dtype, device=rng.device), sigma_max, 1.0, rng)
        denoising_loss(expert, sigma_max, y)
        for k in range(count):
            total[k] += float(step_spread([expert], y, probe[k], probe[k + 1], "optimal", rng)[0])
            h, c = probe[k] ** 2 - probe[k + 1] ** 2, kernel_variances([expert], probe[k], probe[k + 1], like=y)[0]
            y = space.move(y, h * scores([expert], y, probe[k])[0] + (h * c) ** 0.5 * space.project(rng.normal("noise", y)))
    density = total + total.mean() / 2 if float(total.mean()) > 1e-5 else torch.ones_like(total)
    along = torch.cat([density.new_zeros(1), density.cumsum(0)])
    wanted = torch.linspace(0, float(along[-1]), steps + 1, dtype=torch.float64)
    right = torch.searchsorted(along, wanted).clamp(1, count)
    share = (wanted - along[right - 1]) / (along[right] - along[right - 1])
    log = torch.tensor(probe, dtype=torch.float64).log()
    levels = torch.lerp(log[right - 1], log[right], share).exp()
    levels[0], levels[-1] = sigma_max, sigma_min
    return levels
