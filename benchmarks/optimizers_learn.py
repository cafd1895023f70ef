"""A diffusion expert trained by `popflow.learn.fit` with SINGD and with AdamW.

The network, data and loss of the digits experts of the zoo (`benchmarks/train_zoo.py`), 128 images a step, cosine schedule. Each optimiser has the
same number of step sizes to choose from, by the loss of a first seed on noised images that are not used again; then the other seeds run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from harness import Row, run
from optimizer_tasks import Memo
from torch import nn
from train_zoo import denoising, noised

from popflow.compose.zoo.networks import TRAINING, Denoiser
from popflow.core import Streams
from popflow.learn import cosine, fit
from popflow.optim import SINGD, Diagonal

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
NAME = "digits-all"


def adamw(network: nn.Module, lr: float) -> Callable:
    return partial(torch.optim.AdamW, lr=lr)


def singd(network: nn.Module, lr: float) -> Callable:
    return partial(SINGD, network, lr=lr, structure=Diagonal(), interval=10, max_rows=1024, fallback_lr=lr)


def trained(kind: Callable, lr: float, seed: int, steps: int) -> tuple[float, float]:
    """Loss on unseen noise after training, and CPU seconds of training."""
    data = TRAINING[NAME]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Denoiser()
    loss = denoising(network)

    def batches(rng: Streams) -> tuple:
        return tuple(part[:128] if part is not None else None for part in noised(data, False, rng))

    start = time.process_time()
    make, params = kind(network, lr), dict(network.named_parameters())
    result = fit(loss, params, batches, steps=steps, rng=Streams(seed), optimizer=make, schedule=cosine(steps, 5), compile=False)
    seconds = time.process_time() - start
    with torch.no_grad():
        unseen = [loss(result.params, noised(data, False, Streams(1000 + i)))[0] for i in range(4)]
    return float(torch.stack(unseen).mean()), seconds


def main(options: argparse.Namespace) -> list[Row]:
    """Loss of a digits expert after equal steps, SINGD against AdamW."""
    torch.set_num_threads(1)
    memo, steps, rates = Memo(options.json), 6 if options.quick else 200, RATES[1:2] if options.quick else RATES
    losses: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    chosen, start = {}, time.perf_counter()
    for name, kind in (("AdamW", adamw), ("SINGD", singd)):
        one = partial(trained, kind, steps=steps)
        lrs = {lr: memo(f"{name} {lr} tune {steps}", partial(one, lr, 100))[0] for lr in rates}
        lr = chosen[name] = min(lrs, key=lambda rate, lrs=lrs: lrs[rate])
        runs = [memo(f"{name} {lr} {seed} {steps}", partial(one, lr, seed)) for seed in range(options.seeds)]
        losses[name], seconds[name] = [loss for loss, _ in runs], statistics.median(spent for _, spent in runs)
    claim = f"{NAME}, {steps} steps of fit: loss on unseen noise"
    spread = statistics.stdev(losses["SINGD"]) if options.seeds > 1 else None
    notes = {"lr": chosen, "CPU seconds": seconds, "seeds": options.seeds}
    peers = {"AdamW": statistics.median(losses["AdamW"])}
    return [Row(claim, statistics.median(losses["SINGD"]), spread, "", None, "<=", peers, time.perf_counter() - start, notes)]


if __name__ == "__main__":
    run("optimizers_learn", main, seeds=3)
