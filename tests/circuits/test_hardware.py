"""Shots, noise against the density matrix, and counts."""

from __future__ import annotations

import math

import pytest
import torch

from popflow.circuits import Ansatz, Depolarising, Oracle, born, brick, cx, cz, evaluate_counts, linear, noisy_born, train_shots
from popflow.circuits.hardware import sampled_energies
from popflow.core import Streams


def density_matrix(reference, ansatz, angles, noise):
    """The diagonal of the noisy density matrix: every gate, then its channel, on a tensor with one axis per row and column qubit."""
    n = ansatz.n
    paulis = [torch.eye(2), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0, -1j], [1j, 0]]), torch.diag(torch.tensor([1, -1]))]
    paulis = [p.to(torch.complex128) for p in paulis]
    rho = torch.zeros([2] * 2 * n, dtype=torch.complex128)
    rho[(0,) * 2 * n] = 1

    def conjugated(rho, gate, qubits):
        # axes n-1-j are columns here: the matrix is the tensor of 2n qubits, rows above columns
        rho = reference.apply(rho, gate, [q + n for q in qubits])
        return reference.apply(rho, gate.conj(), qubits)

    for name, angle, qubits in reference.gate_list(ansatz, angles):
        rho = conjugated(rho, reference.matrix(name, angle), qubits)
        p, k = (noise.two, 2) if len(qubits) == 2 else (noise.one, 1)
        errors = [paulis[i] for i in range(1, 4)] if k == 1 else [torch.kron(a, b) for a in paulis for b in paulis][1:]
        rho = (1 - p) * rho + p / (4**k - 1) * sum(conjugated(rho, e, qubits) for e in errors)
    return rho.reshape(2**n, 2**n).diagonal().real


@pytest.mark.parametrize(("entangler", "gate", "phases"), [(brick, cx, True), (linear, cx, True), (linear, cz, True), (brick, cx, False)])
def test_trajectories_equal_the_density_matrix(reference, entangler, gate, phases):
    """Every probability within 4 standard errors of 4000 trajectories (64 numbers in all), the mean cost within 3."""
    ansatz, noise = Ansatz(4, 3, entangler, gate, phases), Depolarising(0.03, 0.1)
    angles = ansatz.random(1, Streams(0), torch.float64)[0]
    exact = density_matrix(reference, ansatz, angles, noise)
    assert float(exact.sum()) == pytest.approx(1, abs=1e-12)
    assert (exact - born(ansatz, angles)).abs().max() > 0.02
    p = noisy_born(ansatz, angles, noise, 4000, torch.Generator().manual_seed(0))
    error = p.std(0) / math.sqrt(4000)
    assert bool(((p.mean(0) - exact).abs() < 4 * error).all())
    cost = torch.arange(16.0, dtype=torch.float64).sin()
    each = p @ cost
    assert abs(float(each.mean() - exact @ cost)) < 3 * float(each.std()) / math.sqrt(4000)


def test_no_noise_is_no_noise():
    ansatz = Ansatz(5, 4)
    angles = ansatz.random(1, Streams(0), torch.float64)[0]
    p = noisy_born(ansatz, angles, Depolarising().scaled(0.0), 3, torch.Generator().manual_seed(0))
    assert torch.equal(p, born(ansatz, angles.expand(3, -1, -1, -1)))


def test_energies_from_shots():
    ansatz, table = Ansatz(5, 2), torch.arange(32.0, dtype=torch.float64).sin()
    angles = ansatz.random(3, Streams(0), torch.float64)
    oracle = Oracle.of_table(table)
    p = born(ansatz, angles)
    exact, spread = p @ table, (p @ table.square() - (p @ table).square()).sqrt()
    found = sampled_energies(ansatz, angles, oracle, 2000, torch.Generator().manual_seed(0))
    assert bool(((found - exact).abs() < 4 * spread / math.sqrt(2000)).all())
    assert oracle.calls == 6000


def test_training_by_shots():
    ansatz, table = Ansatz(4, 2, phases=False), torch.arange(16.0, dtype=torch.float64)
    oracle, rng = Oracle.of_table(table), Streams(0)
    start = ansatz.random(1, rng, torch.float64)[0]
    angles = train_shots(ansatz, oracle, start, shots=20, steps=30, generator=rng("shots"))
    assert oracle.calls == 2 * ansatz.parameters * 20 * 30
    assert float(born(ansatz, angles) @ table) < 0.3 * float(born(ansatz, start) @ table)
    assert oracle.best_cost == 0.0


def test_counts():
    oracle = Oracle(lambda bits: bits.double() @ torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64), 3)
    assert oracle.best_cost == math.inf
    counts = {"100": 30, "001": 70}
    found = evaluate_counts(oracle, counts)
    assert found.mean == pytest.approx(0.3 * 4 + 0.7 * 1)
    assert found.error == pytest.approx(math.sqrt(0.3 * 0.7 * 9 / 100))
    assert (found.bits, found.cost, found.shots) == ("001", 1.0, 100)
    assert (oracle.best_cost, oracle.best_bits.tolist()) == (1.0, [0, 0, 1])
    assert evaluate_counts(oracle, counts, qubit_zero_first=True).mean == pytest.approx(0.3 * 1 + 0.7 * 4)


def test_bad_input():
    oracle = Oracle(lambda bits: bits.double().sum(1), 3)
    with pytest.raises(ValueError, match=r"'0100' has 4 characters, wanted 3 of 0 and 1, such as '010'"):
        evaluate_counts(oracle, {"010": 5, "0100": 1})
    with pytest.raises(ValueError, match=r"'0 1' has 3 characters"):
        evaluate_counts(oracle, {"0 1": 1})
    for spins, shown in (([[-1, 1, 1]], "-1"), ([[0.5, 0, 1]], "0.5")):
        with pytest.raises(ValueError, match=f"bits hold {shown}, wanted only 0 and 1"):
            oracle(torch.tensor(spins))
    with pytest.raises(ValueError, match=r"wanted \[S, 3\]"):
        oracle(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="hold 0 shots in 1 keys"):
        evaluate_counts(oracle, {"010": 0})
    with pytest.raises(ValueError, match="integer number of shots"):
        evaluate_counts(oracle, {"010": -1})
    with pytest.raises(ValueError, match=r"two=1\.5"):
        Depolarising(two=1.5)
    with pytest.raises(ValueError, match="steps=0"):
        train_shots(Ansatz(3, 1), oracle, torch.zeros(1, 3, 2), shots=1, steps=0, generator=torch.Generator())
    with pytest.raises(ValueError, match="trajectories=0"):
        noisy_born(Ansatz(2, 1), torch.zeros(1, 2, 2), Depolarising(), 0, torch.Generator())
