"""The job behind ``popflow flow``: snapshots of an AnnData file to a flow, its predictions, and a file with new keys."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from popflow.core import CheckpointError, Streams
from popflow.runs import ConfigError, Report, Run, training
from popflow.transport import anndata
from popflow.transport.config import FlowConfig
from popflow.transport.evaluate import BASELINE, FLOW, PATH, evaluate
from popflow.transport.fate import fates
from popflow.transport.flow_matching import match
from popflow.transport.lagrangian import W2, WFR, Lagrangian, MeanAcceleration, VelocityPrior
from popflow.transport.lagrangian_flow import Certificate, LagrangianFlow
from popflow.transport.predict import predict, track
from popflow.transport.report import Outcome, report
from popflow.transport.snapshots import Snapshots


def run(config: FlowConfig, run: Run) -> Report:
    """Fit a flow, score it on held-out times, follow the cells, and write the file back with its new keys; with patients see `meta.job`."""
    if config.populations is not None:
        from popflow.transport.meta import job

        return job.run(config, run)

    def rng() -> Streams:
        return Streams(config.seed, run.device)

    try:
        cells = read(config, run)
        anndata.check_place(config.cells, types=config.types is not None)
        problem = lagrangian(config, cells.snapshots)
    except (ValueError, TypeError, CheckpointError) as error:
        raise ConfigError(str(error)) from error
    snapshots, last = cells.snapshots, len(cells.snapshots) - 1
    run.log(f"{[len(x) for x in snapshots.x]} cells at {list(snapshots.labels)}, {snapshots.dim} coordinates")
    flow = LagrangianFlow(problem, width=config.width, lr=config.lr)
    flow.fit(snapshots, steps=config.steps, rng=rng(), **training(run, "fit", config.steps))
    certificate = flow.report()
    for warning in certificate.warnings:
        run.log(f"warning: {warning}")

    draws, scored = rng(), snapshots.held_out or tuple(range(1, last + 1))
    scores = evaluate(flow, snapshots, rng=draws, marginals=scored)
    if config.baseline:
        other = match(snapshots, rng=rng(), steps=config.steps, width=config.width, **training(run, "flow matching", config.steps))
        theirs = evaluate(other, snapshots, rng=rng(), marginals=scored)
        scores = {k: {n: row[n] for n in (FLOW, PATH) if n in row} | {BASELINE: theirs[k][FLOW]} | row for k, row in scores.items()}
    fate = None if cells.annotation is None else fates(flow, snapshots, cells.annotation, 0, last, rng=draws, draws=config.draws)

    about = {"settings": told(config), "fit": told(certificate)}
    anndata.write_flow(config.cells, run.path / "cells.h5ad", cells, flow, fate=fate, about=about, rng=rng(), draws=config.draws)
    genes = anndata.write_predictions(config.cells, run.path / "predicted.h5ad", config.rep, predict(flow, snapshots, scored, draws))
    run.log(f"predicted cells {genes}")
    space = f"{snapshots.dim} coordinates of {config.rep} ({config.scale})"
    return report(Outcome(config.cells.name, space, cells, flow, certificate, scores, fate, track(flow, snapshots, rng()), genes))


def told(record: FlowConfig | Certificate) -> dict[str, Any]:
    """The fields of a record that are set, in a form that an AnnData file can hold."""

    def held(value: Any) -> Any:
        too_large = isinstance(value, int) and value.bit_length() > 63
        return list(value) if isinstance(value, tuple) else str(value) if too_large else value

    return {k: held(v) for k, v in asdict(record).items() if k != "cells" and v not in (None, ())}


def read(config: FlowConfig, run: Run) -> anndata.Cells:
    """Return the cells of the file, scaled, with the held-out marginals marked."""
    assert config.time is not None
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
    scale = {"whiten": Snapshots.standardised, "global": Snapshots.scaled, "none": lambda same: same}[config.scale]
    return replace(cells, snapshots=scale(snapshots).to(run.device))


def lagrangian(config: FlowConfig, snapshots: Snapshots) -> Lagrangian:
    """Return the Lagrangian of a configuration."""
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
