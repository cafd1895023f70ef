"""Robustness of second-order optimisers: runs that end in infinities, over step size x curvature step size x damping.

Three tasks (small network on digits, deep autoencoder, character transformer) in float32 and bfloat16, 60 cells each, the factors refreshed at
every step. SINGD runs with its scaled steps, with natural steps (``update_rms=None``) and as IKFAC; beside it singd 0.0.5 and classical KFAC
with the same numbers. A run counts as lost when a loss or a weight is not finite, or when the optimiser raises.

    python benchmarks/optimizers_robustness.py --only MLP --json FILE      one task; FILE.parts.jsonl keeps every run
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from importlib.util import find_spec
from itertools import product

import torch
from harness import Row, run
from optimizer_peers import KFAC, Make, reference
from optimizer_tasks import Memo, autoencoder, characters, digits_task, ending, mlp

from popflow.optim import SINGD

TASKS = {
    "MLP": lambda: digits_task("MLP", partial(mlp, 16), (64,), 0.05, 50, batch=64),
    "autoencoder": lambda: autoencoder((64, 24, 8, 24, 64), 64),
    "transformer": lambda: characters(8, 8, 8, depth=1),
}
RATES, CURVATURE_RATES, DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0), (0.01, 0.1, 0.5, 0.9), (1e-6, 1e-3, 1e-1)
OURS = ("SINGD", "natural steps", "IKFAC")


def competitors(lr: float, beta: float, damping: float) -> dict[str, Make]:
    """Every optimiser of one cell."""
    ours = {"lr": lr, "lr_cov": beta, "damping": damping, "interval": 1, "fallback_lr": 1e-3}
    return {
        "SINGD": partial(SINGD, **ours),
        "natural steps": partial(SINGD, update_rms=None, **ours),
        "IKFAC": partial(SINGD, adaptive=False, **ours),
        "singd": partial(reference, lr=lr, lr_cov=beta, damping=damping, interval=1),
        "KFAC": partial(KFAC, lr=lr, decay=1 - beta, damping=damping, interval=1),
    }


def main(options: argparse.Namespace) -> list[Row]:
    """Non-finite runs of SINGD, singd and KFAC over a grid of their numbers."""
    torch.set_num_threads(1)
    options.memo = Memo(options.json)
    steps = 5 if options.quick else 30
    cells = list(product(*((values[::2] if options.quick else values) for values in (RATES, CURVATURE_RATES, DAMPINGS))))
    rows = []
    for part in options.only:
        task = TASKS[part]()
        for dtype in (torch.float32, torch.bfloat16):
            start, lost = time.perf_counter(), dict.fromkeys((*OURS, "singd", "KFAC"), 0)
            for cell in cells:
                for name, make in competitors(*cell).items():
                    if name == "singd" and find_spec("singd") is None:
                        continue
                    settings = f"{name} lr {cell[0]:g} lr_cov {cell[1]:g} damping {cell[2]:g}"
                    lost[name] += not ending(options, task, settings, make, 0, steps=steps, dtype=dtype, stop=False).finite
            peers = {name: f"{lost[name]} of {len(cells)}" for name in ("singd", "KFAC")}
            if find_spec("singd") is None:
                peers["singd"] = "absent: singd is not installed"
            claim = f"{part}, {str(dtype).removeprefix('torch.')}: runs of SINGD that were lost, of {len(OURS) * len(cells)}"
            notes = {"cells": len(cells), "steps": steps} | {name: lost[name] for name in OURS}
            rows.append(Row(claim, float(sum(lost[name] for name in OURS)), None, "", 0.0, "<=", peers, time.perf_counter() - start, notes))
    return rows


if __name__ == "__main__":
    run("optimizers_robustness", main, seeds=1, parts=tuple(TASKS))
