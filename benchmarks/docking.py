"""Docking in few calls: DRD3, EGFR and A2A with AutoDock Vina, language model and graph moves against graph moves alone.

The targets are receptors and boxes of the package dockstring, read as data: ``pip download --no-deps dockstring``, unzip it, and let the environment
variable DOCKSTRING name the folder that holds ``DRD3_target.pdbqt`` and ``DRD3_conf.txt``. Without it the rows say that they are absent.

A run is 300 calls: 60 molecules of the start pool, then generations of 35 as in the graph GA, settings not tuned. Each (seed, target, operators) is one
part, kept as a line of ``benchmarks/parts/docking.jsonl`` under the digest of the language model that it used; a run that was stopped goes on where it
was, by its ledger in ``benchmarks/parts/docking``. Scores are minus Vina's energies. No call has a time limit: on a busy machine a limit would decide
which molecules have a value.

    python benchmarks/docking.py --only graph                   # make the parts of one arm that are missing, seed after seed, then the rows
    python benchmarks/docking.py --made --json FILE             # rows of the parts that are there
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from harness import Row, run

from popflow.evolve import RECIPES, Evolution, FillGap, LinkFragments, draw, top_mean
from popflow.evolve.graph_moves import Crossover
from popflow.evolve.operators import Operator
from popflow.evolve.oracles import Docking, read_box
from popflow.evolve.smiles_model import DATA
from popflow.runs import CostlyFunction

TARGETS = {"DRD3": "DRD3", "EGFR": "EGFR", "A2A": "ADORA2A"}
BUDGET, START, OFFSPRING = 300, 60, 35
READ = (60, 100, 200, 300)
PARTS = Path(__file__).parent / "parts" / "docking.jsonl"
ARMS = ("graph", "mixture")
MADE = "--made" in sys.argv
Part = tuple[str, str, int, int, str]


def operators(name: str) -> dict[str, Operator]:
    """Operators of a run."""
    graph: dict[str, Operator] = {"graph": Crossover()}
    return graph if name == "graph" else graph | {"fill gap": FillGap(), "link fragments": LinkFragments()}


def part_of(target: str, name: str, seed: int, budget: int) -> Part:
    """What a run is known by: target, operators, seed, calls, and a digest of the language model if it has one."""
    model = hashlib.sha256((DATA / "smiles.safetensors").read_bytes()).hexdigest()[:12] if name == "mixture" else ""
    return target, name, seed, budget, model


def make(part: Part, file: Path) -> None:
    """Write the scores of one run in the order of the calls, NaN for molecules that could not be docked."""
    target, name, seed, budget, _ = part
    folder, ledgers = Path(os.environ["DOCKSTRING"]), file.with_suffix("")
    ledgers.mkdir(parents=True, exist_ok=True)
    words = "-".join(str(one) for one in part if one != "")
    oracle = Docking(str(folder / f"{TARGETS[target]}_target.pdbqt"), read_box(folder / f"{TARGETS[target]}_conf.txt"))
    costly = CostlyFunction(oracle, ledgers / f"{words}.jsonl", key=str, on_error="skip")
    recipe = replace(RECIPES["graph-ga"], population=min(START, budget // 2), offspring=OFFSPRING)
    start, evolution = time.process_time(), Evolution(draw(recipe.population, seed), operators(name), recipe, budget=budget, seed=seed)
    evolution.run(costly, told=lambda now: print(f"{words}: {len(now.scored)} calls", file=sys.stderr, flush=True))
    row = dict(zip(("target", "operators", "seed", "calls", "model"), part, strict=True))
    scores = [one.values[0] if one.values else None for one in evolution.scored]
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row | {"seconds": round(time.process_time() - start, 1), "scores": scores}) + "\n")


def stored(file: Path) -> dict[Part, list[float]]:
    """Scores of the runs that were made; a torn last line is left out."""
    found: dict[Part, list[float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            key = (row["target"], row["operators"], row["seed"], row["calls"], row["model"])
            found[key] = [np.nan if one is None else one for one in row["scores"]]
    return found


def curve(scores: list[float], calls: int) -> float:
    """Mean energy of the ten best of the first calls, in kcal/mol."""
    return -top_mean([one for one in scores[:calls] if np.isfinite(one)])


def absent() -> str:
    """Why nothing can be docked; empty when it can."""
    folder = Path(os.environ.get("DOCKSTRING", "absent"))
    missing = [name for name in TARGETS.values() if not (folder / f"{name}_target.pdbqt").exists()]
    if missing:
        return f"absent: the environment variable DOCKSTRING names no folder with {', '.join(missing)}"
    try:
        version("vina"), version("meeko")
    except PackageNotFoundError as error:
        return f"absent: {error}"
    return ""


def row_of(target: str, found: dict[Part, list[float]], budget: int, seeds: int, settings: dict) -> Row:
    """Mean energies of the ten best of both arms, on the seeds that both have; of graph moves alone while there are no others."""
    runs = {name: {seed: found[key] for seed in range(seeds) if (key := part_of(target, name, seed, budget)) in found} for name in ARMS}
    both = sorted(runs["graph"].keys() & runs["mixture"].keys())
    arms = ARMS if both else ("graph",)
    used = both or sorted(runs["graph"])
    notes = settings | {"seeds": used, "no value": {name: int(sum(np.isnan(runs[name][seed]).sum() for seed in used)) for name in arms}}
    ends = {name: np.array([curve(runs[name][seed], budget) for seed in used]) for name in arms}
    for name in arms:
        reads = [calls for calls in READ if calls <= budget and used]
        notes[f"{name}, after calls"] = {calls: round(float(np.mean([curve(runs[name][s], calls) for s in used])), 2) for calls in reads}
    mine = ends[arms[-1]]
    what = "language model and graph moves" if both else "graph moves"
    return Row(
        f"{target}: mean energy of the ten best, {what}",
        float(mine.mean()) if used else float("nan"),
        float(mine.std(ddof=1)) if len(used) > 1 else None,
        "kcal/mol",
        float(ends["graph"].mean()) if both else None,
        peers={"graph moves": float(ends["graph"].mean())} if both else {},
        notes=notes,
    )


def main(options: argparse.Namespace) -> list[Row]:
    """Energy of the ten best after 300 calls, with the curve in the notes."""
    if reason := absent():
        return [Row(f"{target}: mean energy of the ten best", float("nan"), unit="kcal/mol", peers={"Vina": reason}) for target in TARGETS]
    budget, seeds, targets = (4, 1, ["DRD3"]) if options.quick else (BUDGET, options.seeds, list(TARGETS))
    settings = {"vina": version("vina"), "meeko": version("meeko"), "exhaustiveness": 1, "seed of Vina": 1, "calls": budget}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "docking.jsonl" if options.quick else PARTS
        for seed, target, name in () if MADE else ((s, t, n) for s in range(seeds) for t in targets for n in options.only):
            if (part := part_of(target, name, seed, budget)) not in stored(file):
                make(part, file)
        return [row_of(target, stored(file), budget, seeds, settings) for target in targets]


if __name__ == "__main__":
    sys.argv = [one for one in sys.argv if one != "--made"]
    run("docking", main, parts=ARMS)
