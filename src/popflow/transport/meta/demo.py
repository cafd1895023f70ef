"""`popflow demo mfm`: populations that each move their own way, and a negative control where nothing tells which way."""

from __future__ import annotations

from functools import partial

from popflow.core import Population, Streams
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, training as stage
from popflow.runs.figures import scatter
from popflow.transport.config import PatientsConfig
from popflow.transport.coupling import independent
from popflow.transport.evaluate import FLOOR
from popflow.transport.meta.baselines import IDENTITY, SHIFT, compare
from popflow.transport.meta.embedding import Knn
from popflow.transport.meta.flow import MetaFlow
from popflow.transport.meta.generators import gaussians
from popflow.transport.meta.populations import Pair, Populations, rows

META, PLAIN = "meta flow matching", "plain flow matching"
BAR, UNSEEN = 0.3, 40


def demo(config: PatientsConfig, run: Run) -> Report:
    """Learn both flows in both worlds, and score unseen populations."""
    count, cells, steps = config.populations, config.cells, config.steps
    if config.quick:
        count, cells, steps = min(40, count), min(100, cells), min(350, steps)
    table, ratio, shown = [], {}, {}
    for world, negative in (("known answer", False), ("negative control", True)):
        rng = Streams(config.seed)
        training = gaussians(count, cells, rng, negative=negative)
        test = gaussians(UNSEEN, cells, rng, negative=negative)
        flows = {}
        for name, embed in ((META, Knn()), (PLAIN, None)):
            flow = MetaFlow(embed, coupling=independent, width=config.width, cells=min(100, cells), pairs=min(64, cells))
            options = stage(run, f"{world}, {name}", steps)
            flows[name] = flow.fit(training, steps=steps, rng=Streams(config.seed), compile=False, **options)

        predictors = {name: partial(_predict, flow) for name, flow in flows.items()}
        scores = compare(predictors, training, test, rng=Streams(config.seed), cells=min(200, cells), draws=1, splits=4)
        mean = {what: sum(one[what].w2 for one in scores.values()) / len(scores) for what in (META, PLAIN, SHIFT, IDENTITY, FLOOR)}
        table += [(world, what, value) for what, value in mean.items()]
        ratio[world] = mean[META] / mean[PLAIN]
        if not negative:
            shown = _picture(flows[META], test.pairs[0], test)
    passed = ratio["known answer"] <= BAR and ratio["negative control"] >= 0.95
    return Report(
        title="Populations that training has not seen",
        summary=(
            "Each population moves in a direction that only its mean tells. A flow that reads the population's own cells finds it for populations it has "
            "never seen; one velocity for all cannot. In the negative control the directions are drawn at random, and reading must not help."
        ),
        verdict=Verdict(
            passed,
            f"W2 on unseen populations is {ratio['known answer']:.2f} of plain flow matching's, and {ratio['negative control']:.2f} in the control",
            f"at most {BAR} where the population tells, at least 0.95 where it does not",
        ),
        figure=Figure(
            scatter(shown, x_label="feature 1", y_label="feature 2"),
            "An unseen population before, after, and as predicted.",
            "three clouds of cells",
        ),
        comparison=(
            Table(
                f"{UNSEEN} unseen populations",
                ("world", "what", "W2"),
                tuple(table),
                "Mean over populations, in the units of the features.",
            ),
        ),
        results={f"W2 over plain, {world}": Measured(value) for world, value in ratio.items()},
        next=("popflow flow --help", f"popflow cite {run.path}"),
    )


def _predict(flow: MetaFlow, pair: Pair, test: Populations) -> Population:
    return flow.predict(rows(test.clouds[pair.source]), steps=10)


def _picture(flow: MetaFlow, pair: Pair, test: Populations) -> dict:
    x = rows(test.clouds[pair.source])
    assert pair.target is not None
    return {"before": x[:100], "after": rows(test.clouds[pair.target])[:100], "predicted": _predict(flow, pair, test).x[:100]}
