"""Docking in few calls: DRD3, EGFR and A2A with AutoDock Vina, language model and graph moves against graph moves alone.

The targets are receptors and boxes of the package dockstring, read as data: ``pip download --no-deps dockstring``, unzip it, and let the environment
variable DOCKSTRING name the folder that holds ``DRD3_target.pdbqt`` and ``DRD3_conf.txt``. Without it the rows say that they are absent.

A run is 300 calls: 60 molecules of the start pool, then generations of 35 as in the graph GA, settings not tuned. Each (target, operators, seed) is one
part, kept as a file of scores in ``benchmarks/parts/docking``; a run that was stopped goes on where it was. Scores are minus Vina's energies.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from harness import Row, run

from popflow.core import CheckpointError
from popflow.evolve import RECIPES, Evolution, FillGap, LinkFragments, draw, shipped, top_mean
from popflow.evolve.graph_moves import Crossover
from popflow.evolve.operators import Operator
from popflow.evolve.oracles import Docking, read_box
from popflow.runs import CostlyFunction

TARGETS = {"DRD3": "DRD3", "EGFR": "EGFR", "A2A": "ADORA2A"}
BUDGET, START, OFFSPRING = 300, 60, 35
READ = (60, 100, 200, 300)
PARTS = Path(__file__).parent / "parts" / "docking"


def operators(name: str) -> dict[str, Operator]:
    """Operators of a run."""
    graph: dict[str, Operator] = {"graph": Crossover()}
    return graph if name == "graph" else graph | {"fill gap": FillGap(), "link fragments": LinkFragments()}


def part(target: str, name: str, seed: int, budget: int) -> list[float]:
    """Scores of one run in the order of the calls, NaN for molecules that could not be docked; read or made."""
    file = PARTS / f"{target}-{name}-{seed}-{budget}.json"
    if file.exists():
        return json.loads(file.read_text())
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(os.environ["DOCKSTRING"])
    oracle = Docking(str(folder / f"{TARGETS[target]}_target.pdbqt"), read_box(folder / f"{TARGETS[target]}_conf.txt"))
    costly = CostlyFunction(oracle, file.with_suffix(".jsonl"), key=str, timeout=300.0, on_error="skip")
    recipe = replace(RECIPES["graph-ga"], population=min(START, budget // 2), offspring=OFFSPRING)
    evolution = Evolution(draw(recipe.population, seed), operators(name), recipe, budget=budget, seed=seed)
    evolution.run(costly, told=lambda now: print(f"{file.stem}: {len(now.scored)} calls", file=sys.stderr, flush=True))
    scores = [one.values[0] if one.values else float("nan") for one in evolution.scored]
    file.write_text(json.dumps(scores))
    return scores


def curve(scores: list[float], calls: int) -> float:
    """Mean energy of the ten best of the first calls, in kcal/mol."""
    return -top_mean([one for one in scores[:calls] if np.isfinite(one)])


def absent() -> str | None:
    """Why nothing can be docked, or None."""
    folder = Path(os.environ.get("DOCKSTRING", "absent"))
    missing = [name for name in TARGETS.values() if not (folder / f"{name}_target.pdbqt").exists()]
    return f"absent: the environment variable DOCKSTRING names no folder with {', '.join(missing)}" if missing else None


def without_model() -> str | None:
    """Why the language model cannot be used, or None."""
    try:
        shipped()
    except CheckpointError as error:
        return f"absent: {error}"
    return None


def main(options: argparse.Namespace) -> list[Row]:
    """Energy of the ten best after 300 calls, with the curve in the notes."""
    budget, seeds = (8, 1) if options.quick else (BUDGET, options.seeds)
    settings = {"vina": version("vina"), "meeko": version("meeko"), "exhaustiveness": 1, "seed of Vina": 1, "calls": budget, "seeds": seeds}
    rows = []
    for target in TARGETS:
        claim, start = f"{target}: mean energy of the ten best, language model and graph moves", time.perf_counter()
        reason = absent() or without_model()
        if reason:
            rows.append(Row(claim, float("nan"), unit="kcal/mol", peers={"graph moves": reason}, notes=settings))
            continue
        found = {name: [part(target, name, seed, budget) for seed in range(seeds)] for name in ("graph", "mixture")}
        ends = {name: np.array([curve(scores, budget) for scores in runs]) for name, runs in found.items()}
        notes = settings | {
            f"{name}, after {calls}": round(float(np.mean([curve(scores, calls) for scores in runs])), 2)
            for name, runs in found.items()
            for calls in READ
            if calls <= budget
        }
        error = float(ends["mixture"].std(ddof=1)) if seeds > 1 else None
        peers: dict[str, float | str] = {"graph moves": float(ends["graph"].mean())}
        rows.append(
            Row(
                claim,
                float(ends["mixture"].mean()),
                error,
                "kcal/mol",
                peers["graph moves"],
                "<=",
                peers,
                time.perf_counter() - start,
                notes,
            )
        )
    return rows


if __name__ == "__main__":
    run("docking", main)
