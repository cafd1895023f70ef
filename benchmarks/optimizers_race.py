"""Steps and CPU seconds to a target loss, every optimiser tuned with the same budget.

Six tasks; ten settings of each optimiser, tried with a seed of their own; the setting with the fewest steps and the one with the fewest seconds
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
from itertools import product
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
    "characters": lambda: characters(32, 32, 32, target=2.1, steps=300, depth=1),
}
KINDS = ("AdamW", "SINGD", "KFAC", "Muon", "singd", "SOAP", "Kron")
MEASURES = ("steps", "seconds")


def candidates(kind: str) -> list[tuple[str, Make]]:
    """Ten settings of an optimiser, by name.

    AdamW has five step sizes with its usual averages and with shorter ones. SINGD has scaled and natural steps, with the curvature of the loss and
    with a sampled Fisher matrix; these ten were picked from a random search on the seed of tuning. KFAC has both kinds of curvature.
    """
    if kind == "SINGD":
        scaled = {"structure": Dense(), "momentum": 0.6, "damping": 1e-3, "lr_cov": 0.3, "alpha1": 0.0, "interval": 5, "fallback_lr": None}
        natural = {
            "structure": Dense(),
            "update_rms": None,
            "listen": False,
            "lr_cov": 0.3,
            "alpha1": 0.0,
            "momentum": 0.6,
            "damping": 1e-3,
        }
        least_squares = natural | {"momentum": 0.9, "damping": 1e-6, "lr_cov": 0.5, "alpha1": 0.5, "kl_clip": None, "lr": 0.1}
        diagonal = natural | {"structure": Diagonal(), "lr": 0.3}
        settings: list[dict[str, Any]] = [
            *(scaled | {"lr": lr} for lr in (2e-2, 4e-2, 5e-2, 6e-2)),
            natural | {"lr": 0.3, "kl_clip": 1e-2, "interval": 2, "listen": True, "momentum": 0.9, "damping": 1e-5, "alpha1": 0.5},
            natural | {"lr": 0.3, "kl_clip": 2e-3, "interval": 3},
            *(least_squares | {"interval": interval} for interval in (1, 4)),
            diagonal | {"kl_clip": 3e-5, "interval": 10, "damping": 1e-2, "alpha1": 0.5},
            diagonal | {"kl_clip": 1e-4, "interval": 5, "listen": True, "momentum": 0.9, "lr_cov": 0.1},
        ]
        return [(str({k: str(v) for k, v in one.items()}), partial(SINGD, max_rows=1024, **one)) for one in settings]
    if kind == "AdamW":
        pairs = product((3e-3, 1e-2, 2e-2, 6e-2, 0.2), ((0.9, 0.999), (0.6, 0.99)))
        return [(f"lr {lr:g}, betas {betas}", partial(adamw, lr=lr, betas=betas)) for lr, betas in pairs]
    if kind == "KFAC":
        pairs = product((1e-3, 6e-3, 2e-2, 6e-2, 0.2), (True, False))
        return [(f"lr {lr:g}, {'loss' if listen else 'sampled'}", partial(KFAC, interval=4, lr=lr, listen=listen)) for lr, listen in pairs]
    make = {"Muon": muon, "SOAP": soap, "Kron": kron, "singd": partial(reference, interval=4, lr_cov=0.1, damping=1e-2)}[kind]
    return [(f"lr {lr:g}", partial(make, lr=lr)) for lr in (5e-4, 1e-3, 3e-3, 6e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.2, 0.4)]


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
