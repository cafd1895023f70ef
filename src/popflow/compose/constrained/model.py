"""What is learned from a table: columns, prior, surrogate, feasibility; the same for the estimator and for ``popflow optimize``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.compose.constrained.denoiser import SIGMA_MAX, SIGMA_MIN, Denoiser, learn
from popflow.compose.constrained.feasibility import Feasibility
from popflow.compose.constrained.objective import Units
from popflow.compose.constrained.prior import Prior
from popflow.compose.constrained.schema import Schema
from popflow.compose.constrained.surrogate import Guide, Surrogate, learn_guide, learn_surrogate
from popflow.core import PopflowWarning, Streams

Stage = Callable[[str, int], Mapping[str, Any]]
"""``stage(name, steps)`` returns arguments of `popflow.learn.fit`: recorders and a checkpoint."""


@dataclass(frozen=True, slots=True)
class Training:
    """Sizes of the networks and lengths of their training.

    Attributes:
        steps: Training steps of the prior.
        width: Hidden width of its network.
        depth: Its hidden layers.
        members: Perceptrons of the surrogate.
        surrogate_steps: Training steps of the surrogate.
        surrogate_width: Hidden width of the surrogate.
        batch: Rows of a batch.
        held_out: Share of the different rows kept back, to calibrate feasibility and uncertainty.
    """

    steps: int = 3000
    width: int = 256
    depth: int = 3
    members: int = 4
    surrogate_steps: int = 3000
    surrogate_width: int = 256
    batch: int = 256
    held_out: float = 0.1


@dataclass(frozen=True, eq=False)
class Model:
    """What was learned.

    Attributes:
        schema: The columns.
        prior: The diffusion model.
        feasibility: Its calibrated score.
        units: Standard units of the values.
        surrogate: The surrogate; None without values, or when the objective is given.
        guide: Expected values given noisy rows, for guidance; None unless asked for.
        rows: Coordinates of the training rows.
        held: Coordinates of the rows held out.
        duplicates: Rows that repeat an earlier one; all copies stand on one side of the split.
    """

    schema: Schema
    prior: Prior
    feasibility: Feasibility
    units: Units
    surrogate: Surrogate | None
    guide: Guide | None
    rows: Tensor
    held: Tensor
    duplicates: int


def learn_model(
    schema: Schema,
    z: Tensor,
    y: Tensor | None,
    *,
    maximize: bool,
    training: Training,
    seed: int,
    surrogate: bool,
    guide: bool = False,
    stage: Stage = lambda name, steps: {},
) -> Model:
    """Learn a model from coordinates ``z [n, dim]`` and values ``y [n, out]``.

    Args:
        schema: The columns.
        z: Coordinates of all rows.
        y: Their values; None when only an objective is known.
        maximize: Whether high values are good.
        training: Sizes.
        seed: Random seed; each part has its own streams.
        surrogate: Whether to learn a surrogate.
        guide: Whether to learn a guide.
        stage: Recorders and checkpoint of each training.

    Raises:
        ValueError: when no column varies, or the values are constant.
    """
    if not schema.dim:
        raise ValueError("every column is constant: there is nothing to choose. Fix: give columns that vary.")
    if len(z) < 10 * schema.dim:
        warnings.warn(
            f"{len(z)} rows for {schema.dim} coordinates, wanted at least {10 * schema.dim}: the model of the data will be rough. Use more rows or fewer "
            "columns, and look at the feasibility of rows that were held out.",
            PopflowWarning,
            stacklevel=3,
        )
    keep, held, duplicates = split(z, training.held_out, Streams(seed))
    rng = {name: Streams(seed, z.device) for name in ("prior", "surrogate", "guide", "calibration")}
    with rng["prior"].layers():
        denoiser = Denoiser(schema, training.width, training.depth).to(z.device)
    learn(denoiser, z[keep], steps=training.steps, batch=training.batch, rng=rng["prior"], **stage("prior", training.steps))
    prior = Prior.of(denoiser.expert(), z[keep], rng=rng["calibration"], sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, snap=schema.snap)
    check = z[held] if len(held) else z[keep]
    feasibility = Feasibility.of(prior, check[:2000], rng["calibration"])
    found, guiding, sign = None, None, -1.0 if maximize else 1.0
    one = torch.ones(1, dtype=torch.float64)
    units = Units(one * 0, one, sign)
    if y is not None:
        std = y.double().std(0) if len(y) > 1 else torch.ones(y.shape[1], dtype=torch.float64)
        units = Units(y.double().mean(0), torch.where(std > 0, std, 1.0), sign)
    if surrogate and y is not None:
        found = learn_surrogate(
            z[keep], y[keep], (z[held], y[held]), steps=training.surrogate_steps, batch=training.batch, members=training.members,
            width=training.surrogate_width, rng=rng["surrogate"], **stage("surrogate", training.surrogate_steps),
        )  # fmt: skip
    if guide and y is not None:
        guiding = learn_guide(
            z[keep], units.standard(y[keep]).float(), steps=training.surrogate_steps, batch=training.batch, width=training.surrogate_width,
            rng=rng["guide"], **stage("guide", training.surrogate_steps),
        )  # fmt: skip
    return Model(schema, prior, feasibility, units, found, guiding, z[keep], check, duplicates)


def split(z: Tensor, share: float, rng: Streams) -> tuple[Tensor, Tensor, int]:
    """Split rows into indices to keep and to hold out, all copies of a row on one side; the last number counts copies.

    >>> keep, held, copies = split(torch.arange(10.0)[:, None].repeat(2, 1), 0.2, Streams(0))
    >>> len(keep), len(held), copies, set((keep % 10).tolist()) & set((held % 10).tolist())
    (16, 4, 10, set())
    """
    _, group = torch.unique(z, dim=0, return_inverse=True)
    groups = int(group.max()) + 1
    order = torch.randperm(groups, generator=rng("split"))
    out = torch.zeros(groups, dtype=torch.bool)
    out[order[: min(groups - 1, round(share * groups))]] = True
    held = out.to(z.device)[group]
    return (~held).nonzero().flatten(), held.nonzero().flatten(), len(z) - groups
