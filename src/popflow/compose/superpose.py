"""SuperDiff: several models mixed by their own log-densities, which are tracked along the path at no cost.

With the Gaussian backward kernel ``M_i`` of each model, of mean ``y + h s_i`` and variance ``c_i h`` (`popflow.compose.backward_kernel`), every step from sigma to
sigma', ``h = sigma^2 - sigma'^2``, changes the log-densities by Bayes' rule, however the move ``dy`` was chosen:

    d log q_i = log M_i(y + dy | y) - log N(y; y + dy, h)  =  -|dy - h s_i|^2 / (2 c_i h) - (d/2) log c_i + |dy|^2 / (2 h)

For ``c_i = 1`` this is ``<s_i, dy> - 1/2 |s_i|^2 h``: the Ito sum of the paper, which is also its detailed-balance estimator on this clock. It holds only along
paths driven with the noise of the reverse diffusion. Without noise the divergence of the score appears instead.

- `either` (OR, the mixture): ``kappa = softmax(T log q_i + bias_i)``;
- `both` (AND): ``kappa`` such that all ``log q_i`` become alike, given this step's noise;
- `average`: equal ``kappa``.

Source: Skreta et al., *The superposition of diffusion models using the Ito density estimator*, ICLR 2025, arXiv:2412.17762: theorem 1 and
propositions 3 to 6 (``variance="euler"``); with other widths of the kernels derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popflow.compose.backward_kernel import Variance
from popflow.compose.conjunction import Differences, equalise
from popflow.compose.sampler import Sampler
from popflow.compose.stranded import without_stranded
from popflow.compose.superposition import Field, Guidance, Superposition
from popflow.compose.target import Expert


def either(
    experts: Sequence[Expert],
    *,
    temperature: float = 1.0,
    bias: Sequence[float] | None = None,
    guidance: Guidance | None = None,
    deterministic: bool = False,
    probes: int | None = 1,
    variance: Variance = "optimal",
) -> Sampler:
    """OR: the mixture ``sum_i w_i q_i``, by ``kappa_i = softmax(T log q_i + bias_i)``.

    Args:
        experts: Two or more.
        temperature: ``T``; 1 is the exact mixture, a large one takes the likeliest model alone.
        bias: ``log w_i``; None for equal shares.
        guidance: Classifier-free guidance of the mixed score.
        deterministic: Follow the probability-flow ODE; densities then need the divergence of each score.
        probes: Rademacher probes of that divergence (one Jacobian-vector product each); None for the exact one, d products. With curvature: random
            directions of second derivatives, beside that of the move.
        variance: Width of the backward kernels: "optimal" from each expert's denoising loss, "euler" for that of Euler-Maruyama (published), "posterior"
            for that of a point, or "local" to track by Jacobian-vector products at every particle (and move by "optimal").

    Raises:
        ValueError: for fewer than two experts, experts of different spaces, or an argument out of range.
        TypeError: for a product or power among the experts.

    Example:
        >>> import torch
        >>> from popflow.compose import either, gaussian_mixture, karras, sample
        >>> from popflow.core import Streams
        >>> left, right = (gaussian_mixture(torch.tensor([[m]]), 0.3) for m in (-2.0, 2.0))
        >>> out = sample(either([left, right]), karras(100, 0.01, 20.0), particles=1024, rng=Streams(0))
        >>> abs(float((out.x > 0).float().mean()) - 0.5) < 0.1
        True
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}, wanted a positive number: 1 is the exact mixture, 1e6 the likeliest model alone.")
    offset = _bias(bias, experts)

    def plan(log_q: Tensor, field: Field, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        shares = _plus(temperature * log_q, offset).softmax(-1)
        displacement, part = field.move(shares, noise, mixture=True)
        return shares, displacement, field.gains(displacement, part)

    return Superposition(tuple(experts), guidance, deterministic, probes, variance).sampler(plan)


def average(
    experts: Sequence[Expert],
    *,
    guidance: Guidance | None = None,
    deterministic: bool = False,
    probes: int | None = 1,
    variance: Variance = "optimal",
) -> Sampler:
    """Equal shares of every score (the baseline known as composable diffusion), with densities tracked; arguments as in `either`."""

    def plan(log_q: Tensor, field: Field, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        shares = torch.full_like(log_q, 1 / len(experts))
        displacement, part = field.move(shares, noise, mixture=False)
        return shares, displacement, field.gains(displacement, part)

    return Superposition(tuple(experts), guidance, deterministic, probes, variance).sampler(plan)


def both(
    experts: Sequence[Expert],
    *,
    guidance: Guidance | None = None,
    ridge: float = 1e-6,
    feedback: float = 0.1,
    bias: Sequence[float] | None = None,
    deterministic: bool = False,
    probes: int | None = 1,
    variance: Variance = "optimal",
    tolerance: float | None = None,
) -> Sampler:
    """AND: follow the surface on which all models give the sample the same density.

    At each step the noise is drawn first, without its part along the differences of the scores, and ``kappa = 1/M + delta`` (``sum delta = 0``) moves the sample
    in their span, by ``w h sum delta_i s_i``, to where all tracked ``log q_i - bias_i`` have come closer by ``feedback``. The changes are quadratic in the move:
    for two experts the root nearest to zero is taken, the vertex of the parabola where it has none; for more, Newton's method. A move is no longer than
    ``3 sqrt(h)``. It does not depend on the order of the experts and falls back to equal shares where they agree.

    With Euler's kernels (``variance="euler"``, ``feedback=0``) the changes are linear, the noise along the differences is part of ``kappa``, moves have no bound, and with
    the centred scores ``c_i = s_i - mean s`` this is the published system

        w h (C C^T + ridge tr(C C^T)/M I) delta = -centred(<s_i, dy_0> - h |s_i|^2 / 2) - feedback centred(log q_i - bias_i)

    where ``dy_0`` is the step at equal shares. It keeps the *tracked* densities equal, not the true ones: its shares read the noise of their own step, which then
    lacks the noise along the differences that the Ito sum takes for granted. For Gaussians of widths .3 and 1.5 at distance 1 the true ones differ by
    1.4, 1.6 and 1.6 nats at 100, 400 and 1600 steps.

    Args:
        experts: Two or more; with M > d + 1 there is no solution, and the nearest is taken.
        guidance: Classifier-free guidance of the mixed score.
        ridge: Relative ridge; 0 for the exact solution. kappa is unbounded where models nearly agree, a ridge of 1e-4 tames it.
        feedback: Share of the present gap in log-densities that each step closes, in [0, 1]: removes differences at the start (where exact
            densities are known) and what rounding, the ridge and the bound leave over; 0 is the published form.
        bias: Wanted differences of the log-densities, reached through ``feedback``; None for equal ones.
        deterministic: As in `either`.
        probes: As in `either`.
        variance: As in `either`. What AND is worth is the accuracy of its densities: "optimal" costs nothing and is exact for Gaussian experts; "local", for
            two experts and one probe three Jacobian-vector products a step, is of second order: true gaps vanish with the step.
        tolerance: Weigh particles by ``exp(-gap^2 / (2 tolerance^2))``, the gap being what was left open of the differences of their tracked log-densities, in nats, and
            resample them: those stranded where no move makes the experts agree give way to copies of others. None weighs nothing; particles are then independent.

    There is no stationary target density: this is a process on an iso-surface, not the product and not the minimum. Where two experts have the same score and
    different densities (the same training image among unequally many) no move closes the gap.

    Raises:
        ValueError, TypeError: as `either`.

    Example:
        >>> import torch
        >>> from popflow.compose import both, gaussian_mixture, karras, sample
        >>> from popflow.core import Streams
        >>> narrow, wide = (gaussian_mixture(torch.tensor([[m, 0.0]]), s) for m, s in ((0.0, 0.3), (1.0, 1.5)))
        >>> out = sample(both([narrow, wide]), karras(50, 0.01, 20.0), particles=64, rng=Streams(0))
        >>> gap = narrow.log_prob(out.x[0], 0.01) - wide.log_prob(out.x[0], 0.01)  # of the true densities
        >>> bool(gap.abs().max() < 0.01)
        True
    """
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge}, wanted a number >= 0.")
    if not 0 <= feedback <= 1:
        raise ValueError(f"feedback={feedback}, wanted a share in [0, 1].")
    if bias is not None and feedback == 0:
        raise ValueError(f"bias={list(bias)} has no effect in AND with feedback=0, wanted feedback above 0: 0.1 is usual.")
    if guidance is not None and guidance.w == 0:
        raise ValueError(
            "guidance.w=0 in AND, wanted another weight: with 0 the shares have no effect, and no solution. 1 means no guidance."
        )
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}, wanted nats above 0, or None to weigh nothing.")
    offset = _bias(bias, experts)

    def plan(log_q: Tensor, field: Field, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        equal = torch.full_like(log_q, 1 / len(experts))
        displacement, part = field.move(equal, noise, mixture=False)
        of = Differences.of(field.rows, torch.finfo(log_q.dtype).eps)
        if not field.euler:  # without the noise along the differences; Euler's shares take it out again
            taken = ((field.flat(part).unsqueeze(-2) @ of.basis.mT) @ of.basis).squeeze(-2)
            displacement, part = (one - taken.reshape(one.shape).to(one) for one in (displacement, part))
        value, slope, bend = field.quadratic(displacement, part, of.basis)
        missing = value + feedback * _plus(log_q, None if offset is None else -offset)
        p = equalise(of, missing, slope, bend, ridge, math.inf if field.euler else 3 * math.sqrt(field.h))
        gains = value + (slope @ p.unsqueeze(-1)).squeeze(-1) + (p[..., None, None, :] @ bend @ p[..., None, :, None])[..., 0, 0] / 2
        on = (p.unsqueeze(-2) @ of.basis).reshape(displacement.shape)
        return (equal + of.shares(p, field.reach)).to(log_q), displacement + on.to(displacement), gains.to(log_q)

    sampler = Superposition(tuple(experts), guidance, deterministic, probes, variance).sampler(plan)
    return sampler if tolerance is None else without_stranded(sampler, tolerance, feedback, offset)


def _plus(log_q: Tensor, offset: Tensor | None) -> Tensor:
    """Add offsets if there are any; moving them to an accelerator would make the loop wait."""
    return log_q if offset is None else log_q + offset.to(log_q)


def _bias(bias: Sequence[float] | None, experts: Sequence[Expert]) -> Tensor | None:
    if bias is None:
        return None
    offset = torch.as_tensor(bias, dtype=torch.float64)
    if offset.shape != (len(experts),) or not bool(offset.isfinite().all()):
        raise ValueError(f"bias={offset.tolist()}, wanted one finite number for each of {len(experts)} experts.")
    return offset
