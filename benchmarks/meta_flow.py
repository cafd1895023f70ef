"""Meta flow matching against flows that do not know their population, on populations that training has not seen.

    gaussians  60 training populations in the plane, 30 unseen; each moves by a vector that only its mean tells; and a negative control, where nothing tells
    letters    24 letters x 10 rotations, blurred; unseen letters X and Y; k, and the number of letters at 240 populations
    screen     patients x 2 drugs x 3 cell types; the response depends on the share of fibroblasts; growth; a drug by example
    pbmc       PBMC BCR-XL, 24 markers, arcsinh(x / 5): leave one patient out
    cost       a training step against the size and number of populations; 1000 populations of 5000 cells from disk; a prediction

Distances are exact (W1, W2) or the root of the squared MMD, in the units of the data, between samples of equal size; errors are standard errors over
seeds. In the same run: no conditioning (plain), one-hot populations, least-squares combinations of learned fields, both embeddings (with the true target,
which needs the answer, and with that of the training patient with the nearest mean), identity, mean and ideal shift, treated cells of the others, floor.

Settings were chosen on training populations alone. ``POPFLOW_META_CACHE`` names a folder that keeps each result, so that a run may be done in pieces.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Row, dataset, run
from meta_flow_peers import BasisFlow, both_ends, one_hot

from popflow.core import Population, Streams
from popflow.transport.coupling import Coupling, exact, independent
from popflow.transport.evaluate import FLOOR
from popflow.transport.lagrangian import WFR, Lagrangian
from popflow.transport.meta import Knn, MetaFlow, Pair, Populations, compare, drug_screen, gaussians, letters, paired
from popflow.transport.meta.baselines import IDEAL, IDENTITY, POOLED, SHIFT, Predictor
from popflow.transport.meta.populations import rows

PARTS = ("gaussians", "letters", "screen", "pbmc", "cost")
DATA = dataset("cells")
PLAIN, KNN, NEAR, HOT, BASIS, ORACLE, BOTH = (
    "plain flow matching",
    "meta, neighbours",
    "meta, neighbours and surroundings",
    "one-hot populations",
    "least-squares fields",
    "both embeddings, true target (needs the answer)",
    "both embeddings, nearest patient's target",
)
METRICS = ("w1", "w2", "mmd")


def cached(measure: Callable[[], dict], *key: object) -> dict:
    """Measure, or read what an earlier piece of the run measured with the same settings; processor seconds are added."""

    def timed() -> dict:
        begin = time.process_time()
        return measure() | {"seconds": time.process_time() - begin}

    folder = os.environ.get("POPFLOW_META_CACHE")
    if not folder:
        return timed()
    file = Path(folder) / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.json"
    if not file.exists():
        value = timed()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"key": [str(one) for one in key], "value": value}))
        print(*key, value, file=sys.stderr, flush=True)
    return json.loads(file.read_text())["value"]


def mean_error(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard error."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def of_flow(flow: MetaFlow) -> Predictor:
    """Predict pairs with a fitted flow."""

    def predict(pair: Pair, test: Populations) -> Population:
        types = None if test.types is None else rows(test.types[pair.source])
        return flow.predict(rows(test.clouds[pair.source]), pair.treatment, types=types, steps=10)

    return predict


def over_pairs(
    predictors: dict[str, Predictor], training: Populations, test: Populations, cells: int, draws: int = 1, beside: bool = True
) -> dict:
    """Name -> metric -> mean over held-out pairs."""
    found = compare(predictors, training, test, rng=Streams(0), cells=cells, draws=draws, beside=beside)
    names = next(iter(found.values()))
    return {n: {m: statistics.mean(getattr(one[n], m) for one in found.values()) for m in METRICS} for n in names}


def table(part: str, found: list[dict], claims: list[Row], names: tuple[str, ...] = ()) -> list[Row]:
    """One row for each predictor: W2 with W1 and MMD in the notes."""
    rows_ = []
    for name in names or [n for n in found[0] if n != "seconds"]:
        notes = {m: mean_error([one[name][m] for one in found]) for m in METRICS}
        rows_.append(Row(f"{part}: {name}, W2", *notes["w2"], notes=notes | {"seeds": len(found)}))
    return rows_ + claims


# gaussians ---------------------------------------------------------------------------------------------------------------------------


def gaussian_scores(seed: int, negative: bool, quick: bool) -> dict:
    """All rows of one seed."""
    count, cells, steps = (6, 60, 20) if quick else (60, 300, 300)
    training, test = (
        gaussians(count, cells, Streams(10 + seed), negative=negative),
        gaussians(2 if quick else 30, cells, Streams(100 + seed), negative=negative),
    )
    sizes = {"cells": min(128, cells), "pairs": min(64, cells), "width": 64}

    def fitted(embed: Knn | None) -> Predictor:
        return of_flow(MetaFlow(embed, coupling=independent, **sizes).fit(training, steps=steps, rng=Streams(seed), compile=False))

    predictors = {PLAIN: fitted(None), KNN: fitted(Knn(10))}
    if not negative:
        predictors |= {HOT: one_hot(training, independent, steps, Streams(seed), **sizes)}
        predictors |= {BASIS: BasisFlow(independent, **sizes).fit(training, steps=steps, rng=Streams(seed)).predict}
        predictors |= dict(zip((ORACLE, BOTH), both_ends(training, Knn(10), independent, steps, Streams(seed), **sizes), strict=True))
    return over_pairs(predictors, training, test, min(200, cells))


def gaussian_rows(seeds: int, quick: bool) -> list[Row]:
    """Error on unseen populations relative to plain flow matching; no gain in the negative control."""
    found = [cached(partial(gaussian_scores, s, False, quick), "gaussians", s, quick) for s in range(seeds)]
    control = [cached(partial(gaussian_scores, s, True, quick), "gaussians, control", s, quick) for s in range(seeds)]
    ratio = mean_error([one[KNN]["w2"] / one[PLAIN]["w2"] for one in found])
    none = mean_error([one[KNN]["w2"] / one[PLAIN]["w2"] for one in control])
    peers = {n: mean_error([one[n]["w2"] / one[PLAIN]["w2"] for one in found])[0] for n in found[0] if n not in ("seconds", PLAIN)}
    return table(
        "gaussians",
        found,
        [
            Row("gaussians: W2 on unseen populations, meta over plain", *ratio, target=0.3, peers=peers),
            Row("gaussians, negative control: meta over plain (no gain)", *none, target=0.95, direction=">="),
            *table("gaussians, negative control", control, []),
        ],
    )


# letters -----------------------------------------------------------------------------------------------------------------------------

LETTER_STEPS = 300
LETTER_ORDER = "SQWHEFGAIJKLMNOPBCDRTUVZ"


def letter_scores(row: str, seed: int, quick: bool, k: int = 20, count: int = 24, coupling: str = "independent") -> dict:
    """One row of letters on the unseen X and Y, and on four training populations."""
    cells, steps = (60, 10) if quick else (700, LETTER_STEPS)
    names, turns = LETTER_ORDER[:count], 240 // count
    if quick:
        names, turns = names[:2], 2
    training = letters(names, turns, Streams(10 + seed), cells=cells)
    test = letters("XY", 1 if quick else 3, Streams(100 + seed), cells=cells)
    plan: Coupling = independent if coupling == "independent" else paired
    sizes = {"cells": min(256, cells), "pairs": min(160, cells)}
    if row == HOT:
        predict = one_hot(training, plan, steps, Streams(seed), **sizes)
    else:
        embed = {PLAIN: None, KNN: Knn(k, 2, 64, 32), NEAR: Knn(k, 2, 64, 32)}[row]
        sizes |= {"nearby": 3} if row == NEAR else {}
        predict = of_flow(MetaFlow(embed, coupling=plan, **sizes).fit(training, steps=steps, rng=Streams(seed), compile=False))
    some = training.of_pairs(training.pairs[:: max(1, len(training.pairs) // 4)])
    seen = compare({row: predict}, training, some, rng=Streams(0), cells=min(400, cells), draws=1, beside=False)
    return over_pairs({row: predict}, training, test, min(400, cells), beside=row == PLAIN) | {
        "seen": {row: {m: statistics.mean(getattr(one[row], m) for one in seen.values()) for m in METRICS}}
    }


def letter_rows(seeds: int, quick: bool) -> list[Row]:
    """Unseen letters: distances below plain, one-hot, identity and ideal shift; effect of k and of the number of letters."""

    def scores(row: str, seeds_: int = seeds, **how: int | str) -> list[dict]:
        return [
            cached(partial(letter_scores, row, s, quick, **how), "letters", row, s, quick, LETTER_STEPS, sorted(how.items()))
            for s in range(seeds_)
        ]

    found = []
    ways = {row: scores(row) for row in (NEAR, KNN, PLAIN, HOT)}
    for row, values in ways.items():
        notes = {m: mean_error([one[row][m] for one in values]) for m in METRICS}
        notes |= {f"{m}, training letters": mean_error([one["seen"][row][m] for one in values]) for m in METRICS}
        found.append(Row(f"letters, independent: {row}, W2 on X and Y", *notes["w2"], notes=notes | {"seeds": seeds}))
    known = ways[NEAR]
    for metric in METRICS:
        peers = {row: statistics.mean(one[row][metric] for one in ways[row]) for row in (KNN, PLAIN, HOT)}
        peers |= {name: statistics.mean(one[name][metric] for one in ways[PLAIN]) for name in (IDENTITY, SHIFT, IDEAL, FLOOR)}
        worst = min(peers[name] for name in (PLAIN, HOT, IDENTITY, IDEAL))
        mine = mean_error([one[NEAR][metric] for one in known])
        found.append(Row(f"letters, independent: meta with surroundings, {metric} over the best of plain, one-hot, identity, ideal shift", mine[0] / worst, None if mine[1] is None else mine[1] / worst, target=1.0, peers=peers, notes={"meta": mine}))  # fmt: skip
    for row in (NEAR, KNN, PLAIN):
        values = scores(row, 1, coupling="paired")
        notes = {m: mean_error([one[row][m] for one in values]) for m in METRICS}
        found.append(Row(f"letters, paired: {row}, W2 on X and Y", *notes["w2"], notes=notes))
    for k in (0, 50):
        values = scores(KNN, 1, k=k)
        found.append(Row(f"letters, k = {k}: W2 on X and Y", values[0][KNN]["w2"], notes={m: values[0][KNN][m] for m in METRICS} | {"k = 20, seed 0": ways[KNN][0][KNN]["w2"]}))  # fmt: skip
    for count in (2, 8):
        values = scores(NEAR, 1, coupling="paired", count=count)
        notes = {m: values[0][NEAR][m] for m in METRICS} | {"24 letters, seed 0": scores(NEAR, 1, coupling="paired")[0][NEAR]["w2"]}
        found.append(Row(f"letters, paired: {count} training letters (of 240 populations), W2 on X and Y", notes["w2"], notes=notes))
    return found


# screen ------------------------------------------------------------------------------------------------------------------------------


WIDE = Knn(50)
"""Chosen on six of the 24 training patients, three seeds: the error of the response over its spread is .86 with k = 10 and .45 with k = 50."""


def screen_scores(row: str, seed: int, quick: bool, negative: bool = False) -> dict:
    """One row of the drug screen: distances to the treated cells of unseen patients, and errors against the known answer."""
    patients, cells, steps = (3, 60, 5) if quick else (24, 200, 400)
    screen = drug_screen(patients + (2 if quick else 6), cells, Streams(10 + seed), treatments=2, negative=negative)
    names = screen.populations.groups[patients:]
    training, test = screen.populations.hold_out(*names)
    sizes = {"cells": min(128, cells), "pairs": min(64, cells), "width": 96}
    common = {"within_types": True} | sizes
    rng, plain_sizes = Streams(seed), {"cells": 128, "pairs": 64, "width": 96}
    growth: list[float] = []
    if row == BASIS:
        predict = BasisFlow(exact, within_types=True, **plain_sizes).fit(training, steps=steps, rng=rng).predict
    elif row in (ORACLE, BOTH):
        predict = dict(zip((ORACLE, BOTH), both_ends(training, WIDE, exact, steps, rng, **common), strict=True))[row]
    elif row == "by example":
        flow = MetaFlow(WIDE, by_example=True, **common).fit(training, steps=steps, rng=rng, compile=False)
        reference = {pair.treatment: pair for pair in training.pairs if pair.group == training.groups[0]}

        def predict(pair: Pair, test: Populations) -> Population:
            shown = reference[pair.treatment]
            return flow.predict(
                rows(test.clouds[pair.source]), example=(rows(test.clouds[shown.source]), rows(test.clouds[shown.target])), steps=10
            )
    else:
        embed = {
            PLAIN: None,
            "plain, unbalanced": None,
            "unbalanced": WIDE,
            KNN: WIDE,
            "alternating": WIDE,
            "mean field": WIDE,
        }[row]
        extra = {"alternate": row == "alternating", "mean_field": row == "mean field"} if embed is not None else {}
        if "unbalanced" in row:
            common = sizes | {"pairs": 128}
            extra = {"lagrangian": Lagrangian(WFR(1.0, normalized=False))}
        predict = of_flow(MetaFlow(embed, **common, **extra).fit(training, steps=steps, rng=rng, compile=False))
    index = {pair: k for k, pair in enumerate(screen.populations.pairs)}
    error, size = 0.0, 0.0
    for pair in test.pairs:
        x, types = rows(test.clouds[pair.source]), rows(test.types[pair.source])
        pop, shift = predict(pair, test), screen.shift[index[pair]]
        tumour = types == 0
        error += float((pop.x[tumour].mean(0) - x[tumour].mean(0) - shift[0]).square().sum())
        size += float(
            (screen.shift[[index[one] for one in test.pairs if one.treatment == pair.treatment], 0].mean(0) - shift[0]).square().sum()
        )
        growth.append(float(pop.log_w[tumour].exp().mean().log() - screen.growth[index[pair], 0].log()))
    true = torch.tensor([float(screen.growth[index[pair], 0].log()) for pair in test.pairs])
    rms = {
        "response error": math.sqrt(error / size),
        "growth error": float(torch.tensor(growth).square().mean().sqrt() / true.square().mean().sqrt()),
    }
    return over_pairs({row: predict}, training, test, cells, beside=row == KNN) | {"truth": rms}


def screen_rows(seeds: int, quick: bool) -> list[Row]:
    """Response and growth of unseen patients, and a drug by example."""

    def scores(row: str, seeds_: int = seeds, **how: bool) -> list[dict]:
        return [
            cached(partial(screen_scores, row, s, quick, **how), "screen", WIDE, row, s, quick, sorted(how.items())) for s in range(seeds_)
        ]

    names = (PLAIN, KNN, "by example", "unbalanced", "plain, unbalanced", BASIS, ORACLE, BOTH)
    ways, found = {row: scores(row, seeds if row in (PLAIN, KNN, "by example", "unbalanced") else 1) for row in names}, []
    for row, values in ways.items():
        notes = {m: mean_error([one[row][m] for one in values]) for m in METRICS} | {"error of the mean displacement of tumour cells, over its spread between patients": mean_error([one["truth"]["response error"] for one in values])}  # fmt: skip
        found.append(Row(f"screen: {row}, W2 on unseen patients", *notes["w2"], notes=notes | {"seeds": len(values)}))
    trivial = {n: statistics.mean(one[n]["w2"] for one in ways[KNN]) for n in (IDENTITY, SHIFT, POOLED, IDEAL, FLOOR)}
    ratio = [a[KNN]["w2"] / b[PLAIN]["w2"] for a, b in zip(ways[KNN], ways[PLAIN], strict=True)]
    found.append(Row("screen: W2 on unseen patients, meta over plain", *mean_error(ratio), target=1.0, peers=trivial))
    response = mean_error([one["truth"]["response error"] for one in ways[KNN]])
    others = {row: statistics.mean(one["truth"]["response error"] for one in ways[row]) for row in names if row != KNN}
    found.append(
        Row(
            "screen: response of tumour cells, root mean square error over its spread between patients", *response, target=0.5, peers=others
        )
    )
    grown = mean_error([one["truth"]["growth error"] for one in ways["unbalanced"]])
    plain = statistics.mean(one["truth"]["growth error"] for one in ways["plain, unbalanced"])
    found.append(
        Row(
            "screen: log survival of tumour cells, error over its size (unbalanced)", *grown, target=0.5, peers={"plain, unbalanced": plain}
        )
    )
    label = [a["by example"]["w2"] / b[KNN]["w2"] for a, b in zip(ways["by example"], ways[KNN], strict=True)]
    found.append(Row("screen: W2 of a treatment by example over by label", *mean_error(label), target=1.5))
    control = {row: scores(row, negative=True) for row in (KNN, PLAIN)}
    none = [a[KNN]["w2"] / b[PLAIN]["w2"] for a, b in zip(control[KNN], control[PLAIN], strict=True)]
    found.append(Row("screen, negative control: meta over plain (no gain)", *mean_error(none), target=0.95, direction=">="))
    for row in ("alternating", "mean field"):
        values = scores(row, 1)
        found.append(Row(f"screen: {row}, W2 on unseen patients", *mean_error([one[row]["w2"] for one in values]), notes={"together, embedded once": statistics.mean(one[KNN]["w2"] for one in ways[KNN])}))  # fmt: skip
    return found


# pbmc --------------------------------------------------------------------------------------------------------------------------------

VARIANTS = ("meta, neighbours", "meta, within types", "meta, cell types as populations", "plain, within types")
TYPES = 4


def pbmc(training_patients: tuple[str, ...], quick: bool) -> Populations:
    """The patients as published, cell types from k-means on the type markers of the training patients."""
    from sklearn.cluster import KMeans

    if DATA is None:
        if not quick:
            raise SystemExit("no data: set POPFLOW_DATA to the folder of the data sets.")
        g = np.random.default_rng(0)
        patient, condition = np.repeat(["Patient1", "Patient2", "Patient3", "Patient4"], 200), np.tile(np.repeat(["Ref", "BCRXL"], 100), 4)
        x = (
            g.normal(size=(800, 24)) + 5 * np.eye(24)[np.tile(range(4), 200)] + 0.2 * (condition == "BCRXL")[:, None]
        )  # four types in every cloud
        marker, kind = [f"m{k}" for k in range(24)], np.array(["type"] * 24)
    else:
        with np.load(DATA / "pbmc_bcrxl.npz") as file:
            x, patient, condition, marker, kind = (
                np.arcsinh(file["X"] / 5),
                file["patient"],
                file["condition"],
                file["marker"],
                file["marker_class"],
            )
    known = x[:, kind == "type"]
    types = KMeans(TYPES, random_state=0, n_init=3).fit(known[np.isin(patient, training_patients)]).predict(known)
    return Populations.from_cells(
        x.astype(np.float32), patient, condition, control="Ref", types=types, features=marker, unit="arcsinh(x / 5)"
    )


PATIENTS = ("Patient1", "Patient2", "Patient3", "Patient4")


def pbmc_predictor(variant: str, training: Populations, seed: int, quick: bool) -> Predictor:
    """A fitted variant."""
    sizes = {"cells": 256, "pairs": 64 if quick else 128}
    steps = 3 if quick else 250
    rng = Streams(seed)

    def fitted(embed: Knn | None, on: Populations, within: bool = False) -> MetaFlow:
        return MetaFlow(embed, within_types=within, **sizes).fit(on, steps=steps, rng=rng, compile=False)

    if variant != "meta, cell types as populations":
        embed = None if variant.startswith("plain") else Knn(10)
        return of_flow(fitted(embed, training, "within" in variant))
    flow = fitted(Knn(10), training.by_type())

    def predict(pair: Pair, test: Populations) -> Population:
        x, types = rows(test.clouds[pair.source]), rows(test.types[pair.source])
        parts = [x[types == kind] for kind in types.unique().tolist()]
        return Population.of(torch.cat([flow.predict(part, steps=10).x if len(part) > 1 else part for part in parts]))

    return predict


def pbmc_scores(variant: str, outs: tuple[str, ...], seed: int, quick: bool) -> dict:
    """Distances of one variant, trained on the other patients, on each of those held out."""
    kept = tuple(name for name in PATIENTS if name not in outs)
    whole, found = pbmc(kept, quick), {}
    training = whole.of_pairs([p for p in whole.pairs if p.group in kept])
    with warnings.catch_warnings():  # sub-populations are small, and their mixtures differ: both are meant here
        warnings.simplefilter("ignore")
        predict = pbmc_predictor(variant, training, seed, quick)
        for out in outs:
            test = whole.of_pairs([p for p in whole.pairs if p.group == out])
            cells, draws = (50, 1) if quick else (400, 10 if len(outs) == 1 else 3)
            found[out] = over_pairs({variant: predict}, training, test, cells, draws, beside=variant == PLAIN and len(outs) == 1)
    return found


def pbmc_rows(seeds: int, quick: bool) -> list[Row]:
    """Leave one patient out; the variant is chosen on the training patients."""

    def scores(variant: str, out: str, besides: str | None, seed: int) -> dict:
        outs = tuple(sorted(name for name in (out, besides) if name is not None))
        return cached(partial(pbmc_scores, variant, outs, seed, quick), "pbmc", variant, outs, seed, quick)[out]

    found, wins, chosen = [], 0, {}
    trivial = (IDENTITY, SHIFT, "mean shift within cell types", POOLED, IDEAL, FLOOR)
    outs = PATIENTS[:1] if quick else PATIENTS
    for out in outs:
        inner = {
            v: statistics.mean(scores(v, b, out, 0)[v]["w1"] for b in (PATIENTS[1:2] if quick else [p for p in PATIENTS if p != out]))
            for v in VARIANTS
        }
        chosen[out] = min(inner, key=inner.__getitem__)
        ways = {v: [scores(v, out, None, s) for s in range(seeds if v in (PLAIN, chosen[out]) else 1)] for v in (PLAIN, *VARIANTS)}
        notes = {v: {m: mean_error([one[v][m] for one in values]) for m in METRICS} for v, values in ways.items()}
        notes |= {n: {m: ways[PLAIN][0][n][m] for m in METRICS} for n in trivial} | {"chosen": chosen[out], "inner W1": inner}
        mine = notes[chosen[out]]
        below = all(mine[m][0] < notes[n][m] for n in (IDENTITY, SHIFT, POOLED) for m in ("w1", "w2"))
        wins += below
        peers = {n: notes[n]["w1"] for n in trivial} | {v: notes[v]["w1"][0] for v in ways}
        found.append(Row(f"pbmc: {out}, W1 of the variant chosen on the training patients", *mine["w1"], peers=peers, notes=notes))
    found.append(Row("pbmc: patients on which the chosen variant is below identity, mean shift and pooled cells, W1 and W2", wins, target=None if quick else 3, direction=">=", notes={"chosen": chosen}))  # fmt: skip
    for variant in VARIANTS:
        ratio = statistics.mean(scores(variant, out, None, 0)[variant]["w1"] / scores(PLAIN, out, None, 0)[PLAIN]["w1"] for out in outs)
        found.append(Row(f"pbmc: W1 over that of plain flow matching, mean over patients, one seed: {variant}", ratio))
    return found


# cost --------------------------------------------------------------------------------------------------------------------------------

DISK = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from memory import read
from popflow.core import Streams
from popflow.transport import independent
from popflow.transport.meta import Knn, MetaFlow, Populations
torch.set_num_threads(1)
populations = Populations.open(sys.argv[1])
populations = populations.of_pairs(populations.pairs[: int(sys.argv[2])])
MetaFlow(Knn(10), coupling=independent).fit(populations, steps=int(sys.argv[3]), rng=Streams(0), compile=False)
print(read("VmHWM"))  # ru_maxrss would count the process that started this one
"""


def step_seconds(cells: int, populations: int, steps: int) -> float:
    """Processor seconds of a training step."""
    data = gaussians(populations, max(cells, 64), Streams(0))
    flow = MetaFlow(Knn(10), coupling=independent, cells=cells, pairs=64, populations=populations)
    times = []
    flow.fit(data, steps=2, rng=Streams(0), compile=False)  # first calls import and allocate
    for count in (2, steps + 2):
        begin = time.process_time()
        flow.fit(data, steps=count, rng=Streams(0), compile=False)
        times.append(time.process_time() - begin)
    return (times[1] - times[0]) / steps


def cost_rows(quick: bool) -> list[Row]:
    """Processor time and memory."""
    found = []
    sizes, counts = ((64, 128), (2,)) if quick else ((256, 512, 1024, 2048, 4096), (1, 16))
    for cells in sizes:
        one = cached(
            lambda cells=cells: {"s": step_seconds(cells, 2 if quick else 4, 3 if quick else (4 if cells > 1024 else 8))},
            "cost",
            "cells",
            cells,
            quick,
        )
        found.append(Row(f"cost: training step, 4 populations of {cells} cells", one["s"] * 1000, None, "ms of one core"))
    for count in counts:
        one = cached(lambda count=count: {"s": step_seconds(256, count, 3 if quick else 12)}, "cost", "populations", count, quick)
        found.append(Row(f"cost: training step, {count} populations of 256 cells", one["s"] * 1000, None, "ms of one core"))

    def disk() -> dict:
        many, each, steps = (20, 100, 4) if quick else (1000, 5000, 100)
        with tempfile.TemporaryDirectory() as folder:
            few = gaussians(1, each, Streams(0)).store(folder)
            clouds, pairs = [], []
            rng = Streams(1)
            for k in range(many):  # one population at a time
                mean = 4 * torch.rand(2, generator=rng("means")) - 2
                for side in range(2):
                    path = Path(folder) / f"{k}-{side}.npy"
                    np.save(path, (rng.normal("cells", torch.empty(each, 2)) + mean + side).numpy())
                    clouds.append(replace(few.clouds[0], path=path))
                pairs.append(Pair(str(k), "treated", 2 * k, 2 * k + 1))
            about = {"pairs": [[p.group, p.treatment, p.source, p.target, 1.0] for p in pairs], "features": few.features, "unit": few.unit}
            about |= {"clouds": [list(cloud.shape) for cloud in clouds], "type_names": None}
            for cloud in range(len(clouds)):
                clouds[cloud].path.rename(Path(folder) / f"cloud-{cloud}.npy")
            (Path(folder) / "populations.json").write_text(json.dumps(about))
            peak = []
            for count in (10, many):
                done = subprocess.run(
                    [sys.executable, "-c", DISK, folder, str(count), str(steps)], capture_output=True, text=True, check=True
                )
                peak.append(float(done.stdout))
        return {"few": peak[0], "many": peak[1], "megabytes": many * each * 2 * 2 * 4 / 1e6}

    one = cached(disk, "cost", "disk", quick)
    notes = {"peak with 10, MiB": one["few"], "size of all on disk, MB": one["megabytes"]}
    found.append(
        Row("cost: memory that 1000 populations of 5000 cells on disk add to 10", one["many"] - one["few"], None, "MiB", 50.0, notes=notes)
    )

    def predict() -> dict:
        data = drug_screen(4, 300, Streams(0), features=24 if not quick else 3).populations
        flow = MetaFlow(Knn(10)).fit(data, steps=5, rng=Streams(0), compile=False)
        x = rows(data.clouds[0])[torch.randint(300, (5000,), generator=torch.Generator().manual_seed(0))]
        x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        times = []
        for _ in range(3):
            begin = time.process_time()
            flow.predict(x, "drug 0")
            times.append(time.process_time() - begin)
        return {"s": statistics.median(times)}

    one = cached(predict, "cost", "prediction", quick)
    found.append(Row("cost: prediction of 5000 cells with 24 features, one core", one["s"], None, "s", None if quick else 2.0))
    return found


def main(options: argparse.Namespace) -> list[Row]:
    """Meta flow matching on populations that training has not seen."""
    torch.set_num_threads(1)
    seeds, quick = options.seeds, options.quick
    make = {"gaussians": gaussian_rows, "letters": letter_rows, "screen": screen_rows, "pbmc": pbmc_rows}
    return [row for part in options.only for row in (cost_rows(quick) if part == "cost" else make[part](seeds, quick))]


if __name__ == "__main__":
    run("meta_flow", main, seeds=3, parts=PARTS)
