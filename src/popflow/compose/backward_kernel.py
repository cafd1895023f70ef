"""The Gaussian backward kernel of an expert: how wide a denoising step of any length is.

With ``y = x_0 + sigma eps`` one step goes from ``sigma`` to ``sigma' < sigma``; ``h = sigma^2 - sigma'^2`` and ``a = (sigma'/sigma)^2``. By Bayes' rule
every expert obeys, exactly and at every pair of points,

    q_{sigma'}(y') N(y; y', h I)  =  q_sigma(y) M(y'|y)

whose backward kernel M has the mean ``y + h s(y)`` (Tweedie) and the covariance ``a h I + (1 - a)^2 Cov(x_0 | y)``. It is taken for a Gaussian of that mean and
of variance ``c h`` in each coordinate, where the expert's *denoising loss* ``L(sigma) = E|eps - eps_theta(y)|^2 / d`` gives the average of its covariance:

    c  =  a + (1 - a) L(sigma)

``L = 1`` (c = 1) is Euler-Maruyama, right only while h is small; ``L = 0`` (c = a) is the posterior of DDPM, right when the data are one point. For an isotropic
Gaussian the kernel is exact at any step length.

Source: Bao et al., *Analytic-DPM: an analytic estimate of the optimal reverse variance in diffusion probabilistic models*, ICLR 2022,
arXiv:2201.06503 (there from ``1 - E|eps_theta|^2 / d``, which equals the loss in expectation and cancels at large noise).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from popflow.compose.spaces.products import ProductSpace
from popflow.compose.target import Expert, Loss, scores
from popflow.core import Streams
from popflow.core.calculus import values_and_divergences
from popflow.core.errors import unknown

Variance = Literal["optimal", "local", "euler", "posterior"]
"""Width of a step: from the expert's denoising loss; at each particle from the divergence of the score there, ``c = 1 + h tr(ds/dy) / d``, for one Jacobian-vector
product (second order in h on the line; superpositions track densities by curvature in several directions there, and move by the loss); that of Euler-Maruyama (c = 1); the
posterior of a point (c = a)."""
_FACTOR_OF_A_LEVEL = 2.0
"""Ratio of neighbouring levels where a loss is measured."""
_ROUNDING = 1e-6
"""How far above 1 a stated loss may lie."""


@dataclass(frozen=True)
class LossTable:
    """A denoising loss known at some noise levels: interpolated in ``log sigma``, ``L ~ 1/sigma^2`` above the last level, constant below the first.

    Attributes:
        levels: Noise levels, increasing.
        losses: ``L`` at them, clamped to [0, 1].

    Example:
        >>> table = LossTable((1.0, 4.0), (0.5, 0.1))
        >>> [round(table(sigma), 6) for sigma in (0.1, 2.0, 8.0)]
        [0.5, 0.3, 0.025]
    """

    levels: tuple[float, ...]
    losses: tuple[float, ...]

    def __post_init__(self):
        if len(self.levels) != len(self.losses) or not self.levels:
            raise ValueError(f"levels holds {len(self.levels)} and losses {len(self.losses)} numbers, wanted as many, and at least one.")
        if any(not b > a for a, b in zip((0.0, *self.levels), self.levels, strict=False)):
            raise ValueError(f"levels={self.levels}, wanted increasing noise levels above 0.")
        if not all(math.isfinite(loss) for loss in self.losses):
            raise ValueError(f"losses={self.losses}, wanted finite numbers: denoising losses per coordinate, between 0 and 1.")
        object.__setattr__(self, "losses", tuple(min(max(loss, 0.0), 1.0) for loss in self.losses))

    def __call__(self, sigma: float) -> float:
        """Return ``L(sigma)``."""
        k = bisect_right(self.levels, sigma)
        if k == 0:
            return self.losses[0]
        if k == len(self.levels):
            return self.losses[-1] * (self.levels[-1] / sigma) ** 2
        low, high = self.levels[k - 1], self.levels[k]
        return self.losses[k - 1] + math.log(sigma / low) / math.log(high / low) * (self.losses[k] - self.losses[k - 1])


def variance(loss: float, sigma: float, sigma_next: float) -> float:
    """Variance of a backward kernel in units of ``h``: ``c = a + (1 - a) L`` with ``a = (sigma'/sigma)^2``.

    Example:
        >>> variance(1.0, 2.0, 1.0), variance(0.0, 2.0, 1.0), variance(0.2, 2.0, 1.0)  # a Gaussian of variance 1: L = 1/5, c = 2/5
        (1.0, 0.25, 0.4)
    """
    a = (sigma_next / sigma) ** 2
    return a + (1 - a) * loss


def check_variance(kind: str) -> None:
    """Raise a ValueError naming the closest width for one that does not exist."""
    if kind not in get_args(Variance):
        raise ValueError(unknown("variance", kind, get_args(Variance)))


def kernel_variances(
    experts: Sequence[Expert], sigma: float, sigma_next: float, kind: Variance = "optimal", like: Tensor | None = None
) -> list[float | Tensor]:
    """Return ``c`` of each expert for a step: numbers, or tensors ``[*tangent]`` like ``like`` where the factors of a product of spaces differ.

    Factors of a product step by their own levels. Rotations, and products whose experts state no loss, keep the step of Euler-Maruyama.

    Args:
        experts: The experts, of one space.
        sigma: Noise level before the step.
        sigma_next: Noise level after it.
        kind: See `Variance`; ``local`` is known to a step alone (`scores_and_curvatures`), and stands for ``optimal`` here.
        like: The particles, for the device and dtype of tensors and of a loss that has to be measured first.

    Raises:
        ValueError: for an unknown ``kind``.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> a = gaussian_mixture(torch.zeros(1, 3), std=1.0)
        >>> [round(c, 6) for c in kernel_variances([a], 2.0, 1.0)]
        [0.4]
    """
    check_variance(kind)
    if kind == "euler":
        return [1.0] * len(experts)
    return [_one(expert, sigma, sigma_next, kind, like) for expert in experts]


def _one(expert: Expert, sigma: float, sigma_next: float, kind: Variance, like: Tensor | None) -> float | Tensor:
    space = expert.home
    if isinstance(space, ProductSpace):
        flat = [one.flat for one in space.factors]
        losses = [0.0 if one else 1.0 for one in flat] if kind == "posterior" else stated_losses(expert, sigma)
        c = [variance(*one) for one in zip(losses, space.levels(sigma), space.levels(sigma_next), strict=True)]
        return 1.0 if like is None or all(one == 1 for one in c) else space.spread(c, like)
    if kind == "posterior":
        return variance(0.0 if space.flat else 1.0, sigma, sigma_next)
    return variance(denoising_loss(expert, sigma, like), sigma, sigma_next)


def scores_and_curvatures(experts: Sequence[Expert], y: Tensor, sigma: float, rng: Streams) -> tuple[Tensor, Tensor]:
    """Scores ``[M, *batch, n, *event]`` and ``tr(ds/dy) / d`` at each particle, ``[M, *batch, n]``, by one random sign vector (exact on the line), in flat space.

    A backward kernel from there has the variance ``1 + h`` times the latter, in units of h.
    """
    space = experts[0].home
    rows = y.reshape(-1, *space.event).contiguous()
    sign = space.project((2.0 * (rng.normal("probe", y) > 0) - 1).to(y.dtype)).reshape(rows.shape)
    s, divergence = values_and_divergences(lambda point: scores(experts, point, sigma), rows, [sign])
    batch = y.shape[: y.ndim - len(space.event)]
    return s.reshape(len(experts), *y.shape), divergence.reshape(len(experts), *batch) / space.dim


def mean_precision(experts: Sequence[Expert], beta: Sequence[float], sigma: float, kind: Variance, like: Tensor) -> float | Tensor:
    """Precision per coordinate of ``prod q_i^{beta_i}`` at a level, ``sum beta_i (1 - L_i) / sigma^2``; 0 unless losses are asked for, and at least 0.

    It is exact for isotropic Gaussians, and corrects the noise of Langevin steps. One number for each tangent coordinate where factors differ.
    """
    if kind not in ("optimal", "local"):
        return 0.0
    space, total = experts[0].home, 0.0
    if isinstance(space, ProductSpace):
        for expert, b in zip(experts, beta, strict=True):
            losses = zip(stated_losses(expert, sigma), space.levels(sigma), strict=True)
            total = total + space.spread([b * (1 - loss) / level**2 for loss, level in losses], like)
        return total.clamp_min(0.0) if isinstance(total, Tensor) else total
    for expert, b in zip(experts, beta, strict=True):
        total += b * (1 - denoising_loss(expert, sigma, like)) / sigma**2
    return max(total, 0.0)


def stated_losses(expert: Expert, sigma: float) -> list[float]:
    """Return the losses that an expert states at a level, one for each factor of its space; 1, Euler-Maruyama, where it states none.

    Raises:
        ValueError: for anything but numbers in [0, 1], as many as wanted.
    """
    space = expert.home
    count = len(space.factors) if isinstance(space, ProductSpace) else 0
    if expert.loss is None:
        return [1.0] * max(count, 1)
    told = expert.loss(sigma)
    try:
        losses = [float(one) for one in (told if count and isinstance(told, Sequence) else [told])]  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, RuntimeError):
        losses = []
    if len(losses) != max(count, 1) or not all(0 <= loss <= 1 + _ROUNDING for loss in losses):
        wanted = f"one number for each of {count} factors" if count else "one number: its space is no product"
        without = "takes the steps of Euler-Maruyama" if not space.flat else "has it measured"
        raise ValueError(
            f"expert {expert.name!r}: loss({sigma:g}) is {told!r}, wanted {wanted}, of E|eps - eps_theta|^2 / d, in [0, 1]. "
            f"Fix: a LossTable holds measured ones; loss=None {without}."
        )
    return [min(loss, 1.0) for loss in losses]


def denoising_loss(expert: Expert, sigma: float, like: Tensor | None = None) -> float:
    """Return ``L(sigma)`` of an expert: its own, or one measured on its own samples (`measure_alone`) and kept as long as the expert lives.

    On spaces that are not flat an expert without a loss has 1, Euler-Maruyama.
    """
    if expert.loss is not None or not expert.home.flat:
        return stated_losses(expert, sigma)[0]
    table = _MEASURED.get(expert)
    if table is None:
        prepare([expert], [max(sigma, 20.0), min(sigma, 0.05)], 0, like)
        table = _MEASURED[expert]
    return table(sigma)


_MEASURED: WeakKeyDictionary[Expert, LossTable] = WeakKeyDictionary()


def prepare(experts: Sequence[Expert], levels: Sequence[float], evaluations: int, like: Tensor | None = None) -> None:
    """Measure the losses of experts that state none, for a run over these levels; `popflow.compose.sample` calls it first.

    Takes one in a hundred of the run's evaluations, or what a rough table needs if that is more. Nothing is measured twice. The outcome depends on the
    expert and the arguments alone, not on the run's random numbers.

    Args:
        experts: The experts of the run.
        levels: Its noise levels.
        evaluations: Evaluations of one expert in the run.
        like: The particles, for device and dtype.
    """
    first, last = max(levels), min(level for level in levels if level > 0)
    for expert in experts:
        if expert.loss is None and expert.home.flat and expert not in _MEASURED:
            each = 2 * (1 + math.ceil(math.log(first / last, _FACTOR_OF_A_LEVEL)))
            particles = min(max(evaluations // 100 // each, 2, 256 // expert.home.dim), 64)
            _MEASURED[expert] = measure_alone(expert, first, last, particles=particles, like=like)


def measure(expert: Expert, data: Tensor, levels: Sequence[float] | Tensor, rng: Streams) -> LossTable:
    """Measure a denoising loss from data: the mean of ``|eps - eps_theta(x_0 + sigma eps)|^2 / d``.

    Args:
        expert: The expert, in flat space.
        data: ``[N, *event]``, what it was trained on, as far as it is at hand; a thousand rows give ``L`` to some per cent of itself in one dimension.
        levels: Noise levels, in any order.
        rng: Random streams: ``loss``. One draw of noise serves all levels.

    Raises:
        ValueError: for data of another shape, or a space that is not flat.

    Example:
        >>> from dataclasses import replace
        >>> from popflow.compose import gaussian_mixture
        >>> a = gaussian_mixture(torch.zeros(1, 8), std=1.0)
        >>> table = measure(a, torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)), [0.5, 1.0, 2.0], Streams(0))
        >>> [round(loss, 1) for loss in table.losses]  # 1 / (1 + sigma^2)
        [0.8, 0.5, 0.2]
        >>> known = replace(a, loss=table)
    """
    space = expert.home
    if tuple(data.shape[1:]) != space.event or not len(data):
        raise ValueError(f"data has shape {tuple(data.shape)}, wanted [N, {', '.join(map(str, space.event))}]: samples of {expert.name!r}.")
    _check_flat(expert)
    noise = space.project(rng.normal("loss", data))
    losses = {}
    for sigma in sorted(float(level) for level in levels):
        wrong = noise + sigma * scores([expert], space.move(data, sigma * noise), sigma)[0]
        losses[sigma] = float(wrong.double().square().sum()) / (len(data) * space.dim)
    return LossTable(tuple(losses), tuple(losses.values()))


def _check_flat(expert: Expert) -> None:
    if not expert.home.flat:
        raise ValueError(f"expert {expert.name!r} lives in {expert.home}, wanted a flat space: elsewhere noise is not added.")


def measure_alone(expert: Expert, first: float, last: float, *, particles: int = 16, like: Tensor | None = None) -> LossTable:
    """Measure a denoising loss without data, on samples that the expert makes itself.

    A few particles go down levels a factor of two apart by the backward kernel, with the losses as they are found: ``L = 1 - sigma tr(d eps/dy) / d``,
    which equals the loss for a true score; the trace by a random sign vector and a difference over a tenth of sigma (half precision suffices). The best
    linear denoiser, ``v / (v + sigma^2)`` for the variance v of the samples, bounds it from above: at large noise the trace is near d and says little.

    Args:
        expert: The expert, in flat space.
        first: Highest noise level.
        last: Lowest.
        particles: Number of particles; twice as many rows are evaluated at each level.
        like: For device and dtype; None for float32 on the CPU.

    Raises:
        ValueError: for a space that is not flat, and levels or a number of particles out of range.

    Example:
        >>> from dataclasses import replace
        >>> from popflow.compose import gaussian_mixture
        >>> a = gaussian_mixture(torch.zeros(1, 8), std=1.0)
        >>> table = measure_alone(replace(a, loss=None), 16.0, 0.25)
        >>> [round(table(sigma), 2) for sigma in (0.5, 1.0, 2.0)]
        [0.8, 0.5, 0.2]
    """
    space = expert.home
    _check_flat(expert)
    if not 0 < last <= first < math.inf or particles < 1:
        raise ValueError(f"first={first}, last={last}, particles={particles}, wanted 0 < last <= first and at least one particle.")
    rng, dtype = Streams(0, "cpu" if like is None else like.device), torch.float32 if like is None else like.dtype
    empty = torch.empty(particles, *space.event, dtype=dtype, device=rng.device)
    steps = max(1, math.ceil(math.log(first / last, _FACTOR_OF_A_LEVEL))) if first > last else 0
    levels = [first * (last / first) ** (k / max(steps, 1)) for k in range(steps + 1)]
    y, losses, clean = space.start(empty, first, 1.0, rng), [], empty
    for k, sigma in enumerate(levels):
        sign = space.project((2.0 * (rng.normal("probe", empty) > 0) - 1).to(dtype))
        s, near = scores([expert], torch.cat([y, space.move(y, 0.1 * sigma * sign)]), sigma)[0].split(particles)
        slope = (sign * (s - near)).double().sum() / (0.1 * sign.double().square().sum())  # sigma tr(d eps/dy) / d
        losses.append(min(max(1 - sigma * float(slope), 0.0), 1.0))
        clean = y + sigma**2 * s
        if k < steps:
            h = sigma**2 - levels[k + 1] ** 2
            noise = space.project(rng.normal("noise", empty))
            y = space.move(y, h * s + math.sqrt(h * variance(losses[-1], sigma, levels[k + 1])) * noise)
    spread = float((clean - clean.mean(0)).double().square().sum()) / (max(particles - 1, 1) * space.dim) + losses[-1] * last**2
    bounded = [min(loss, spread / (spread + sigma**2)) for loss, sigma in zip(losses, levels, strict=True)]
    return LossTable(tuple(reversed(levels)), tuple(reversed(bounded)))


def loss_of_mixture(expert: Callable[[Tensor, float], Tensor], centres: Tensor, stds: Tensor, shares: Tensor) -> Loss:
    """Denoising loss of ``sum_k w_k N(m_k, c_k^2 I)``: exact for one component, else measured once, when first asked, on samples of its own.

    Args:
        expert: ``expert(y [rows, d], sigma) -> epsilon``.
        centres: ``m_k``, ``[K, d]`` in float64.
        stds: ``c_k``, ``[K]``.
        shares: ``w_k``, ``[K]``.
    """
    stds, shares = stds.to(centres), shares.to(centres)
    if len(centres) == 1:
        v = float(stds[0]) ** 2
        return lambda sigma: v / (v + sigma**2)
    found: list[LossTable] = []

    def loss(sigma: float) -> float:
        if not found:
            found.append(_of_samples(expert, centres, stds, shares))
        return found[0](sigma)

    return loss


def _of_samples(expert: Callable[[Tensor, float], Tensor], centres: Tensor, stds: Tensor, shares: Tensor) -> LossTable:
    """At most 2^22 distances at a time, and 16384 samples in one dimension, fewer in more: L to about one per cent of itself."""
    (count, dim), rng = centres.shape, Streams(0, centres.device)
    rows = max(256, min(2**22 // count, 2**14 // max(1, round(dim**0.5))))
    which = torch.multinomial(shares, rows, replacement=True, generator=rng("which"))
    within, noise = (rng.normal(name, centres.new_empty(rows, dim)) for name in ("data", "loss"))
    x = centres[which] + stds[which, None] * within
    total = math.sqrt(float((shares @ (centres - shares @ centres).square()).sum() / dim + shares @ stds.square()))
    thinnest = float(stds.min()) or 1e-2 * total
    lowest, highest = 0.05 * thinnest, 20 * max(total, thinnest)
    levels = torch.logspace(math.log10(lowest), math.log10(highest), 1 + math.ceil(math.log(highest / lowest) / 0.25)).tolist()
    return LossTable(tuple(levels), tuple(float((noise - expert(x + sigma * noise, sigma)).square().mean()) for sigma in levels))
