"""Two halves and the gates between them: the layers one after another are the reference, for every cut."""

from __future__ import annotations

import pytest
import torch

from popflow.circuits.ansatz import Ansatz, brick, cx, cz, linear, rotations
from popflow.circuits.circuit_cutting import KEPT, best_cut, born_by_cutting, cut_groups
from popflow.circuits.statevector import _cost, _cut_layouts, _layouts, _matrices, amplitudes, born
from popflow.core import Streams


def by_cutting(ansatz, angles, cut):
    gates = rotations(angles)
    return born_by_cutting(ansatz, gates, _matrices(_cut_layouts(ansatz, cut, gates.device), gates), cut)


def choice(ansatz, batch):
    gates = torch.zeros(batch, *ansatz.shape[:2], 2, 2, dtype=torch.complex64)
    return best_cut(ansatz, batch, _cost(ansatz.n, _layouts(ansatz, gates), batch, True))


@pytest.mark.parametrize("gate", [cx, cz])
@pytest.mark.parametrize("phases", [True, False])
@pytest.mark.parametrize(("n", "depth"), [(4, 1), (5, 4), (7, 6), (8, 9)])
def test_every_cut_gives_the_distribution_and_its_gradient(n, depth, gate, phases):
    ansatz = Ansatz(n, depth, brick, gate, phases)
    angles = ansatz.random(2, Streams(0), torch.float64).requires_grad_()
    cost = torch.arange(2**n, dtype=torch.float64).sin()
    exact = amplitudes(ansatz, rotations(angles)).abs().square()
    (slope,) = torch.autograd.grad((exact @ cost).sum(), angles)
    for cut in range(2, n - 1):
        p = by_cutting(ansatz, angles, cut)
        (mine,) = torch.autograd.grad((p @ cost).sum(), angles)
        torch.testing.assert_close(p, exact, atol=1e-13, rtol=0)
        torch.testing.assert_close(mine, slope, atol=1e-12, rtol=0)


def test_groups_cover_the_qubits_once():
    for n in range(4, 21):
        for cut in range(2, n - 1):
            assert [q for first, width in cut_groups(n, cut) for q in range(first, first + width)] == list(range(n))


def test_where_it_is_used():
    """Shallow circuits of disjoint neighbours; not chains, not upside-down pairs, not depths at which the sum has too many terms."""
    assert choice(Ansatz(16, 6), 1) is not None
    assert choice(Ansatz(16, 40), 1) is None
    assert choice(Ansatz(16, 6, linear), 1) is None
    assert choice(Ansatz(16, 6, lambda n, layer: [(t, c) for c, t in brick(n, layer)]), 1) is None
    assert choice(Ansatz(3, 2), 1) is None


@pytest.mark.parametrize(("n", "depth"), [(16, 6), (12, 12)])
def test_the_graph_keeps_less_than_is_allowed(n, depth):
    """What autograd keeps of the halves, in amplitudes, stays below the bound by which `best_cut` chooses; the whole state is not kept."""
    ansatz, sizes = Ansatz(n, depth), []
    angles = ansatz.random(1, Streams(0)).requires_grad_()
    assert choice(ansatz, 1) is not None or n == 12
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        by_cutting(ansatz, angles, n // 2)
    assert sum(sizes) < max(KEPT, 2**n)
    assert max(sizes) < 2**n


def test_training_size_agrees_in_single_precision():
    """17 qubits, depth 12: the distribution in float32 against float64, and the norm."""
    ansatz = Ansatz(17, 12)
    angles = ansatz.random(2, Streams(1), torch.float64)
    exact = born(ansatz, angles)
    assert float((exact.sum(1) - 1).abs().max()) < 1e-12
    assert float((born(ansatz, angles.float()) - exact).abs().sum(1).max()) < 1e-4
