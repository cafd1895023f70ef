r"""Exact simulation: the Born distribution of a circuit, with a gradient whose memory does not grow with depth.

A layer of one-qubit gates is a Kronecker product. Contiguous groups of qubits form one small matrix each. A group is applied by one matrix
product, which also rotates the group from the lowest to the highest bits, so that no pass needs a transposed copy::

    out[k, rest] = sum_l K[k, l] psi[rest, l]

Entangling gates within a group are multiplied into its matrix at no cost (for `brick`, groups are chosen so that no pair crosses them); any
other layer of entangling gates is one gather. Layer 1 acts on ``|0...0>`` and is an outer product.

The gradient is the adjoint method: the backward pass applies the inverse of each matrix to ``psi`` and to the cotangent ``lambda``, and
``dL/dK = lambda psi^dagger``. The forward pass returns the probabilities ``p = |psi|^2``, and ``lambda = 2 g psi`` for any cotangent
``g = dL/dp``, so energies, entropies, tail means and likelihoods all differentiate.

Shallow circuits between neighbours are handed to `popflow.circuits.circuit_cutting` where that is cheaper and keeps little memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from popflow.circuits.ansatz import Ansatz, TwoQubitGate, rotations
from popflow.circuits.circuit_cutting import best_cut, born_by_cutting, cut_groups, refuse_double_backward
from popflow.circuits.signed_permutation import SignedPermutation
from popflow.circuits.space import size_of
from popflow.core.checks import at_least_one

MAX_QUBITS = 26


@dataclass(frozen=True, slots=True)
class Layout:
    """How a layer is computed: groups ``(first qubit, width)``, the gates within each, and the gates across groups, if any, as one gather."""

    groups: tuple[tuple[int, int], ...]
    inner: tuple[SignedPermutation | None, ...]
    across: SignedPermutation | None


def born(ansatz: Ansatz, angles: Tensor) -> Tensor:
    r"""Return the Born distribution ``p(sigma) = |<sigma|U(theta)|0>|^2``, differentiable once, in memory that does not grow with depth.

    Args:
        ansatz: The circuit.
        angles: ``[*batch, depth, n, r]`` real; the batch dimensions are independent circuits (restarts).

    Returns:
        ``[*batch, 2^n]`` probabilities in the dtype of the angles; qubit j is bit j of the index.

    Raises:
        ValueError: beyond `MAX_QUBITS`, naming the bytes needed, or on a wrong shape.

    Example:
        >>> p = born(Ansatz(n=2, depth=1), torch.tensor([[[0.0, 0.3], [3.141592653589793, 0.1]]], dtype=torch.float64))
        >>> p.round(decimals=9).tolist()
        [0.0, 0.0, 1.0, 0.0]
    """
    ansatz.check(angles)
    return born_of_gates(ansatz, rotations(angles))


def born_of_gates(ansatz: Ansatz, gates: Tensor) -> Tensor:
    """Return the Born distribution ``[*batch, 2^n]`` for one-qubit gates ``[*batch, depth, n, 2, 2]`` in place of the ansatz's rotations."""
    flat = _flat(ansatz, gates)
    layouts = _layouts(ansatz, flat)
    cut = best_cut(ansatz, len(flat), _cost(ansatz.n, layouts, len(flat), flat.is_complex()))
    if cut is None:
        probabilities = _Born.apply(layouts, *_product_halves(flat[:, 0]), flat)
    else:
        probabilities = born_by_cutting(ansatz, flat, _matrices(_cut_layouts(ansatz, cut, flat.device), flat), cut)
    return probabilities.reshape(*gates.shape[:-4], -1)


def amplitudes(ansatz: Ansatz, gates: Tensor) -> Tensor:
    """Return the state ``[*batch, 2^n]``, differentiable any number of times, in memory proportional to depth."""
    flat = _flat(ansatz, gates)
    layouts = _layouts(ansatz, flat)
    psi = _forward(layouts, _outer(*_product_halves(flat[:, 0])), _matrices(layouts, flat), [])
    return psi.reshape(*gates.shape[:-4], -1)


def sample(probabilities: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    """Draw basis states ``[*batch, shots]`` (int64) from distributions ``[*batch, 2^n]``, by inversion in float64.

    >>> sample(torch.tensor([0.0, 0.0, 1.0, 0.0]), 3, torch.Generator().manual_seed(0)).tolist()
    [2, 2, 2]
    """
    at_least_one(shots=shots)
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
        refuse_double_backward()
        psi, high, low, gates = ctx.saved_tensors
        # 2 g conj(psi), without the complex copy of g that mixed dtypes would cost
        weigh = cotangent.unsqueeze(-1) if psi.is_complex() else cotangent
        parts = torch.mul(torch.view_as_real(psi) if psi.is_complex() else psi, weigh).mul_(2)
        bra = torch.view_as_complex(parts).conj_physical_() if psi.is_complex() else parts
        # the saved psi is kept intact; three buffers alternate
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
    """Run the layers after the first. With two buffers, the second holding ``psi``, nothing is allocated and autograd does not apply."""
    k, targets = 0, itertools.cycle(buffers or [None])
    for layout in layouts:
        if layout.across is not None:
            psi = layout.across(psi, next(targets))
        for _, width in layout.groups:
            out = next(targets)
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
    """Group the layers that share a layout, so that one operation serves all of them."""
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
    return [_layout(ansatz.n, mine, ansatz.gate, gates.is_complex(), gates.device) for mine in pairs]


def _cut_layouts(ansatz: Ansatz, cut: int, device: torch.device) -> list[Layout]:
    """Return the layouts of the groups `cut_groups`; gates across groups are left to `born_by_cutting`."""
    groups = cut_groups(ansatz.n, cut)
    return [_inside(groups, tuple(ansatz.pairs(layer)), ansatz.gate, device) for layer in range(2, ansatz.depth + 1)]


@lru_cache(maxsize=32)
def _inside(groups: tuple[tuple[int, int], ...], pairs: tuple[tuple[int, int], ...], gate: TwoQubitGate, device: torch.device) -> Layout:
    """Return the layout of given groups, with the gates that stay inside them."""
    mine = [[(c - first, t - first) for c, t in pairs if first <= min(c, t) and max(c, t) < first + width] for first, width in groups]
    inner = tuple(SignedPermutation.of(width, some, gate, device) if some else None for (_, width), some in zip(groups, mine, strict=True))
    return Layout(groups, inner, None)


@lru_cache(maxsize=32)
def _layout(n: int, pairs: tuple[tuple[int, int], ...], gate: TwoQubitGate, is_complex: bool, device: torch.device) -> Layout:
    """Return the cheapest layout whose groups no pair crosses or, where there is none, the cheapest groups after one gather."""
    crossed = {cut for pair in pairs for cut in range(min(pair) + 1, max(pair) + 1)}
    groups = _groups(n, crossed, is_complex)
    if groups is None:
        groups = _groups(n, set(), is_complex)
        assert groups is not None
        return Layout(groups, (None,) * len(groups), SignedPermutation.of(n, pairs, gate, device))
    return _inside(groups, pairs, gate, device)


def _groups(n: int, crossed: set[int], is_complex: bool) -> tuple[tuple[int, int], ...] | None:
    """Return the cheapest division of ``n`` qubits into groups of at most 6 with no boundary at a crossed place, or None.

    The cost of a pass, in units of one multiplication per amplitude, was fitted to measurements on a processor core: ``2^w`` for the
    product, a constant for memory traffic, and a launch overhead, which dominates for few qubits.
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
    """Return the multiplications for value and gradient of one circuit in a batch: four products for every group."""
    widths = [width for layout in layouts for _, width in layout.groups]
    return 4 * 2**n * sum(2**width + _pass(n, is_complex, batch) for width in widths)


def _flat(ansatz: Ansatz, gates: Tensor) -> Tensor:
    """Return gates ``[batch, depth, n, 2, 2]`` of at least one circuit that fits in memory."""
    if ansatz.n > MAX_QUBITS:
        raise ValueError(
            f"n={ansatz.n} qubits: one state is 2^{ansatz.n} amplitudes, {size_of(gates.element_size(), ansatz.n)}, wanted n <= {MAX_QUBITS}. "
            "Fix: popflow.circuits.matrix_product, exact at any n for the brick entangler."
        )
    flat = gates.reshape(math.prod(gates.shape[:-4]), *gates.shape[-4:])
    if len(flat) == 0:
        raise ValueError(f"gates of shape {tuple(gates.shape)} hold 0 circuits, wanted at least 1.")
    return flat
