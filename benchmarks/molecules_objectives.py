"""Several objectives of a molecule, and two workers on a slow oracle.

Tasks: 1) QED up, SA down, JNK3 up; 2) the same with GSK3b; 3) QED and JNK3 up, SA, GSK3b and DRD2 down. SA is (SA - 1) / 9, and what is minimised
enters as 1 - value, so all objectives lie in [0, 1]. Graph-GA is the baseline, on the same start. Volumes are exact up to three objectives.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial

import numpy as np
from harness import Row, run

from popflow.evolve import RECIPES, Evolution, Recipe, area, draw, hypervolume
from popflow.evolve.graph_moves import Crossover
from popflow.evolve.molecules import parse
from popflow.evolve.oracles import Objective, synthetic_accessibility
from popflow.evolve.selection import front, nsga2, rank
from popflow.runs import CostlyFunction

TASKS = {
    "1": (("qed", "jnk3"), ()),
    "2": (("qed", "gsk3b"), ()),
    "3": (("qed", "jnk3"), ("gsk3b", "drd2")),
}


def recipes() -> dict[str, Recipe]:
    """Ways to trade the objectives, by name."""
    ranked = replace(RECIPES["preranked"], parents=rank())
    return {
        "graph-ga, sum": RECIPES["graph-ga"],
        "graph-ga, front": replace(RECIPES["graph-ga"], survive=front),
        "preranked, sum": ranked,
        "preranked, NSGA-II": replace(ranked, survive=nsga2, by_place=True),
    }


def objectives(task: str, smiles: str) -> tuple[float, ...]:
    """Objectives of a molecule in [0, 1], all maximised."""
    up, down = TASKS[task]
    sa = (synthetic_accessibility(parse(smiles)) - 1) / 9
    return (*(Objective(name)(smiles) for name in up), 1 - sa, *(1 - Objective(name)(smiles) for name in down))


def traded(options: argparse.Namespace) -> list[Row]:
    """Area under the sum and volume of the front, by task and recipe."""
    budget, start = (40, 20) if options.quick else (1000, 120)
    found = []
    for task in ("1",) if options.quick else TASKS:
        areas: dict[str, list[float]] = {name: [] for name in recipes()}
        volumes: dict[str, list[float]] = {name: [] for name in recipes()}
        began = time.perf_counter()
        for seed in range(options.seeds):
            for name, recipe in recipes().items():
                evolution = Evolution(draw(start, seed), {"graph": Crossover()}, recipe, budget=budget, seed=seed)
                evolution.run(lambda batch, notes, task=task: [objectives(task, one) for one in batch])
                areas[name].append(area(evolution.fitness(), budget))
                vectors = [one.values for one in evolution.front() if one.values is not None]
                if len(vectors[0]) <= 3:
                    volumes[name].append(hypervolume(vectors, [0.0] * len(vectors[0])))
        seconds = time.perf_counter() - began
        for what, table, mine in (("AUC top-10 of the sum", areas, "preranked, sum"), ("hypervolume", volumes, "preranked, NSGA-II")):
            means = {name: float(np.mean(values)) for name, values in table.items() if values}
            if means:
                baseline = max(value for name, value in means.items() if name.startswith("graph-ga"))
                bar = {} if options.quick else {"target": baseline, "direction": ">="}
                notes = {"recipe": mine, "each seed": table}
                found.append(Row(f"task {task}: {what}", means[mine], peers=means, seconds=seconds, notes=notes, **bar))
    return found


def slow(seconds: float, smiles: str) -> float:
    """QED after a pause."""
    time.sleep(seconds)
    return Objective("qed")(smiles)


def parallel(options: argparse.Namespace) -> list[Row]:
    """Wall-clock time of one and of two workers on an oracle of 50 ms; the workers are started before the clock."""
    budget, spent, same = 40 if options.quick else 400, {}, []
    for workers in (1, 2):
        evolution = Evolution(
            draw(20), {"graph": Crossover()}, replace(RECIPES["graph-ga"], population=20, offspring=20), budget=budget, seed=0
        )
        costly = CostlyFunction(partial(slow, 0.05), workers=workers, on_error="skip")
        costly(["C" * k for k in range(1, 5)])
        began = time.perf_counter()
        evolution.run(costly)
        spent[workers] = time.perf_counter() - began
        same.append([one.smiles for one in evolution.scored])
    notes = {"calls": budget, "seconds": spent, "same molecules": same[0] == same[1]}
    return [Row("speed of two workers over one, oracle of 50 ms", spent[1] / spent[2], unit="x", target=1.8, direction=">=", notes=notes)]


def main(options: argparse.Namespace) -> list[Row]:
    """Objectives traded by several recipes, then two workers."""
    parts = {"objectives": traded, "workers": parallel}
    return [row for name in options.only for row in parts[name](options)]


if __name__ == "__main__":
    run("molecules_objectives", main, parts=("objectives", "workers"))
