"""The graph convolution, the order of cells, and copies of cells."""

import pytest
import torch

from popflow.core import Streams
from popflow.transport.meta import DeepSet, Knn
from popflow.transport.meta.embedding import mean_over_neighbours, neighbours


@pytest.fixture(autouse=True)
def layers():
    """Layers are made from a stream of their own."""
    with Streams(0).layers():
        yield


def cells(n: int = 60, d: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed))


def test_a_layer_is_a_graph_convolution_with_symmetric_normalisation_on_the_directed_graph():
    x, k = cells().double(), 7
    linear = torch.nn.Linear(3, 5, dtype=torch.float64)
    found = linear(mean_over_neighbours(x, neighbours(x, k)))
    for p in range(2):
        distance = (x[p][:, None] - x[p]).norm(dim=-1)
        edges = torch.zeros(60, 60, dtype=torch.float64)  # edges[i, j] = 1: from the neighbour j to the cell i
        for i in range(60):
            nearest = sorted((j for j in range(60) if j != i), key=lambda j: float(distance[i, j]))[:k]
            edges[i, nearest] = 1.0
        loops = edges + torch.eye(60, dtype=torch.float64)
        root = loops.sum(1).rsqrt().diag()  # in-degree with the loop
        wanted = root @ loops @ root @ x[p] @ linear.weight.T + linear.bias
        torch.testing.assert_close(found[p], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("spec", [Knn(k=5, layers=3), Knn(k=0), DeepSet()])
@pytest.mark.parametrize("types", [0, 2])
def test_the_order_of_the_cells_does_not_matter(spec, types):
    x = cells()
    embed = spec.module(3, types, 60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    kind = (x[..., 0] > 0).long() if types else None
    shuffled = embed(x[:, order], None if kind is None else kind[:, order])
    torch.testing.assert_close(embed(x, kind), shuffled, atol=1e-6, rtol=0)
    assert (embed(x, kind) - embed(x + 1, kind)).abs().max() > 1e-3


def test_neighbours_of_copies_are_other_cells_and_chunks_change_nothing():
    x = torch.zeros(1, 5, 2)
    near = neighbours(x, 4)
    assert [sorted(row) for row in near[0].tolist()] == [[j for j in range(5) if j != i] for i in range(5)]
    y = cells(50)
    assert torch.equal(neighbours(y, 6, chunk=7).sort(-1).values, neighbours(y, 6).sort(-1).values)
    with pytest.raises(ValueError, match="k=5 neighbours in a population of 5 cells, wanted 1 to 4"):
        neighbours(x, 5)


def test_a_larger_population_has_more_neighbours_of_the_same_extent_and_a_tiny_one_is_one_neighbourhood():
    embed = Knn(k=4, layers=2).module(3, 0, 60)
    x = cells(60, seed=3)
    twice = torch.cat([x, x + 1e-4 * cells(60, seed=4)], 1)
    torch.testing.assert_close(embed(x), embed(twice), atol=2e-2, rtol=0)
    assert embed(x[:, :2]).isfinite().all()
    flat = embed(torch.ones(1, 30, 3))  # copies of one cell: the mean of anything is that cell
    torch.testing.assert_close(flat, embed(torch.ones(1, 2, 3)), atol=1e-6, rtol=0)


def test_weights_of_cells_are_shares_of_copies():
    x = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))
    embed = DeepSet().module(2, 0, 10)
    copies = torch.cat([x, x[:, :1]], 1)
    torch.testing.assert_close(embed(copies), embed(x, None, torch.tensor([[0.5, 0.25, 0.25]])), atol=1e-6, rtol=0)


def test_a_flow_that_sees_types_wants_them():
    with pytest.raises(ValueError, match="made for 2 cell types"):
        DeepSet().module(3, 2, 60)(cells())
    with pytest.raises(ValueError, match="k=-1, wanted a number of neighbours"):
        Knn(k=-1)
