"""Embeddings of whole populations: a mean over cells, so that their order does not matter.

A layer of `Knn` is a graph convolution with symmetric normalisation, ``D^-1/2 (A + I) D^-1/2 Z W + b``, on the directed graph from each cell's ``k``
nearest neighbours to the cell. There every in-degree is ``k``, hence every ``D_ii = k + 1``, and the layer is a mean over the cell and its neighbours,

    z_i' = W^T (z_i + sum_{j in N(i)} z_j) / (k + 1) + b

so that no graph library is needed. Neighbours are found in chunks of rows, in memory linear in the number of cells.

Source: Atanackovic et al., *Meta flow matching*, ICLR 2025; Kipf and Welling, *Semi-supervised classification with graph convolutional networks* (2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.core.checks import at_least_one

CHUNK = 1024
"""Cells whose neighbours are looked for at once."""


@dataclass(frozen=True, slots=True)
class Knn:
    """Mean over cells of ``layers`` graph convolutions on the graph of nearest neighbours.

    Attributes:
        k: Neighbours of a cell in a population of as many cells as in training. In one of ``n`` times as many cells there are ``n`` times as many
            neighbours, so that a neighbourhood keeps its extent; a population too small for it is one neighbourhood. 0: none.
        layers: Convolutions.
        width: Hidden width.
        out: Numbers in the embedding.
        frequencies: Random Fourier features of each cell, see `Waves`: their means resolve the shape of a population.
    """

    k: int = 10
    layers: int = 2
    width: int = 64
    out: int = 32
    frequencies: int = 0

    def __post_init__(self) -> None:
        at_least_one(layers=self.layers, width=self.width, out=self.out)
        if self.k < 0:
            raise ValueError(f"k={self.k!r}, wanted a number of neighbours, 0 or more.")

    def module(self, dim: int, types: int, cells: int) -> KnnEmbedding:
        """The network for cells of ``dim`` features and ``types`` cell types, in training populations of ``cells`` cells."""
        return KnnEmbedding(self, dim, types, cells)


@dataclass(frozen=True, slots=True)
class DeepSet:
    """A perceptron of every cell on its own, the mean over cells, and another perceptron: ``rho(mean_i phi(x_i))``.

    Attributes:
        width: Hidden width.
        layers: Layers of ``phi``.
        out: Numbers in the embedding.
        frequencies: Random Fourier features of each cell, see `Waves`: their means resolve the shape of a population.
    """

    width: int = 64
    layers: int = 2
    out: int = 32
    frequencies: int = 0

    def __post_init__(self) -> None:
        at_least_one(layers=self.layers, width=self.width, out=self.out)

    def module(self, dim: int, types: int, cells: int) -> DeepSetEmbedding:
        """The network for cells of ``dim`` features and ``types`` cell types."""
        return DeepSetEmbedding(self, dim, types)


Embedding = Knn | DeepSet
KINDS: dict[str, type[Knn] | type[DeepSet]] = {"Knn": Knn, "DeepSet": DeepSet}


class Waves(nn.Module):
    """``[x, cos(2 pi x B), sin(2 pi x B)]`` with ``frequencies`` random columns in ``B``, normal with standard deviation 1/2; stored with the parameters.

    >>> Waves(2, 3)(torch.zeros(1, 2)).tolist()
    [[0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, dim: int, frequencies: int):
        super().__init__()
        self.size = dim + 2 * frequencies
        self.matrix = nn.Buffer(0.5 * torch.randn(dim, frequencies))

    def forward(self, x: Tensor) -> Tensor:
        """Append the features ``[..., dim]`` -> ``[..., size]``."""
        phase = 2 * torch.pi * (x @ self.matrix)
        return torch.cat([x, phase.cos(), phase.sin()], -1)


class KnnEmbedding(nn.Module):
    """See `Knn`.

    Shapes:
        cells ``[P, n, d]``; types ``[P, n]`` integers or None; weights ``[P, n]`` normalised, None for equal ones; result ``[P, out]``.

    Example:
        >>> embed = Knn(k=3).module(2, 0, 40)
        >>> cells = torch.randn(1, 40, 2, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(embed(cells), embed(cells.flip(1)), atol=1e-6)
        True
    """

    def __init__(self, spec: Knn, dim: int, types: int, cells: int):
        super().__init__()
        self.spec, self.types, self.cells = spec, types, cells
        self.waves = Waves(dim, spec.frequencies)
        sizes = [self.waves.size + types, *[spec.width] * (spec.layers - 1), spec.out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, cells: Tensor, types: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Embed each population."""
        n = cells.shape[1]
        k = min(n - 1, round(self.spec.k * n / self.cells)) if self.spec.k else 0
        near = neighbours(cells.detach(), max(k, 1)) if self.spec.k and n > 1 else None
        z = with_types(self.waves(cells), types, self.types)
        for depth, layer in enumerate(self.layers):
            z = layer(z if near is None else mean_over_neighbours(z, near))
            z = F.silu(z) if depth < len(self.layers) - 1 else z
        return pooled(z, weights)


class DeepSetEmbedding(nn.Module):
    """See `DeepSet`; shapes as for `KnnEmbedding`."""

    def __init__(self, spec: DeepSet, dim: int, types: int):
        super().__init__()
        self.types = types
        self.waves = Waves(dim, spec.frequencies)
        sizes = [self.waves.size + types, *[spec.width] * spec.layers]
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.outer = nn.Sequential(nn.Linear(spec.width, spec.width), nn.SiLU(), nn.Linear(spec.width, spec.out))

    def forward(self, cells: Tensor, types: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Embed each population."""
        z = with_types(self.waves(cells), types, self.types)
        for layer in self.inner:
            z = F.silu(layer(z))
        return self.outer(pooled(z, weights))


def pooled(z: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the cells of each population ``[P, n, c]`` -> ``[P, c]``."""
    return z.mean(1) if weights is None else (weights.to(z)[..., None] * z).sum(1)


def with_types(cells: Tensor, types: Tensor | None, count: int) -> Tensor:
    """Append the cell type as ``count`` zeros and ones."""
    if not count:
        return cells
    if types is None:
        raise ValueError(f"types is None, wanted a cell type for each cell: the embedding was made for {count} cell types.")
    return torch.cat([cells, F.one_hot(types, count).to(cells)], -1)


def neighbours(x: Tensor, k: int, chunk: int = CHUNK) -> Tensor:
    """Indices ``[P, n, k]`` of the nearest other cells of each cell ``[P, n, d]``. A copy of a cell is another cell.

    >>> neighbours(torch.tensor([[[0.0], [0.0], [3.0]]]), 1).flatten().tolist()
    [1, 0, 0]
    """
    n = x.shape[1]
    if not 1 <= k < n:
        raise ValueError(f"k={k} neighbours in a population of {n} cells, wanted 1 to {n - 1}.")
    found = []
    for first in range(0, n, chunk):
        part = x[:, first : first + chunk]
        distance = torch.cdist(part, x)
        mine = torch.arange(part.shape[1], device=x.device)
        distance[:, mine, first + mine] = torch.inf
        found.append(distance.topk(k, largest=False, sorted=False).indices)
    return torch.cat(found, 1)


def mean_over_neighbours(z: Tensor, near: Tensor) -> Tensor:
    """``(z_i + sum_{j in N(i)} z_j) / (k + 1)`` for ``z [P, n, c]`` and ``near [P, n, k]``; the ``[P, n, k, c]`` numbers of the sum are never stored.

    >>> mean_over_neighbours(torch.tensor([[[0.0], [1.0], [5.0]]]), torch.tensor([[[1], [0], [1]]])).flatten().tolist()
    [0.5, 0.5, 3.0]
    """
    count, n, k = near.shape
    index = (near + torch.arange(count, device=near.device)[:, None, None] * n).reshape(count * n, k)
    total = F.embedding_bag(index, z.reshape(count * n, -1), mode="sum").reshape(z.shape)
    return (z + total) / (k + 1)
