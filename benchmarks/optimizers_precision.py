"""Half precision: what is lost when weights, activations and gradients are bfloat16.

A vision transformer on digits and a character transformer, the same steps in float32 and bfloat16, median of five seeds. Each optimiser has four
step sizes to choose from, by the last loss of another seed in float32. KFAC averages its Gram
matrices in the dtype of the network, as the paper's comparison does, and factorises them in float32; where that fails the run is lost.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from harness import Row, run
from optimizer_peers import KFAC, adamw
from optimizer_tasks import Memo, Task, characters, ending, vision

from popflow.optim import SINGD, Dense, Diagonal, Hierarchical

TASKS = {"vision": lambda: vision(16, 1, 32), "characters": lambda: characters(16, 16, 8, depth=1)}
RATES = (3e-3, 1e-2, 2e-2, 4e-2)
MAKES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": adamw,
    "SINGD dense": partial(SINGD, structure=Dense(), interval=5),
    "SINGD hierarchical": partial(SINGD, structure=Hierarchical(15, 15), interval=5),
    "SINGD diagonal": partial(SINGD, structure=Diagonal(), interval=5),
    "IKFAC": partial(SINGD, structure=Dense(), interval=5, adaptive=False),
    "KFAC, damping 1e-6": partial(KFAC, interval=5, damping=1e-6),
    "KFAC, damping 1e-3": partial(KFAC, interval=5, damping=1e-3),
}


def tuned(options: argparse.Namespace, task: Task, name: str, steps: int) -> float:
    """The step size with the least last loss, by a seed that is not used again."""
    rates = RATES[:1] if options.quick else RATES
    finals = {lr: ending(options, task, f"{name} {lr}", partial(MAKES[name], lr=lr), 100, steps=steps, stop=False).final for lr in rates}
    return min(rates, key=lambda lr: finals[lr] if math.isfinite(finals[lr]) else math.inf)


def main(options: argparse.Namespace) -> list[Row]:
    """Last loss in bfloat16 over that in float32, for SINGD, IKFAC, AdamW and KFAC."""
    torch.set_num_threads(1)
    options.memo = Memo(options.json)
    steps, rows = 5 if options.quick else 80, []
    for part in options.only:
        task = TASKS[part]()
        for name, kind in MAKES.items():
            start = time.perf_counter()
            lr = tuned(options, task, name, steps)
            make = partial(kind, lr=lr)
            ends = {
                dtype: [
                    ending(options, task, f"{name} {lr}", make, seed, steps=steps, dtype=dtype, stop=False) for seed in range(options.seeds)
                ]
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
            notes = {"steps": steps, "seeds": options.seeds, "lr": lr}
            claim = f"{task.name}, {name}: last loss in bfloat16 over float32"
            rows.append(Row(claim, ratio, None, "x", target, "<=", peers, time.perf_counter() - start, notes))
    return rows


if __name__ == "__main__":
    run("optimizers_precision", main, seeds=5, parts=tuple(TASKS))
