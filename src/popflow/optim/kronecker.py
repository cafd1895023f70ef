"""Kronecker factors of a curvature without inverses: ``(K K^T) x (C C^T)`` tracks the inverse Fisher matrix using matrix products only.

For rows ``a [N, p]``, ``g [N, d]`` and the *current* factors, ``H_K = P(K^T U K)``, ``H_C = P(C^T G C)`` with ``U = mean a a^T``,
``G = mean g g^T`` and ``P`` the projection of the structure::

    adaptive (SINGD):  m_K <- alpha1 m_K + 1/2 [ tr(H_C)/d H_K + damping tr(C^T C)/d P(K^T K) - I ]      K <- K (I - beta m_K)
                       m_C <- alpha1 m_C + 1/2 [ tr(H_K)/p H_C + damping tr(K^T K)/p P(C^T C) - I ]      C <- C (I - beta m_C)
    IKFAC:             the same with tr(H_C)/d -> 1, damping tr(C^T C)/d -> damping, and mirrored

The step is capped: ``beta = lr_cov / max(1, |m|)`` with an upper bound of the spectral norm, so ``|beta m| <= lr_cov < 1``, ``I - beta m``
stays invertible and no step can blow up. One IKFAC step follows the moving average ``S`` of KFAC up to
``K K^T - (S + damping I)^{-1} = -3 beta^2 K m^2 K^T + O(beta^3)``.

Where the first batch starts the factors (`warm_start`), dense ones are factorised once; after that there are products alone.

Source: Lin et al., ICML 2024, arXiv 2312.05705 (SINGD); Lin et al., ICML 2023, arXiv 2302.09738 (INGD). The cap and the constant are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Generator, Tensor

from popflow.optim.structures.structure import Factor, Structure


@dataclass
class Side:
    """One factor of a batch of Kronecker pairs, with its momentum.

    Attributes:
        structure: Structure of the matrix.
        n: Side of the matrix.
        value: ``K``.
        momentum: ``m``, or None.
    """

    structure: Structure
    n: int
    value: Factor
    momentum: Factor | None

    @staticmethod
    def identity(structure: Structure, n: int, batch: int, like: Tensor, momentum: bool) -> Side:
        """``K = I``, ``m = 0``."""
        value = structure.from_diagonal(like.new_ones(batch, n))
        return Side(structure, n, value, tuple(torch.zeros_like(part) for part in value) if momentum else None)

    def stored(self, name: str) -> list[tuple[str, Tensor]]:
        """Everything stored, as ``NAME.0, ..., NAME_momentum.0, ...``."""
        factors = ((name, self.value), (f"{name}_momentum", self.momentum or ()))
        return [(f"{of}.{i}", part) for of, factor in factors for i, part in enumerate(factor)]

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move and cast in place."""
        self.value = tuple(part.to(device, dtype) for part in self.value)
        if self.momentum is not None:
            self.momentum = tuple(part.to(device, dtype) for part in self.momentum)


@dataclass
class Pair:
    """A batch of ``B`` Kronecker pairs with the curvature of their next step.

    Attributes:
        k: Input side.
        c: Output side.
        h_k: ``P(K^T U K)`` up to ``scale_k``; may be overwritten.
        h_c: ``P(C^T G C)`` up to ``scale_c``; may be overwritten.
        scale_k: One pending factor of ``h_k`` for each member.
        scale_c: The same for ``h_c``.
        moving: Which members take the step.
        curvature: ``tr(H_K)/p`` and ``tr(H_C)/d`` of each member, from `measure`.
        square: ``tr(K^T K)/p`` and ``tr(C^T C)/d`` of each member, from `measure`.
    """

    k: Side
    c: Side
    h_k: Factor
    h_c: Factor
    scale_k: list[float]
    scale_c: list[float]
    moving: list[bool]
    curvature: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    square: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def within_reach(self) -> list[bool]:
        """Members whose step can be computed: both mean eigenvalues and their product are below the root of the largest number."""
        most = torch.finfo(torch.promote_types(self.k.value[0].dtype, torch.float32)).max ** 0.5
        return [a <= most and b <= most and a * b <= most for a, b in zip(*self.curvature, strict=True)]


def measure(pairs: Sequence[Pair]) -> None:
    """Fill in `Pair.curvature` and `Pair.square`: all that the two factors of a pair need from each other, in one transfer from the device."""
    sums = []
    for pair in pairs:
        for side, h in ((pair.k, pair.h_k), (pair.c, pair.h_c)):
            sums += [side.structure.diagonal(h, side.n).sum(-1), side.structure.square(_wide(side.value), side.n)]
    numbers = iter(_transferred(sums))
    for pair in pairs:
        sides = [(next(numbers), next(numbers), side.n, scale) for side, scale in ((pair.k, pair.scale_k), (pair.c, pair.scale_c))]
        h_k, h_c = ([scale * trace / n for trace, scale in zip(traces, scales, strict=True)] for traces, _, n, scales in sides)
        k, c = ([square / n for square in squares] for _, squares, n, _ in sides)
        pair.curvature, pair.square = (h_k, h_c), (k, c)


def refresh(
    pairs: Sequence[Pair], *, lr_cov: float, damping: float, alpha1: float, adaptive: bool, rounding: Generator | None = None
) -> None:
    """Take one step of both factors of each pair, in place. Both brackets use the old factors.

    Args:
        pairs: Measured, see `measure`.
        lr_cov: ``beta``.
        damping: ``lambda``.
        alpha1: Riemannian momentum.
        adaptive: SINGD rather than IKFAC.
        rounding: Rounds low-precision factors without bias.
    """
    moves = [(side, step, pair.moving) for pair in pairs for side, step in _steps(pair, damping, alpha1, adaptive)]
    bounds = _transferred([side.structure.bound(step, side.n) for side, step, _ in moves])
    for (side, step, moving), bound in zip(moves, bounds, strict=True):
        change = side.structure.multiply(_wide(side.value), step, side.n)
        beta = _numbers([-lr_cov / max(1.0, size) for size in bound], step[0])
        moved = tuple(_plus(part, delta, beta) for part, delta in zip(_wide(side.value), change, strict=True))
        side.value = keep(side.value, moved, moving, rounding)
        if side.momentum is not None:
            side.momentum = keep(side.momentum, step, moving, rounding)


def _steps(pair: Pair, damping: float, alpha1: float, adaptive: bool) -> list[tuple[Side, Factor]]:
    """``m <- alpha1 m + weight H + ridge P(K^T K) - 1/2 I`` of both sides."""
    sides = [(pair.k, pair.h_k, pair.scale_k), (pair.c, pair.h_c, pair.scale_c)]
    steps = []
    for (side, h, scale), curvature, square in zip(sides, pair.curvature[::-1], pair.square[::-1], strict=True):
        weight, ridge = [one / 2 for one in scale], [damping / 2] * len(scale)
        if adaptive:
            weight = [one * other for one, other in zip(weight, curvature, strict=True)]
            ridge = [one * other for one, other in zip(ridge, square, strict=True)]
        by_weight, by_ridge = _numbers(weight, h[0]), _numbers(ridge, h[0])
        inner = side.structure.inner(_wide(side.value), side.n)
        step = tuple(_plus(_times(a, by_weight), b, by_ridge) for a, b in zip(h, inner, strict=True))
        if side.momentum is not None:
            step = tuple(new.add_(old, alpha=alpha1) for old, new in zip(side.momentum, step, strict=True))
        side.structure.shift_(step, side.n, -0.5)
        steps.append((side, step))
    return steps


def _wide(factor: Factor) -> Factor:
    """In float32 at least."""
    return tuple(part.to(torch.promote_types(part.dtype, torch.float32)) for part in factor)


def _transferred(parts: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of each tensor, all in one transfer from the device."""
    numbers = torch.cat(list(parts)).tolist()
    ends = [0, *accumulate(len(part) for part in parts)]
    return [numbers[first:last] for first, last in pairwise(ends)]


def _numbers(values: list[float], like: Tensor) -> float | Tensor:
    """A single number as it is, several as a tensor."""
    return values[0] if len(values) == 1 else like.new_tensor(values)


def _spread(numbers: Tensor, like: Tensor) -> Tensor:
    """Shape numbers ``[B]`` to multiply a part of a factor."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def _times(part: Tensor, by: float | Tensor) -> Tensor:
    """``by part``, in place."""
    return part.mul_(_spread(by, part) if isinstance(by, Tensor) else by)


def _plus(part: Tensor, other: Tensor, by: float | Tensor) -> Tensor:
    """``part + by other``."""
    return torch.addcmul(part, other, _spread(by, part)) if isinstance(by, Tensor) else torch.add(part, other, alpha=by)


def keep(old: Factor, new: Factor, moving: list[bool], rounding: Generator | None) -> Factor:
    """The new numbers of the members that moved, in the dtype of the old ones."""
    if not all(moving):
        mask = torch.tensor(moving, device=old[0].device)
        new = tuple(torch.where(_spread(mask, b), b, a.to(b.dtype)) for a, b in zip(old, new, strict=True))
    return tuple(rounded(b, a.dtype, rounding) for a, b in zip(old, new, strict=True))


def warm_start(pair: Pair, rows: Sequence[int], *, damping: float, adaptive: bool) -> None:
    """Set the factors, which are the identity, to the solution of the first batch, in place: no slow start, and inside the stability region.

    IKFAC: ``K K^T = (U + damping)^{-1}``. SINGD, whose damping is additive on the product: ``K K^T = (U + pi sqrt(damping))^{-1}``,
    ``C C^T = (G + sqrt(damping) / pi)^{-1}``, ``pi^2 = mean diag U / mean diag G``. How much of ``U`` is taken is the structure's to say
    (`Structure.inverse_root`).

    Args:
        pair: Its ``h_k`` and ``h_c`` are the curvature itself, since the factors are the identity.
        rows: How many rows the curvature of each member was made of.
        damping: ``lambda``.
        adaptive: SINGD rather than IKFAC.
    """
    sides = [(pair.k, pair.h_k, pair.scale_k), (pair.c, pair.h_c, pair.scale_c)]
    scaled = []
    for side, h, scale in sides:
        by = h[0].new_tensor(scale)
        scaled.append((side, tuple(part * _spread(by, part) for part in h)))
    tiny = torch.finfo(pair.h_k[0].dtype).tiny ** 0.5
    mean_u, mean_g = (side.structure.diagonal(h, side.n).mean(-1).clamp(min=tiny) for side, h in scaled)
    pi = (mean_u / mean_g).sqrt()
    damps = (pi * damping**0.5, damping**0.5 / pi) if adaptive else (torch.full_like(pi, damping),) * 2
    count = pi.new_tensor(list(rows))
    for (side, h), damp in zip(scaled, damps, strict=True):
        side.value = keep(side.value, side.structure.inverse_root(h, side.n, count, damp), pair.moving, None)


def rounded(x: Tensor, dtype: torch.dtype, generator: Generator | None) -> Tensor:
    """Cast; from float32 to bfloat16 with a generator, at random up or down so that the mean is kept (small steps are not lost).

    >>> x = torch.full((20000,), 1.001)
    >>> mean = rounded(x, torch.bfloat16, torch.Generator().manual_seed(0)).float().mean()
    >>> abs(mean.item() - 1.001) < 1e-4, x.bfloat16().float().mean().item()
    (True, 1.0)
    """
    if generator is None or dtype != torch.bfloat16 or x.dtype != torch.float32:
        return x.to(dtype)
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=generator.device, generator=generator).to(x.device)
    bits = (x.contiguous().view(torch.int32) + noise) & -65536
    return torch.where(x.isfinite(), bits.view(torch.float32), x).to(dtype)
