"""What one process of `workers.py` does: a share of a training, or of many populations; and the memory of many populations.

    torchrun --nproc-per-node 2 benchmarks/workers_jobs.py train 30 FOLDER

Every process writes its processor seconds and a digest of its result to ``FOLDER/RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.func import functional_call

from popflow.core import Streams
from popflow.learn import MLP, fit
from popflow.learn.distributed import processes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from sample_many_populations import sampled

BATCH, WIDTH = 4096, 256


def train(steps: int) -> list[float]:
    """Regress a perceptron of 0.2 million parameters on batches of 4096; return the sums of its parameters."""
    with Streams(1).layers():
        network = MLP(8, out=1, width=WIDTH, depth=4)

    def loss(params, batch):
        x, t = batch
        return (functional_call(network, params, (x, t))[:, 0] - x.sin().sum(1)).square().mean(), {}

    def batches(rng):
        return rng.normal("x", torch.empty(BATCH, 8)), rng.uniform("t", (BATCH,), torch.float32)

    found = fit(
        loss,
        dict(network.named_parameters()),
        batches,
        steps=steps,
        rng=Streams(0),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        compile=False,
        bar=False,
    )
    return [float(p.detach().double().sum()) for p in found.params.values()]


def populations(count: int, particles: int = 5000) -> list[float]:
    """Sample populations in shares; return their means."""
    found = processes(torch.device("cpu")).in_shares(lambda seeds: sampled(seeds, particles), torch.arange(count))
    return found[:, 0].tolist()


def memory(count: int, particles: int) -> Callable[[], object]:
    """The call whose peak memory is measured: many populations, a few at once."""
    return lambda: sampled(torch.arange(count), particles)


JOBS = {"train": train, "sample": populations}


def main(job: str, size: str, folder: str) -> None:
    """Run one job, warmed up by a small one, and write what it cost."""
    torch.set_num_threads(1)
    JOBS[job](2)
    processor, clock = time.process_time(), time.perf_counter()
    found = JOBS[job](int(size))
    cost = {"processor": time.process_time() - processor, "seconds": time.perf_counter() - clock, "found": found}
    Path(folder, f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(cost))


if __name__ == "__main__":
    main(*sys.argv[1:])
