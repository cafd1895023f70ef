"""A run with a slow oracle and two workers, to be killed: ``python slow_run.py FOLDER SECONDS BUDGET WORKERS``."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path


def slow(seconds: float, smiles: str) -> float:
    """A deterministic score that takes its time."""
    time.sleep(seconds)
    return (sum(map(ord, smiles)) % 997) / 997


def evolve(folder: Path, seconds: float, budget: int, workers: int) -> None:
    """Run to the end, from the state and the ledger in the folder."""
    from popflow.evolve import Evolution, Recipe, draw
    from popflow.evolve.graph_moves import Crossover
    from popflow.evolve.preranking import PreRanking
    from popflow.evolve.selection import rank
    from popflow.runs import CostlyFunction

    recipe = Recipe(population=12, offspring=8, parents=rank(), preranking=PreRanking(children=16, refit=2))
    evolution = Evolution(draw(12), {"graph": Crossover()}, recipe, budget=budget, seed=5)
    costly = CostlyFunction(partial(slow, seconds), folder / "calls.jsonl", workers=workers, backend="threading", on_error="skip")
    evolution.run(costly, folder / "state.json")


if __name__ == "__main__":
    evolve(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
