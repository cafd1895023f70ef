"""Graph moves: the same distribution of products as mol_opt's operators, at a fraction of their time.

The peer is not a package: clone https://github.com/wenhao-gao/mol_opt and let the environment variable MOL_OPT name the folder. Without it, its
rows say that it is absent. Molecules are those of ZINC-250k under POPFLOW_DATA, else the targets of PMO.

Products are compared without stereochemistry. Each of five pairs of parents is crossed (each of five parents mutated) 2000 times by both codes; products
expected fewer than five times are counted together; chi-squares of the pairs are added. Time is that of one core, in turns of the two codes.
"""

from __future__ import annotations

import argparse
import cProfile
import gzip
import io
import os
import pstats
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from harness import Row, dataset, run
from scipy import stats

from popflow.evolve.graph_moves import Graph, crossover, mutate
from popflow.evolve.molecules import Chem, parse
from popflow.evolve.oracles import pmo

TARGETS = [
    getattr(pmo, name) for name in ("OSIMERTINIB", "FEXOFENADINE", "RANOLAZINE", "PERINDOPRIL", "ZALEPLON", "SITAGLIPTIN", "HOP_TARGET")
]
SMALL = range(10, 17)
ABSENT = "absent: the environment variable MOL_OPT names no clone of mol_opt"


def peer() -> SimpleNamespace | None:
    """Return the crossover and the mutation of mol_opt, or None."""
    folder = Path(os.environ.get("MOL_OPT", "absent"))
    if not (folder / "main" / "graph_ga" / "crossover.py").exists():
        return None
    sys.path.insert(0, str(folder))
    import main.graph_ga.crossover as theirs
    import main.graph_ga.mutate as their_mutation

    return SimpleNamespace(crossover=theirs.crossover, mutate=lambda molecule: their_mutation.mutate(molecule, 1.0))


def molecules(n: int, seed: int) -> list[str]:
    """Return random molecules of ZINC, or targets where ZINC is absent."""
    path = dataset("chem", "zinc250k.smiles.gz")
    if path is None:
        return TARGETS
    with gzip.open(path, "rt") as lines:
        return random.Random(seed).sample([line.strip() for line in lines], n)


def flat(molecule: Chem.Mol | None) -> str:
    """Return a product without stereochemistry, as it reads when it is written and read again."""
    return "none" if molecule is None else Chem.CanonSmiles(Chem.MolToSmiles(molecule, isomericSmiles=False))


def chi_square(ours: Counter[str], theirs: Counter[str]) -> tuple[float, int]:
    """Return the chi-square of two samples of products and its degrees of freedom."""
    total = ours + theirs
    common = [product for product, count in total.items() if count >= 10]
    table = np.array([[counts[product] for product in common] + [counts.total()] for counts in (ours, theirs)], dtype=float)
    table[:, -1] -= table[:, :-1].sum(1)
    table = table[:, table.sum(0) >= 10]
    found = stats.chi2_contingency(table, correction=False)
    return float(found.statistic), int(found.dof)


def compare(name: str, ours: Callable[[int], Any], theirs: Callable[[int], Any] | None, groups: int, calls: int) -> Row:
    """Compare the products of two codes, for each group of parents."""
    start = time.perf_counter()
    claim = f"{name}: chi-square of the products, p ({groups * calls} calls of each code)"
    if theirs is None:
        return Row(claim, float("nan"), peers={"mol_opt": ABSENT})
    parts, kinds = [], 0
    for group in range(groups):
        counts = [Counter(flat(move(group)) for _ in range(calls)) for move in (ours, theirs)]
        parts.append(chi_square(*counts))
        kinds += len(counts[0] | counts[1])
    statistic, freedom = (sum(column) for column in zip(*parts, strict=True))
    notes = {"chi-square": round(statistic, 1), "degrees of freedom": freedom, "different products": kinds}
    seconds = time.perf_counter() - start
    return Row(claim, float(stats.chi2.sf(statistic, freedom)), None, "", 0.01, ">=", {}, seconds, notes)


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main(options: argparse.Namespace) -> list[Row]:
    """Products and speed of the graph moves beside mol_opt's."""
    rng, theirs = np.random.default_rng(0), peer()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the peer draws from it
    groups, calls, timed = (2, 20, 5) if options.quick else (5, 2000, 300)
    small = [one for one in molecules(4000, 1) if parse(one).GetNumAtoms() in SMALL] or TARGETS
    pairs = [tuple(parse(small[i]) for i in (2 * group, 2 * group + 1)) for group in range(groups)]
    graphs = [tuple(map(Graph, pair)) for pair in pairs]

    def copies(group: int) -> list[Chem.Mol]:
        return [Chem.Mol(parent) for parent in pairs[group]]

    rows = [
        compare(
            "crossover",
            lambda group: crossover(*graphs[group], rng),
            None if theirs is None else lambda group: theirs.crossover(*copies(group)),
            groups,
            calls,
        ),
        compare(
            "mutation",
            lambda group: mutate(graphs[group][0], rng),
            None if theirs is None else lambda group: theirs.mutate(copies(group)[0]),
            groups,
            calls,
        ),
    ]
    return [*rows, *speeds(theirs, rng, timed, options.seeds)]


def speeds(theirs: SimpleNamespace | None, rng: np.random.Generator, timed: int, turns: int) -> list[Row]:
    """Time both codes in turns on the same parents: a population of 120, whose members come back, and parents that are seen once."""
    population = [parse(one) for one in molecules(120, 2)]
    kept = [Graph(one) for one in population]
    times: dict[str, list[float]] = {}

    def note(name: str, call: Callable[[], Any]) -> None:
        times.setdefault(name, []).append(seconds_of(call) / timed * 1e3)

    for _ in range(turns):
        pairs = [tuple(int(rng.integers(len(population))) for _ in range(2)) for _ in range(timed)]
        note("crossover", lambda pairs=pairs: [crossover(kept[a], kept[b], rng) for a, b in pairs])
        note("mutation", lambda pairs=pairs: [mutate(kept[a], rng) for a, _ in pairs])
        note("crossover, fresh", lambda pairs=pairs: [crossover(Graph(population[a]), Graph(population[b]), rng) for a, b in pairs])
        note("mutation, fresh", lambda pairs=pairs: [mutate(Graph(population[a]), rng) for a, _ in pairs])
        if theirs is not None:
            note(
                "crossover, mol_opt",
                lambda pairs=pairs: [theirs.crossover(Chem.Mol(population[a]), Chem.Mol(population[b])) for a, b in pairs],
            )
            note("mutation, mol_opt", lambda pairs=pairs: [theirs.mutate(Chem.Mol(population[a])) for a, _ in pairs])
    middle = {name: float(np.median(values)) for name, values in times.items()}
    profile = cProfile.Profile()
    profile.runcall(lambda: [crossover(kept[a], kept[b], rng) and mutate(kept[a], rng) for a, b in pairs])
    report = io.StringIO()
    pstats.Stats(profile, stream=report).sort_stats("tottime").print_stats(12)
    print(report.getvalue())
    rows = [_ratio(f"{name}: mol_opt's time over ours", [name], middle, None, "") for name in ("crossover", "mutation")]
    both = ["crossover", "mutation"]
    rows.append(_ratio("crossover and mutation together: mol_opt's time over ours", both, middle, 8.0, ""))
    rows.append(_ratio("crossover and mutation of parents seen once: mol_opt's time over ours", both, middle, None, ", fresh"))
    return rows


def _ratio(claim: str, moves: list[str], times: dict[str, float], target: float | None, suffix: str) -> Row:
    ours = sum(times[move + suffix] for move in moves)
    notes = {f"{name}, ms": round(value, 3) for name, value in times.items()}
    if f"{moves[0]}, mol_opt" not in times:
        return Row(claim, float("nan"), peers={"mol_opt": ABSENT}, notes=notes)
    theirs = sum(times[f"{move}, mol_opt"] for move in moves)
    return Row(claim, theirs / ours, None, "times", target, ">=", {"mol_opt, ms": theirs, "ours, ms": ours}, notes=notes)


if __name__ == "__main__":
    run("graph_moves", main, seeds=5)
