"""Half precision: what is lost when weights, activations and gradients are bfloat16.

A vision transformer on digits and a character transformer, the same steps in float32 and bfloat16, median of five seeds. An optimiser takes as many
steps as its float32 runs need, all seeds of them, until the loss on the task's fixed batch is below half of that of guessing, ``log(classes)``; near
guessing, precision decides nothing. One that does not get there within ten times the usual steps takes these, and its row says so. KFAC averages its Gram
matrices in the dtype of the network, as the paper's comparison does, and factorises them in float32; where that fails the run is lost. Step sizes are fixed,
not tuned: the column to read is bfloat16 over float32.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import replace
from functools import partial

import torch
from harness import Row, run
from optimizer_peers import KFAC, Make, adamw
from optimizer_tasks import Memo, characters, ending, vision

from popflow.optim import SINGD, Dense, Diagonal, Hierarchical

TASKS = {"vision": lambda: vision(16, 1, 32), "characters": lambda: characters(16, 16, 8, depth=1)}
MAKES: dict[str, Make] = {
    "AdamW": partial(adamw, lr=3e-3),
    "SINGD dense": partial(SINGD, lr=1e-2, structure=Dense(), interval=5, fallback_lr=1e-3),
    "SINGD hierarchical": partial(SINGD, lr=1e-2, structure=Hierarchical(15, 15), interval=5, fallback_lr=1e-3),
    "SINGD diagonal": partial(SINGD, lr=1e-2, structure=Diagonal(), interval=5, fallback_lr=1e-3),
    "IKFAC": partial(SINGD, lr=1e-2, structure=Dense(), interval=5, adaptive=False, fallback_lr=1e-3),
    "KFAC, damping 1e-6": partial(KFAC, lr=1e-2, interval=5, damping=1e-6),
    "KFAC, damping 1e-3": partial(KFAC, lr=1e-2, interval=5, damping=1e-3),
}


def main(options: argparse.Namespace) -> list[Row]:
    """Last loss in bfloat16 over that in float32, for SINGD, IKFAC, AdamW and KFAC."""
    torch.set_num_threads(1)
    options.memo, rows = Memo(options.json), []
    for part in options.only:
        task = TASKS[part]()
        half = 0.5 * math.log(int(task.judge[1].max()) + 1)
        learned = replace(task, target=half, steps=10 * task.steps)
        for name, make in MAKES.items():
            start = time.perf_counter()
            hits = [1.0 if options.quick else ending(options, learned, name, make, seed, stop=True).steps for seed in range(options.seeds)]
            steps = 5 if options.quick else int(min(max(hits), learned.steps))
            ends = {
                dtype: [ending(options, task, name, make, seed, steps=steps, dtype=dtype, stop=False) for seed in range(options.seeds)]
                for dtype in (torch.float32, torch.bfloat16)
            }
            medians, lost = {}, {}
            for dtype, outcomes in ends.items():
                kind = str(dtype).removeprefix("torch.")
                lost[kind] = sum(not one.finite for one in outcomes)
                medians[kind] = statistics.median(one.final if one.finite else math.inf for one in outcomes)
            ratio = medians["bfloat16"] / medians["float32"] if all(map(math.isfinite, medians.values())) else math.inf
            peers: dict[str, float | str] = {kind: value if math.isfinite(value) else "failed" for kind, value in medians.items()}
            peers |= {f"lost in {kind}": f"{count} of {options.seeds}" for kind, count in lost.items()}
            target = 1.05 if name.startswith("SINGD") else None
            notes = {"steps": steps, "seeds": options.seeds, "half of guessing": half, "float32 steps to it": hits}
            peers["steps"] = f"{steps}" if max(hits) <= learned.steps else f"{steps}, half of the loss of guessing not reached"
            claim = f"{task.name}, {name}: last loss in bfloat16 over float32"
            rows.append(Row(claim, ratio, None, "x", target, "<=", peers, time.perf_counter() - start, notes))
    return rows


if __name__ == "__main__":
    run("optimizers_precision", main, seeds=5, parts=tuple(TASKS))
