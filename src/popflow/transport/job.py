"""The job behind ``popflow flow``: snapshots of an AnnData file to a flow, its predictions, and a file with new keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from popflow.core import Population, Streams
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, figures, point_figures, training
from popflow.transport import anndata
from popflow.transport.evaluate import FLOOR, FLOW, PATH, TRANSPORT, Score, evaluate, table
from popflow.transport.fate import Fates, fates, growth_by_type
from popflow.transport.flow_matching import match
from popflow.transport.lagrangian import W2, WFR, Lagrangian, MeanAcceleration, VelocityPrior
from popflow.transport.lagrangian_flow import Certificate, LagrangianFlow
from popflow.transport.snapshots import Snapshots

_BASELINE = "OT-conditional flow matching"
_FRAMES, _TRAJECTORIES, _MOVING = 25, 80, 400


@dataclass(frozen=True)
class FlowConfig:
    """What ``popflow flow`` takes; every field is an option. Lengths are those of the scaled coordinates, times those of the file.

    Attributes:
        cells: AnnData file (``.h5ad``); it is not changed.
        time: Column of ``obs`` with the time of each cell.
        rep: Key of ``obsm``: the coordinates.
        dims: Leading coordinates that are used.
        scale: ``whiten`` (unit variance of each), ``global`` (one factor for all) or ``none``; fitted without held-out cells.
        lagrangian: ``transport`` (mass conserved), ``unbalanced`` (with growth and death) or ``bridge`` (transport with noise).
        lam: Price of transport against growth (``unbalanced``), one over a length squared: mass further than ``pi / sqrt(lam)`` is not moved.
        noise: Standard deviation of the noise (``bridge``), a length per square root of time.
        masses: ``equal``, or ``counts``: the total mass follows the number of cells (``unbalanced`` only).
        acceleration: Let the particles accelerate as the means of the training snapshots do.
        velocity: Key of ``obsm`` with RNA velocity in the coordinates of ``rep``: the flow follows it where snapshots leave a choice.
        smooth: Let cells go on as they came: the flow follows the velocities that the training snapshots imply, as a spline does. At least
            three are needed.
        bandwidth: Over which length velocities are averaged.
        strength: Factor on the velocities.
        hold_out: Times that the fit does not see and the flow is scored on.
        types: Column of ``obs`` with cell types, for fates and growth per type.
        baseline: Fit (and score) OT-conditional flow matching beside it.
        steps: Training steps.
        width: Hidden width of the networks.
        lr: Learning rate.
        seed: Of the random streams.
    """

    cells: Path
    time: str
    rep: str = "X_pca"
    dims: int = 5
    scale: Literal["whiten", "global", "none"] = "whiten"
    lagrangian: Literal["transport", "unbalanced", "bridge"] = "transport"
    lam: float = 1.0
    noise: float = 0.3
    masses: Literal["equal", "counts"] = "equal"
    acceleration: bool = False
    velocity: str | None = None
    smooth: bool = False
    bandwidth: float = 1.0
    strength: float = 1.0
    hold_out: tuple[float, ...] = ()
    types: str | None = None
    baseline: bool = True
    steps: int = 1500
    width: int = 64
    lr: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dims", "steps", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted at least 1.")
        for name in ("lam", "noise", "bandwidth", "strength", "lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)!r}: wanted a finite number above 0.")
        if self.smooth and self.velocity is not None:
            raise ValueError(f"smooth=True and velocity={self.velocity!r}, wanted one of them: a flow has one reference drift.")
        if self.masses == "counts" and self.lagrangian != "unbalanced":
            raise ValueError(f"masses='counts' with lagrangian={self.lagrangian!r}, which conserves mass. Fix: lagrangian unbalanced.")


def run(config: FlowConfig, run: Run) -> Report:
    """Fit, score on what was held out, follow the cells, and write the file back with its new keys."""
    cells = read(config)
    snapshots = cells.snapshots.to(run.device)
    run.log(f"{[len(x) for x in snapshots.x]} cells at {list(snapshots.labels)}, {snapshots.dim} coordinates")
    flow = LagrangianFlow(_lagrangian(config, snapshots), width=config.width, lr=config.lr)
    flow.fit(
        snapshots,
        steps=config.steps,
        rng=Streams(config.seed, run.device),
        **training(run, "fit", config.steps),
    )
    certificate = flow.report()
    known = tuple(range(1, len(snapshots)))
    scored = snapshots.held_out or known
    rng = Streams(config.seed, run.device)
    scores = evaluate(flow, snapshots, rng=rng, marginals=scored)
    if config.baseline:
        other = match(
            snapshots,
            rng=Streams(config.seed, run.device),
            steps=config.steps,
            width=config.width,
            **training(run, "flow matching", config.steps),
        )
        theirs = evaluate(other, snapshots, rng=Streams(config.seed, run.device), marginals=scored)
        scores = {k: {n: row[n] for n in (FLOW, PATH) if n in row} | {_BASELINE: theirs[k][FLOW]} | row for k, row in scores.items()}
    fate = None
    if cells.annotation is not None:
        fate = fates(flow, snapshots, cells.annotation, 0, len(snapshots) - 1, rng=rng)
    _write_back(config, run, cells, snapshots, flow, certificate, fate)
    genes = _write_predictions(config, run, snapshots, flow, scored, rng)
    return _report(config, snapshots, flow, certificate, scores, fate, cells, genes)


def read(config: FlowConfig) -> anndata.Cells:
    """Return the cells of the file, scaled, with the marginals held out."""
    cells = anndata.read(
        config.cells,
        time=config.time,
        rep=config.rep,
        dims=config.dims,
        velocity=config.velocity,
        types=config.types,
        masses="counts" if config.masses == "counts" else None,
    )
    snapshots = cells.snapshots.hold_out(*(cells.snapshots.index(t) for t in config.hold_out))
    scaled = {"whiten": Snapshots.standardised, "global": Snapshots.scaled, "none": lambda same: same}[config.scale](snapshots)
    return anndata.Cells(scaled, cells.rows, cells.count, cells.annotation)


def _lagrangian(config: FlowConfig, snapshots: Snapshots) -> Lagrangian:
    kinetic = WFR(config.lam, normalized=config.masses == "equal") if config.lagrangian == "unbalanced" else W2()
    drift = VelocityPrior.between(snapshots, config.bandwidth) if config.smooth else None
    if config.velocity is not None:
        drift = VelocityPrior.of(snapshots, config.bandwidth, config.strength)
    return Lagrangian(
        kinetic,
        noise=config.noise if config.lagrangian == "bridge" else 0.0,
        potential=MeanAcceleration.of(snapshots) if config.acceleration else None,
        drift=drift,
    )


def _write_back(
    config: FlowConfig,
    run: Run,
    cells: anndata.Cells,
    snapshots: Snapshots,
    flow: LagrangianFlow,
    certificate: Certificate,
    fate: Fates | None,
) -> None:
    """The file of the user with the new keys, as ``cells.h5ad`` of the run."""
    import pandas as pd

    scale = torch.ones(snapshots.dim) if snapshots.scale is None else snapshots.scale.cpu()
    times = [float(t) for t in snapshots.times]
    velocity = [_rows(lambda x, t=t: flow.velocity(t, x), x).cpu() * scale for t, x in zip(times, snapshots.x, strict=True)]
    growth = [_rows(lambda x, t=t: flow.growth(t, x), x) for t, x in zip(times, snapshots.x, strict=True)]
    noise = Streams(config.seed, run.device)
    later = [snapshots.raw(_rows(lambda x, k=k: flow.push(x, times[k], times[k + 1], noise).x, x)) for k, x in enumerate(snapshots.x[:-1])]
    obs: dict[str, Any] = {f"{anndata.KEY}_growth": cells.spread(growth)}
    obsm = {
        f"{anndata.KEY}_velocity": cells.spread(velocity),
        f"X_{anndata.KEY}": cells.spread([*later, snapshots.raw(snapshots.x[-1])]),
    }
    about = {
        "settings": {name: value for name, value in asdict(config).items() if name != "cells"},
        "times": times,
        "fit": asdict(certificate),
    }
    if fate is not None and cells.annotation is not None:
        last = len(snapshots) - 1
        found = [fate.probability]
        for k in range(1, last):
            one = fates(flow, snapshots, cells.annotation, k, last, rng=noise)
            found.append(_aligned(one, fate.types))
        found.append(torch.nn.functional.one_hot(torch.tensor([fate.types.index(a) for a in cells.annotation[-1]]), len(fate.types)))
        spread = cells.spread(found)
        obsm[f"{anndata.KEY}_fate"] = spread
        missing = pd.isna(spread[:, 0])
        code = (
            spread.argmax(1)
            if not missing.any()
            else [-1 if gone else int(row.argmax()) for gone, row in zip(missing, spread, strict=True)]
        )
        obs[f"{anndata.KEY}_fate"] = pd.Categorical.from_codes(code, categories=list(fate.types))
        about["types"] = list(fate.types)
    anndata.write(config.cells, run.path / "cells.h5ad", obs=obs, obsm=obsm, uns=anndata.plain(about))


def _aligned(one: Fates, types: tuple[str, ...]) -> Tensor:
    """Probabilities in the columns of ``types`` (of the first and the last time); what is of another type is left out."""
    out = one.probability.new_zeros(len(one.probability), len(types))
    for j, name in enumerate(one.types):
        if name in types:
            out[:, types.index(name)] = one.probability[:, j]
    return out


def _write_predictions(
    config: FlowConfig, run: Run, snapshots: Snapshots, flow: LagrangianFlow, scored: Sequence[int], rng: Streams
) -> str:
    """Predicted cells at the scored times, as ``predicted.h5ad``; say whether genes could be decoded."""
    positions, weights, times, ways = [], [], [], []
    training = [k for k in range(len(snapshots)) if k not in snapshots.held_out]
    for k in scored:
        left = max(i for i in training if i < k)
        pushed = flow.push(snapshots.x[left], float(snapshots.times[left]), float(snapshots.times[k]), rng)
        found = {FLOW: pushed}
        if k in snapshots.held_out:
            found[PATH] = flow.interpolate(float(snapshots.times[k]), len(pushed), rng)
        for way, pop in found.items():
            positions.append(snapshots.raw(pop.x))
            weights.append(pop.weights() * len(pop))
            times += [float(snapshots.times[k])] * len(pop)
            ways += [way] * len(pop)
    at = torch.cat(positions)
    try:
        genes, told = anndata.genes_of(config.cells, config.rep, at), "with genes decoded from principal components"
    except ValueError as error:
        genes, told = None, f"without genes: {error}"
        run.log(f"predicted cells {told}")
    anndata.write_predictions(run.path / "predicted.h5ad", config.rep, at, times=times, ways=ways, weights=torch.cat(weights), genes=genes)
    return told


def _rows(f: Callable[[Tensor], Tensor], x: Tensor, most: int = 8192) -> Tensor:
    """Evaluate in blocks of rows, so that memory does not grow with the number of cells."""
    return torch.cat([f(rows) for rows in x.split(most)])


def _report(
    config: FlowConfig,
    snapshots: Snapshots,
    flow: LagrangianFlow,
    certificate: Certificate,
    scores: dict[int, dict[str, Score]],
    fate: Fates | None,
    cells: anndata.Cells,
    genes: str,
) -> Report:
    held = bool(snapshots.held_out)
    beaten = [row[FLOW].w1 < row[TRANSPORT].w1 for row in scores.values() if TRANSPORT in row]
    kind = {"transport": "transport", "unbalanced": "transport with growth", "bridge": "a Schrödinger bridge"}[config.lagrangian]
    first = {name: [row[name] for row in scores.values() if name in row] for name in (FLOW, PATH, TRANSPORT, FLOOR)}
    results = {
        "action": Measured(certificate.action),
        "duality gap": Measured(certificate.gap),
        "Hamilton-Jacobi residual": Measured(certificate.residual_relative),
        **{f"W1, {name}": Measured(sum(s.w1 for s in row) / len(row)) for name, row in first.items() if row},
    }
    verdict = Verdict(
        all(beaten) if held else None,
        f"the flow is nearer to the held-out cells than the exact-OT midpoint at {sum(beaten)} of {len(beaten)} times"
        if held
        else "nothing was held out: the scores are those of snapshots that the fit has seen",
        "W1 of the flow to the held-out cells below that of the exact-OT midpoint at every time held out",
    )
    files = {
        "cells.h5ad": "the cells of the file with velocity, growth and fate (keys popflow_..., X_popflow)",
        "predicted.h5ad": f"predicted cells at the scored times, pushed and of the path, {genes}",
        "fit.safetensors": "parameters and state of the training",
    }
    if config.baseline:
        files["flow-matching.safetensors"] = "the same of the baseline"
    return Report(
        title=f"Population dynamics of {config.cells.name}: {kind}",
        summary=(
            f"{sum(map(len, snapshots.x))} cells at {len(snapshots)} times ({', '.join(map(str, snapshots.labels))}), {snapshots.dim} coordinates "
            f"of {config.rep} ({config.scale}). The path of least action through the snapshots, "
            f"{'all but ' + ', '.join(str(snapshots.labels[k]) for k in snapshots.held_out) if held else 'all of them'}, gives each cell a "
            "velocity and a growth rate.\n\nDistances and lengths are in the scaled coordinates, times in the unit of the file."
        ),
        verdict=verdict,
        figure=_trajectories(config, snapshots, flow),
        comparison=(_scores(snapshots, scores, held), *([_fate_table(fate, snapshots)] if fate is not None else [])),
        diagnostics=(
            *_growth(config, snapshots, flow, cells),
            _animation(config, snapshots, flow),
            _certificate(certificate),
        ),
        results=results,
        files=files,
    )


def _scores(snapshots: Snapshots, scores: dict[int, dict[str, Score]], held: bool) -> Table:
    rows = table(scores, snapshots)
    return Table(
        "Distance from the held-out cells" if held else "Distance from the cells of each snapshot (seen in training)",
        ("time", "what", "W1", "W2", "MMD"),
        tuple(rows),
        "Flow: from the cells of the training snapshot before each time, weights included; path: cells of the learned path at that time, to which "
        "the snapshots on both sides contribute. At most 1500 cells of each snapshot. Lower is better; below the sampling floor (two halves of the "
        "true cells) differences mean nothing.",
        tuple(i for i, row in enumerate(rows) if row[1] in (FLOW, PATH)),
    )


def _axes_of(config: FlowConfig) -> tuple[str, str]:
    return f"{config.rep} 1", f"{config.rep} 2"


def _plane(snapshots: Snapshots, x: Tensor) -> Tensor:
    """The first two raw coordinates (one coordinate is drawn against nothing)."""
    raw = snapshots.raw(x)[..., :2]
    return raw if raw.shape[-1] == 2 else torch.cat([raw, torch.zeros_like(raw)], -1)


def _frames(snapshots: Snapshots, flow: LagrangianFlow, count: int, seed: int) -> tuple[Tensor, Tensor, list[float]]:
    """Cells of the first snapshot on their way to the last: positions ``[T, n, d]``, weights ``[T, n]``, times."""
    start = snapshots.x[0]
    pop, rng = (
        Population.of(start[torch.arange(min(count, len(start))) * len(start) // min(count, len(start))]),
        Streams(seed, start.device),
    )
    times = torch.linspace(float(snapshots.times[0]), float(snapshots.times[-1]), _FRAMES, dtype=torch.float64).tolist()
    places, weights = [pop.x], [pop.weights()]
    for a, b in pairwise(times):
        pop = flow.push(pop, a, b, rng)
        places.append(pop.x)
        weights.append(pop.weights())
    return torch.stack(places), torch.stack(weights), times


def _trajectories(config: FlowConfig, snapshots: Snapshots, flow: LagrangianFlow) -> Figure:
    places, _, times = _frames(snapshots, flow, _TRAJECTORIES, config.seed)
    x_label, y_label = _axes_of(config)
    seen = _plane(snapshots, torch.cat(snapshots.training.x))
    image = point_figures.trajectories(seen, _plane(snapshots, places), x_label=x_label, y_label=y_label, times=times)
    return Figure(
        image, f"Paths of {places.shape[1]} cells of the first snapshot over all training cells (grey).", "paths over the embedding"
    )


def _animation(config: FlowConfig, snapshots: Snapshots, flow: LagrangianFlow) -> Figure:
    places, weights, times = _frames(snapshots, flow, _MOVING, config.seed)
    x_label, y_label = _axes_of(config)
    truth = [(f"{label}", _plane(snapshots, snapshots.x[k])) for k, label in enumerate(snapshots.labels) if k not in snapshots.held_out]
    image = point_figures.moving(_plane(snapshots, places), weights, truth, x_label=x_label, y_label=y_label, times=times, seconds=5.0)
    return Figure(
        image, "The flow from the first time to the last (black, areas are weights) over the training snapshots.", "a moving cloud"
    )


def _growth(config: FlowConfig, snapshots: Snapshots, flow: LagrangianFlow, cells: anndata.Cells) -> list[Figure | Table]:
    if config.lagrangian != "unbalanced":
        return []
    seen = [k for k in range(len(snapshots)) if k not in snapshots.held_out]
    rates = torch.cat([_rows(lambda x, k=k: flow.growth(float(snapshots.times[k]), x), snapshots.x[k]) for k in seen])
    x_label, y_label = _axes_of(config)
    at = _plane(snapshots, torch.cat([snapshots.x[k] for k in seen]))
    image = point_figures.value_map(at, rates, x_label=x_label, y_label=y_label, value_label="growth rate, 1 / time", symmetric=True)
    meaning = "relative to the mean of the population" if config.masses == "equal" else "of the total mass"
    found: list[Figure | Table] = [
        Figure(image, f"Growth rate of each training cell at its time, {meaning}.", "growth rate over the embedding"),
        Figure(
            figures.histogram({"cells": rates}, x_label="growth rate, 1 / time"), "The same as a histogram.", "histogram of growth rates"
        ),
    ]
    if cells.annotation is not None:
        by_type = growth_by_type(flow, snapshots, cells.annotation)
        rows = tuple(
            (name, *(None if one is None else f"{one[0]:.3g} ({one[1]:.2g}; {one[2]})" for one in row)) for name, row in by_type.items()
        )
        head = ("type", *(f"time {label}" for label in snapshots.labels))
        found.append(Table("Growth rate of each type", head, rows, f"Mean (standard deviation; cells), 1 / time, {meaning}."))
    return found


def _fate_table(fate: Fates, snapshots: Snapshots) -> Table:
    rows = tuple(
        (name, *(None if bool(row.isnan().any()) else float(one) for one in row))
        for name, row in zip(fate.types, fate.table.cpu(), strict=True)
    )
    return Table(
        f"Fate: from time {snapshots.labels[0]} to time {snapshots.labels[-1]}",
        ("type at the start", *fate.types),
        rows,
        "Shares of the types among the descendants, weights included: a descendant is of the types of the 15 cells of the last snapshot that "
        "are nearest to it. A dash: no cell of that type at the start.",
    )


def _certificate(certificate: Certificate) -> Table:
    rows = tuple((name.replace("_", " "), value) for name, value in asdict(certificate).items())
    return Table(
        "The fit",
        ("", "value"),
        rows,
        "Action of the pushed flow, bounds on the action of the path, their gap, and how far the Hamilton-Jacobi equation is from holding "
        "(relative to the radius of all cells).",
    )
