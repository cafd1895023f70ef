"""Walsh coefficients: inverse, variance, the vanishing odd orders of a logistic cost, and the quadratic truncation."""

from __future__ import annotations

import pytest
import torch

from popflow.circuits import BinaryMLP, Choice, Cost, digits, gaussians, squared_error, walsh, walsh_weights


def test_transform_by_its_definition():
    table = torch.arange(16, dtype=torch.float64).sin()
    for s in range(16):
        signs = torch.tensor([(-1.0) ** bin(s & i).count("1") for i in range(16)], dtype=torch.float64)
        assert float(walsh(table)[s]) == pytest.approx(float(signs @ table / 16), abs=1e-15)
    torch.testing.assert_close(walsh(walsh(table)) * 16, table, atol=1e-15, rtol=0)
    assert float(walsh(table)[1:].square().sum()) == pytest.approx(float(table.var(correction=0)))


def test_odd_orders_of_a_logistic_cost_vanish():
    """softplus(z) - z/2 is even and z is linear in the signs of weights in {-1, 1}: orders 3, 5, ... are zero, order 1 is not."""
    data = digits(3, 7, 4)
    share = walsh_weights(Cost(BinaryMLP(16), data.x, data.y).table())
    assert share[3::2].abs().max() < 1e-25
    assert share[[1, 2, 4]].tolist() == pytest.approx([0.219, 0.768, 0.0125], abs=5e-4)


def test_published_orders_of_the_gaussian_task():
    data = gaussians(2000)
    space = BinaryMLP(2, (2,), activation=Choice("activation", (torch.relu, torch.sigmoid)))
    share = walsh_weights(Cost(space, data.x, data.y, squared_error).table())
    assert share[1:5].tolist() == pytest.approx([0.060, 0.563, 0.210, 0.136], abs=6e-4)


def test_equal_costs_have_no_variance():
    table = torch.ones(8, dtype=torch.float64)
    assert walsh_weights(table).tolist() == [0.0] * 4
