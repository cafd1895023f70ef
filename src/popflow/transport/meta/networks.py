"""Networks of position, time and context, and the context itself: what is known of a population and of its treatment."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.core.checks import at_least_one
from popflow.learn.networks import TimeEmbedding
from popflow.transport.meta.embedding import Embedding, Waves


class ContextMLP(nn.Module):
    """Residual perceptron of position and time, scaled and shifted at every layer by linear maps of the context; SiLU.

    Args:
        dim: Coordinates.
        context: Numbers in the context.
        out: Numbers per cell of the result; ``dim`` unless given.
        width: Hidden width.
        depth: Hidden layers.
        frequencies: Random Fourier features of the position, see `Waves`.
        nearby: Widths at which the surroundings of a position are seen, see `Nearby`; 0: none.

    Shapes:
        x ``[P, n, dim]``; t ``[P, n]``; context ``[P, context]``; result ``[P, n, out]``.
    """

    def __init__(
        self, dim: int, context: int, *, out: int | None = None, width: int = 128, depth: int = 3, frequencies: int = 0, nearby: int = 0
    ):
        super().__init__()
        at_least_one(dim=dim, width=width, depth=depth)
        self.depth, self.width = depth, width
        self.time = TimeEmbedding()
        self.waves = Waves(dim, frequencies)
        self.nearby = Nearby(dim, nearby) if nearby else None
        self.first = nn.Linear(self.waves.size + self.time.size + (0 if self.nearby is None else self.nearby.size), width)
        self.shift = nn.Linear(context, 2 * depth * width) if context else None
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, dim if out is None else out)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, cells: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Evaluate cell by cell; ``cells [P, m, dim]`` of the population, with weights ``[P, m]``, where their surroundings are seen."""
        time = self.time(t.reshape(-1)).reshape(*t.shape, -1)
        known = None if self.shift is None else self.shift(context).unflatten(-1, (self.depth, 2, self.width))[:, None]
        seen = [] if self.nearby is None or cells is None else [self.nearby(x, cells, weights)]
        h = self.first(torch.cat([self.waves(x), time, *seen], -1))
        for k in range(self.depth):
            h = h if k == 0 else h + self.hidden[k - 1](F.silu(h))
            h = h if known is None else h * (1 + known[:, :, k, 0]) + known[:, :, k, 1]
        return self.last(F.silu(h))


class Nearby(nn.Module):
    """What the population looks like around a position: for each of ``count`` widths ``h`` the mean shift and the log density of a kernel estimate,

        (sum_j K_h(x - x_j) x_j / sum_j K_h(x - x_j) - x) / h,      log mean_j K_h(x - x_j)

    which are its score, up to a factor, and its level. Widths are learned, from 1/8 to 1/8 2^(count - 1) root mean square spreads of the cells.
    An embedding says what is true of a whole population; this says it of the surroundings of a cell, and carries over to unseen shapes.

    Source: Fukunaga and Hostetler, *The estimation of the gradient of a density function* (1975).
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.size = count * (dim + 1)
        self.log_width = nn.Parameter(torch.tensor([0.125 * 2.0**k * dim**0.5 for k in range(count)]).log())

    def forward(self, x: Tensor, cells: Tensor, weights: Tensor | None = None) -> Tensor:
        """Features of positions ``[P, n, d]`` among cells ``[P, m, d]``: ``[P, n, count (d + 1)]``."""
        squared = (x.square().sum(-1)[..., None] + cells.square().sum(-1)[:, None] - 2 * x @ cells.mT).clamp_min(0.0)
        bias = 0.0 if weights is None else weights.clamp_min(1e-12).log()[:, None] + math.log(cells.shape[1])
        found = []
        for width in self.log_width.exp():
            level = bias - squared / (2 * width.square())
            found += [(level.softmax(-1) @ cells - x) / width, level.logsumexp(-1, keepdim=True) - math.log(cells.shape[1])]
        return torch.cat(found, -1).clamp(-8.0, 8.0)


class Context(nn.Module):
    """The context of each population ``[P, size]``: its embedding, and its treatment by label or by example.

    By example, a treatment is the embedding of the treated cells of another patient less that of this patient's control cells, and that of the
    control cells: a new drug then needs no label.

    Args:
        embed: How populations are embedded; None leaves the population out.
        dim: Coordinates of a cell.
        treatments: Number of treatments; one needs no label.
        types: Number of cell types that the embedding sees.
        cells: Cells of a population in training.
        by_example: Whether treatments are given by example.
    """

    def __init__(self, embed: Embedding | None, dim: int, treatments: int, types: int, cells: int, by_example: bool):
        super().__init__()
        self.population = None if embed is None else embed.module(dim, types, cells)
        self.example = embed.module(dim, types, cells) if by_example and embed is not None else None
        self.treatments = 0 if by_example or treatments == 1 else treatments
        self.sees_types = types > 0
        self.width = width = 0 if embed is None else embed.out
        self.size = width + (2 * width if self.example is not None else self.treatments)

    def forward(
        self,
        cells: Tensor,
        types: Tensor | None,
        treatment: Tensor,
        example: tuple[Tensor, Tensor | None, Tensor, Tensor | None] | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Context of populations.

        Args:
            cells: ``[P, n, d]``, scaled.
            types: ``[P, n]`` or None.
            treatment: Number of the treatment of each, ``[P]``; -1 for none of those known.
            example: Control cells, their types, treated cells and their types of another patient.
            weights: ``[P, n]`` or None.
        """
        parts = [cells.new_zeros(len(cells), 0)]
        if self.population is not None:
            parts.append(self.population(cells, types, weights))
        if self.example is not None:
            if example is None:
                raise ValueError("example is None, wanted (control cells, treated cells) of a patient who got the treatment.")
            before, after = self.example(*example[:2]), self.example(*example[2:])
            parts += [after - before, before]
        elif self.treatments:
            parts.append((treatment[:, None] == torch.arange(self.treatments, device=cells.device)).to(cells))
        return torch.cat(parts, 1)
