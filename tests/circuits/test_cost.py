"""Tables against modules, and the exact optima of nine instances."""

from __future__ import annotations

import math

import pytest
import torch

from popflow.circuits.cost import Cost, check_table, cross_entropy, idle_bits, squared_error, truth
from popflow.circuits.data import digits, gaussians
from popflow.circuits.space import BinaryMLP, Choice, Switch, bits_of
from popflow.circuits.walsh import walsh_weights

ACTIVATION = Choice("activation", (torch.relu, torch.sigmoid))
ALPHABET = Choice("alphabet", ((0.0, 1.0), (-1.0, 1.0)))

# optimum, its bits, how many, second, mean, (minima by one flip, by two), basin, accuracy (train, test)
GAUSSIANS = {
    (2, 2000): (0.045017, "0001011110", 2, 0.050223, 0.3423, (11, 5), 0.294),
    (3, 2000): (0.008094, "00101001111100", 6, 0.019625, 0.3540, (62, 18), 0.188),
    (4, 10000): (0.004369, "001101010111111010", 24, 0.005560, 0.3631, (307, 76), 0.200),
}
DIGITS = {
    (0, 1, 3): (0.358010, "0110100100", 0.359229, 0.9656, None, None, (0.9375, 0.9722)),
    (3, 7, 3): (0.495701, "0011111100", 0.497472, 0.9570, (10, 1), 0.230, (0.9138, 0.9583)),
    (3, 6, 3): (0.484964, "0001101110", 0.497099, 0.9509, None, None, (0.9692, 0.9444)),
    (0, 1, 4): (0.365128, "00010110011000110", 0.366949, 1.0670, (30, 2), 0.082, (0.9167, 0.8889)),
    (3, 7, 4): (0.358846, "00110111111000000", 0.362467, 1.0652, (25, 3), 0.156, (0.9586, 0.9722)),
    (3, 6, 4): (0.257748, "00000100110100111", 0.259513, 1.0659, (18, 2), 0.194, (0.9966, 0.9861)),
}


@pytest.mark.parametrize("hidden", [2, 3, 4])
def test_exact_optima_of_the_gaussian_task(hidden):
    points = 10000 if hidden == 4 else 2000
    optimum, bits, count, second, mean, minima, basin = GAUSSIANS[hidden, points]
    data = gaussians(points)
    cost = Cost(BinaryMLP(2, (hidden,), activation=ACTIVATION), data.x, data.y, squared_error)
    table = cost.table()
    found = truth(table)
    assert found.optimum == pytest.approx(optimum, abs=1e-6)
    assert found.second == pytest.approx(second, abs=1e-6)
    assert found.mean == pytest.approx(mean, abs=1e-4)
    assert int(bits, 2) in found.codes.tolist()
    assert len(found.codes) == count == math.factorial(hidden)
    assert found.minima == minima
    assert found.basin == pytest.approx(basin, abs=6e-4)
    assert float(table[0]) == pytest.approx({2: 0.27934, 3: 0.28372, 4: 0.28935}[hidden], abs=1e-5)  # every weight -1
    if hidden == 2:
        assert walsh_weights(table)[1:5].tolist() == pytest.approx([0.060, 0.563, 0.210, 0.136], abs=6e-4)
    if hidden == 4:
        assert float((table <= 1.01 * optimum).double().mean()) == pytest.approx(9.2e-5, abs=1e-6)
        assert walsh_weights(table)[1:5].tolist() == pytest.approx([0.059, 0.514, 0.185, 0.149], abs=6e-4)
    _equal_to_modules(cost, table, data)


def _equal_to_modules(cost, table, data):
    """64 random networks as modules, in double and in single precision."""
    codes = torch.randint(len(table), (64,), generator=torch.Generator().manual_seed(0))
    x = data.x.float()
    for code in codes.tolist():
        network = cost.space.decode(code)
        assert float(table[code]) == pytest.approx(float(cost.loss(network(data.x), data.y).mean()), rel=1e-10)
        assert float(table[code]) == pytest.approx(float(cost.loss(network(x), data.y).mean()), rel=1e-6)


@pytest.mark.parametrize(("first", "second", "side"), DIGITS)
def test_exact_optima_of_the_digits(first, second, side):
    optimum, bits, gap, mean, minima, basin, accuracy = DIGITS[first, second, side]
    data = digits(first, second, side)
    cost = Cost(BinaryMLP(side * side), data.x, data.y)
    table = cost.table()
    found = truth(table)
    _equal_to_modules(cost, table, data)
    assert found.optimum == pytest.approx(optimum, abs=1e-6)
    assert found.codes.tolist() == [int(bits, 2)]
    assert found.second == pytest.approx(gap, abs=1e-6)
    assert found.mean == pytest.approx(mean, abs=1e-4)
    if minima is not None:
        assert found.minima == minima
        assert found.basin == pytest.approx(basin, abs=6e-4)
    if (first, second, side) == (3, 7, 4):
        # softplus(z) - z/2 is even and z is linear in the signs of weights in {-1, 1}: orders 3, 5, ... vanish, order 1 does not
        share = walsh_weights(table)
        assert share[3::2].abs().max() < 1e-25
        assert share[[1, 2, 4]].tolist() == pytest.approx([0.219, 0.768, 0.0125], abs=5e-4)
    best = bits_of(found.codes, cost.space.n)
    assert float(cost.accuracy(best, data.x, data.y)) == pytest.approx(accuracy[0], abs=1e-4)
    assert float(cost.accuracy(best, data.x_test, data.y_test)) == pytest.approx(accuracy[1], abs=1e-4)


def test_symmetry_reduced_equals_one_by_one():
    data = gaussians(50)
    cost = Cost(BinaryMLP(2, (2,), activation=ACTIVATION, alphabet=ALPHABET), data.x, data.y, squared_error)
    torch.testing.assert_close(cost.table(), cost(bits_of(torch.arange(2**cost.space.n), cost.space.n)), atol=1e-14, rtol=0)


def test_the_zero_network_knows_nothing():
    data = digits(3, 7, 3)
    table = Cost(BinaryMLP(9, alphabet=(0.0, 1.0)), data.x, data.y).table()
    assert float(table[0]) == pytest.approx(math.log(2), abs=1e-14)


def test_repeated_rows_weigh_as_often_as_they_come():
    x, y = torch.tensor([[1.0, 0.5], [1.0, 0.5], [-1.0, 2.0]]), torch.tensor([1, 1, 0])
    cost, space = Cost(BinaryMLP(2), x, y), BinaryMLP(2)
    direct = cross_entropy(space.logits(bits_of(torch.arange(8), 3), x.double()), y).mean(-1)
    torch.testing.assert_close(cost.table(), direct, atol=1e-15, rtol=0)


def test_large_logits_stay_finite():
    x = torch.tensor([[1e4], [-1e4]])
    assert bool(Cost(BinaryMLP(1), x, torch.tensor([0, 1])).table().isfinite().all())


def test_a_bit_that_does_nothing_is_found_and_doubles_the_optima():
    data = digits(3, 7, 3)
    x = torch.cat((data.x, torch.zeros(len(data.x), 1)), 1)
    table = Cost(BinaryMLP(10), x, data.y).table()
    assert idle_bits(table, 1e-12) == [9]
    assert len(truth(table).codes) == 2


@pytest.mark.parametrize("space", [BinaryMLP(4), BinaryMLP(3, (2,), skip=Switch("skip"))])
def test_a_table_by_turns_is_the_table(space, monkeypatch):
    """Where the parts of a table would not fit, rows of the data are taken a few at a time."""
    rng = torch.Generator().manual_seed(0)
    cost = Cost(space, torch.randn(11, space.inputs, generator=rng), torch.arange(11) % 2)
    whole = cost.table()
    monkeypatch.setattr("popflow.circuits.cost._PARTS", 3 * 2**5)
    torch.testing.assert_close(cost.table(), whole, atol=1e-14, rtol=0)
    monkeypatch.setattr("popflow.circuits.cost._PARTS", 1)
    torch.testing.assert_close(cost.table(), whole, atol=1e-14, rtol=0)


def test_bad_input():
    x, y, space = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), BinaryMLP(2)
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\)"):
        Cost(space, torch.zeros(4, 3), y)
    with pytest.raises(ValueError, match=r"x has shape \(0, 2\)"):
        Cost(space, x[:0], y[:0])
    with pytest.raises(ValueError, match=r"y has shape \(3,\), wanted \[4\]"):
        Cost(space, x, y[:3])
    broken = x.clone()
    broken[1, 0] = math.nan
    with pytest.raises(ValueError, match="x holds 1 values that are NaN"):
        Cost(space, broken, y)
    with pytest.raises(ValueError, match=r"labels -1, 1, wanted 0\.\.1"):
        Cost(space, x, 2 * y - 1)
    with pytest.raises(ValueError, match="one label 1, wanted at least 2 classes"):
        Cost(space, x, torch.ones(4))
    with pytest.raises(ValueError, match=r"n=31 bits: a table of 2\^31 costs takes 17,179,869,184 bytes"):
        Cost(BinaryMLP(30), torch.zeros(4, 30), y).table()
    with pytest.raises(ValueError, match=r"a table of 2\^60001 costs takes 2\^60004 bytes"):
        Cost(BinaryMLP(2, (15000,)), x, y).table()
    with pytest.raises(ValueError, match="bits hold -1, wanted only 0 and 1"):
        Cost(space, x, y)(torch.tensor([[-1, 1, 1]]))
    with pytest.raises(ValueError, match=r"bits have shape \(2, 4\)"):
        Cost(space, x, y)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"shape \(6,\), wanted \[2\^n\]"):
        check_table(torch.zeros(6))
    with pytest.raises(ValueError, match="1 costs that are NaN"):
        check_table(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="digit 10"):
        digits(3, 10)
    with pytest.raises(ValueError, match="side=5"):
        digits(3, 7, 5)
