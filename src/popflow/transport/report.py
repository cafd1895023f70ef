"""The report of ``popflow flow``: results as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from popflow.runs import Figure, Measured, Report, Table, Verdict, figures, point_figures
from popflow.transport.anndata import Cells
from popflow.transport.evaluate import BASELINE, CELLS, FLOOR, FLOW, PATH, SPLITS, TRANSPORT, Score
from popflow.transport.fate import NEIGHBOURS, Fates, growth_by_type, growth_rates
from popflow.transport.lagrangian import WFR
from popflow.transport.lagrangian_flow import Certificate, LagrangianFlow
from popflow.transport.predict import Track
from popflow.transport.snapshots import Snapshots

_PATHS = 80


@dataclass(frozen=True, eq=False)
class Outcome:
    """The results of a run.

    Attributes:
        name: Name of the file of cells.
        space: The coordinates, in words.
        cells: The cells, scaled.
        flow: The fitted flow.
        certificate: Quality of the fit.
        scores: Marginal -> what -> distances from its cells.
        fate: Fates of the first marginal at the last, where types are known.
        track: Cells of the first snapshot on their way to the last time.
        genes: A note on whether predicted cells have genes.
    """

    name: str
    space: str
    cells: Cells
    flow: LagrangianFlow
    certificate: Certificate
    scores: Mapping[int, Mapping[str, Score]]
    fate: Fates | None
    track: Track
    genes: str


def report(found: Outcome) -> Report:
    """Report an outcome: scores beside the baselines, paths, growth, fates, and the fit."""
    cells, snapshots, flow = found.cells, found.cells.snapshots, found.flow
    grows = isinstance(flow.lagrangian.kinetic, WFR)
    kind = "transport with growth" if grows else "a Schrödinger bridge" if flow.lagrangian.noise else "transport"
    seen = "all but " + ", ".join(str(snapshots.labels[k]) for k in snapshots.held_out) if snapshots.held_out else "all of them"
    means = {what: [row[what].w1 for row in found.scores.values() if what in row] for what in (FLOW, PATH, TRANSPORT, FLOOR)}
    return Report(
        title=f"Population dynamics of {found.name}: {kind}",
        summary=(
            f"{sum(map(len, snapshots.x))} cells at {len(snapshots)} times ({', '.join(map(str, snapshots.labels))}), {found.space}. The path of "
            f"least action through the snapshots, {seen}, gives each cell a velocity and a growth rate.\n\nDistances and lengths are in the "
            "scaled coordinates, times in the unit of the file." + "".join(f"\n\nWarning: {text}" for text in found.certificate.warnings)
        ),
        verdict=_verdict(found.scores, bool(snapshots.held_out)),
        figure=_paths(cells.rep, snapshots, found.track),
        comparison=(_scores(found.scores, snapshots), *(() if found.fate is None else (_fates(found.fate, snapshots),))),
        diagnostics=(
            *(_growth(cells, flow) if grows else ()),
            _film(cells.rep, snapshots, found.track),
            _certificate(found.certificate),
        ),
        results={
            **headline(found.certificate),
            **{f"W1, {what}": Measured(sum(row) / len(row)) for what, row in means.items() if row},
        },
        files={
            "cells.h5ad": "the cells of the file with velocity, growth and fate (keys popflow_..., X_popflow)",
            "predicted.h5ad": f"predicted cells at the scored times, pushed and drawn from the path, {found.genes}",
            "fit.safetensors": "parameters and state of the training",
            **({"flow-matching.safetensors": "the same for the baseline"} if any(BASELINE in row for row in found.scores.values()) else {}),
        },
    )


def headline(certificate: Certificate) -> dict[str, Measured]:
    """The figures by which a fit is judged: the action between its bounds, what one potential explains, and what was not moved at all."""
    figures = {
        "action": certificate.action,
        "action, lower bound": certificate.dual,
        "action, upper bound": certificate.path_energy,
        "duality gap": certificate.gap,
        "energy that one potential explains": certificate.explained,
        "mass born, not moved": certificate.born,
        "Hamilton-Jacobi residual": certificate.residual_relative,
    }
    return {name: Measured(value) for name, value in figures.items() if value is not None}


def _verdict(scores: Mapping[int, Mapping[str, Score]], held_out: bool) -> Verdict:
    beaten = [row[FLOW].w1 < row[TRANSPORT].w1 for row in scores.values() if TRANSPORT in row]
    alike = sum(not row[FLOW].distinguishable(row[FLOOR]) for row in scores.values())
    return Verdict(
        all(beaten) if held_out else None,
        f"the flow is nearer to the held-out cells than the exact-OT midpoint at {sum(beaten)} of {len(beaten)} times; it cannot be told from "
        f"them at {alike}"
        if held_out
        else "nothing was held out: the scores are for snapshots that the fit has seen",
        "W1 of the flow to the held-out cells below that of the exact-OT midpoint at every held-out time",
    )


def _scores(scores: Mapping[int, Mapping[str, Score]], snapshots: Snapshots) -> Table:
    rows = [
        (str(snapshots.labels[k]), what, s.w1 if s.spread is None else Measured(s.w1, s.spread), s.w2, s.mmd, _told(s, row[FLOOR]))
        for k, row in scores.items()
        for what, s in row.items()
    ]
    return Table(
        "Distance from the held-out cells" if snapshots.held_out else "Distance from the cells of each snapshot (seen in training)",
        ("time", "what", "W1", "W2", "MMD", "W1 and the floor"),
        tuple(rows),
        "Flow: pushed from the cells of the training snapshot before each time, weights included. Path: cells drawn from the learned path at that "
        f"time, to which the snapshots on both sides contribute. At most {CELLS} cells of each snapshot. Lower is better. The sampling floor is the "
        f"distance between two samples of the true cells of these sizes (mean and standard deviation over {SPLITS} random splits): what is less "
        "than two standard deviations above it cannot be told from the true cells.",
        tuple(i for i, row in enumerate(rows) if row[1] in (FLOW, PATH)),
    )


def _told(one: Score, floor: Score) -> str | None:
    return None if one is floor else "above" if one.distinguishable(floor) else "not distinguishable"


def _plane(snapshots: Snapshots, x: Tensor) -> Tensor:
    """The first two raw coordinates; a single one is drawn against zero."""
    raw = snapshots.raw(x)[..., :2]
    return raw if raw.shape[-1] == 2 else torch.cat([raw, torch.zeros_like(raw)], -1)


def _labels(rep: str) -> dict[str, str]:
    return {"x_label": f"{rep} 1", "y_label": f"{rep} 2"}


def _paths(rep: str, snapshots: Snapshots, way: Track) -> Figure:
    some = way.x[:, :: max(1, way.x.shape[1] // _PATHS)]
    seen = _plane(snapshots, torch.cat(snapshots.training.x))
    image = point_figures.trajectories(seen, _plane(snapshots, some), times=way.times, **_labels(rep))
    return Figure(
        image, f"Paths of {some.shape[1]} cells of the first snapshot over all training cells (grey).", "paths over the embedding"
    )


def _film(rep: str, snapshots: Snapshots, way: Track) -> Figure:
    training = snapshots.training
    truth = [(f"{label}", _plane(snapshots, x)) for label, x in zip(training.labels, training.x, strict=True)]
    image = point_figures.moving(_plane(snapshots, way.x), way.weights, truth, times=way.times, seconds=5.0, **_labels(rep))
    return Figure(
        image, "The flow from the first time to the last (black, areas are weights) over the training snapshots.", "a moving cloud"
    )


def _growth(cells: Cells, flow: LagrangianFlow) -> list[Figure | Table]:
    training = cells.snapshots.training
    meaning = "relative to the mean of the cells of its time" if flow.lagrangian.normalized else "of the total mass"
    rates = torch.cat(growth_rates(flow, training))
    at = _plane(training, torch.cat(training.x))
    image = point_figures.value_map(at, rates, value_label="growth rate, 1 / time", symmetric=True, **_labels(cells.rep))
    histogram = figures.histogram({"cells": rates}, x_label="growth rate, 1 / time")
    found: list[Figure | Table] = [
        Figure(image, f"Growth rate of each training cell at its time, {meaning}.", "growth rate over the embedding"),
        Figure(histogram, "The same as a histogram.", "histogram of growth rates"),
    ]
    if cells.annotation is not None:
        by_type = growth_by_type(flow, cells.snapshots, cells.annotation)
        rows = tuple(
            (name, *(None if one is None else f"{one[0]:.3g} ({one[1]:.2g}; {one[2]})" for one in row)) for name, row in by_type.items()
        )
        head = ("type", *(f"time {label}" for label in cells.snapshots.labels))
        found.append(Table("Growth rate of each type", head, rows, f"Mean (standard deviation; cells), 1 / time, {meaning}."))
    return found


def _fates(fate: Fates, snapshots: Snapshots) -> Table:
    rows = tuple(
        (name, *(None if bool(row.isnan().any()) else float(one) for one in row))
        for name, row in zip(fate.types, fate.table.cpu(), strict=True)
    )
    return Table(
        f"Fate: from time {snapshots.labels[0]} to time {snapshots.labels[-1]}",
        ("type at the start", *fate.types),
        rows,
        "Shares of the types among the descendants, weights included. The type of a descendant is that of the "
        f"{NEIGHBOURS} nearest cells of the last snapshot, one vote each. A dash: no cell of that type at the start."
        + (f" Averages over {fate.draws} draws of the noise for each cell." if fate.draws > 1 else ""),
    )


def _certificate(certificate: Certificate) -> Table:
    return Table(
        "The fit",
        ("", "value"),
        tuple((name.replace("_", " "), value) for name, value in asdict(certificate).items()),
        "Action of the pushed flow; bounds on the action of the path (dual, path energy), their gap, and the share of the path energy that one "
        "potential explains; how far the Hamilton-Jacobi equation is from holding (relative to the radius of all cells); the largest share of a "
        "snapshot that is born there, not moved there.",
    )
