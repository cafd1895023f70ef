"""What a flow may learn from: checks of the populations, and the scaling of their features."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from popflow.core.errors import PopflowWarning
from popflow.transport.meta.populations import Populations, rows
from popflow.transport.meta.settings import Settings


def check_training(populations: Populations, settings: Settings) -> Populations:
    """The complete pairs; what cannot be learned from is refused by name, and what probably is a mistake is warned of.

    Raises:
        ValueError: for no complete pair, treated cells that are the control cells, constant populations, absent types.
    """
    complete = [pair for pair in populations.pairs if pair.target is not None]
    if not complete:
        raise ValueError("populations: no pair has treated cells, wanted some to learn from.")
    if (settings.within_types or settings.see_types) and populations.types is None:
        raise ValueError("populations have no cell types, wanted them for within_types and see_types: give types=... when making them.")
    without = len(populations.pairs) - len(complete)
    if without:
        names = sorted({pair.group for pair in populations.pairs if pair.target is None})
        warnings.warn(f"{without} pairs have no treated cells and are not learned from: {names}.", PopflowWarning, stacklevel=3)
    training = populations.of_pairs(complete)
    small = []
    for k in sorted({k for pair in complete for k in (pair.source, pair.target) if k is not None}):
        cells = training.sample(k)
        if bool((cells == cells[0]).all()):
            raise ValueError(f"{training.label(k)}: all cells coincide, wanted a population of cells that differ: drop it.")
        if not bool(cells.isfinite().all()):
            raise ValueError(f"{training.label(k)}: NaN or infinite values, wanted finite ones: drop those cells.")
        if len(training.clouds[k]) < max(settings.cells if settings.embed is not None else 0, settings.pairs):
            small.append(training.label(k))
    for pair in complete:
        if pair.target is not None and _same(training, pair.source, pair.target):
            raise ValueError(
                f"({pair}): the treated cells are the control cells, wanted different samples: a control was treated, or copied."
            )
    alone = (
        []
        if not settings.by_example
        else sorted(name for name in training.treatments if len({pair.group for pair in complete if pair.treatment == name}) == 1)
    )
    if alone:
        warnings.warn(
            f"{alone} were given to one patient only, whose own treated cells are the example: the flow is shown its answer. Fix: leave these pairs out.",
            PopflowWarning,
            stacklevel=3,
        )
    if small:
        told = ", ".join(small[:3]) + (f" and {len(small) - 3} more" if len(small) > 3 else "")
        warnings.warn(
            f"populations smaller than a draw (cells={settings.cells}, pairs={settings.pairs}): {told}. Their cells are drawn more than once. Fix: smaller draws.",
            PopflowWarning,
            stacklevel=3,
        )
    return training


def _same(populations: Populations, source: int, target: int) -> bool:
    a, b = populations.clouds[source], populations.clouds[target]
    if source == target or len(a) != len(b):
        return source == target
    left, right = (populations.sample(k, 64) for k in (source, target))
    if torch.equal(left, right):
        return True
    if len(a) > 20_000:
        return False
    left, right = (rows(cloud) for cloud in (a, b))
    return all(torch.equal(left[:, j].sort().values, right[:, j].sort().values) for j in range(left.shape[1]))


def moments(populations: Populations) -> tuple[Tensor, Tensor]:
    """Mean ``[d]`` of each feature over at most 200 cells of each cloud, and one scale ``[1]``, the root mean variance: distances keep their proportions."""
    clouds = sorted({k for pair in populations.pairs for k in (pair.source, pair.target) if k is not None})
    cells = torch.cat([populations.sample(k, 200) for k in clouds])
    return cells.mean(0), cells.var(0, correction=0).mean().sqrt()[None]
