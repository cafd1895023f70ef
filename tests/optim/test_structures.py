"""Every structure against dense matrices, one from outside of the library with the fewest methods among them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings, strategies as st

from popflow.optim import (
    SINGD,
    Auto,
    BlockDiagonal,
    Dense,
    Diagonal,
    Hierarchical,
    LowerToeplitz,
    LowerTriangular,
    Structure,
    UpperToeplitz,
    UpperTriangular,
    rank_triangular,
)
from popflow.optim.structures import toeplitz
from popflow.optim.structures.toeplitz import convolve, correlate, outer_sums


@dataclass(frozen=True)
class ScaledIdentity(Structure):
    """A structure from outside of the library: one number, and no more methods than a structure must have."""

    def pack(self, matrix):
        return (matrix[:, 0, :1],)

    def dense(self, factor, n):
        return factor[0].unsqueeze(-1) * torch.eye(n, dtype=factor[0].dtype)

    def project(self, matrix):
        return (matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True),)


STRUCTURES = [
    Dense(),
    Diagonal(),
    BlockDiagonal(3),
    BlockDiagonal(30),
    LowerTriangular(),
    UpperTriangular(),
    LowerToeplitz(),
    UpperToeplitz(),
    Hierarchical(2, 3),
    rank_triangular(3),
    Hierarchical(0, 2),
    ScaledIdentity(),
]
SIDES = [1, 3, 8, 31, 257]


def eye(structure: Structure, batch: int, n: int):
    return structure.from_diagonal(torch.ones(batch, n, dtype=torch.float64))


def random_factor(structure: Structure, n: int, rng: torch.Generator, batch: int = 2):
    return tuple(torch.randn(part.shape, generator=rng, dtype=torch.float64) / n**0.5 for part in eye(structure, batch, n))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0


@pytest.mark.parametrize("n", SIDES)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_conformance_with_dense_matrices(structure, n):
    rng = torch.Generator().manual_seed(n)
    k, other = random_factor(structure, n, rng), random_factor(structure, n, rng)
    rows = torch.randn(2, 5, n, generator=rng, dtype=torch.float64)
    matrix, seen = structure.dense(k, n).clone(), rows @ structure.dense(k, n)
    symmetric = rows.mT @ rows
    assert sum(part[0].numel() for part in k) == structure.size(n)
    assert gap(structure.dense(eye(structure, 2, n), n), torch.eye(n, dtype=torch.float64).expand(2, n, n)) == 0
    assert gap(structure.dense(structure.multiply(k, other, n), n), matrix @ structure.dense(other, n)) < 1e-10
    assert max(gap(a, b) for a, b in zip(structure.pack(matrix), k, strict=True)) == 0
    assert gap(structure.right(k, rows), seen) < 1e-10
    assert gap(structure.right_t(k, rows), rows @ matrix.mT) < 1e-10
    for got, wanted in (
        (structure.gram(k, rows), structure.project(seen.mT @ seen)),
        (structure.inner(k, n), structure.project(matrix.mT @ matrix)),
    ):
        assert max(gap(a, b) for a, b in zip(got, wanted, strict=True)) < 1e-10
    assert gap(structure.diagonal(structure.project(symmetric), n).sum(-1), symmetric.diagonal(dim1=1, dim2=2).sum(-1)) < 1e-10
    assert gap(structure.diagonal(k, n), matrix.diagonal(dim1=1, dim2=2)) == 0
    assert (structure.bound(k, n) >= torch.linalg.matrix_norm(matrix, 2) - 1e-12).all()
    assert gap(structure.square(k, n), matrix.square().sum((-2, -1))) < 1e-10
    for m in (3, n + 1):
        few, many = torch.randn(2, m, n, generator=rng, dtype=torch.float64), torch.randn(2, 3 * n, n, generator=rng, dtype=torch.float64)
        assert gap(structure.precondition(k, few, -1), few @ matrix @ matrix.mT) < 1e-10
        assert gap(structure.precondition(k, few.mT, -2), matrix @ matrix.mT @ few.mT) < 1e-10
    for got, wanted in zip(structure.gram(k, many), structure.project(matrix.mT @ many.mT @ many @ matrix), strict=True):
        assert gap(got, wanted) < 1e-9
    if (squared := structure.metric(k, uses=n)) is not None:
        assert gap(structure.right(squared, rows), rows @ matrix @ matrix.mT) < 1e-10
    structure.shift_(k, n, 0.5)
    assert gap(structure.dense(k, n), matrix + 0.5 * torch.eye(n, dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if not isinstance(s, ScaledIdentity)], ids=str)
def test_projection_is_the_natural_gradient_coordinate(structure):
    """``<P(N), m>`` over stored numbers, with weight 1/2 on one-sided entries, is the derivative ``<N, m>`` of the linear functional."""
    n, rng = 7, torch.Generator().manual_seed(0)
    rows = torch.randn(1, 9, n, generator=rng, dtype=torch.float64)
    symmetric = rows.mT @ rows
    m = random_factor(structure, n, rng, batch=1)
    matrix = structure.dense(m, n)
    if isinstance(structure, Dense | BlockDiagonal):
        matrix = (matrix + matrix.mT) / 2
    if isinstance(structure, Hierarchical):
        m = tuple((part + part.mT) / 2 if i in (0, 4) else part for i, part in enumerate(m))
        matrix = structure.dense(m, n)
    projected = structure.dense(structure.project(symmetric), n)
    # Metric of m at 0: half the squared Frobenius norm of m + m^T. The projection must represent N in it: <P, m> = 2 <N, m>.
    inner = ((projected + projected.mT) * (matrix + matrix.mT)).sum() / 2
    assert abs(float(inner - 2 * (symmetric * matrix).sum())) < 1e-10


def test_factor_two_off_the_diagonal_by_autograd():
    rng = torch.Generator().manual_seed(1)
    n = 5
    k = torch.randn(n, n, generator=rng, dtype=torch.float64).tril()
    u = torch.randn(n, n, generator=rng, dtype=torch.float64)
    u = u @ u.mT
    m = torch.zeros(n, n, dtype=torch.float64, requires_grad=True)
    flow = torch.linalg.matrix_exp(m.tril())
    ((u @ k @ flow @ flow.mT @ k.mT).trace() / 2).backward()
    h = k.mT @ u @ k
    assert gap(m.grad, h.tril()) < 1e-12
    projected = LowerTriangular().dense(LowerTriangular().project(h[None]), n)[0] / 2
    assert gap(projected, m.grad - torch.diag(m.grad.diagonal()) / 2) < 1e-12


@pytest.mark.parametrize("n", [1, 5, 31])
def test_structures_that_are_others_at_their_ends(n):
    rng = torch.Generator().manual_seed(2)
    rows = torch.randn(2, 40, n, generator=rng, dtype=torch.float64)
    symmetric = rows.mT @ rows
    full, flat = Dense().project(symmetric)[0], torch.diag_embed(Diagonal().project(symmetric)[0])
    for structure, same in (
        (BlockDiagonal(n), full),
        (BlockDiagonal(n + 3), full),
        (BlockDiagonal(1), flat),
        (Hierarchical(n, 0), full),
        (rank_triangular(n + 2), full),
        (Hierarchical(0, 0), flat),
    ):
        assert gap(structure.dense(structure.project(symmetric), n), same) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**31))
def test_fft_products_are_polynomial_products(n, seed):
    rng = torch.Generator().manual_seed(seed)
    x, c = torch.randn(2, n, generator=rng, dtype=torch.float64)
    toeplitz = LowerToeplitz().dense((c[None],), n)[0]
    assert gap(convolve(x, c), toeplitz @ x) < 1e-10
    assert gap(correlate(x, c), toeplitz.mT @ x) < 1e-10


@pytest.mark.parametrize("structure", [LowerToeplitz(), UpperToeplitz()], ids=str)
@pytest.mark.parametrize(("n", "m"), [(129, 40), (257, 300), (512, 255), (513, 7)])
def test_toeplitz_factors_of_every_size_and_number_of_rows(structure, n, m, monkeypatch):
    rng = torch.Generator().manual_seed(n + m)
    k, other = random_factor(structure, n, rng), random_factor(structure, n, rng)
    rows = torch.randn(2, m, n, generator=rng, dtype=torch.float64)
    matrix, seen = structure.dense(k, n), rows @ structure.dense(k, n)
    wanted = structure.project(seen.mT @ seen)[0]
    assert gap(structure.gram(k, rows)[0], wanted) < 1e-10
    monkeypatch.setattr(toeplitz, "CACHED", 12 * n)  # six rows of each member at a time, and what is left
    assert gap(structure.gram(k, rows)[0], wanted) < 1e-10
    assert gap(structure.inner(k, n)[0], structure.project(matrix.mT @ matrix)[0]) < 1e-10
    assert gap(structure.dense(structure.multiply(k, other, n), n), matrix @ structure.dense(other, n)) < 1e-10
    assert gap(structure.precondition(k, rows, -1), seen @ matrix.mT) < 1e-10
    assert gap(structure.precondition(k, rows.mT, -2), (seen @ matrix.mT).mT) < 1e-10


@pytest.mark.parametrize("n", [1, 47, 48, 49, 257])
def test_products_of_toeplitz_matrices_by_sums_down_the_diagonals(n):
    c = torch.randn(3, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    matrix = LowerToeplitz().dense((c,), n)
    assert gap(outer_sums(c), matrix @ matrix.mT) < 1e-11


def test_a_structure_with_the_fewest_methods_trains():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
    optimizer, losses = SINGD(net, lr=0.05, structure=(ScaledIdentity(), Diagonal()), interval=2, alpha1=0.5), []
    for step in range(60):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        loss = (net(x) - x[:, :2].sin()).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.1 * sum(losses[:5])
    assert all(batch.k.value[0].shape == (1, 1) for batch in optimizer.preconditioner.batches)
    assert not torch.equal(optimizer.preconditioner.batches[0].k.value[0], torch.ones(1, 1, dtype=torch.float64))


def test_auto_keeps_to_its_budget():
    shapes = [(1, 256, 65), (1, 256, 257), (1, 10, 257)]
    count = sum(b * d * p for b, d, p in shapes)
    sizes = []
    for ratio in (0.55, 1.0, 2.0, 8.0):
        chosen = Auto(ratio).choose(shapes, 0, momentum=True, factor_momentum=True)
        used = count + 2 * sum(b * (k.size(p) + c.size(d)) for (b, d, p), (k, c) in zip(shapes, chosen, strict=True))
        assert used <= 2 * ratio * count
        sizes.append(used)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert all(pair == (Dense(), Dense()) for pair in chosen)
    with pytest.raises(ValueError, match=r"max_state_ratio=0\.1: diagonal factors alone need 0\.5"):
        Auto(0.1).choose(shapes, 0, momentum=True, factor_momentum=True)


def test_bad_sizes_are_named(unchecked):
    with pytest.raises(ValueError, match="block=0"):
        BlockDiagonal(0)
    for bad in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"k1={bad}.*wanted integers of at least 0"):
            Hierarchical(bad, 2)
        with pytest.raises(ValueError, match=f"k2={bad}"):
            Hierarchical(2, bad)
    for bad in (0, -3, 2.0, True, None):
        with pytest.raises(ValueError, match=rf"rank_triangular\(k={bad}\), wanted an integer of at least 1.*Diagonal\(\)"):
            rank_triangular(bad)
    with pytest.raises(ValueError, match="max_state_ratio"):
        Auto(0.0)
