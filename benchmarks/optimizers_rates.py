"""Whether AdamW's step size carries over: SINGD with its defaults, given the rate of AdamW, on four tasks at three rates.

No setting is tuned. A number is the mean of the last ten losses of a run, the median of the seeds; the embeddings of the transformer are moved by
AdamW at the same rate in both.

    python benchmarks/optimizers_rates.py --json FILE      FILE.parts.jsonl keeps every run
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from functools import partial
from itertools import product

import torch
from harness import Row, run
from optimizer_peers import Make, adamw
from optimizer_tasks import Memo, autoencoder, characters, convolutional, digits_task, ending, mlp

from popflow.optim import SINGD, Diagonal

TASKS = {
    "MLP": lambda: digits_task("MLP", mlp, (64,), 0.05, 100),
    "convolutional": convolutional,
    "characters": lambda: characters(32, 32, 32, depth=1),
    "autoencoder": lambda: autoencoder(batch=128),
}
RATES, STEPS = (1e-3, 3e-3, 1e-2), (40, 150)


def competitors(lr: float, task) -> dict[str, Make]:
    """AdamW, and SINGD with dense and with diagonal factors."""
    ours = partial(SINGD, lr=lr, fallback_lr=None, averaging=task.averaging, max_rows=1024)
    return {"AdamW": partial(adamw, lr=lr), "dense": ours, "diagonal": partial(ours, structure=Diagonal())}


def main(options: argparse.Namespace) -> list[Row]:
    """Loss of SINGD over that of AdamW, at AdamW's rate."""
    torch.set_num_threads(1)
    options.memo = Memo(options.json)
    rows = []
    for part, lr, steps in product(options.only[: 1 if options.quick else None], RATES, STEPS[: 1 if options.quick else None]):
        task, start, losses = TASKS[part](), time.perf_counter(), {}
        for name, make in competitors(lr, task).items():
            runs = [ending(options, task, f"{name} {lr:g}", make, seed, steps=steps, stop=False) for seed in range(options.seeds)]
            losses[name] = statistics.median(one.final if one.finite else math.inf for one in runs)
        claim = f"{task.name}, lr {lr:g}: loss after {steps} steps over AdamW's"
        shown = {name: float(f"{loss:.3g}") for name, loss in losses.items()}
        notes = {"seeds": options.seeds}
        rows.append(Row(claim, losses["dense"] / losses["AdamW"], None, "x", None, "<=", shown, time.perf_counter() - start, notes))
    return rows


if __name__ == "__main__":
    run("optimizers_rates", main, seeds=3, parts=tuple(TASKS))
