"""Several objectives of a molecule, and two workers on a slow oracle.

Tasks: 1) QED up, SA down, JNK3 up; 2) the same with GSK3b; 3) QED and JNK3 up, SA, GSK3b and DRD2 down. SA is (SA - 1) / 9, and what is minimised
enters as 1 - value, so all objectives lie in [0, 1], and the volume of a front is taken above the worst corner, 0. Graph-GA is the baseline, on the same
start. Volumes are exact for three objectives, and those of task 3 the share of 2^16 Sobol points that the front dominates.

A run of one recipe on one task with one seed is kept as a line of ``benchmarks/parts/objectives.jsonl``; a benchmark that was stopped goes on there.
Delete the file when code has changed that the results depend on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from harness import Row, run
from scipy.stats import qmc

from popflow.evolve import RECIPES, Evolution, Recipe, area, draw, hypervolume, top_mean
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
MEASURED = (
    ("AUC top-10 of the sum", "area", "preranked, sum"),
    ("best ten sums", "top 10", "preranked, sum"),
    ("hypervolume", "volume", "preranked, NSGA-II"),
)
PARTS = Path(__file__).parent / "parts" / "objectives.jsonl"


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


def volume(points: list[tuple[float, ...]]) -> float:
    """Volume that points in the unit cube dominate."""
    cloud = np.array(points)
    if cloud.shape[1] <= 3:
        return hypervolume(cloud, np.zeros(cloud.shape[1]))
    grid = qmc.Sobol(cloud.shape[1], scramble=False).random_base2(16)
    below = np.zeros(len(grid), dtype=bool)
    for point in cloud:
        below |= (grid < point).all(1)
    return float(below.mean())


def part(task: str, name: str, seed: int, budget: int, file: Path) -> dict:
    """Area under the sum, the best ten sums, and the volume of the front of one run; read or made."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        one = json.loads(line)
        if (one["task"], one["recipe"], one["seed"], one["calls"]) == (task, name, seed, budget):
            return one
    start = time.process_time()
    evolution = Evolution(draw(min(120, budget // 2), seed), {"graph": Crossover()}, recipes()[name], budget=budget, seed=seed)
    evolution.run(lambda batch, notes: [objectives(task, one) for one in batch])
    vectors = [one.values for one in evolution.front() if one.values is not None]
    found = {
        "task": task,
        "recipe": name,
        "seed": seed,
        "calls": budget,
        "area": area(evolution.fitness(), budget),
        "top 10": top_mean(evolution.fitness()),
        "volume": volume(vectors),
        "front": len(vectors),
        "seconds": round(time.process_time() - start, 1),
    }
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(found) + "\n")
    print(f"{task} {name} {seed}: volume {found['volume']:.3f}, {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found


def traded(options: argparse.Namespace) -> list[Row]:
    """The sum and the front of each recipe, by task. What is judged was chosen before: the sum for the sum, NSGA-II for the front."""
    with tempfile.TemporaryDirectory() as folder:
        budget, file = (40, Path(folder) / "parts.jsonl") if options.quick else (1000, PARTS)
        file.parent.mkdir(parents=True, exist_ok=True)
        tasks = ("1",) if options.quick else tuple(TASKS)
        runs = {
            (task, name, seed): part(task, name, seed, budget, file)
            for task in tasks
            for seed in range(options.seeds)
            for name in recipes()
        }
    rows = []
    for task in tasks:
        for what, key, mine in MEASURED:
            each = {name: [round(runs[task, name, seed][key], 4) for seed in range(options.seeds)] for name in recipes()}
            means = {name: float(np.mean(values)) for name, values in each.items()}
            bar = {} if options.quick else {"target": max(means["graph-ga, sum"], means["graph-ga, front"]), "direction": ">="}
            gains = np.array(each[mine]) - np.array(each[mine.replace("preranked", "graph-ga").replace("NSGA-II", "front")])
            notes = {
                "part": "objectives",
                "recipe": mine,
                "each seed": each,
                "seeds above graph-ga": f"{int((gains > 0).sum())} of {options.seeds}",
            }
            error = float(np.std(each[mine], ddof=1)) if options.seeds > 1 else None
            seconds = sum(one["seconds"] for (a, _, _), one in runs.items() if a == task)
            rows.append(Row(f"task {task}: {what}", means[mine], error, peers=means, seconds=seconds, notes=notes, **bar))
    return rows


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
    notes = {"part": "workers", "calls": budget, "seconds": spent, "same molecules": same[0] == same[1]}
    return [Row("speed of two workers over one, oracle of 50 ms", spent[1] / spent[2], unit="x", target=1.8, direction=">=", notes=notes)]


def main(options: argparse.Namespace) -> list[Row]:
    """Objectives traded by several recipes, then two workers."""
    parts = {"objectives": traded, "workers": parallel}
    return [row for name in options.only for row in parts[name](options)]


if __name__ == "__main__":
    run("molecules_objectives", main, parts=("objectives", "workers"))
