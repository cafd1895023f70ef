"""Kronecker factors of a curvature without inverses: ``(K K^T) x (C C^T)`` follows the inverse Fisher matrix by products alone.

For rows ``a [N, p]``, ``g [N, d]`` and the *current* factors, ``H_K = P(K^T U K)``, ``H_C = P(C^T G C)`` with ``U = mean a a^T``,
``G = mean g g^T`` and ``P`` the projection of the structure::

    adaptive (SINGD):  m_K <- alpha1 m_K + 1/2 [ tr(H_C)/d H_K + damping tr(C^T C)/d P(K^T K) - I ]      K <- K (I - beta m_K)
                       m_C <- alpha1 m_C + 1/2 [ tr(H_K)/p H_C + damping tr(K^T K)/p P(C^T C) - I ]      C <- C (I - beta m_C)
    IKFAC:             the same with tr(H_C)/d -> 1, damping tr(C^T C)/d -> damping, and mirrored

The step is capped: ``beta = lr_cov / max(1, |m|)`` with an upper bound of the spectral norm, so ``|beta m| <= lr_cov < 1``, ``I - beta m``
stays invertible and no step can blow up. One IKFAC step follows the moving average ``S`` of KFAC up to
``K K^T - (S + damping I)^{-1} = -3 beta^2 K m^2 K^T + O(beta^3)``.

Where the first batch starts them (`warm_start`), dense ones are factorised once; after that there are products alone.

Source: Lin et al., ICML 2024, arXiv 2312.05705 (SINGD); Lin et al., ICML 2023, arXiv 2302.09738 (INGD). The cap and the constant are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor

from popflow.optim.structures.blocks import BlockDiagonal, Dense
from popflow.optim.structures.hierarchical import Hierarchical
from popflow.optim.structures.structure import Factor, Structure, eye, trace
from popflow.optim.structures.triangular import LowerTriangular, UpperTriangular

BY_SQUARES = (Dense, Hierarchical, LowerTriangular, UpperTriangular)
"""Structures whose `Structure.bound` is `spectral_bound` of the whole matrix: made of two numbers that one transfer brings for all."""


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

    >>> from popflow.optim.structures.blocks import Diagonal
    >>> [round(beta, 4) for beta in capped(Diagonal(), (torch.tensor([[0.5, -0.2], [4.0, 1.0]]),), 0.1).tolist()]
    [0.1, 0.025]
    """
    return lr_cov / structure.bound(step).clamp(min=1.0)


def measures(k: Side, c: Side, h_k: Factor, h_c: Factor) -> list[Tensor]:
    """Traces of ``H_K`` and ``H_C``, and of ``K^T K`` and ``C^T C``, ``[B]`` each: all that the two factors of a pair tell each other."""
    wide = torch.promote_types(k.value[0].dtype, torch.float32)
    traces = [trace(side.structure, h, side.n) for side, h in ((k, h_k), (c, h_c))]
    return traces + [side.structure.square(tuple(part.to(wide) for part in side.value), side.n) for side in (k, c)]


def within_reach(own: float, other: float, dtype: torch.dtype) -> bool:
    """Whether a step by these mean eigenvalues of ``H_K`` and ``H_C`` can be computed: they and their product are below the root of the largest number.

    >>> [within_reach(1.0, other, torch.float32) for other in (2.0, 1e30, math.inf, math.nan)]
    [True, False, False, False]
    """
    most = torch.finfo(torch.promote_types(dtype, torch.float32)).max ** 0.5
    return own <= most and other <= most and own * other <= most


@dataclass
class Pair:
    """A batch of Kronecker pairs that take one step, with what they were told.

    Attributes:
        k: Input side.
        c: Output side.
        h_k: ``P(K^T U K)``, up to ``scales``; may be overwritten.
        h_c: ``P(C^T G C)``, up to ``scales``; may be overwritten.
        scales: ``B`` numbers each that ``h_k`` and ``h_c`` still have to be multiplied by.
        measured: What `measures` gave for these arguments: four times ``B`` numbers.
        valid: ``[B]`` booleans: members that move; None moves all.
    """

    k: Side
    c: Side
    h_k: Factor
    h_c: Factor
    scales: tuple[Sequence[Any], Sequence[Any]]
    measured: Sequence[Sequence[Any]]
    valid: Tensor | None = None


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
    scales: tuple[Sequence[float], Sequence[float]] | None = None,
    valid: Tensor | None = None,
    rounding: Generator | None = None,
) -> None:
    """Take one step of both factors, in place, without waiting for a device: tensors stand for all numbers. Both brackets use the old factors.

    Args:
        k: Input side.
        c: Output side.
        h_k: ``P(K^T U K)``; may be overwritten.
        h_c: ``P(C^T G C)``; may be overwritten.
        lr_cov: ``beta``.
        damping: ``lambda``.
        alpha1: Riemannian momentum.
        adaptive: SINGD rather than IKFAC.
        scales: ``B`` numbers each that ``h_k`` and ``h_c`` still have to be multiplied by; None for ones.
        valid: ``[B]`` booleans: members that move; None moves all.
        rounding: Rounds low-precision factors without bias.
    """
    by_k, by_c = ([1.0], [1.0]) if scales is None else ([h_k[0].new_tensor(one)] for one in scales)
    pair = Pair(k, c, h_k, h_c, (by_k, by_c), [[row] for row in measures(k, c, h_k, h_c)], valid)
    for side, step in _steps(pair, damping, alpha1, adaptive):
        _follow(side, step, capped(side.structure, step, lr_cov), valid, rounding)


def refresh_all(pairs: Sequence[Pair], *, lr_cov: float, damping: float, alpha1: float, adaptive: bool, rounding: Generator | None) -> None:
    """Do what `refresh` does for many pairs whose numbers are known, with one transfer of all caps."""
    moves = [(side, step, pair.valid) for pair in pairs for side, step in _steps(pair, damping, alpha1, adaptive)]
    sizes = [part for side, step, _ in moves for part in _sizes(side, step)]
    known = iter(torch.cat(sizes).tolist())
    for side, step, valid in moves:
        bounds = _bounds(side, known)
        betas = [lr_cov / max(1.0, bound) for bound in bounds]
        _follow(side, step, betas[0] if len(betas) == 1 else step[0].new_tensor(betas), valid, rounding)


def _sizes(side: Side, step: Factor) -> list[Tensor]:
    """What the caps of a batch are made of: sums of squares and traces where they make the bound, else the bound."""
    structure = side.structure
    return [structure.square(step, side.n), trace(structure, step, side.n)] if type(structure) in BY_SQUARES else [structure.bound(step)]


def _bounds(side: Side, known: Iterator[float]) -> list[float]:
    """Take the numbers of one batch from those of all; `spectral_bound` from squares and traces."""
    batch = side.value[0].shape[0]
    first = list(islice(known, batch))
    if type(side.structure) not in BY_SQUARES:
        return first
    eps = 64 * torch.finfo(torch.promote_types(side.value[0].dtype, torch.float32)).eps
    return [
        min(math.sqrt(square), abs(total) / side.n + math.sqrt(max(square - total**2 / side.n, 0) + eps * square))
        for square, total in zip(first, islice(known, batch), strict=True)
    ]


def _steps(pair: Pair, damping: float, alpha1: float, adaptive: bool) -> list[tuple[Side, Factor]]:
    """``m <- alpha1 m + weight H + ridge P(K^T K) - 1/2 I`` of both sides."""
    count = len(pair.measured[0])
    moves = []
    for i, (side, other, h) in enumerate(((pair.k, pair.c, pair.h_k), (pair.c, pair.k, pair.h_c))):
        weight, ridge = [scale / 2 for scale in pair.scales[i]], [damping / 2] * count
        if adaptive:
            far = zip(weight, pair.scales[1 - i], pair.measured[1 - i], strict=True)
            weight = [one * scale * tr / other.n for one, scale, tr in far]
            ridge = [one * square / other.n for one, square in zip(ridge, pair.measured[3 - i], strict=True)]
        moves.append((side, h, _numbers(weight, h[0]), _numbers(ridge, h[0])))
    return [(side, _bracket(side, h, weight, ridge, alpha1, pair.valid)) for side, h, weight, ridge in moves]


def _bracket(side: Side, h: Factor, weight: float | Tensor, ridge: float | Tensor, alpha1: float, valid: Tensor | None) -> Factor:
    """``alpha1 m + weight H + ridge P(K^T K) - 1/2 I``; a momentum that all members move is overwritten: one pass over memory less."""
    structure, wide = side.structure, torch.promote_types(side.value[0].dtype, torch.float32)
    value = tuple(part.to(wide) for part in side.value)
    old = None if side.momentum is None else tuple(part.to(wide) for part in side.momentum)
    if isinstance(structure, Dense | BlockDiagonal):
        own = valid is None and side.momentum is not None and side.momentum[0].dtype == wide
        step = _bracket_of_matrices(value, h, weight, ridge, old, alpha1, own)
    else:
        step = tuple(_times(a, weight).add_(_times(b, ridge)) for a, b in zip(h, structure.inner(value), strict=True))
        if old is not None:
            step = tuple(new.add_(part, alpha=alpha1) for part, new in zip(old, step, strict=True))
    structure.shift_(step, -0.5)
    return step


def _follow(side: Side, step: Factor, beta: float | Tensor, valid: Tensor | None, rounding: Generator | None) -> None:
    """``K <- K (I - beta m)``, and keep ``m``."""
    structure, value = side.structure, tuple(part.to(step[0].dtype) for part in side.value)
    if isinstance(structure, Dense | BlockDiagonal):
        moved = tuple(_added_product(a, a, b, -beta) for a, b in zip(value, step, strict=True))
    else:
        change = structure.multiply(value, step)
        moved = tuple(_times(delta, -beta).add_(a) for a, delta in zip(value, change, strict=True))
    side.value = _keep(side.value, moved, valid, rounding)
    if side.momentum is not None:
        side.momentum = _keep(side.momentum, step, valid, rounding)


def _bracket_of_matrices(
    value: Factor, h: Factor, weight: float | Tensor, ridge: float | Tensor, momentum: Factor | None, alpha1: float, own: bool
) -> Factor:
    """``alpha1 m + weight H + ridge K^T K``, where the product takes in the momentum; ``own`` writes it over the momentum."""
    step = []
    for i, (part, data) in enumerate(zip(value, h, strict=True)):
        if momentum is None:  # what was heard is nobody else's
            data, by = (data, weight) if isinstance(weight, float) else (_times(data, weight), 1.0)
            step.append(_added_product(data, part.mT, part, ridge, by, own=True))
            continue
        new = _added_product(momentum[i], part.mT, part, ridge, alpha1, own)
        if isinstance(weight, Tensor):
            new.addcmul_(data, _spread(weight, data))
        else:
            new.add_(data, alpha=weight)
        step.append(new)
    return tuple(step)


def _added_product(to: Tensor, a: Tensor, b: Tensor, alpha: float | Tensor, beta: float = 1.0, own: bool = False) -> Tensor:
    """``beta to + alpha a b`` for matrices ``[..., n, n]``, ``alpha [B]``; one number goes into the product itself. ``own`` overwrites ``to``."""
    by = 1.0
    if isinstance(alpha, Tensor):
        b = b * _spread(alpha, b)
    else:
        by = alpha
    flat = [part if part.ndim == 3 else part.flatten(0, -3) for part in (to, a, b)]
    if own:
        flat[0].baddbmm_(flat[1], flat[2], beta=beta, alpha=by)
        return to
    return torch.baddbmm(*flat, beta=beta, alpha=by).view(to.shape)


def _numbers(values: list[Any], like: Tensor) -> float | Tensor:
    """One number, or a tensor of one for each member of a batch, as it is; many numbers as such a tensor."""
    return values[0] if len(values) == 1 else like.new_tensor(values)


def _spread(numbers: Tensor, like: Tensor) -> Tensor:
    """Shape numbers ``[B]`` to multiply a part of a factor."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def _times(part: Tensor, numbers: float | Tensor) -> Tensor:
    return part.mul_(_spread(numbers, part) if isinstance(numbers, Tensor) else numbers)


def _keep(old: Factor, new: Factor, valid: Tensor | None, rounding: Generator | None) -> Factor:
    if valid is not None:
        new = tuple(torch.where(valid.reshape(-1, *[1] * (b.ndim - 1)), b, a.to(b.dtype)) for a, b in zip(old, new, strict=True))
    return tuple(rounded(b, a.dtype, rounding) for a, b in zip(old, new, strict=True))


def warm_start(
    k: Side,
    c: Side,
    h_k: Factor,
    h_c: Factor,
    *,
    damping: float,
    adaptive: bool,
    scales: tuple[Sequence[float], Sequence[float]],
    rows: Sequence[int],
    valid: Tensor | None = None,
) -> None:
    """Put the factors, which are the identity, at the solution of the first batch, in place: no slow start, and inside the region of stability.

    IKFAC: ``K K^T = (U + damping)^{-1}``. SINGD, whose damping is additive on the product: ``K K^T = (U + pi sqrt(damping))^{-1}``,
    ``C C^T = (G + sqrt(damping) / pi)^{-1}``, ``pi^2 = mean diag U / mean diag G``. Dense factors and blocks take ``U`` whole, by one Cholesky
    factorisation in the dtype of the sums, with what is beside the diagonal shrunk by ``N / (N + n)`` for ``N`` rows, since few rows say little of it;
    other structures, and matrices that do not factorise, its diagonal.

    Args:
        k: Input side.
        c: Output side.
        h_k: ``P(U)`` (of `Diagonal` the diagonal), up to ``scales``.
        h_c: ``P(G)``, likewise.
        damping: ``lambda``.
        adaptive: SINGD rather than IKFAC.
        scales: ``B`` numbers each that the two still have to be multiplied by.
        rows: ``B`` numbers of rows that they are of.
        valid: ``[B]`` booleans: members that are set; None sets all.
    """
    tiny, by = torch.finfo(h_k[0].dtype).tiny ** 0.5, h_k[0].new_tensor([*scales])
    u, g = (side.structure.diagonal(h, side.n) * scale[:, None] for side, h, scale in ((k, h_k, by[0]), (c, h_c, by[1])))
    pi = (u.mean(-1, keepdim=True).clamp(min=tiny) / g.mean(-1, keepdim=True).clamp(min=tiny)).sqrt()
    damp_u, damp_g = (pi * damping**0.5, damping**0.5 / pi) if adaptive else (torch.full_like(pi, damping),) * 2
    for side, h, scale, diagonal, damp in ((k, h_k, by[0], u, damp_u), (c, h_c, by[1], g, damp_g)):
        start = side.structure.from_diagonal((diagonal + damp).rsqrt())
        if isinstance(side.structure, Dense | BlockDiagonal):
            count = by.new_tensor([*rows])
            start = tuple(
                _inverse_root(part * _spread(scale, part), _spread(count, part), _spread(damp[:, 0], part), plain)
                for part, plain in zip(h, start, strict=True)
            )
        side.value = _keep(side.value, start, valid, None)


def _inverse_root(gram: Tensor, rows: Tensor, damp: Tensor, otherwise: Tensor) -> Tensor:
    """``K`` with ``K K^T = (gram + damp)^{-1}``, its entries beside the diagonal shrunk first; ``otherwise`` where that does not factorise."""
    n = gram.shape[-1]
    if gram.numel() == 0:
        return otherwise
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    damped = gram * (rows / (rows + n)) + torch.diag_embed(diagonal * (n / (rows[..., 0] + n)) + damp[..., 0])
    lower, failed = torch.linalg.cholesky_ex(damped)
    eye = torch.eye(n, dtype=gram.dtype, device=gram.device).expand(gram.shape)
    root = torch.linalg.solve_triangular(lower, eye, upper=False).mT
    sound = (failed == 0) & root.isfinite().flatten(-2).all(-1)
    return torch.where(sound[..., None, None], root, otherwise)


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
