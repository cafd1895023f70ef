"""Networks of position, time and context, and the context itself: what is known of a population and of its treatment."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.core.checks import at_least_one
from popflow.learn.networks import TimeEmbedding
from popflow.transport.meta.embedding import Embedding


class ContextMLP(nn.Module):
    """Residual perceptron of position and time, shifted at every layer by a linear map of the context; SiLU.

    Args:
        dim: Coordinates.
        context: Numbers in the context.
        out: Numbers per cell of the result; ``dim`` unless given.
        width: Hidden width.
        depth: Hidden layers.
        frequencies: Random Fourier features of the position, ``cos(2 pi x B)`` and ``sin(2 pi x B)``; ``B`` is stored with the parameters.

    Shapes:
        x ``[P, n, dim]``; t ``[P, n]``; context ``[P, context]``; result ``[P, n, out]``.
    """

    def __init__(self, dim: int, context: int, *, out: int | None = None, width: int = 128, depth: int = 3, frequencies: int = 0):
        super().__init__()
        at_least_one(dim=dim, width=width, depth=depth)
        self.depth = depth
        self.time = TimeEmbedding()
        self.waves = nn.Buffer(0.3 * torch.randn(dim, frequencies))
        self.first = nn.Linear(dim + 2 * frequencies + self.time.size, width)
        self.shift = nn.Linear(context, depth * width) if context else None
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, dim if out is None else out)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Evaluate cell by cell."""
        phase = 2 * torch.pi * (x @ self.waves)
        time = self.time(t.reshape(-1)).reshape(*t.shape, -1)
        shift = None if self.shift is None else self.shift(context).unflatten(-1, (self.depth, -1))[:, None]
        h = self.first(torch.cat([x, phase.cos(), phase.sin(), time], -1))
        for k in range(self.depth):
            h = h if k == 0 else h + self.hidden[k - 1](F.silu(h))
            h = h if shift is None else h + shift[:, :, k]
        return self.last(F.silu(h))


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
        width = 0 if embed is None else embed.out
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
