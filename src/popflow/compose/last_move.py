"""Curvature of the experts at each particle, from the change of their scores along its last move: no further call of an expert.

The score of an isotropic Gaussian changes along any move ``dy`` from ``sigma`` to a lower level by

    s' - s  =  H' (dy - h s),      h = sigma^2 - sigma'^2,      H' = tr(ds'/dy) / d

whatever chose the move. With ``o = dy - h s`` every particle thus knows the curvature of each expert where it has just been; the loss of the expert,
``H_L = -(1 - L) / sigma'^2``, says what to expect where the move was short:

    H'  =  (<s' - s, o> + k d^2 h H_L) / (|o|^2 + k d^2 h)

A move is one direction of d, and its square is about ``d h``: what it says of all of them counts the less the more there are. A backward kernel from there has the variance ``1 + h' H'`` in units of the next ``h'`` (`popflow.compose.backward_kernel`). Exact for isotropic Gaussians, whose
loss says the same; where an expert's modes differ in width, each particle takes steps that fit the mode it is in. A positive curvature was found on the way from one
mode to another and says nothing of where the particle has come to: there the loss alone is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popflow.compose.backward_kernel import denoising_loss
from popflow.compose.spaces.products import ProductSpace, Proportional
from popflow.compose.spaces.space import Space
from popflow.compose.target import Expert
from popflow.core import Population

_POINT, _SCORES, _CLOCK = "last_point", "last_scores", "last_clock"
"""Companions of particles: where the experts were last evaluated, what they said, and ``sigma^2``."""
_PRIOR = 0.2
"""k: what the loss counts beside a move of the usual length, on the line."""
_FEW = 16
"""Most dimensions in which a move is remembered: beyond, it would count next to nothing."""


def units(space: Space) -> Tensor | float | None:
    """Units ``[*tangent]`` in which all coordinates get the same noise, in flat spaces of few dimensions; None where moves are not used.

    >>> from popflow.compose import Euclidean, Proportional, ProductSpace
    >>> units(Euclidean((3,))), units(ProductSpace((Euclidean((1,)), Euclidean((2,))), (Proportional(0.5), Proportional())))
    (1.0, tensor([0.5000, 1.0000, 1.0000]))
    """
    if space.dim > _FEW:
        return None
    if isinstance(space, ProductSpace):
        clocks = space.clocks or (Proportional(),) * len(space.factors)
        if not all(one.flat for one in space.factors) or not all(isinstance(clock, Proportional) for clock in clocks):
            return None
        return torch.cat([torch.full(one.tangent, clock(1.0)).flatten() for one, clock in zip(space.factors, clocks, strict=True)])
    return 1.0 if space.flat else None


def tells(space: Space) -> bool:
    """Whether moves are used."""
    return units(space) is not None


def _standard(space: Space, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Points and scores in these units."""
    unit = units(space)
    unit = unit.to(x) if isinstance(unit, Tensor) else unit or 1.0
    return x / unit, s * unit


def curvatures(experts: Sequence[Expert], pop: Population, s: Tensor, v: float) -> Tensor:
    """Curvatures ``H`` of experts with scores ``s [M, *batch, n, *tangent]`` at particles on the clock ``v = sigma^2``, ``[M, *batch, n]``.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> q, there = gaussian_mixture(torch.zeros(1, 1), 1.0), Population.of(torch.tensor([[1.0], [3.0]]))
        >>> here = there.replace(x=torch.tensor([[0.5], [-1.0]]), aux=remembered(q.home, there, q.score(there.x, 2.0).unsqueeze(0), 4.0))
        >>> [round(float(H), 4) for H in curvatures([q], here, q.score(here.x, 1.0).unsqueeze(0), 1.0)[0]]  # -1 / (1 + sigma^2)
        [-0.5, -0.5]
    """
    home = experts[0].home
    event = len(home.tangent)
    usual = s.new_tensor([(denoising_loss(expert, math.sqrt(v), pop.x) - 1) / v for expert in experts])
    usual = usual.reshape(-1, *[1] * pop.log_w.ndim).expand(len(experts), *pop.log_w.shape)
    if _POINT not in pop.aux:
        return usual
    before, h = pop.aux[_SCORES].movedim(pop.log_w.ndim, 0), (pop.aux[_CLOCK] - v).to(s)
    x, s = _standard(home, pop.x, s)
    off = x - pop.aux[_POINT] - h.reshape(*h.shape, *[1] * event) * before
    told, length = (one.flatten(one.ndim - event).sum(-1) for one in ((s - before) * off, off.square()))
    prior = _PRIOR * home.dim**2 * h.abs()
    found = (told + prior * usual) / (length + prior).clamp_min(torch.finfo(s.dtype).tiny)
    return torch.where(found > 0, usual, found)


def remembered(space: Space, pop: Population, s: Tensor, v: float) -> dict[str, Tensor]:
    """Companions of particles whose experts have scores ``s`` on the clock ``v``, for `curvatures` at the next level."""
    x, s = _standard(space, pop.x, s)
    clock = torch.full_like(pop.log_w, v, dtype=torch.float64)
    return {**pop.aux, _POINT: x, _SCORES: s.movedim(0, pop.log_w.ndim), _CLOCK: clock}


def forgotten(pop: Population) -> dict[str, Tensor]:
    """Companions without those of `remembered`."""
    return {name: value for name, value in pop.aux.items() if name not in (_POINT, _SCORES, _CLOCK)}
