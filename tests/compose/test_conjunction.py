"""The move of AND: roots of quadratic changes, in any frame, for any order of the experts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from popflow.compose.conjunction import Differences, equalise, helmert

F64 = torch.float64


def changes(m: int, seed: int, dim: int = 6, bent: float = 0.05) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores ``[64, M, T]``, and value, gradient, Hessian of each expert's change of log-density over all of a tangent space."""
    rng = torch.Generator().manual_seed(seed)
    s, value = torch.randn(64, m, dim, generator=rng, dtype=F64), 0.1 * torch.randn(64, m, generator=rng, dtype=F64)
    bend = torch.randn(64, m, dim, dim, generator=rng, dtype=F64)
    return s, value, s, bent * (bend + bend.mT)


def within(of: Differences, slope: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian in the frame."""
    return slope @ of.basis.mT, of.basis.unsqueeze(-3) @ bend @ of.basis.mT.unsqueeze(-3)


def solved(s: Tensor, value: Tensor, slope: Tensor, bend: Tensor, ridge: float = 0.0, limit: float = math.inf) -> tuple[Tensor, Tensor]:
    """Move ``[64, T]`` and the changes of the experts after it, ``[64, M]``."""
    of = Differences.of(s, torch.finfo(F64).eps)
    inner = within(of, slope, bend)
    p = equalise(of, value, *inner, ridge, limit)
    after = value + (inner[0] @ p.unsqueeze(-1)).squeeze(-1) + (p[..., None, None, :] @ inner[1] @ p[..., None, :, None])[..., 0, 0] / 2
    return (p.unsqueeze(-2) @ of.basis).squeeze(-2), after


@pytest.mark.parametrize("m", [2, 3, 5])
def test_changes_become_alike(m: int):
    move, after = solved(*changes(m, 0))
    spread = after.amax(-1) - after.amin(-1)
    assert (spread < 1e-9).double().mean() > 0.95  # the others have no root
    assert move.norm(dim=-1).median() > 0.01


@pytest.mark.parametrize("m", [2, 4])
def test_linear_changes_are_solved_at_once_with_the_ridge_of_the_symmetric_system(m: int):
    """``(C C^T + ridge tr(C C^T)/M) delta = -centred(value)``, moved by ``C^T delta``."""
    s, value, slope, bend = changes(m, 1, bent=0.0)
    for ridge in (0.0, 0.3):
        move, _ = solved(s, value, slope, bend, ridge)
        centred = s - s.mean(1, keepdim=True)
        gram = centred @ centred.mT
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        system = gram + scale * ridge * torch.eye(m, dtype=F64) + scale / m  # the null vector of ones made regular
        delta = torch.linalg.solve(system, -(value - value.mean(1, keepdim=True)).unsqueeze(-1))
        assert torch.allclose(move, (centred.mT @ delta).squeeze(-1), atol=1e-9)


@pytest.mark.parametrize("m", [2, 4])
def test_the_order_of_experts_does_not_matter(m: int):
    order, (s, value, slope, bend) = torch.randperm(m, generator=torch.Generator().manual_seed(m)), changes(m, 2)
    for ridge, limit, digits in (
        (0.0, math.inf, 1e-9),
        (0.1, math.inf, 1e-7),
        (0.0, 0.05, 1e-5),
    ):  # on the bound Newton's steps converge slowly
        move, after = solved(s, value, slope, bend, ridge, limit)
        other, permuted = solved(s[:, order], value[:, order], slope[:, order], bend[:, order], ridge, limit)
        assert torch.allclose(move, other, atol=digits)
        assert torch.allclose(after[:, order], permuted, atol=digits)


def test_of_two_roots_the_nearest_is_taken_and_of_none_the_vertex():
    """``p^2 - 3 p + 2`` has roots 1 and 2; ``p^2 - 2 p + 3`` has its minimum at 1; ``0 p + 1`` stays."""
    s = torch.tensor([[[1.0], [0.0]]], dtype=F64)
    for linear, constant, wanted in ((-3.0, 2.0, 1.0), (-2.0, 3.0, 1.0), (0.0, 0.0, 0.0)):
        value = torch.tensor([[constant, 0.0]], dtype=F64)
        slope, bend = torch.tensor([[[linear], [0.0]]], dtype=F64), torch.tensor([[[[2.0]], [[0.0]]]], dtype=F64)
        p = equalise(Differences.of(s, 1e-16), value, slope, bend, 0.0, math.inf)
        assert float(p) == pytest.approx(wanted)
    flat = torch.zeros(1, 2, 1, dtype=F64)
    assert float(equalise(Differences.of(s, 1e-16), torch.ones(1, 2, dtype=F64), flat, flat.unsqueeze(-1), 0.0, math.inf)) == 0


@pytest.mark.parametrize("m", [2, 3])
def test_a_move_ends_at_its_limit(m: int):
    free, short = (solved(*changes(m, 3), limit=limit)[0].norm(dim=-1) for limit in (math.inf, 0.02))
    assert (free > 0.02).any()
    assert short.max() < 0.02 * (1 + 1e-9)


def test_experts_that_agree_do_not_move_and_more_of_them_than_dimensions_are_served():
    s = torch.randn(8, 1, 3, generator=torch.Generator().manual_seed(0), dtype=F64).expand(8, 3, 3).clone()
    of = Differences.of(s, torch.finfo(F64).eps)
    assert not of.basis.any()
    assert not of.shares(torch.zeros(8, 2, dtype=F64), 1.0).any()
    s, value, slope, _ = changes(5, 4, dim=2)
    value = (s @ torch.tensor([0.3, -0.2], dtype=F64)) + 1.0  # linear in the scores: there is a solution
    move, after = solved(s, value, slope, torch.zeros(64, 5, 2, 2, dtype=F64))
    assert torch.allclose(move, torch.tensor([-0.3, 0.2], dtype=F64).expand_as(move), atol=1e-8)
    assert (after.amax(-1) - after.amin(-1)).max() < 1e-8


@pytest.mark.parametrize("m", [2, 4])
def test_shares_are_those_of_the_move(m: int):
    s, value, slope, bend = changes(m, 5)
    of = Differences.of(s, torch.finfo(F64).eps)
    p = equalise(of, value, *within(of, slope, bend), 0.0, math.inf)
    delta = of.shares(p, 0.7)
    assert torch.allclose(delta.sum(-1), torch.zeros(64, dtype=F64), atol=1e-9)
    assert torch.allclose(0.7 * (delta.unsqueeze(-1) * s).sum(-2), (p.unsqueeze(-2) @ of.basis).squeeze(-2), atol=1e-9)


def test_contrasts_are_orthonormal_and_sum_to_zero():
    e = helmert(5, torch.zeros(1, dtype=F64))
    assert torch.allclose(e @ e.mT, torch.eye(4, dtype=F64), atol=1e-12)
    assert torch.allclose(e.sum(1), torch.zeros(4, dtype=F64), atol=1e-12)
