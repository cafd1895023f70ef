"""Matrix products against the exact state, and what holds beyond the reach of the latter."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from popflow.circuits.ansatz import Ansatz, brick, cx, cz, linear, ring, rotations
from popflow.circuits.matrix_product import matrix_product, train_score
from popflow.circuits.oracle import Oracle
from popflow.circuits.space import bits_of, codes_of
from popflow.circuits.statevector import amplitudes, born
from popflow.core import Streams


@pytest.mark.parametrize(("entangler", "depth"), [(brick, 1), (brick, 6), (linear, 3)])
@pytest.mark.parametrize("gate", [cx, cz])
@pytest.mark.parametrize("phases", [True, False])
def test_equals_the_state(entangler, depth, gate, phases):
    ansatz = Ansatz(10, depth, entangler, gate, phases)
    angles = ansatz.random(1, Streams(0), torch.float64)[0]
    torch.testing.assert_close(matrix_product(ansatz, angles).state(), amplitudes(ansatz, rotations(angles)), atol=1e-13, rtol=0)


def test_upside_down_gates_too():
    ansatz = Ansatz(6, 4, lambda n, layer: [(t, c) for c, t in brick(n, layer)])
    angles = ansatz.random(1, Streams(0), torch.float64)[0]
    torch.testing.assert_close(matrix_product(ansatz, angles).state(), amplitudes(ansatz, rotations(angles)), atol=1e-13, rtol=0)


@pytest.mark.parametrize("depth", range(1, 9))
def test_bonds_are_exact_and_none_is_wasted(depth):
    """Bond j (from 1) has 2^floor(D/2) states for odd j, 2^floor((D-1)/2) for even j, at most 2^min(j, n-j); and all are used."""
    ansatz = Ansatz(12, depth)
    angles = ansatz.random(1, Streams(depth), torch.float64)[0]
    expected = [min(2 ** (depth // 2 if j % 2 else (depth - 1) // 2), 2 ** min(j, 12 - j)) for j in range(1, 12)]
    assert list(matrix_product(ansatz, angles).bonds) == expected
    psi = amplitudes(ansatz, rotations(angles))
    ranks = [int(torch.linalg.matrix_rank(psi.reshape(2 ** (12 - j), 2**j), rtol=1e-10)) for j in range(1, 12)]
    assert ranks == expected


def test_log_p_and_its_gradient():
    ansatz = Ansatz(8, 4)
    angles = ansatz.random(1, Streams(1), torch.float64)[0].requires_grad_()
    bits = bits_of(torch.arange(256), 8)
    log_p, exact = matrix_product(ansatz, angles).log_p(bits), born(ansatz, angles).log()
    torch.testing.assert_close(log_p, exact, atol=1e-11, rtol=0)
    weight = torch.arange(256.0, dtype=torch.float64).sin()
    (mine,) = torch.autograd.grad(log_p @ weight, angles)
    (theirs,) = torch.autograd.grad(exact @ weight, angles)
    torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=1e-9)


def test_samples_follow_the_state():
    ansatz = Ansatz(4, 3)
    angles = ansatz.random(1, Streams(3), torch.float64)[0]
    drawn = codes_of(matrix_product(ansatz, angles).sample(50_000, torch.Generator().manual_seed(0)))
    expected = born(ansatz, angles) * 50_000
    assert chisquare(drawn.bincount(minlength=16).numpy(), expected.numpy()).pvalue > 1e-3


def test_blocks_of_many_qubits_are_independent():
    """60 qubits in blocks of six: the norm is 1, ``log p`` is the sum over blocks, and every block is sampled from its own distribution."""
    ansatz = Ansatz(60, 4, lambda n, layer: [(c, t) for c, t in brick(n, layer) if c // 6 == t // 6])
    angles = ansatz.random(1, Streams(0), torch.float64)[0]
    state = matrix_product(ansatz, angles)
    bits = state.sample(2000, torch.Generator().manual_seed(1))
    codes = codes_of(bits.flip(-1).unflatten(-1, (10, 6)).flip(-1))
    blocks = [born(Ansatz(6, 4), some) for some in angles.unflatten(1, (10, 6)).unbind(1)]
    exact = sum(p.log()[codes[:, k]] for k, p in enumerate(blocks))
    torch.testing.assert_close(state.log_p(bits), exact, atol=1e-10, rtol=0)
    first, environment = state.tensors[0], state.right_environments()[0]
    assert float(torch.einsum("asb,bc,asc->", first, environment, first.conj()).real) == pytest.approx(1, abs=1e-12)
    for k in (0, 9):
        expected, drawn = 2000 * blocks[k], codes[:, k].bincount(minlength=64)
        common = expected >= 5
        observed, wanted = (torch.cat((c[common], c[~common].sum()[None])).numpy() for c in (drawn.double(), expected))
        assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_probabilities_of_many_qubits_do_not_underflow():
    """400 bits in single precision, whose probabilities are far below the smallest number."""
    ansatz = Ansatz(400, 2)
    angles = ansatz.random(1, Streams(0))[0]
    state = matrix_product(ansatz, angles)
    bits = state.sample(3, torch.Generator().manual_seed(0))
    log_p = state.log_p(bits)
    assert float(log_p.max()) < -100
    torch.testing.assert_close(log_p.double(), matrix_product(ansatz, angles.double()).log_p(bits), atol=1e-2, rtol=0)


def test_score_training_finds_the_network_of_many_bits():
    """A separable cost of 40 bits: the sampled circuit reaches its one optimum, and every call is counted."""
    target = torch.arange(40) % 3 == 0
    oracle = Oracle(lambda bits: (bits.bool() != target).double().mean(1), 40)
    ansatz = Ansatz(40, 2, phases=False)
    angles = ansatz.random(1, Streams(0), torch.float64)[0]
    found = train_score(ansatz, oracle, angles, shots=64, steps=60, generator=torch.Generator().manual_seed(0))
    assert oracle.calls == 64 * 60
    assert oracle.best_cost == 0.0
    assert float(matrix_product(ansatz, found).log_p(target.unsqueeze(0).to(torch.uint8))) > -2.0


def test_bad_input():
    with pytest.raises(ValueError, match=r"couples qubits 3 and 0, wanted neighbours"):
        matrix_product(Ansatz(4, 2, ring), torch.zeros(2, 4, 2))
    with pytest.raises(ValueError, match="wanted one circuit"):
        matrix_product(Ansatz(4, 2), torch.zeros(1, 2, 4, 2))
    state = matrix_product(Ansatz(4, 2), torch.zeros(2, 4, 2))
    with pytest.raises(ValueError, match="shots=0"):
        state.sample(0, torch.Generator())
    with pytest.raises(ValueError, match=r"bits have shape \(2, 3\)"):
        state.log_p(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="shots=1"):
        train_score(Ansatz(4, 2), Oracle.of_table(torch.arange(16.0)), torch.zeros(2, 4, 2), shots=1, steps=1, generator=torch.Generator())
    with pytest.raises(ValueError, match="steps=0"):
        train_score(Ansatz(4, 2), Oracle.of_table(torch.arange(16.0)), torch.zeros(2, 4, 2), shots=2, steps=0, generator=torch.Generator())
