"""The job behind ``popflow flow --populations``: patients of an AnnData file to flows, their predictions, and how far to trust them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from popflow.core import CheckpointError, PopflowWarning, Population, Streams
from popflow.runs import ConfigError, Report, Run, training as stage
from popflow.transport.config import FlowConfig
from popflow.transport.coupling import exact
from popflow.transport.evaluate import FLOW
from popflow.transport.lagrangian import W2, WFR, Lagrangian
from popflow.transport.meta.anndata import read, write_predictions
from popflow.transport.meta.baselines import compare
from popflow.transport.meta.effects import predicted_effects
from popflow.transport.meta.embedding import Knn
from popflow.transport.meta.ensemble import confidence, together
from popflow.transport.meta.field import Given
from popflow.transport.meta.flow import MetaFlow
from popflow.transport.meta.mixture import mixture
from popflow.transport.meta.populations import Pair, Populations, rows
from popflow.transport.meta.report import PLAIN, Found, Outcome, report
from popflow.transport.meta.storage import save


def run(config: FlowConfig, run: Run) -> Report:
    """Fit an ensemble without the held-out patients, predict these and patients without treated cells, and score them beside trivial answers."""
    try:
        populations, training, unseen = split(config, run)
    except (ValueError, TypeError, CheckpointError) as error:
        raise ConfigError(str(error)) from error
    run.log(f"{len(training.pairs)} populations to learn from, {len(unseen)} to predict, {training.dim} features ({training.unit})")
    members = []
    for k in range(config.members):
        flow = fit(config, training, Knn(k=config.neighbours), config.seed + k, run, f"member {k + 1}")
        save(flow, run.path / f"flow-{k + 1}.safetensors")
        members.append(flow)
    plain = fit(config, training, None, config.seed, run, "plain") if config.baseline else None

    found: dict[Pair, Found] = {}
    for pair in unseen:
        found[pair] = predicted(config, members, populations, training, pair, run)
    scores = {}
    known = [pair for pair in unseen if pair.target is not None]
    if known:
        predictors: dict[str, Callable[[Pair, Populations], Population]] = {FLOW: lambda pair, _: found[pair].cells}
        if plain is not None:
            predictors[PLAIN] = lambda pair, test: plain.predict(rows(test.clouds[pair.source]), pair.treatment, rng=Streams(config.seed))
        scores = compare(predictors, training, populations.of_pairs(known), rng=Streams(config.seed))
    if found:
        cells = {pair: one.cells for pair, one in found.items()}
        about = {
            "unit": f"units of {config.rep}",
            "learned in": populations.unit,
            "control": str(config.control),
            "members": config.members,
        }
        write_predictions(run.path / "predicted.h5ad", populations, cells, config.cofactor, about)
    return report(Outcome(config.cells.name, populations, training, members[0].ready(), found, scores))


def split(config: FlowConfig, run: Run) -> tuple[Populations, Populations, list[Pair]]:
    """All populations, those to learn from, and the pairs to predict: held out, or without treated cells."""
    populations = read(
        config.cells,
        group=str(config.populations),
        condition=str(config.treatment),
        control=str(config.control),
        rep=config.rep,
        dims=None if config.rep == "X" else config.dims,
        types=config.types,
        cofactor=config.cofactor,
    )
    populations = replace(populations, clouds=tuple(rows(cloud).to(run.device) for cloud in populations.clouds))
    out = [str(int(name) if isinstance(name, float) and name.is_integer() else name) for name in config.hold_out]  # 4 in JSON is 4.0 here
    training, test = populations.hold_out(*out) if out else (populations, None)
    unseen = [pair for pair in populations.pairs if pair.target is None or (test is not None and pair in test.pairs)]
    return populations, training.complete(), unseen


def fit(config: FlowConfig, training: Populations, embed: Knn | None, seed: int, run: Run, name: str) -> MetaFlow:
    """Fit one flow as a stage of the run."""
    lagrangian = None
    if config.lagrangian != "transport":
        masses = config.masses == "counts"
        kinetic = WFR(config.lam, normalized=not masses) if config.lagrangian == "unbalanced" else W2()
        lagrangian = Lagrangian(kinetic, noise=config.noise if config.lagrangian == "bridge" else 0.0)
        training = by_counts(training) if masses else training
    smallest = min(len(training.clouds[k]) for pair in training.pairs for k in (pair.source, pair.target) if k is not None)
    flow = MetaFlow(
        embed,
        lagrangian=lagrangian,
        coupling=exact,
        within_types=config.types is not None and lagrangian is None,
        width=config.width,
        lr=config.lr,
        cells=min(256, smallest),
        pairs=min(64, smallest),
    )
    return flow.fit(training, steps=config.steps, rng=Streams(seed, run.device), **stage(run, name, config.steps))


def by_counts(training: Populations) -> Populations:
    """The complete pairs, with masses that are numbers of cells after over before."""
    count = [len(cloud) for cloud in training.clouds]
    return training.of_pairs([replace(p, mass=count[p.target] / count[p.source]) for p in training.pairs if p.target is not None])


def predicted(config: FlowConfig, members: list[MetaFlow], populations: Populations, training: Populations, pair: Pair, run: Run) -> Found:
    """What the members predict for a pair, the effect on each feature, and how far to trust it."""
    x = rows(populations.clouds[pair.source])
    types = None if populations.types is None else rows(populations.types[pair.source])
    with warnings.catch_warnings():  # the report tells of the mixture
        warnings.simplefilter("ignore", PopflowWarning)
        given: list[Given] = [flow.given(x, pair.treatment) for flow in members]
        moved = [one.push(x, 0.0, 1.0, Streams(config.seed, run.device)) for one in given]
    effects = partial(predicted_effects, x, field=members[0].ready(), training=training, treatment=pair.treatment)
    return Found(
        together(moved),
        tuple(effects(moved, rng=Streams(config.seed, run.device))),
        confidence(given, moved),
        None if types is None else mixture(given[0], types),
        members[0].ready().embedding(x).cpu(),
    )
