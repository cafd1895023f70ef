"""Steps and CPU seconds to a target loss, every optimiser tuned with the same budget.

Six tasks; eight settings of each optimiser, tried with a seed of their own; the setting with the fewest steps and the one with the fewest seconds
then run with five other seeds. A trial that has used more steps and more seconds than the best before it is ended, which changes no winner.
Seconds are steps times the CPU time of a step, for which the chosen settings of all optimisers take turns in blocks of ten steps on one thread.

    python benchmarks/optimizers_race.py --only regression poisson --json FILE      FILE.parts.jsonl keeps every run
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from harness import Row, run
from optimizer_peers import KFAC, Make, adamw, kron, muon, reference, soap
from optimizer_tasks import Memo, Outcome, Task, autoencoder, characters, convolutional, ending, graph, poisson, regression, tried
from optimizers import in_turns, stepper

from popflow.optim import SINGD, Dense, Diagonal

TASKS: dict[str, Callable[[], Task]] = {
    "regression": regression,
    "graph": graph,
    "poisson": poisson,
    "autoencoder": lambda: autoencoder(batch=128),
    "convolutional": convolutional,
    "characters": lambda: characters(32, 32, 8, target=2.3, steps=400, depth=1),
}
KINDS = ("AdamW", "SINGD", "KFAC", "Muon", "SOAP", "Kron", "singd")
MEASURES = ("steps", "seconds")


def candidates(kind: str) -> list[tuple[str, Make]]:
    """Eight settings of an optimiser, by name."""
    if kind == "SINGD":
        scaled = {"structure": Dense(), "interval": 4}
        natural = {"structure": Dense(), "update_rms": None, "damping": 1e-5, "lr_cov": 0.3, "interval": 2}
        settings: list[dict[str, Any]] = [
            *({"lr": lr, **scaled} for lr in (1e-2, 3e-2, 1e-1)),
            {"lr": 3e-2, "structure": Diagonal(), "interval": 10},
            *({"lr": lr, "kl_clip": clip, **natural} for lr, clip in ((0.1, 1e-2), (0.3, 1e-2), (0.3, 1e-1), (1.0, 1e-1))),
        ]
        return [(str({k: str(v) for k, v in one.items()}), partial(SINGD, **one)) for one in settings]
    make = {
        "AdamW": adamw,
        "Muon": muon,
        "SOAP": soap,
        "Kron": kron,
        "KFAC": partial(KFAC, interval=4),
        "singd": partial(reference, interval=4, lr_cov=0.1, damping=1e-2),
    }[kind]
    return [(f"lr {lr:g}", partial(make, lr=lr)) for lr in (1e-3, 3e-3, 6e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.2)]


def tuned(options: argparse.Namespace, task: Task, kind: str) -> dict[str, tuple[str, Make]]:
    """The setting with the fewest steps and the one with the fewest seconds, by a seed that is not used again."""
    best = dict.fromkeys(MEASURES, math.inf)
    found: dict[str, tuple[str, Make]] = {}
    for name, make in candidates(kind):
        trial = partial(tried, task, make, 100, beat=(best["steps"], best["seconds"]))
        outcome = Outcome(**options.memo(f"tune | {task.name} | {kind} | {name}", lambda trial=trial: asdict(trial())))
        for measure in MEASURES:
            value = getattr(outcome, measure)
            if measure not in found or value < best[measure]:
                best[measure], found[measure] = value, (name, make)
    return found


def main(options: argparse.Namespace) -> list[Row]:
    """Steps and CPU seconds of SINGD and its peers, each tuned, to a target loss."""
    torch.set_num_threads(1)
    options.memo = Memo(options.json)
    names = ["graph"] if options.quick else options.only
    kinds = KINDS[:2] if options.quick else KINDS
    chosen: dict[tuple[str, str], dict[str, tuple[str, Make]]] = {}
    steps: dict[tuple[str, str, str], list[float]] = {}
    spent, absent = {name: 0.0 for name in names}, {}
    for kind in kinds:
        for name in names:
            task, start = TASKS[name](), time.perf_counter()
            try:
                chosen[name, kind] = tuned(options, task, kind)
            except ImportError as error:
                absent[kind] = f"absent: {error}"
                continue
            for measure, (setting, make) in chosen[name, kind].items():
                runs = [ending(options, task, f"{kind} {setting}", make, seed).steps for seed in range(options.seeds)]
                steps[name, kind, measure] = sorted(runs)
            spent[name] += time.perf_counter() - start
    rows, won = [], dict.fromkeys(MEASURES, 0)
    for name in names:
        task = TASKS[name]()
        makes = {kind: chosen[name, kind]["seconds"][1] for kind in kinds if (name, kind) in chosen}
        clock = partial(in_turns, {kind: stepper(task, make)[0] for kind, make in makes.items()}, 2 if options.quick else 9, {})
        each = options.memo(f"clock | {task.name} | {'quick' if options.quick else sorted(makes)}", clock)
        for measure in MEASURES:
            scale = {kind: each[kind] / 1000 if measure == "seconds" else 1.0 for kind in makes}
            values = {kind: [scale[kind] * value for value in steps[name, kind, measure]] for kind in makes}
            middle = {kind: statistics.median(many) for kind, many in values.items()}
            won[measure] += middle["SINGD"] < middle["AdamW"]
            shown = {kind: _quartiles(many) for kind, many in values.items()} | absent
            notes = {"setting": {kind: chosen[name, kind][measure][0] for kind in makes}, "ms per step": each, "seeds": options.seeds}
            claim = f"{task.name}: {'CPU ' * (measure == 'seconds')}{measure} to a loss of {task.target:g} (quartiles)"
            rows.append(Row(claim, middle["SINGD"], None, "s" if measure == "seconds" else "", None, "<=", shown, spent[name], notes))
    if len(names) == len(TASKS):
        for measure, wanted in (("seconds", 4), ("steps", 5)):
            rows.append(Row(f"tasks with fewer {measure} than tuned AdamW, of {len(names)}", float(won[measure]), None, "", wanted, ">="))
    return rows


def _quartiles(values: list[float]) -> str:
    """First quartile, median, third; a run that did not arrive counts as infinite, and none that arrived is ``failed``."""
    if not math.isfinite(values[0]):
        return "failed"
    picked = [values[round(share * (len(values) - 1))] for share in (0.25, 0.5, 0.75)]
    return " / ".join(f"{value:.3g}" if math.isfinite(value) else "never" for value in picked)


if __name__ == "__main__":
    run("optimizers_race", main, seeds=5, parts=tuple(TASKS))
