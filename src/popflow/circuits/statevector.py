r"""Exact simulation: the Born distribution of a circuit, with a gradient whose memory does not grow with depth.

A layer of one-qubit gates is a Kronecker product. Qubits are taken in contiguous groups; each group is one small matrix, and is applied by
one matrix product that also rotates the group from the lowest to the highest bits, so that no pass needs a transposed copy::

    out[k, rest] = sum_l K[k, l] psi[rest, l]

Entangling gates that stay inside the groups are multiplied into the matrices for nothing (for `brick` the groups of each layer are cut
where no pair is); other layers are one gather. Layer 1 acts on ``|0...0>`` and is an outer product.

The gradient is the adjoint method: going back, ``psi`` and the cotangent ``lambda`` are pulled through the inverse of each matrix, and
``dL/dK = lambda psi^dagger``. What comes out forward are the probabilities ``p = |psi|^2`` themselves, and ``lambda = 2 g psi`` for any
cotangent ``g = dL/dp``: energies, entropies, tail means, likelihoods all differentiate.

Shallow circuits of neighbours are computed by `popflow.circuits.circuit_cutting` instead, where that is cheaper and keeps little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from popflow.circuits.ansatz import Ansatz, TwoQubitGate, rotations
from popflow.circuits.circuit_cutting import born_of_halves, cut_of, seams
from popflow.circuits.signed_permutation import Monomial
from popflow.circuits.space import size_of

MAX_QUBITS = 26


@dataclass(frozen=True, slots=True)
class Layout:
    """How one layer is computed: the groups ``(first qubit, width)``, the gates inside each, and the gates across, if any, as one gather."""

    groups: tuple[tuple[int, int], ...]
    inner: tuple[Monomial | None, ...]
    across: Monomial | None


def born(ansatz: Ansatz, angles: Tensor) -> Tensor:
    r"""Return the Born distribution ``p(sigma) = |<sigma|U(theta)|0>|^2``, differentiable once, in memory that does not grow with depth.

    Args:
        ansatz: The circuit.
        angles: ``[*batch, depth, n, r]`` real; the batch dimensions are independent circuits (restarts).

    Returns:
        ``[*batch, 2^n]`` probabilities in the dtype of the angles; qubit j is bit j of the index.

    Raises:
        ValueError: beyond `MAX_QUBITS`, naming the bytes, or on a wrong shape.

    Example:
        >>> p = born(Ansatz(n=2, depth=1), torch.tensor([[[0.0, 0.3], [3.141592653589793, 0.1]]], dtype=torch.float64))
        >>> p.round(decimals=9).tolist()
        [0.0, 0.0, 1.0, 0.0]
    """
    ansatz.check(angles)
    return born_of(ansatz, rotations(angles))


def born_of(ansatz: Ansatz, gates: Tensor) -> Tensor:
    """Return the Born distribution of given unitary one-qubit gates ``[*batch, depth, n, 2, 2]`` between the entangling gates of the ansatz."""
    _check_memory(ansatz, gates)
    flat = gates.flatten(0, -5) if gates.ndim > 4 else gates.unsqueeze(0)
    if len(flat) == 0:
        raise ValueError(f"gates of shape {tuple(gates.shape)} hold 0 circuits, wanted at least 1.")
    layouts = _layouts(ansatz, flat)
    cut = cut_of(ansatz, len(flat), _cost(ansatz.n, layouts, len(flat), flat.is_complex()))
    if cut is None:
        probabilities = _Born.apply(layouts, *_product_halves(flat[:, 0]), flat)
    else:
        probabilities = born_of_halves(ansatz, flat, _matrices(_seamed(ansatz, cut, flat.device), flat), cut)
    return probabilities.unflatten(0, gates.shape[:-4]) if gates.ndim > 4 else probabilities[0]


def amplitudes(ansatz: Ansatz, gates: Tensor) -> Tensor:
    """Return the state ``[*batch, 2^n]`` by ordinary operations: any derivative, memory in proportion to depth."""
    _check_memory(ansatz, gates)
    flat = gates.flatten(0, -5) if gates.ndim > 4 else gates.unsqueeze(0)
    layouts = _layouts(ansatz, flat)
    psi = _forward(layouts, _outer(*_product_halves(flat[:, 0])), _matrices(layouts, flat), [])
    return psi.unflatten(0, gates.shape[:-4]) if gates.ndim > 4 else psi[0]


def sample(probabilities: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    """Draw basis states ``[*batch, shots]`` (int64) from distributions ``[*batch, 2^n]``, by inversion in float64.

    >>> sample(torch.tensor([0.0, 0.0, 1.0, 0.0]), 3, torch.Generator().manual_seed(0)).tolist()
    [2, 2, 2]
    """
    if shots < 1:
        raise ValueError(f"shots={shots}: wanted at least 1.")
    cdf = probabilities.detach().double().cumsum(-1)
    u = torch.rand(*cdf.shape[:-1], shots, generator=generator, dtype=torch.float64, device=cdf.device) * cdf[..., -1:]
    return torch.searchsorted(cdf, u, right=True).clamp_(max=cdf.shape[-1] - 1)


class _Born(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layouts, high, low, gates):
        ctx.layouts, ctx.matrices = layouts, _matrices(layouts, gates)
        first = _outer(high, low)
        buffers = [torch.empty_like(first), first] if layouts else []
        psi = _forward(layouts, first, ctx.matrices, buffers)
        ctx.spare = [buffer for buffer in buffers if buffer.data_ptr() != psi.data_ptr()]
        ctx.save_for_backward(psi, high, low, gates)
        return psi.real.square().addcmul_(psi.imag, psi.imag) if psi.is_complex() else psi.square()

    @staticmethod
    def backward(ctx, cotangent):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "born: the adjoint gradient differentiates once. Fix: drop create_graph, or use amplitudes(...).abs().square()."
            )
        psi, high, low, gates = ctx.saved_tensors
        # 2 g conj(psi), without the complex copy of g that mixed dtypes would cost
        weigh = cotangent.unsqueeze(-1) if psi.is_complex() else cotangent
        parts = torch.mul(torch.view_as_real(psi) if psi.is_complex() else psi, weigh).mul_(2)
        bra = torch.view_as_complex(parts).conj_physical_() if psi.is_complex() else parts
        # psi as saved stays whole; three buffers go round
        spare = [*ctx.spare, torch.empty_like(psi)] if ctx.layouts else []
        saved, overlaps, k = psi, [], len(ctx.matrices)
        for layout in reversed(ctx.layouts):
            for _, width in reversed(layout.groups):
                k -= 1
                ket_matrix, bra_matrix = ctx.matrices[k].conj().resolve_conj(), ctx.matrices[k]
                shape, back = (len(psi), 2**width, -1), (len(psi), -1, 2**width)
                overlaps.append(torch.bmm(bra.view(shape), psi.view(shape).mT))
                moved, old = spare.pop(), psi
                torch.bmm(psi.view(shape).mT, ket_matrix, out=moved.view(back))
                psi = moved
                if old is not saved:
                    spare.append(old)
                moved = spare.pop()
                torch.bmm(bra.view(shape).mT, bra_matrix, out=moved.view(back))
                spare.append(bra)
                bra = moved
            if layout.across is not None:
                psi, old = layout.across.inverse(psi, spare.pop()), psi
                spare.append(old)
                bra, old = layout.across.inverse(bra, spare.pop()), bra
                spare.append(old)
        bra = bra.view(len(bra), high.shape[1], low.shape[1])
        halves = (bra @ low.unsqueeze(-1))[..., 0].conj(), (bra.mT @ high.unsqueeze(-1))[..., 0].conj()
        return None, *halves, _gate_gradient(ctx.layouts, overlaps[::-1], gates)


def _forward(layouts: list[Layout], psi: Tensor, matrices: list[Tensor], buffers: Sequence[Tensor]) -> Tensor:
    """Run the layers after the first; with two buffers, of which ``psi`` is the second, without new memory (and without autograd)."""
    k = passes = 0

    def buffer() -> Tensor | None:
        nonlocal passes
        passes += 1
        return buffers[(passes - 1) % 2] if buffers else None

    for layout in layouts:
        if layout.across is not None:
            psi = layout.across(psi, buffer())
        for _, width in layout.groups:
            out = buffer()
            into = None if out is None else out.view(len(psi), 2**width, -1)
            moved = torch.bmm(matrices[k], psi.view(len(psi), -1, 2**width).mT, out=into)
            psi = moved.view(len(psi), -1)
            k += 1
    return psi


def _outer(high: Tensor, low: Tensor) -> Tensor:
    return (high.unsqueeze(-1) @ low.unsqueeze(-2)).flatten(-2)


def _product_halves(gates: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state after layer 1 in two factors: outer products of the first columns of its gates ``[batch, n, 2, 2]``."""
    factors = list(gates[..., 0].unbind(1))
    while len(factors) > 2:
        pairs = zip(factors[::2], factors[1::2], strict=False)
        factors = [_outer(high, low) for low, high in pairs] + factors[len(factors) // 2 * 2 :]
    return factors[1], factors[0]


def _alike(layouts: list[Layout]) -> list[tuple[Layout, list[int]]]:
    """Group the layers of one layout: in them, one operation serves all."""
    alike: dict[int, list[int]] = {}
    for index, layout in enumerate(layouts):
        alike.setdefault(id(layout), []).append(index)
    return [(layouts[indices[0]], indices) for indices in alike.values()]


def _matrices(layouts: list[Layout], gates: Tensor) -> list[Tensor]:
    """Return the matrix ``[batch, 2^w, 2^w]`` of every group of every layer after the first: Kronecker product times the inner gates."""
    made: dict[tuple[int, int], Tensor] = {}
    for layout, indices in _alike(layouts):
        mine = gates[:, [index + 1 for index in indices]]
        for group, ((first, width), inner) in enumerate(zip(layout.groups, layout.inner, strict=True)):
            matrix = mine[:, :, first + width - 1]
            for qubit in reversed(range(first, first + width - 1)):
                low = mine[:, :, qubit]
                matrix = (matrix[..., :, None, :, None] * low[..., None, :, None, :]).flatten(-2).flatten(-3, -2)
            matrix = matrix if inner is None else inner.before(matrix)
            made |= {(index, group): one for index, one in zip(indices, matrix.unbind(1), strict=True)}
    return [made[key] for key in sorted(made)]


def _gate_gradient(layouts: list[Layout], overlaps: list[Tensor], gates: Tensor) -> Tensor:
    r"""Return ``dL/dg = Tr_others(lambda psi^dagger) g`` for every gate, from the overlaps ``conj(lambda psi^dagger)`` of its group."""
    gradient = torch.zeros_like(gates)
    starts = [0]
    for layout in layouts:
        starts.append(starts[-1] + len(layout.groups))
    for layout, indices in _alike(layouts):
        for group, (first, width) in enumerate(layout.groups):
            overlap = torch.stack([overlaps[starts[index] + group] for index in indices], 1)
            traces = (overlap.flatten(-2) @ _partial_trace(width, gates.dtype, gates.device)).unflatten(-1, (width, 2, 2))
            gradient[:, [index + 1 for index in indices], first : first + width] = traces
    return gradient.conj() @ gates


@lru_cache(maxsize=32)
def _partial_trace(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix ``[4^w, 4 w]`` that takes a flat ``2^w x 2^w`` operator to its 2 x 2 partial traces, lowest qubit first."""
    columns = []
    for qubit in range(width):
        for unit in torch.eye(4, dtype=dtype, device=device).reshape(4, 2, 2):
            high = torch.eye(2 ** (width - 1 - qubit), dtype=dtype, device=device)
            columns.append(torch.kron(torch.kron(high, unit), torch.eye(2**qubit, dtype=dtype, device=device)).flatten())
    return torch.stack(columns, -1)


def _layouts(ansatz: Ansatz, gates: Tensor) -> list[Layout]:
    """Return the layout of every layer after the first."""
    pairs = [tuple(ansatz.pairs(layer)) for layer in range(2, ansatz.depth + 1)]
    return [_cut(ansatz.n, mine, ansatz.gate, gates.is_complex(), gates.device) for mine in pairs]


def _seamed(ansatz: Ansatz, cut: int, device: torch.device) -> list[Layout]:
    """Return the layouts of the groups of `seams`; gates across a seam are left to `born_of_halves`."""
    groups = seams(ansatz.n, cut)
    return [_inside(groups, tuple(ansatz.pairs(layer)), ansatz.gate, device) for layer in range(2, ansatz.depth + 1)]


@lru_cache(maxsize=32)
def _inside(groups: tuple[tuple[int, int], ...], pairs: tuple[tuple[int, int], ...], gate: TwoQubitGate, device: torch.device) -> Layout:
    """Return the layout with the gates that stay inside the groups."""
    mine = [[(c - first, t - first) for c, t in pairs if first <= min(c, t) and max(c, t) < first + width] for first, width in groups]
    inner = tuple(Monomial.of(width, some, gate, device) if some else None for (_, width), some in zip(groups, mine, strict=True))
    return Layout(groups, inner, None)


@lru_cache(maxsize=32)
def _cut(n: int, pairs: tuple[tuple[int, int], ...], gate: TwoQubitGate, is_complex: bool, device: torch.device) -> Layout:
    """Cut the qubits into groups where no pair is, at the least cost; when that is not possible, cut freely and gather."""
    crossed = {cut for pair in pairs for cut in range(min(pair) + 1, max(pair) + 1)}
    groups = _groups(n, crossed, is_complex)
    if groups is None:
        groups = _groups(n, set(), is_complex)
        assert groups is not None
        return Layout(groups, (None,) * len(groups), Monomial.of(n, pairs, gate, device))
    return _inside(groups, pairs, gate, device)


def _groups(n: int, crossed: set[int], is_complex: bool) -> tuple[tuple[int, int], ...] | None:
    """Return the cheapest cut of ``n`` qubits into groups of at most 6, none at a crossed place; None when there is none.

    The cost of a pass, in the time of one multiplication per amplitude, was fitted to measurements on a processor core: ``2^w`` for the
    product, a constant for memory, and one for the call, which weighs most on few qubits.
    """
    fixed = _pass(n, is_complex)
    best: list[tuple[float, tuple[tuple[int, int], ...]]] = [(math.inf, ()) for _ in range(n + 1)]
    best[0] = (0.0, ())
    for end in range(1, n + 1):
        if end in crossed and end < n:
            continue
        for width in range(1, min(6, end) + 1):
            longer: tuple[tuple[int, int], ...] = (*best[end - width][1], (end - width, width))
            cost = best[end - width][0] + 2**width + fixed
            if cost < best[end][0]:
                best[end] = (cost, longer)
    return None if best[n][0] == math.inf else best[n][1]


def _pass(n: int, is_complex: bool, batch: int = 1) -> float:
    return (8 if is_complex else 32) + 2.0 ** (18 - n) / batch


def _cost(n: int, layouts: list[Layout], batch: int, is_complex: bool) -> float:
    """Return the multiplications that the value and the gradient of one circuit of a batch take: four products for every group."""
    widths = [width for layout in layouts for _, width in layout.groups]
    return 4 * 2**n * sum(2**width + _pass(n, is_complex, batch) for width in widths)


def _check_memory(ansatz: Ansatz, gates: Tensor) -> None:
    if ansatz.n <= MAX_QUBITS:
        return
    raise ValueError(
        f"n={ansatz.n} qubits: one state is 2^{ansatz.n} amplitudes, {size_of(gates.element_size(), ansatz.n)}, wanted n <= {MAX_QUBITS}. "
        "Fix: popflow.circuits.matrix_product, exact at any n for the brick entangler."
    )
