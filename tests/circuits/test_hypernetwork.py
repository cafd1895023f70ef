"""Training against exact optima; objectives, success and their intervals against closed forms."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from popflow.circuits import (
    Ansatz,
    BinaryMLP,
    Cost,
    born,
    digits,
    energy,
    entropy,
    evaluate,
    free_energy,
    success,
    tail_mean,
    train_adam,
    train_lbfgs,
)
from popflow.core import NonFiniteError, Streams


@pytest.fixture(scope="module")
def table():
    data = digits(3, 7, 3)
    return Cost(BinaryMLP(9), data.x, data.y).table()


def test_depth_helps_on_digits(table):
    """The rise from the product state to depth 8 (the published reproduction found .16 to .75 with 32 restarts)."""
    shares = {}
    for depth in (1, 8):
        ansatz = Ansatz(10, depth)
        found = train_adam(ansatz, table, ansatz.random(32, Streams(0)), steps=200, lr=0.1)
        assert bool((found.energy >= table.min() - 1e-6).all())
        shares[depth] = success(found, table).energy.value
    assert shares[8] - shares[1] > 0.3


def test_lbfgs_ends_at_stationary_points(table):
    ansatz = Ansatz(10, 3)
    found = train_lbfgs(ansatz, table, ansatz.random(3, Streams(0)))
    angles = found.angles.requires_grad_()
    (gradient,) = torch.autograd.grad((born(ansatz, angles) @ table).sum(), angles)
    assert gradient.abs().max() < 1e-5 * float(table.mean() - table.min())
    assert bool((found.energy >= table.min()).all())
    assert bool((found.evaluations > 5).all())


def test_product_states_end_in_local_minima(table):
    """The energy of a product state is linear in each marginal: a minimum is a network that no single flip improves."""
    ansatz = Ansatz(10, 1)
    found = train_adam(ansatz, table, ansatz.random(16, Streams(1), torch.float64), steps=400, lr=0.1)
    p = born(ansatz, found.angles)
    for code, sure in zip(found.code.tolist(), p.max(1).values.tolist(), strict=True):
        assert sure > 0.99
        assert all(table[code ^ (1 << k)] >= table[code] for k in range(10))


def test_training_does_not_depend_on_the_company(table):
    ansatz = Ansatz(10, 2)
    start = ansatz.random(70, Streams(0), torch.float64)
    together = train_adam(ansatz, table, start, steps=5)
    alone = train_adam(ansatz, table, start[66:67], steps=5)
    # the last phases have no influence, and Adam makes steps of rounding errors there: compare what is measured
    torch.testing.assert_close(together.energy[66:67], alone.energy, atol=1e-12, rtol=0)
    again = train_adam(ansatz, table, start, steps=5)
    assert torch.equal(together.angles, again.angles)


def test_free_energy_at_its_minimum_is_the_log_partition_function():
    """min F_T = -T ln sum exp(-C/T), reached when the circuit can make the Gibbs distribution; here of independent bits."""
    n, temperature = 3, 0.7
    field = torch.tensor([0.3, 0.8, 1.2], dtype=torch.float64)
    bits = (torch.arange(8).unsqueeze(1) >> torch.arange(n)) & 1
    table = bits.double() @ field
    ansatz = Ansatz(n, 1, phases=False)
    found = train_lbfgs(ansatz, table, ansatz.random(2, Streams(0)), objective=free_energy(temperature))
    spread = float(table.mean() - table.min())
    p = born(ansatz, found.angles[0])
    expected = torch.softmax(-table / spread / temperature, 0)
    torch.testing.assert_close(p, expected, atol=1e-5, rtol=0)
    value = free_energy(temperature)(p.unsqueeze(0), table / spread, 1.0)
    assert float(value) == pytest.approx(-temperature * float(torch.logsumexp(-table / spread / temperature, 0)), abs=1e-9)
    assert float(free_energy(lambda s: 1 - s)(p.unsqueeze(0), table, 1.0)) == pytest.approx(float(p @ table), abs=1e-12)


def test_tail_mean():
    """The best tenth of p = (.05, .05, .9) has the mean of the first two; its gradient is that of finite differences."""
    p, cost = torch.tensor([[0.05, 0.9, 0.05, 0.0]], dtype=torch.float64), torch.tensor([1.0, 5.0, 2.0, 9.0], dtype=torch.float64)
    assert float(tail_mean(0.1)(p, cost, 0.0)) == pytest.approx(1.5)
    assert float(tail_mean(1.0)(p, cost, 0.0)) == pytest.approx(float(energy(p, cost)))
    assert float(tail_mean(0.5)(p, cost, 0.0)) == pytest.approx((0.05 * 1 + 0.05 * 2 + 0.4 * 5) / 0.5)
    with pytest.raises(ValueError, match="share=0"):
        tail_mean(0.0)


def test_objectives_travel_to_other_processes():
    """joblib, grid searches and multiprocessing pickle them."""
    p, cost = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64), torch.tensor([3.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    for objective in (energy, tail_mean(0.3), free_energy(0.5)):
        assert torch.equal(pickle.loads(pickle.dumps(objective))(p, cost, 0.5), objective(p, cost, 0.5))


def test_entropy():
    p = torch.zeros(2, 8, dtype=torch.float64)
    p[0, 5], p[1] = 1.0, 1 / 8
    assert entropy(p).tolist() == pytest.approx([0.0, math.log(8)])


def test_success_of_samples_is_what_sampling_gives(table):
    """1 - (1 - p*)^N against drawing N networks many times, within 3 standard errors."""
    ansatz = Ansatz(10, 2)
    start = ansatz.random(1, Streams(5), torch.float64)
    found = evaluate(ansatz, start, table)
    p, shots, times = born(ansatz, start[0]), 200, 4000
    drawn = torch.multinomial(p, shots * times, replacement=True, generator=torch.Generator().manual_seed(0)).reshape(times, shots)
    share = float((drawn == int(table.argmin())).any(1).double().mean())
    exact = success(found, table, shots=shots).sampled.value
    assert 0.005 < exact < 0.995
    assert abs(share - exact) < 3 * math.sqrt(exact * (1 - exact) / times)


def test_bad_input(table):
    with pytest.raises(ValueError, match=r"2\^10 costs, the ansatz has n=9"):
        evaluate(Ansatz(9, 1), torch.zeros(1, 1, 9, 2), table)
    with pytest.raises(ValueError, match="shots=0"):
        success(evaluate(Ansatz(10, 1), torch.zeros(1, 1, 10, 2), table), table, shots=0)
    with pytest.raises(NonFiniteError, match="restart 1 is not finite at step 0"):
        train_adam(Ansatz(10, 1), table, torch.zeros(2, 1, 10, 2).index_fill(0, torch.tensor([1]), math.nan), steps=1)
    with pytest.raises(NonFiniteError, match="restart 0 is nan"):
        train_lbfgs(Ansatz(10, 1), table, torch.full((1, 1, 10, 2), math.nan))
    for train in (train_adam, train_lbfgs):
        with pytest.raises(ValueError, match=r"2\^10 costs, the ansatz has n=9"):
            train(Ansatz(9, 1), table, torch.zeros(1, 1, 9, 2))
        with pytest.raises(ValueError, match="steps=0: wanted at least 1"):
            train(Ansatz(10, 1), table, torch.zeros(1, 1, 10, 2), steps=0)


@pytest.mark.usefixtures("unchecked")
def test_wrong_kinds_are_named(table):
    for train in (train_adam, train_lbfgs):
        with pytest.raises(TypeError, match=r"objective='energy', wanted a function such as popflow\.circuits\.energy"):
            train(Ansatz(10, 1), table, torch.zeros(1, 1, 10, 2), objective="energy")
        with pytest.raises(TypeError, match=r"float16, wanted a tensor of float32 or float64"):
            train(Ansatz(10, 1), table, torch.zeros(1, 1, 10, 2).half())
