"""Kronecker factors of a curvature without inverses: ``(K K^T) x (C C^T)`` follows the inverse Fisher matrix by products alone.

For rows ``a [N, p]``, ``g [N, d]`` and the *current* factors, ``H_K = P(K^T U K)``, ``H_C = P(C^T G C)`` with ``U = mean a a^T``,
``G = mean g g^T`` and ``P`` the projection of the structure::

    adaptive (SINGD):  m_K <- alpha1 m_K + 1/2 [ tr(H_C)/d H_K + damping tr(C^T C)/d P(K^T K) - I ]      K <- K (I - beta m_K)
                       m_C <- alpha1 m_C + 1/2 [ tr(H_K)/p H_C + damping tr(K^T K)/p P(C^T C) - I ]      C <- C (I - beta m_C)
    IKFAC:             the same with tr(H_C)/d -> 1, damping tr(C^T C)/d -> damping, and mirrored

The step is capped: ``beta = lr_cov / max(1, |m|)`` with an upper bound of the spectral norm, so ``|beta m| <= lr_cov < 1``, ``I - beta m``
stays invertible and no step can blow up. One IKFAC step follows the moving average ``S`` of KFAC up to
``K K^T - (S + damping I)^{-1} = -3 beta^2 K m^2 K^T + O(beta^3)``.

Source: Lin et al., ICML 2024, arXiv 2312.05705 (SINGD); Lin et al., ICML 2023, arXiv 2302.09738 (INGD). The cap and the constant are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

from popflow.optim.blocks import BlockDiagonal, Dense
from popflow.optim.structures import Factor, Structure, eye, scaled, trace


@dataclass
class Side:
    """One factor of a batch of Kronecker pairs, with its momentum (None without).

    Attributes:
        structure: What kind of matrix.
        n: Its side.
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
        value = eye(structure, batch, n, like)
        return Side(structure, n, value, tuple(torch.zeros_like(part) for part in value) if momentum else None)

    def tensors(self) -> list[Tensor]:
        """Everything stored."""
        return [*self.value, *(self.momentum or ())]

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move and cast in place."""
        self.value = tuple(part.to(device, dtype) for part in self.value)
        if self.momentum is not None:
            self.momentum = tuple(part.to(device, dtype) for part in self.momentum)


def capped(structure: Structure, step: Factor, lr_cov: float) -> Tensor:
    """``lr_cov / max(1, |m|)`` for each matrix of a batch: the largest step that keeps ``|beta m| <= lr_cov``.

    >>> from popflow.optim.blocks import Diagonal
    >>> [round(beta, 4) for beta in capped(Diagonal(), (torch.tensor([[0.5, -0.2], [4.0, 1.0]]),), 0.1).tolist()]
    [0.1, 0.025]
    """
    return lr_cov / structure.bound(step).clamp(min=1.0)


def refresh(
    k: Side,
    c: Side,
    h_k: Factor,
    h_c: Factor,
    *,
    lr_cov: float,
    damping: float,
    alpha1: float,
    adaptive: bool,
    scales: tuple[Tensor, Tensor] | None = None,
    valid: Tensor | None = None,
    rounding: Generator | None = None,
) -> None:
    """Take one step of both factors, in place. Both brackets use the old factors.

    Args:
        k: Input side.
        c: Output side.
        h_k: ``P(K^T U K)``; may be overwritten.
        h_c: ``P(C^T G C)``; may be overwritten.
        lr_cov: ``beta``.
        damping: ``lambda``.
        alpha1: Riemannian momentum.
        adaptive: SINGD rather than IKFAC.
        scales: Numbers ``[B]`` that ``h_k`` and ``h_c`` still have to be multiplied by; None for ones.
        valid: ``[B]`` booleans: members that move; None moves all.
        rounding: Rounds low-precision factors without bias.
    """
    wide = torch.promote_types(k.value[0].dtype, torch.float32)
    sides, values = (k, c), [tuple(part.to(wide) for part in side.value) for side in (k, c)]
    curvature, damp = [None, None] if scales is None else list(scales), [h_k[0].new_full((len(h_k[0]),), damping, dtype=wide)] * 2
    if adaptive:
        means = [trace(side.structure, h, side.n) / side.n for side, h in zip(sides, (h_k, h_c), strict=True)]
        if scales is not None:
            means = [mean * scale for mean, scale in zip(means, scales, strict=True)]
        curvature = [means[1 - i] if scale is None else scale * means[1 - i] for i, scale in enumerate(curvature)]
        squares = [side.structure.square(value, side.n) * (damping / side.n) for side, value in zip(sides, values, strict=True)]
        damp = squares[::-1]
    for side, value, h, weight, ridge in zip(sides, values, (h_k, h_c), curvature, damp, strict=True):
        matrices = isinstance(side.structure, Dense | BlockDiagonal)
        old = None if side.momentum is None else tuple(part.to(wide) for part in side.momentum)
        step = (_bracket_of_matrices if matrices else _bracket)(side.structure, value, h, weight, ridge / 2, old, alpha1)
        beta = capped(side.structure, step, lr_cov)
        if matrices:
            moved = tuple(_added_product(a, a, b, -beta) for a, b in zip(value, step, strict=True))
        else:
            change = side.structure.multiply(value, scaled(step, -beta))
            moved = tuple(delta.add_(a) for a, delta in zip(value, change, strict=True))
        side.value = _keep(side.value, moved, valid, rounding)
        if side.momentum is not None:
            side.momentum = _keep(side.momentum, step, valid, rounding)


def _bracket(
    structure: Structure, value: Factor, h: Factor, curvature: Tensor | None, damp: Tensor, momentum: Factor | None, alpha1: float
) -> Factor:
    """``alpha1 m + 1/2 curvature H + damp P(K^T K) - 1/2 I``; ``curvature=None`` is 1."""
    weight = 0.5 * torch.ones_like(damp) if curvature is None else curvature / 2
    step = tuple(_times(a, weight).addcmul_(b, _spread(damp, b)) for a, b in zip(h, structure.inner(value), strict=True))
    structure.shift_(step, -0.5)
    if momentum is not None:
        step = tuple(new.add_(old, alpha=alpha1) for old, new in zip(momentum, step, strict=True))
    return step


def _bracket_of_matrices(
    structure: Structure, value: Factor, h: Factor, curvature: Tensor | None, damp: Tensor, momentum: Factor | None, alpha1: float
) -> Factor:
    """The same for matrices, where the product takes in the momentum: one pass over memory for each operand."""
    step = []
    for i, (part, data) in enumerate(zip(value, h, strict=True)):
        if momentum is None:
            new = _added_product(torch.zeros_like(part), part.mT, part, damp)
        else:
            new = _added_product(momentum[i], part.mT, part, damp, alpha1)
        step.append(new.add_(data, alpha=0.5) if curvature is None else new.addcmul_(data, _spread(curvature, data), value=0.5))
    structure.shift_(tuple(step), -0.5)
    return tuple(step)


def _added_product(to: Tensor, a: Tensor, b: Tensor, alpha: Tensor, beta: float = 1.0) -> Tensor:
    """``beta to + alpha a b`` for matrices ``[..., n, n]``, ``alpha [B]``; on a CPU one number goes into the product itself."""
    by = 1.0
    if alpha.numel() == 1 and alpha.device.type == "cpu":
        by = float(alpha)
    else:
        b = b * _spread(alpha, b)
    if to.ndim == 3:
        return torch.baddbmm(to, a, b, beta=beta, alpha=by)
    return torch.baddbmm(to.flatten(0, -3), a.flatten(0, -3), b.flatten(0, -3), beta=beta, alpha=by).view(to.shape)


def _spread(numbers: Tensor, like: Tensor) -> Tensor:
    """Shape numbers ``[B]`` to multiply a part of a factor."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def _times(part: Tensor, numbers: Tensor) -> Tensor:
    return part.mul_(_spread(numbers, part))


def _keep(old: Factor, new: Factor, valid: Tensor | None, rounding: Generator | None) -> Factor:
    if valid is not None:
        new = tuple(torch.where(valid.reshape(-1, *[1] * (b.ndim - 1)), b, a.to(b.dtype)) for a, b in zip(old, new, strict=True))
    return tuple(rounded(b, a.dtype, rounding) for a, b in zip(old, new, strict=True))


def refresh_diagonal(
    pairs: Sequence[tuple[Side, Side, Tensor, Tensor]],
    scales: Sequence[float],
    *,
    lr_cov: float,
    damping: float,
    alpha1: float,
    adaptive: bool,
    rounding: Generator | None,
) -> bool:
    """Do what `refresh` does for many pairs of `Diagonal` factors of unequal sizes, in one pass over all their numbers.

    Args:
        pairs: ``(k, c, diag U [B, p], diag G [B, d])`` of each batch, up to ``scales``.
        scales: One number for each matrix, in the order ``U`` of the first batch, ``G`` of the first batch, ``U`` of the second...
        lr_cov: ``beta``.
        damping: ``lambda``.
        alpha1: Riemannian momentum.
        adaptive: SINGD rather than IKFAC.
        rounding: Rounds low-precision factors without bias.

    Returns:
        Whether all curvature was finite; if not, nothing has changed.
    """
    sides = [side for k, c, _, _ in pairs for side in (k, c)]
    shapes = tuple((len(side.value[0]), side.n) for side in sides)
    segment, partner, sizes = _segments(shapes, str(sides[0].value[0].device))
    dtype = torch.promote_types(sides[0].value[0].dtype, torch.float32)
    value = torch.cat([side.value[0].view(-1) for side in sides]).to(dtype)
    both = torch.cat([part.reshape(-1) for _, _, *both in pairs for part in both] + [torch.ones_like(value)]).view(2, -1)
    both *= value * value
    means = both.new_zeros(2, len(sizes)).index_add_(1, segment, both).div_(sizes)
    means[0] *= means.new_tensor(scales)
    if not all(map(math.isfinite, means[0].tolist())):
        return False
    means = means.index_select(1, partner) if adaptive else torch.ones_like(means)
    means[0] *= means.new_tensor(scales)
    means[1] *= damping
    step = (both * means.index_select(1, segment)).sum(0).sub_(1).mul_(0.5)
    if sides[0].momentum is not None:
        step.add_(torch.cat([side.momentum[0].view(-1) for side in sides if side.momentum is not None]), alpha=alpha1)
    bound = step.new_ones(len(sizes)).scatter_reduce_(0, segment, step.abs(), "amax")
    value = torch.addcmul(value, value, step / bound.index_select(0, segment), value=-lr_cov)
    counts = [batch * n for batch, n in shapes]
    for side, shape, new, m in zip(sides, shapes, value.split(counts), step.split(counts), strict=True):
        side.value = (rounded(new, side.value[0].dtype, rounding).view(shape),)
        if side.momentum is not None:
            side.momentum = (rounded(m, side.momentum[0].dtype, rounding).view(shape),)
    return True


@lru_cache(maxsize=64)
def _segments(shapes: tuple[tuple[int, int], ...], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return which matrix each number is of, the other matrix of the pair, and the sides."""
    segment, partner, sizes = [], [], []
    for i, (batch, n) in enumerate(shapes):
        first = len(sizes)
        segment += [first + b for b in range(batch) for _ in range(n)]
        other = batch if i % 2 == 0 else -batch
        partner += [first + b + other for b in range(batch)]
        sizes += [n] * batch
    return torch.tensor(segment, device=device), torch.tensor(partner, device=device), torch.tensor(sizes, device=device)


def warm_start(k: Side, c: Side, u: Tensor, g: Tensor, *, damping: float, adaptive: bool, valid: Tensor | None = None) -> None:
    """Put the factors at the diagonal solution of the first batch, in place: no slow start, and inside the region of stability.

    IKFAC: ``K = (diag U + damping)^{-1/2}``. SINGD, whose damping is additive on the product: ``K = (diag U + pi sqrt(damping))^{-1/2}``,
    ``C = (diag G + sqrt(damping) / pi)^{-1/2}``, ``pi^2 = mean diag U / mean diag G``.

    Args:
        k: Input side.
        c: Output side.
        u: Diagonal of ``U``, ``[B, p]``.
        g: Diagonal of ``G``, ``[B, d]``.
        damping: ``lambda``.
        adaptive: SINGD rather than IKFAC.
        valid: ``[B]`` booleans: members that are set; None sets all.
    """
    tiny = torch.finfo(u.dtype).tiny ** 0.5
    pi = (u.mean(-1, keepdim=True).clamp(min=tiny) / g.mean(-1, keepdim=True).clamp(min=tiny)).sqrt()
    damp_u, damp_g = (pi * damping**0.5, damping**0.5 / pi) if adaptive else (damping, damping)
    for side, diagonal in ((k, (u + damp_u).rsqrt()), (c, (g + damp_g).rsqrt())):
        side.value = _keep(side.value, side.structure.from_diagonal(diagonal), valid, None)


def rounded(x: Tensor, dtype: torch.dtype, generator: Generator | None) -> Tensor:
    """Cast; from float32 to bfloat16 with a generator, at random up or down so that the mean is kept (small steps are not lost).

    >>> x = torch.full((20000,), 1.001)
    >>> mean = rounded(x, torch.bfloat16, torch.Generator().manual_seed(0)).float().mean()
    >>> abs(mean.item() - 1.001) < 1e-4, x.bfloat16().float().mean().item()
    (True, 1.0)
    """
    if generator is None or dtype != torch.bfloat16 or x.dtype != torch.float32:
        return x.to(dtype)
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    bits = (x.contiguous().view(torch.int32) + noise) & -65536
    return torch.where(x.isfinite(), bits.view(torch.float32), x).to(dtype)
