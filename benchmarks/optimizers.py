"""Time per step and memory of SINGD and its peers.

    python benchmarks/optimizers.py --only T1 T10 transformer --json FILE

Times are process CPU time on one thread, forward and backward pass included. Competitors take turns in blocks of ten steps, and a ratio is the median
over rounds of the ratio within a round, so that a busy machine slows both alike. The floor of dense SINGD is its forward and backward pass and the matrix
products of its update, each in the cheapest order that is known, written to buffers made before: no bracket, no norm, no momentum, no weights.
`torch.optim.Muon` multiplies in bfloat16, for which many CPUs have no instructions: its ratio says nothing about a GPU.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Row, run
from optimizer_peers import KFAC, STRUCTURES, Make, Pair, adamw, kron, muon, reference, soap
from optimizer_tasks import Task, backward, characters, digits_task, mlp
from torch import Tensor, nn

from popflow.optim import SINGD

PARTS = ("T1", "T10", "transformer")


def floor(task: Task, interval: int) -> Callable[[], None]:
    """Plain forward and backward pass of the MLP and the matrix products of dense SINGD, and nothing else: one step per call."""
    torch.manual_seed(0)
    net = task.model()
    batch = task.batch(torch.Generator().manual_seed(0))
    count = len(batch[0])
    shapes = [(layer.out_features, layer.in_features + 1) for layer in net if isinstance(layer, nn.Linear)]
    sides = [
        (n, other, torch.randn(n, n), torch.randn(count, n), torch.empty(count, n), torch.empty(n, n))
        for d, p in shapes
        for n, other in ((p, d), (d, p))
    ]
    gradients = [torch.randn(d, p) for d, p in shapes]
    calls = [0]

    def step() -> None:
        for parameter in net.parameters():
            parameter.grad = None
        task.loss(net, *batch).backward()
        if calls[0] % interval == 0:
            for n, other, k, rows, seen, out in sides:
                torch.mm(rows, k, out=seen)
                torch.mm(seen.T, seen, out=out)
                torch.mm(k.T, k, out=out)
                torch.mm(k, k, out=out)
                if interval * other >= n:
                    torch.mm(k, k.T, out=out)
        for i, gradient in enumerate(gradients):
            (p, d, k, *_), (_, _, c, *_) = sides[2 * i], sides[2 * i + 1]
            right = gradient @ k if interval * d >= p else (gradient @ k) @ k.T
            _ = c @ right if interval * p >= d else c.T @ (c @ right)
        calls[0] += 1

    return step


def stepper(task: Task, make: Callable, bare: bool = False) -> tuple[Callable[[], None], torch.optim.Optimizer, nn.Module]:
    torch.manual_seed(0)
    net = task.model()
    optimizer = make(net.parameters() if bare else net)
    batch, noise = task.batch(torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)

    def step() -> None:
        backward(task, net, optimizer, batch, noise)
        if not bare:
            optimizer.step()

    return step, optimizer, net


def in_turns(steps: dict[str, Callable[[], None]], blocks: int, slow: dict[str, int]) -> dict[str, list[float]]:
    """CPU milliseconds per step in blocks of ten; competitors take turns. ``slow`` caps the blocks of some."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(blocks + 1):
        for name, step in steps.items():
            if block > slow.get(name, blocks):
                continue
            start = time.process_time()
            for _ in range(10):
                step()
            if block:  # the first block warms up
                times[name].append((time.process_time() - start) * 100)
    return times


def over(times: dict[str, list[float]], name: str, other: str) -> float:
    """Median over rounds of one time over another of the same round: what slows the machine for a while slows both."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=False))


def numbers_of_state(optimizer: torch.optim.Optimizer) -> int:
    if isinstance(optimizer, SINGD):
        return sum(line.state for line in optimizer.report())
    if isinstance(optimizer, Pair):
        return sum(numbers_of_state(one) for one in optimizer.both)
    if isinstance(optimizer, KFAC):
        kept = [part for pair in (*optimizer.grams.values(), *optimizer.inverses.values()) for part in pair] + list(
            optimizer.buffers.values()
        )
        return sum(part.numel() for part in kept) + (numbers_of_state(optimizer.adamw) if optimizer.adamw is not None else 0)
    seen: set[int] = set()

    def count(value: Any) -> int:
        if isinstance(value, Tensor):
            fresh = value.data_ptr() not in seen and value.ndim > 0
            seen.add(value.data_ptr())
            return value.numel() if fresh else 0
        if isinstance(value, dict):
            return sum(map(count, value.values()))
        if isinstance(value, list | tuple):
            return sum(map(count, value))
        return sum(map(count, vars(value).values())) if type(value).__module__.startswith("singd") else 0

    total = count(dict(optimizer.state))
    for name in ("Ks", "Cs", "m_Ks", "m_Cs"):
        total += count(getattr(optimizer, name, {}))
    return total


def perceptron(options: argparse.Namespace, interval: int) -> list[Row]:
    """MLP 64-256-256-10 on digits, batch 128."""
    rows, blocks = [], 1 if options.quick else 25
    task = digits_task("MLP", mlp, (64,), 0.05, 100)
    absent: dict[str, str] = {}
    makes: dict[str, Make] = {"AdamW": partial(adamw, lr=1e-3)}
    makes |= {name: partial(SINGD, lr=1e-3, structure=ours, interval=interval) for name, (ours, _) in STRUCTURES.items()}
    makes |= {
        f"singd {name}": partial(reference, lr=1e-3, structure=them, interval=interval) for name, (_, them) in STRUCTURES.items() if them
    }
    makes |= {"Muon": partial(muon, lr=1e-3), "SOAP": partial(soap, lr=1e-3), "Kron": partial(kron, lr=1e-3)}
    makes |= {"KFAC": partial(KFAC, lr=1e-3, interval=interval)}
    steps = {"floor": floor(task, interval), "plain": stepper(task, partial(torch.optim.SGD, lr=0.0), bare=True)[0]}
    optimizers, count = {}, 0
    for name, make in makes.items():
        try:
            steps[name], optimizers[name], net = stepper(task, make)
            count = sum(parameter.numel() for parameter in net.parameters())
        except ImportError as error:
            absent[name] = f"absent: {error}"
    started = time.perf_counter()
    times = in_turns(steps, blocks, {"singd Toeplitz": 1, "Muon": 3, "Kron": 5, "SOAP": 5})
    seconds = time.perf_counter() - started
    ratios = {name: over(times, name, "AdamW") for name in times}
    ms = {name: round(statistics.median(values), 3) for name, values in times.items()}
    peers = {name: round(ratios[name], 2) for name in ("Muon", "SOAP", "Kron", "KFAC") if name in ratios} | absent
    notes = {"ms": ms, "interval": interval, "threads": torch.get_num_threads()}
    claim = f"MLP, dense, T={interval}: step over floor"
    rows.append(Row(claim, over(times, "dense", "floor"), None, "x", 1.25, "<=", {}, seconds, notes))
    targets = {("diagonal", 1): 1.6, ("Toeplitz", 1): 2.5}
    for name in STRUCTURES:
        target = targets.get((name, interval))
        rows.append(Row(f"MLP, {name}, T={interval}: step over AdamW's", ratios[name], None, "x", target, "<=", peers))
        if f"singd {name}" in times:
            faster = over(times, f"singd {name}", name)
            theirs = {"singd over AdamW": round(ratios[f"singd {name}"], 2)}
            rows.append(Row(f"MLP, {name}, T={interval}: singd's step over ours", faster, None, "x", 2.0, ">=", theirs))
            beyond = (ms[f"singd {name}"] - ms["plain"]) / (ms[name] - ms["plain"])
            rows.append(Row(f"MLP, {name}, T={interval}: singd's overhead over ours (less forward and backward)", beyond, None, "x"))
    if interval == 1:
        state = {name: numbers_of_state(optimizer) / count for name, optimizer in optimizers.items()}
        limits = {"diagonal": 1.05, "Toeplitz": 1.05, "block-30": 1.75}
        others = {name: round(value, 2) for name, value in state.items() if name not in STRUCTURES}
        rows += [
            Row(f"MLP, {name}: numbers of state per parameter", state[name], None, "", limits.get(name), "<=", others)
            for name in STRUCTURES
        ]
    return rows


def transformer(options: argparse.Namespace) -> list[Row]:
    """Character transformer, width 64, two blocks, 16 sequences of 64; at most 128 rows of each capture."""
    makes = {"AdamW": partial(adamw, lr=1e-3)} | {
        name: partial(SINGD, lr=1e-3, structure=ours, interval=10, max_rows=128) for name, (ours, _) in STRUCTURES.items()
    }
    steps = {name: stepper(characters(), make)[0] for name, make in makes.items()}
    times = in_turns(steps, 1 if options.quick else 15, {})
    rows = []
    for name in STRUCTURES:
        notes = {"ms": round(statistics.median(times[name]), 2), "AdamW ms": round(statistics.median(times["AdamW"]), 2), "max_rows": 128}
        claim = f"char transformer, {name}, T=10: step over AdamW's"
        rows.append(Row(claim, over(times, name, "AdamW"), None, "x", 1.10, "<=", {}, 0.0, notes))
    return rows


def main(options: argparse.Namespace) -> list[Row]:
    """CPU time per step and numbers of state, over fused AdamW's and over the matrix products of the same update."""
    torch.set_num_threads(1)
    random.seed(0)
    parts = {"T1": partial(perceptron, interval=1), "T10": partial(perceptron, interval=10), "transformer": transformer}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU available"
    rows = [row for part in options.only for row in parts[part](options)]
    if not torch.cuda.is_available():
        rows.append(Row("100 M-parameter transformer in bfloat16 on a GPU", float("nan"), peers={"GPU": f"absent: {gpu}"}))
    return rows


if __name__ == "__main__":
    run("optimizers", main, seeds=1, parts=PARTS)
