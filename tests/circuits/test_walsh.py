"""Walsh coefficients: definition, inverse, variance; the orders of published tasks are in test_cost."""

from __future__ import annotations

import pytest
import torch

from popflow.circuits import bits_of, qubo, walsh, walsh_weights


def test_transform_by_its_definition():
    table = torch.arange(16, dtype=torch.float64).sin()
    for s in range(16):
        signs = torch.tensor([(-1.0) ** bin(s & i).count("1") for i in range(16)], dtype=torch.float64)
        assert float(walsh(table)[s]) == pytest.approx(float(signs @ table / 16), abs=1e-15)
    torch.testing.assert_close(walsh(walsh(table)) * 16, table, atol=1e-15, rtol=0)
    assert float(walsh(table)[1:].square().sum()) == pytest.approx(float(table.var(correction=0)))


def test_a_qubo_is_the_best_quadratic_and_says_what_it_leaves_out():
    """It equals the truncated Walsh series for every network; the residual is the share of the variance of the difference."""
    table = torch.arange(64, dtype=torch.float64).cos()
    order = bits_of(torch.arange(64), 6).sum(1)
    truncated = walsh(torch.where(order <= 2, walsh(table), 0)) * 64
    matrix, offset, residual = qubo(table)
    bits = bits_of(torch.arange(64), 6).double()
    assert torch.equal(matrix, matrix.triu())
    torch.testing.assert_close(offset + torch.einsum("sp,pq,sq->s", bits, matrix, bits), truncated, atol=1e-14, rtol=0)
    assert residual == pytest.approx(float((table - truncated).square().mean() / table.var(correction=0)), abs=1e-14)


def test_equal_costs_have_no_variance():
    table = torch.ones(8, dtype=torch.float64)
    assert walsh_weights(table).tolist() == [0.0] * 4
