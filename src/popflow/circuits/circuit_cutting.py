r"""Circuit cutting: exact simulation of shallow circuits between neighbours from two halves of the qubits.

A controlled gate across the cut is a sum over the value ``v`` of its control, ``sum_v |v><v| (x) G_v``. With ``k`` of them

    psi[high, low] = sum_{v_1...v_k} H[high, v] L[low, v]

is one product of two thin matrices, whose ``2^k`` columns are states of half of the qubits. That is a few operations per amplitude however
many layers there are, where simulating the layers takes several products for each. `brick` crosses a cut in every second layer, so
``k = (depth - 1) // 2`` at best. The backward pass forms ``psi`` again instead of keeping it.

Within a half the state is ``[batch, 2^a, 2^k, 2^b]``, with its ``a`` low and ``b`` high qubits on the outer axes, so that either group is
applied by one matrix product. The gate between the two groups is multiplied into the matrix of the high group, once for each value of its
control.

Source: the decomposition of gates across a cut is that of Aaronson and Chen, *Complexity-theoretic foundations of quantum supremacy
experiments*, arXiv 1612.05903, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from popflow.circuits.ansatz import Ansatz

KEPT = 2**21
"""Amplitudes that autograd may keep for the halves, where this is more than one state."""


def best_cut(ansatz: Ansatz, batch: int, layered: float) -> int | None:
    """Return the number of low qubits of the best cut, or None where simulating layer by layer, at the cost ``layered``, is cheaper.

    Costs count multiplications for one circuit and 2^18 for launching an operation on a batch; the constants were fitted on a processor core.
    """
    layers = [list(ansatz.pairs(layer)) for layer in range(2, ansatz.depth + 1)]
    if ansatz.n < 4 or not all(_neighbours(pairs) for pairs in layers):
        return None
    best, found = layered, None
    for cut in range(max(2, ansatz.n // 2 - 1), min(ansatz.n - 2, (ansatz.n + 1) // 2 + 1) + 1):
        columns, kept, products = 1, 0, 0.0
        for pairs in layers:
            columns *= 2 if (cut - 1, cut) in pairs else 1
            for m in (cut, ansatz.n - cut):
                kept += 2 * columns * 2**m
                products += 3 * columns * 2**m * (2 ** (m // 2) + 2 ** (m - m // 2) + 16)
        cost = products + 4 * 2**ansatz.n * (columns + 16) + 2**18 * 24 * (len(layers) + 1) / batch
        if cost < best and kept <= max(KEPT, 2**ansatz.n):
            best, found = cost, cut
    return found


def _neighbours(pairs: list[tuple[int, int]]) -> bool:
    qubits = [qubit for pair in pairs for qubit in pair]
    return all(t == c + 1 for c, t in pairs) and len(set(qubits)) == len(qubits)


def cut_groups(n: int, cut: int) -> tuple[tuple[int, int], ...]:
    """Return the groups ``(first qubit, width)``, two in each half."""
    low, high = cut // 2, (n - cut) // 2
    return (0, low), (low, cut - low), (cut, high), (cut + high, n - cut - high)


def born_by_cutting(ansatz: Ansatz, gates: Tensor, matrices: list[Tensor], cut: int) -> Tensor:
    """Return ``[batch, 2^n]`` probabilities.

    Args:
        ansatz: The circuit; its pairs are disjoint neighbours.
        gates: ``[batch, depth, n, 2, 2]``.
        matrices: The matrices of the four groups `cut_groups` of every layer after the first, gates inside the groups included.
        cut: Number of low qubits.
    """
    blocks = ansatz.gate.blocks().to(gates)
    groups = cut_groups(ansatz.n, cut)
    sides = []
    for side in (0, 1):
        (a_first, a), (b_first, b) = groups[2 * side : 2 * side + 2]
        state = _product(gates[:, 0, a_first : a_first + a])[:, :, None, None] * _product(gates[:, 0, b_first : b_first + b])[:, None, None]
        for layer in range(2, ansatz.depth + 1):
            pairs, place = ansatz.pairs(layer), 4 * (layer - 2) + 2 * side
            crossing = (cut - 1, cut) in pairs
            low, high = matrices[place], matrices[place + 1]
            high = _controlled(high, blocks) if (b_first - 1, b_first) in pairs else high.unsqueeze(1)
            if crossing and side == 0:
                high = _split_by_control(high)
            state = _apply_high(high, state, b)
            low = _controlled(low, blocks).transpose(1, 2).flatten(1, 2) if crossing and side == 1 else low
            state = torch.bmm(low, state.flatten(2)).reshape(len(state), 2**a, -1, 2**b)
        sides.append(state)
    below = sides[0].permute(0, 3, 1, 2).flatten(1, 2)
    # the latest control value comes last in the low half and first in the high half
    above = sides[1].permute(0, 3, 1, 2).flatten(1, 2).index_select(2, _reversed_bits(below.shape[2], gates.device))
    return _SquaredProduct.apply(above, below)


def _product(gates: Tensor) -> Tensor:
    """Return the states ``[batch, 2^w]`` after gates ``[batch, w, 2, 2]`` on ``|0...0>``."""
    out = gates[:, 0, :, 0]
    for column in gates[:, 1:, :, 0].unbind(1):
        out = (column.unsqueeze(-1) * out.unsqueeze(-2)).flatten(-2)
    return out


def _controlled(matrix: Tensor, blocks: Tensor) -> Tensor:
    """Return ``[batch, 2, 2^w, 2^w]``: the matrix after the gate that a control of 0 or 1 applies to the lowest qubit of the group."""
    return (matrix.unflatten(-1, (-1, 2)).unsqueeze(1) @ blocks[:, None]).flatten(-2)


def _split_by_control(matrix: Tensor) -> Tensor:
    """Return ``[batch, u, 2 * 2^w, 2^w]``: the matrix after each projector on a value of the highest qubit of the group, stacked."""
    zero, one = matrix.unflatten(-1, (2, -1)).unbind(-2)
    return torch.cat((torch.cat((zero, torch.zeros_like(one)), -1), torch.cat((torch.zeros_like(zero), one), -1)), -2)


def _apply_high(matrix: Tensor, state: Tensor, b: int) -> Tensor:
    """Multiply the high group of ``[batch, 2^a, k, 2^b]`` by ``[batch, u, out, 2^b]``, one matrix for each value of the highest low qubit."""
    batch, u = matrix.shape[:2]
    out = torch.bmm(state.reshape(batch * u, -1, 2**b), matrix.flatten(0, 1).mT)
    return out.reshape(batch, state.shape[1], -1, 2**b)


def _reversed_bits(size: int, device: torch.device) -> Tensor:
    index, width = torch.arange(size, device=device), size.bit_length() - 1
    return sum((((index >> k) & 1) << (width - 1 - k) for k in range(width)), torch.zeros_like(index))


def refuse_double_backward() -> None:
    """Refuse a second derivative, which the hand-written gradients do not have."""
    if torch.is_grad_enabled():
        raise RuntimeError("born: the adjoint gradient differentiates once. Fix: drop create_graph, or use amplitudes(...).abs().square().")


class _SquaredProduct(torch.autograd.Function):
    """``p = |H L^T|^2`` for ``H [batch, 2^high, k]`` and ``L [batch, 2^low, k]``, as many circuits at a time as fit in the cache."""

    @staticmethod
    def forward(ctx, above, below):
        ctx.save_for_backward(above, below)
        size = above.shape[1] * below.shape[1]
        out = torch.empty(len(above), size, dtype=above.real.dtype, device=above.device)
        for p, h, l in _blocks(size, out, above, below):
            psi = torch.bmm(h, l.mT).flatten(1)
            if psi.is_complex():
                torch.mul(psi.real, psi.real, out=p).addcmul_(psi.imag, psi.imag)
            else:
                torch.mul(psi, psi, out=p)
        return out

    @staticmethod
    def backward(ctx, cotangent):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_double_backward()
        above, below = ctx.saved_tensors
        grads = torch.empty_like(above), torch.empty_like(below)
        size = above.shape[1] * below.shape[1]
        for g, h, l, to_h, to_l in _blocks(size, cotangent, above, below, *grads):
            bra = torch.bmm(h, l.mT)
            weight = g.unflatten(1, bra.shape[1:])
            (torch.view_as_real(bra) if bra.is_complex() else bra).mul_(weight.unsqueeze(-1) if bra.is_complex() else weight).mul_(2)
            torch.bmm(bra, l.conj(), out=to_h)
            torch.bmm(bra.mT, h.conj(), out=to_l)
        return grads


def _blocks(size: int, *tensors: Tensor):
    return zip(*(tensor.split(max(1, 2**17 // size)) for tensor in tensors), strict=True)
