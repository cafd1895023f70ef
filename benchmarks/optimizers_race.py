"""Steps and CPU seconds to a target loss, every optimiser tuned by the same procedure.

Six tasks. Every optimiser tries the same number of settings, points of one quasi-random sequence in ranges of its own (`optimizer_spaces`), each with
two seeds of which the slower counts; the setting with the fewest steps and the one with the fewest seconds then run with five other seeds. A trial
that has used more steps and more seconds than the best before it is ended, which changes no winner. Steps are counted to the first after which the
loss on a fixed batch, looked at outside of the clock, is below the target. Seconds are steps times the CPU time of a step, for which the chosen
settings of all optimisers take turns on one thread, each running as many steps from the start as its median run.

    python benchmarks/optimizers_race.py --only regression poisson --json FILE      FILE.parts.jsonl keeps every run
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from harness import Row, run
from optimizer_spaces import SPACES, competitor, settings
from optimizer_tasks import Memo, Outcome, Task, autoencoder, characters, convolutional, ending, graph, poisson, regression, tried

TASKS: dict[str, Callable[[], Task]] = {
    "regression": regression,
    "graph": graph,
    "poisson": poisson,
    "autoencoder": lambda: autoencoder(batch=128),
    "convolutional": convolutional,
    "characters": lambda: characters(32, 32, 32, target=2.1, steps=300, depth=1),
}
KINDS = tuple(SPACES)
MEASURES = ("steps", "seconds")
TRIALS, TUNING, FIRST = 32, (100, 101), 20
"""Settings of each optimiser, the seeds that choose, the first of those that race: others than any that the benchmark was written with."""
RESIDUALS = ("poisson",)
"""Tasks whose outputs are residuals, one for each datum, so that SPRING can run."""


def tuned(options: argparse.Namespace, task: Task, kind: str) -> dict[str, dict[str, Any]]:
    """The setting with the fewest steps and the one with the fewest seconds, of the slower of two seeds that are not used again.

    Where no setting arrives with both seeds it is the one with the lowest last loss.
    """
    best = dict.fromkeys(MEASURES, (math.inf, math.inf))
    found: dict[str, dict[str, Any]] = {}
    for setting in settings(kind, task, 8 if options.quick else TRIALS):
        slowest, last = dict.fromkeys(MEASURES, 0.0), 0.0
        for seed in TUNING:
            this, make = competitor(kind, task, setting)
            trial = partial(tried, this, make, seed, beat=tuple(best[measure][0] for measure in MEASURES))
            outcome = Outcome(**options.memo(_key("tune", task, kind, setting, seed), lambda trial=trial: asdict(trial())))
            arrived = outcome.steps < math.inf
            slowest["steps"] = max(slowest["steps"], outcome.steps)
            slowest["seconds"] = max(slowest["seconds"], outcome.seconds if arrived else math.inf)
            last = max(last, outcome.final if outcome.finite else math.inf)
            if not arrived:
                break
        for measure in MEASURES:
            score = (slowest[measure], last)
            if measure not in found or score < best[measure]:
                best[measure], found[measure] = score, setting
    return found


def clocked(options: argparse.Namespace, task: Task, chosen: dict[str, dict[str, Any]], steps: dict[str, float]) -> dict[str, float]:
    """CPU milliseconds of a step of each optimiser, over runs of ``steps`` steps from the start in which they take turns.

    AdamW's is the median of 15 rounds; another's is that times the median of the two's ratio within a round, so that drifts of the machine cancel.
    """
    times: dict[str, list[float]] = {kind: [] for kind in chosen}
    for seed in range(1 if options.quick else 15):
        for kind, setting in chosen.items():
            this, make = competitor(kind, task, setting)
            count = int(steps[kind]) if steps[kind] < math.inf else 30
            times[kind].append(tried(this, make, seed, steps=count, stop=False).seconds / count * 1000)
    base = times["AdamW"]
    return {
        kind: statistics.median(base) * statistics.median(a / b for a, b in zip(many, base, strict=True)) for kind, many in times.items()
    }


def main(options: argparse.Namespace) -> list[Row]:
    """Steps and CPU seconds of SINGD and its peers, each tuned, to a target loss."""
    torch.set_num_threads(1)
    options.memo = Memo(options.json)
    names = ["graph"] if options.quick else options.only
    kinds = ("AdamW", "SINGD") if options.quick else KINDS
    rows, won, absent = [], dict.fromkeys(MEASURES, 0), {}
    for name in names:
        task, start = TASKS[name](), time.perf_counter()
        chosen: dict[str, dict[str, dict[str, Any]]] = {}
        steps: dict[str, dict[str, list[float]]] = {measure: {} for measure in MEASURES}
        for kind in kinds:
            if kind == "SPRING" and name not in RESIDUALS:
                continue
            try:
                chosen[kind] = tuned(options, task, kind)
            except ImportError as error:
                absent[kind] = f"absent: {error}"
                continue
            for measure, setting in chosen[kind].items():
                this, make = competitor(kind, task, setting)
                arrivals = [
                    ending(options, this, f"{kind} {json.dumps(setting)}", make, seed).steps for seed in range(FIRST, FIRST + options.seeds)
                ]
                steps[measure][kind] = sorted(arrivals)
        fastest = {kind: both["seconds"] for kind, both in chosen.items()}
        middle = {kind: statistics.median(steps["seconds"][kind]) for kind in chosen}
        key = _key("clock", task, "quick" if options.quick else sorted(fastest), fastest, options.seeds)
        each = options.memo(key, partial(clocked, options, task, fastest, middle))
        spent = time.perf_counter() - start
        for measure in MEASURES:
            scale = {kind: each[kind] / 1000 if measure == "seconds" else 1.0 for kind in chosen}
            values = {kind: [scale[kind] * value for value in steps[measure][kind]] for kind in chosen}
            medians = {kind: statistics.median(many) for kind, many in values.items()}
            won[measure] += medians["SINGD"] < medians["AdamW"]
            shown = {kind: _quartiles(many) for kind, many in values.items()} | absent
            notes = {
                "setting": {kind: chosen[kind][measure] for kind in chosen},
                "ms per step": each,
                "seeds": options.seeds,
                "trials": TRIALS,
                "runs": values,
            }
            claim = f"{task.name}: {'CPU ' * (measure == 'seconds')}{measure} to a loss of {task.target:g} (quartiles)"
            rows.append(Row(claim, medians["SINGD"], None, "s" if measure == "seconds" else "", None, "<=", shown, spent, notes))
    if len(names) == len(TASKS):
        for measure, wanted in (("seconds", 4), ("steps", 5)):
            rows.append(Row(f"tasks with fewer {measure} than tuned AdamW, of {len(names)}", float(won[measure]), None, "", wanted, ">="))
    return rows


def _key(what: str, task: Task, *rest: Any) -> str:
    return " | ".join([what, task.name, *(part if isinstance(part, str) else json.dumps(part) for part in rest)])


def _quartiles(values: list[float]) -> str:
    """First quartile, median, third; a run that did not arrive counts as infinite, and none that arrived is ``failed``."""
    if not math.isfinite(values[0]):
        return "failed"
    picked = [values[round(share * (len(values) - 1))] for share in (0.25, 0.5, 0.75)]
    return " / ".join(f"{value:.3g}" if math.isfinite(value) else "never" for value in picked)


if __name__ == "__main__":
    run("optimizers_race", main, seeds=5, parts=tuple(TASKS))
