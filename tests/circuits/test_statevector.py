"""Exact simulation against published fixtures, a gate-by-gate simulator, and finite shifts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from popflow.circuits.ansatz import Ansatz, TwoQubitGate, all_to_all, brick, cx, cz, linear, ring, rotations
from popflow.circuits.hardware import parameter_shift
from popflow.circuits.statevector import amplitudes, born, sample
from popflow.core import NonFiniteError, Streams

FIXTURES = [
    (
        3,
        1,
        True,
        0.679475105579,
        {(0, 0, 0): -0.0883016264, (0, 2, 0): 0.1018479190},
        (0.0245853004, 0.0082482676, 0.0390414259, 0.0130982385),
    ),
    (3, 2, True, 0.620739175173, {(0, 0, 0): 0.0985977723, (1, 2, 0): 0.0608749621, (0, 0, 1): 0.0171916083, (1, 1, 1): 0.0}, None),
    (
        4,
        4,
        True,
        0.670575245356,
        {(0, 0, 0): -0.1013034544, (3, 3, 0): 0.0054231271, (0, 0, 1): -0.0070463027, (1, 1, 1): -0.0044037755},
        4,
    ),
    (6, 6, True, 0.463799320590, {(0, 0, 0): 0.0352039481, (0, 0, 1): -0.0140203346}, 33),
    (4, 4, False, 0.661517830434, {(0, 0, 0): -0.1006279746}, (0.0423039348, 0.0932834270, 0.0473931594, 0.1329346942)),
]
EVERY = list(itertools.product((brick, linear, ring, all_to_all), (cx, cz), (True, False)))


@pytest.mark.parametrize(("n", "depth", "phases", "energy", "gradients", "p"), FIXTURES)
def test_published_fixtures(fixture_angles, fixture_cost, n, depth, phases, energy, gradients, p):
    angles = fixture_angles(n, depth, phases).requires_grad_()
    found = born(Ansatz(n, depth, phases=phases), angles)
    value = found @ fixture_cost(n)
    value.backward()
    assert float(value.detach()) == pytest.approx(energy, abs=1e-11)
    for where, expected in gradients.items():
        assert float(angles.grad[where]) == pytest.approx(expected, abs=1e-10)
    if isinstance(p, int):
        assert int(found.argmax()) == p
    elif p is not None:
        torch.testing.assert_close(found.detach()[:4], torch.tensor(p, dtype=torch.float64), atol=1e-10, rtol=0)
    if depth == 1:
        assert angles.grad[..., 1:].abs().max() < 1e-14


@pytest.mark.parametrize(("entangler", "gate", "phases"), EVERY)
@pytest.mark.parametrize(("n", "depth"), [(2, 3), (7, 4)])
def test_equals_gate_by_gate(reference, entangler, gate, phases, n, depth):
    ansatz = Ansatz(n, depth, entangler, gate, phases)
    angles = ansatz.random(2, Streams(1), torch.float64)
    for one in angles:
        exact = reference.simulate(n, reference.gate_list(ansatz, one))
        torch.testing.assert_close(amplitudes(ansatz, rotations(one)).to(exact.dtype), exact, atol=1e-13, rtol=0)
        torch.testing.assert_close(born(ansatz, one), exact.abs().square(), atol=1e-13, rtol=0)


@pytest.mark.parametrize(("entangler", "gate", "phases"), EVERY)
def test_adjoint_equals_autograd_equals_parameter_shift(entangler, gate, phases):
    ansatz = Ansatz(7, 3, entangler, gate, phases)
    angles = ansatz.random(1, Streams(2), torch.float64)[0].requires_grad_()
    cost = torch.arange(2**7, dtype=torch.float64).sin()
    (adjoint,) = torch.autograd.grad(born(ansatz, angles) @ cost, angles)
    (auto,) = torch.autograd.grad(amplitudes(ansatz, rotations(angles)).abs().square() @ cost, angles)
    shift = parameter_shift(lambda t: born(ansatz, t) @ cost, angles.detach())
    torch.testing.assert_close(adjoint, auto, atol=1e-12, rtol=0)
    torch.testing.assert_close(adjoint, shift, atol=1e-12, rtol=0)


def test_a_gate_of_ones_own_that_moves_and_signs_states_is_inverted_in_the_backward_pass():
    """A quarter turn of the target where the control is 1, ``|1,0> -> |1,1> -> -|1,0>``: its sign and its permutation do not commute."""
    turn = TwoQubitGate("turn", lambda codes, c, t: (cx.act(codes, c, t)[0], cz.act(codes, c, t)[1]), lambda x, z, c, t: None)
    ansatz = Ansatz(7, 3, all_to_all, turn)
    angles = ansatz.random(1, Streams(2), torch.float64)[0].requires_grad_()
    cost = torch.arange(2**7, dtype=torch.float64).sin()
    (adjoint,) = torch.autograd.grad(born(ansatz, angles) @ cost, angles)
    (auto,) = torch.autograd.grad(amplitudes(ansatz, rotations(angles)).abs().square() @ cost, angles)
    torch.testing.assert_close(adjoint, auto, atol=1e-12, rtol=0)


def test_any_loss_of_the_distribution_differentiates():
    ansatz = Ansatz(4, 3)
    angles = ansatz.random(2, Streams(0), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: (born(ansatz, t) + 0.1).log().sum(-1), angles)


def test_a_batch_is_a_loop():
    ansatz = Ansatz(9, 4)
    angles = ansatz.random(5, Streams(0), torch.float64).requires_grad_()
    cost = torch.arange(2**9, dtype=torch.float64).cos()
    p = born(ansatz, angles)
    (together,) = torch.autograd.grad((p @ cost).sum(), angles)
    for i, one in enumerate(angles.detach()):
        one.requires_grad_()
        alone = born(ansatz, one)
        torch.testing.assert_close(p[i], alone, atol=1e-14, rtol=0)
        (gradient,) = torch.autograd.grad(alone @ cost, one)
        torch.testing.assert_close(together[i], gradient, atol=1e-13, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("phases", [True, False])
def test_norm(dtype, tolerance, phases):
    ansatz = Ansatz(17, 6, phases=phases)
    p = born(ansatz, ansatz.random(1, Streams(0), dtype))
    assert p.dtype == dtype
    assert abs(float(p.double().sum()) - 1) < tolerance


def test_last_phases_do_nothing_and_one_layer_is_a_product():
    ansatz = Ansatz(6, 3)
    angles = ansatz.random(1, Streams(0), torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad((born(ansatz, angles) @ torch.arange(64.0).double().sin()).sum(), angles)
    assert gradient[:, -1, :, 1].abs().max() < 1e-14
    assert gradient[:, 0, :, 1].abs().max() > 1e-3
    single = Ansatz(6, 1)
    p = born(single, single.random(1, Streams(1), torch.float64)[0])
    product = torch.ones(1, dtype=torch.float64)
    for k in range(6):
        one = p.unflatten(0, (2 ** (5 - k), 2, 2**k))[:, 1].sum()
        product = torch.kron(torch.stack((1 - one, one)), product)
    assert float((p * (p / product).log()).sum().abs()) < 1e-12
    deep = born(ansatz, angles.detach()[0])
    assert (deep - product).abs().max() > 1e-3


def test_angles_of_zero_and_pi_are_basis_states():
    ansatz = Ansatz(6, 5)
    bits = torch.randint(2, ansatz.shape, generator=torch.Generator().manual_seed(0)).double()
    state = 0
    for layer in range(1, 6):
        for c, t in brick(6, layer):
            state ^= ((state >> c) & 1) << t
        state ^= sum(int(bits[layer - 1, j, 0]) << j for j in range(6))
    p = born(ansatz, math.pi * bits)
    assert int(p.argmax()) == state
    assert float(p[state]) == pytest.approx(1, abs=1e-12)


def test_samples_follow_the_distribution():
    ansatz = Ansatz(4, 3)
    p = born(ansatz, ansatz.random(1, Streams(3), torch.float64)[0])
    drawn = sample(p, 100_000, torch.Generator().manual_seed(0))
    assert chisquare(drawn.bincount(minlength=16).numpy(), (p * 100_000).numpy()).pvalue > 1e-3
    rows = sample(p.expand(3, -1), 4, torch.Generator().manual_seed(0))
    assert rows.shape == (3, 4)


def test_memory_does_not_grow_with_depth():
    """The graph of the adjoint keeps the final state and small gates alone: as many bytes for 12 layers as for 2, to a state."""

    def kept(depth):
        ansatz, sizes = Ansatz(12, depth, linear), []
        angles = ansatz.random(1, Streams(0)).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t):
            born(ansatz, angles)
        return sum(sizes)

    assert kept(12) - kept(2) < 2**12 * 8


def test_bad_input():
    with pytest.raises(ValueError, match="depth=0"):
        Ansatz(4, 0)
    with pytest.raises(ValueError, match="n=1"):
        Ansatz(1, 2)
    with pytest.raises(ValueError, match=r"pair \(3, 4\) in layer 1"):
        Ansatz(4, 2, lambda n, layer: [(3, 4)])
    with pytest.raises(ValueError, match="restarts=0"):
        Ansatz(4, 2).random(0, Streams(0))
    with pytest.raises(ValueError, match=r"8,589,934,592 bytes.*matrix_product"):
        born(Ansatz(30, 1), torch.zeros(1, 30, 2))
    with pytest.raises(TypeError, match="complex64, wanted a tensor of float32 or float64"):
        born(Ansatz(2, 1), torch.zeros(1, 2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"shape \(1, 3, 2\), wanted \[\*batch, 1, 2, 2\]"):
        born(Ansatz(2, 1), torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="hold 0 circuits"):
        born(Ansatz(3, 2), torch.zeros(0, 2, 3, 2))
    with pytest.raises(ValueError, match="shots=0"):
        sample(torch.ones(2) / 2, 0, torch.Generator())
    angles = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with pytest.raises(RuntimeError, match="differentiates once"):
        torch.autograd.grad(born(Ansatz(2, 2), angles)[0], angles, create_graph=True)


@pytest.mark.usefixtures("unchecked")
def test_wrong_kinds_are_named():
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        with pytest.raises(TypeError, match=f"angles are {dtype}, wanted a tensor of float32 or float64"):
            born(Ansatz(2, 1), torch.zeros(1, 2, 2, dtype=dtype))
    with pytest.raises(TypeError, match="angles are a list"):
        born(Ansatz(2, 1), [[[0.0, 0.0], [0.0, 0.0]]])
    with pytest.raises(NonFiniteError, match="1 of 4 angles are NaN or infinite"):
        born(Ansatz(2, 1), torch.tensor([[[0.0, math.nan], [0.0, 0.0]]]))
    with pytest.raises(TypeError, match=r"depth=1\.5, wanted a whole number"):
        Ansatz(4, 1.5)
    with pytest.raises(TypeError, match=r"entangler='ring', wanted a function such as popflow\.circuits\.ring"):
        Ansatz(4, 2, "ring")
    with pytest.raises(TypeError, match=r"gate='cz', wanted a two-qubit gate: popflow\.circuits\.cx or cz"):
        Ansatz(4, 2, gate="cz")
