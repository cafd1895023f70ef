"""More than one worker: oracles on two dask and two ray workers, training and sampling on two processes of torchrun, and memory of many populations.

``python benchmarks/workers.py [--quick] [--seeds N] [--json FILE]``

The oracle sleeps 50 ms; its speed-up is the time that the calls sleep over the time of the batch, so two workers can reach 2. For training and sampling the work of a process is
counted in its processor seconds, which other work on the machine does not lengthen much: the speed-up is that of one process over that of the busier of two, what two free
cores can reach. Both must find the same.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import Row, run
from ledger import dask, peer, ray, speed_up
from memory import peak_megabytes


def oracles(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Calls of an oracle on two workers of a cluster on this machine."""
    calls = 8 if options.quick else 100
    threads = statistics.median(speed_up(folder, calls, "threading") for _ in range(options.seeds))
    rows = []
    for name, cluster in (("dask", dask), ("ray", ray)):
        begin = time.perf_counter()
        found = [peer(cluster, folder, calls) for _ in range(options.seeds)]
        absent = next((one for one in found if isinstance(one, str)), None)
        numbers = [one for one in found if not isinstance(one, str)]
        rows.append(
            Row(
                f"oracle of 50 ms on two {name} workers: speed-up",
                math.nan if absent else statistics.median(numbers),
                statistics.stdev(numbers) if len(numbers) > 1 else None,
                target=None if absent else 1.8,
                direction=">=",
                peers={name: absent} if absent else {"two threads": threads},
                seconds=time.perf_counter() - begin,
                notes={"calls": calls},
            )
        )
    return rows


def costs(job: str, size: int, team: int) -> list[dict]:
    """What each of a team of processes spent on a job, and found."""
    script = Path(__file__).with_name("workers_jobs.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(team)] if team > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, str(script), job, str(size), folder]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode:
            raise RuntimeError(f"{job} on {team} processes failed:\n{done.stderr}")
        return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def shared(options: argparse.Namespace) -> list[Row]:
    """Training and sampling on one and on two processes."""
    rows = []
    for job, size, quick, title, apart in (
        ("train", 40, 2, "training a perceptron on batches of 4096", 1e-3),
        ("sample", 40, 4, "sampling populations of 5000", 0.0),
    ):
        begin, ratios, differences = time.perf_counter(), [], []
        for _ in range(options.seeds):
            (one,), two = (costs(job, quick if options.quick else size, team) for team in (1, 2))
            ratios.append(one["processor"] / max(part["processor"] for part in two))
            differences += [abs(a - b) for part in two for a, b in zip(one["found"], part["found"], strict=True)]
        notes = {"size": size, "processor seconds of one process": one["processor"]}
        error = statistics.stdev(ratios) if len(ratios) > 1 else None
        seconds = time.perf_counter() - begin
        rows += [
            Row(
                f"{title}, two processes: work of one over that of the busier",
                statistics.median(ratios),
                error,
                target=1.8,
                direction=">=",
                seconds=seconds,
                notes=notes,
            ),
            Row(f"{title}, two processes: largest difference from one", max(differences), target=apart, notes=notes),
        ]
    return rows


def memory(options: argparse.Namespace) -> list[Row]:
    """Peak memory of many populations, ten at once."""
    particles, counts = (1000, (10, 20)) if options.quick else (5000, (10, 100, 1000))
    begin = time.perf_counter()
    found = {count: peak_megabytes("workers_jobs", "memory", count, particles) for count in counts}
    if None in found.values():
        return [Row("peak memory of many populations", math.nan, peers={"memory": "absent: /proc/self/clear_refs cannot be written"})]
    first, last = counts[0], counts[-1]
    peers = {f"{count} populations, MB": value for count, value in found.items()}
    ratio = found[last] / max(found[first], 1e-9)
    claim = f"populations of {particles}, ten at once: peak memory of {last} over that of {first}"
    return [Row(claim, ratio, target=1.1, peers=peers, seconds=time.perf_counter() - begin)]


def main(options: argparse.Namespace) -> list[Row]:
    """Measure what scales, at one and at two."""
    with tempfile.TemporaryDirectory() as folder:
        parts: list[Callable[[], list[Row]]] = [lambda: oracles(options, Path(folder)), lambda: shared(options), lambda: memory(options)]
        return [row for part in parts for row in part()]


if __name__ == "__main__":
    run("workers", main)
