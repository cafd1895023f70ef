"""Runs that are killed at a given number of recorded calls, each forked from this process: ``python killed_run.py FOLDER KILLS SEED``.

Every run asks for batches that depend on the values of the batch before. The objective logs each call it is asked for, with the number of its run.
"""

import hashlib
import os
import random
import sys
import time
from pathlib import Path

import joblib  # noqa: F401  before the forks, not in each

from popflow.runs.costly import CostlyFunction
from popflow.runs.ledger import Ledger

BATCHES, SIZE = 50, 8


class Logged:
    def __init__(self, log, run):
        self.log, self.run = log, run

    def __call__(self, x):
        with open(self.log, "a") as file:
            file.write(f"{self.run} {x}\n")
        time.sleep(0.005 + 0.005 * (x % 2))
        if x % 11 == 0:
            raise ValueError("no multiples of eleven")
        return x / 7


def search(folder, run):
    """Ask for batches, each made from the values before it."""
    population = [0.0]
    with Ledger(folder / "calls.jsonl") as ledger:
        costly = CostlyFunction(Logged(folder / "log.txt", run), ledger, workers=2, backend="threading", on_error="worst")
        for batch in range(BATCHES):
            seed = hashlib.sha256(f"{batch} {population}".encode()).digest()
            population = costly([int.from_bytes(seed[2 * i : 2 * i + 2]) % 1000 for i in range(SIZE)]).tolist()
    return population


def main(folder, kills, seed):
    folder, rng = Path(folder), random.Random(seed)
    before = 0
    for run in range(kills):
        child = os.fork()
        if child == 0:
            search(folder, run)
            os._exit(0)
        calls, size = folder / "calls.jsonl", 0
        while size < 2:  # opened, and one call more than before
            time.sleep(0.0005)
            lines = calls.read_bytes().count(b"\n") if calls.exists() else 0
            size = lines - before
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, 9)
        os.waitpid(child, 0)
        known = list(Ledger.read(calls))
        before = calls.read_bytes().count(b"\n")
        (folder / f"known_{run}.txt").write_text("\n".join(known))
    print(search(folder, kills))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
