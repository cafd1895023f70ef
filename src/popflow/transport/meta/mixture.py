"""Cell types in proportions that training has not seen, and by how much predictions depend on them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace as _replace

import torch
from torch import Tensor

from popflow.core.errors import PopflowWarning
from popflow.core.streams import Streams
from popflow.transport.meta.field import Given, embedded

CELLS = 500
"""Cells that are followed to compare predictions."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Proportions of cell types in a population beside those of training.

    Attributes:
        types: Names of the types.
        share: Share of each in the population ``[types]``.
        low: Least share in a training population.
        high: Largest share.
        outside: Types outside.
        change: Root mean square over cells and features between two predictions of the same cells: embedding their population, and embedding the
            population with shares brought inside the range, as far as its types allow. In the unit of the features; 0 where nothing is outside.
        relative: The same over the root mean square displacement of the cells.
    """

    types: tuple[str, ...]
    share: Tensor
    low: Tensor
    high: Tensor
    outside: tuple[str, ...]
    change: float
    relative: float

    def __str__(self) -> str:
        parts = [
            f"{name} {float(self.share[k]):.0%} (training {float(self.low[k]):.0%} to {float(self.high[k]):.0%})"
            for k, name in enumerate(self.types)
            if name in self.outside
        ]
        return ", ".join(parts) or "all shares lie within those of training"


def mixture(given: Given, types: Tensor, *, tolerance: float = 0.02) -> Mixture:
    """Compare the shares of cell types of a population with training, and predictions with and without what is outside.

    Args:
        given: The flow of the population.
        types: Integer type of each of its cells.
        tolerance: How far outside the range of training a share may lie.

    Raises:
        ValueError: for a flow whose training populations had no types, or types that do not fit.
    """
    field, cells = given.field, given.cells
    if field.shares is None:
        raise ValueError("the training populations had no cell types, wanted them: Populations.from_cells(..., types=...).")
    codes = torch.as_tensor(types).long().to(cells.device)
    count = len(field.type_names)
    if codes.shape != (len(cells),) or not bool(((codes >= 0) & (codes < count)).all()):
        raise ValueError(f"types has shape {tuple(codes.shape)}, wanted one number from 0 to {count - 1} for each of {len(cells)} cells.")
    share = torch.bincount(codes, minlength=count).double().cpu() / len(cells)
    low, high = field.shares.cpu().amin(0), field.shares.cpu().amax(0)
    out = (share < low - tolerance) | (share > high + tolerance)
    outside = tuple(name for name, far in zip(field.type_names, out.tolist(), strict=True) if far)
    change = relative = 0.0
    if outside and field.context.population is not None:
        wanted = share.clamp(low, high)
        order = codes.cpu().argsort(stable=True)  # by type: systematic draws then meet the shares to one cell
        weight = torch.where(share > 0, wanted / share.clamp_min(1e-9), 0.0)[codes.cpu()[order]]
        place = (torch.arange(len(cells), dtype=torch.float64) + 0.5) / len(cells) * weight.sum()
        index = order[torch.searchsorted(weight.cumsum(0), place).clamp_max(len(cells) - 1)].to(cells.device)
        inside = _replace(given, cells=cells[index], types=None if given.types is None else given.types[index])
        inside = _replace(inside, known=inside.embedded(inside.cells))
        some = embedded(cells, None)[0][:CELLS]
        ends = [one.push(some, 0.0, 1.0, Streams(0), steps=10).x for one in (given, inside)]
        change = float((ends[0] - ends[1]).square().mean().sqrt())
        relative = change / max(float((ends[0] - some).square().mean().sqrt()), 1e-12)
    return Mixture(field.type_names, share, low, high, outside, change, relative)


def warn_of_mixture(given: Given, types: Tensor) -> Mixture:
    """`mixture`, with a warning where shares are outside."""
    found = mixture(given, types)
    if found.outside:
        warnings.warn(
            f"cell types in proportions unseen in training: {found}. Predictions change by {found.change:.3g} {given.field.unit} root mean square "
            f"({found.relative:.0%} of the displacement) when the population is brought inside that range.",
            PopflowWarning,
            stacklevel=4,
        )
    return found
