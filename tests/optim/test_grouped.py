"""Factors that share a frame are refreshed as each pair alone."""

from __future__ import annotations

import math

import pytest
import torch

from popflow.optim import (
    SINGD,
    BlockDiagonal,
    Dense,
    Diagonal,
    Hierarchical,
    LowerToeplitz,
    UpperToeplitz,
    curvature,
    grouped,
    rank_triangular,
)
from popflow.optim.grouped import Framed, fits, layout, refresh_together
from popflow.optim.kronecker import Side, refresh
from popflow.optim.structures.structure import eye

FRAMED = [BlockDiagonal(3), BlockDiagonal(30), LowerToeplitz(), UpperToeplitz(), Hierarchical(2, 3), rank_triangular(3), Hierarchical(0, 2)]
PAIRS = [[(1, 65, 257), (2, 1, 3), (3, 30, 31)], [(2, 9, 9)], [(1, 2, 4)]]
"""Matrices in a batch, and the two sides, of pairs."""


def factor(structure, batch, n, rng):
    like = eye(structure, batch, n, torch.zeros((), dtype=torch.float64))
    return tuple(torch.randn(p.shape, generator=rng, dtype=torch.float64) / n**0.5 for p in like)


def sides_of(structure, pairs, momentum, rng):
    sides = []
    for batch, p, d in pairs:
        for n in (p, d):
            value, m = factor(structure, batch, n, rng), factor(structure, batch, n, rng)
            sides.append(Side(structure, n, value, m if momentum else None))
    heard = [
        structure.gram(side.value, torch.randn(side.value[0].shape[0], 5, side.n, generator=rng, dtype=torch.float64)) for side in sides
    ]
    scales = (0.1 + torch.rand(sum(2 * batch for batch, _, _ in pairs), generator=rng, dtype=torch.float64)).tolist()
    return sides, heard, scales


def copies(factors):
    return [tuple(part.clone() for part in one) for one in factors]


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("pairs", PAIRS, ids=str)
@pytest.mark.parametrize("structure", FRAMED, ids=str)
def test_pairs_are_refreshed_as_alone(structure, pairs, momentum, adaptive):
    sides, heard, scales = sides_of(structure, pairs, momentum, torch.Generator().manual_seed(0))
    alone = [
        Side(structure, side.n, v, m)
        for side, v, m in zip(
            sides,
            copies(side.value for side in sides),
            copies(side.momentum for side in sides) if momentum else [None] * len(sides),
            strict=True,
        )
    ]
    options = {"lr_cov": 0.2, "damping": 0.05, "alpha1": 0.9 if momentum else 0.0, "adaptive": adaptive}
    first = 0
    for i, (batch, _, _) in enumerate(pairs):
        k, c, h_k, h_c = *alone[2 * i : 2 * i + 2], *copies(heard[2 * i : 2 * i + 2])
        refresh(k, c, h_k, h_c, scales=(scales[first : first + batch], scales[first + batch : first + 2 * batch]), **options)
        first += 2 * batch
    tensors = [part for side in sides for part in side.tensors()]
    assert fits(sides)
    assert refresh_together(sides, heard, scales, **options)
    for mine, other in zip(tensors, (part for side in alone for part in side.tensors()), strict=True):
        assert torch.allclose(mine, other, rtol=1e-11, atol=1e-12)
    assert all(a is b for a, b in zip(tensors, (part for side in sides for part in side.tensors()), strict=True))


@pytest.mark.parametrize("structure", FRAMED, ids=str)
def test_a_frame_holds_each_number_once_and_zeros(structure):
    shapes = ((1, 65), (2, 257), (1, 1), (1, 4), (3, 30))
    frame = torch.zeros(structure.frame_shape(shapes), dtype=torch.float64)
    views, rng = structure.framed(frame, shapes), torch.Generator().manual_seed(1)
    values = [factor(structure, batch, n, rng) for batch, n in shapes]
    for to, value in zip(views, values, strict=True):
        for a, b in zip(to, value, strict=True):
            assert a.shape == b.shape
            a.copy_(b)
    assert int((frame != 0).sum()) == sum(batch * structure.size(n) for batch, n in shapes)
    at = layout(structure, shapes, torch.float64, "cpu")
    for got, wanted in zip(at.views(frame), (part for value in values for part in value), strict=True):
        assert torch.equal(got, wanted)
    at_sides = at.sides
    traces, squares = structure.framed_trace(frame, at_sides), structure.framed_square(frame, at_sides)
    if at.member is not None:
        traces, squares = (torch.zeros(8, dtype=torch.float64).index_add_(0, at.member, part) for part in (traces, squares))
    dense = [one for value, (_, n) in zip(values, shapes, strict=True) for one in structure.dense(value, n)]
    assert torch.allclose(traces, torch.stack([one.trace() for one in dense]), atol=1e-12)
    assert torch.allclose(squares, torch.stack([one.square().sum() for one in dense]), atol=1e-12)


@pytest.mark.parametrize("structure", FRAMED, ids=str)
def test_curvature_that_is_not_finite_changes_nothing(structure):
    sides, heard, scales = sides_of(structure, [(1, 9, 4)], True, torch.Generator().manual_seed(2))
    kept = copies(side.tensors() for side in sides)
    heard[1][0].fill_(math.nan)
    heard[1][-1].fill_(math.nan)
    assert not refresh_together(sides, heard, scales, lr_cov=0.1, damping=0.1, alpha1=0.9, adaptive=True)
    assert all(torch.equal(a, b) for one, side in zip(kept, sides, strict=True) for a, b in zip(one, side.tensors(), strict=True))


def test_what_fits(monkeypatch):
    def side(structure, n, dtype=torch.float32):
        return Side.identity(structure, n, 1, torch.zeros((), dtype=dtype), True)

    blocks = [side(BlockDiagonal(30), 64), side(BlockDiagonal(30), 10)]
    assert fits(blocks)
    assert not fits([*blocks, side(BlockDiagonal(29), 10)])
    assert not fits([*blocks, side(BlockDiagonal(30), 10, torch.float64)])
    assert not fits([side(BlockDiagonal(30), 64, torch.bfloat16)])
    assert not fits([side(Dense(), 4)])
    assert not isinstance(Diagonal(), Framed)
    monkeypatch.setattr(grouped, "LARGEST", 4 * 900 - 1)
    assert not fits(blocks)


@pytest.mark.parametrize(
    ("structure", "together_at"),
    [(BlockDiagonal(4), 3), (LowerToeplitz(), 3), (Hierarchical(2, 3), 3), ((Hierarchical(2, 3), LowerToeplitz()), 0)],
    ids=str,
)
def test_training_takes_the_same_path(structure, together_at, monkeypatch):
    def trained(largest):
        calls = []
        monkeypatch.setattr(grouped, "LARGEST", largest)
        monkeypatch.setattr(
            curvature, "refresh_together", lambda *args, **options: calls.append(refresh_together(*args, **options)) or calls[-1]
        )
        rng = torch.Generator().manual_seed(3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = torch.nn.Sequential(
                torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2)
            ).double()
        optimizer = SINGD(net, lr=0.01, structure=structure, interval=2)
        x, y = (torch.randn(12, n, generator=rng, dtype=torch.float64) for n in (5, 2))
        for _ in range(7):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
        return calls, [*net.parameters(), *(part for bucket in optimizer.buckets for part in (*bucket.k.tensors(), *bucket.c.tensors()))]

    calls, framed = trained(grouped.LARGEST)
    none, alone = trained(0)
    assert calls == [True] * together_at  # the first refresh starts the factors
    assert none == []
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(framed, alone, strict=True))
