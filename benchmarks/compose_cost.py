"""What composing costs beyond the networks: time and peak memory of whole steps over bare forward passes, and resampling a million weights.

Two U-Nets of over 3 M parameters on 3 x 32 x 32 images, 64 particles. A step is all that `popflow.compose` does between two noise levels:
resampling (forced at every step), both experts, move, weights or shares, tracked densities. Timings of the variants alternate; the value is
the median over repeats of the ratio. Memory is measured in a process per variant (see `memory`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from harness import Row, run
from memory import peak_megabytes
from unet import UNet

from popflow.compose import VP, both, feynman_kac, from_network
from popflow.core import Streams, systematic

EVENT, HIGH, LOW = (3, 32, 32), 2.0, 1.8
Call = Callable[[], object]


def network(seed: int, width: int) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(3, width=width, levels=(1, 2, 3), classes=10).eval()
        torch.nn.init.normal_(net.leave[-1].weight, std=0.02)  # a last layer of zeros would make all weights equal
    return net


def call_of(kind: str, particles: int, width: int) -> Call:
    """One of: ``bare-stacked`` (a forward pass of twice the batch), ``bare-two`` (two passes), or a step, of two networks or of one shared."""
    what, experts_are = kind.split("-")
    one = network(0, width)
    two = network(1, width) if experts_are == "two" else one
    x, time_ = torch.randn(2 * particles, *EVENT, generator=torch.Generator().manual_seed(0)), VP().time(HIGH)
    labels = torch.tensor([3, 7]).repeat_interleave(particles)
    if kind == "bare-stacked":
        return torch.no_grad()(lambda: one(x, torch.full((2 * particles,), time_), labels))
    if kind == "bare-two":
        half, t = x[:particles], torch.full((particles,), time_)
        return torch.no_grad()(lambda: (one(half, t, labels[:particles]), two(half, t, labels[particles:])))
    schedule, (a, b) = VP(), (torch.tensor(3), torch.tensor(7))
    first = from_network(one, schedule, EVENT, cond=a, name="first")
    second = first.given(b, "second") if two is one else from_network(two, schedule, EVENT, cond=b, name="second")
    sampler = feynman_kac(first * second, ess_below=1.0) if what == "product" else both([first, second])
    rng = Streams(0)
    pop = sampler.start(rng.normal("start", torch.empty(1, particles, *EVENT)) * HIGH, HIGH)
    pop = pop.reweight(torch.randn(1, particles, generator=torch.Generator().manual_seed(0)))
    return lambda: sampler.step(pop, HIGH**2, LOW**2, rng)


def alternate(calls: dict[str, Call], repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds of each call, one after another in turn, after a first round that does not count."""
    wall, busy = ({name: [] for name in calls} for _ in range(2))
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start, cpu = time.perf_counter(), time.process_time()
            call()
            if repeat:
                wall[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - cpu)
    return wall, busy


def ratios(seconds: dict[str, list[float]], name: str, over: str) -> list[float]:
    return [a / b for a, b in zip(seconds[name], seconds[over], strict=True)]


def steps(options: argparse.Namespace, threads: list[int]) -> list[Row]:
    particles, width, repeats = (4, 16, 2) if options.quick else (64, 48, 9)
    calls = {
        kind: call_of(kind, particles, width)
        for kind in ("bare-two", "product-two", "both-two", "bare-stacked", "product-shared", "both-shared")
    }
    parameters = sum(p.numel() for p in network(0, width).parameters()) / 1e6
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        wall, busy = alternate(calls, repeats)
        for what, bar, says in (("product", 1.05, "FKC product"), ("both", 1.10, "AND")):
            for which, bare in (("two", "bare-two"), ("shared", "bare-stacked")):
                each, cpu = ratios(wall, f"{what}-{which}", bare), ratios(busy, f"{what}-{which}", bare)
                name = (
                    "two networks, over two bare forwards"
                    if which == "two"
                    else "one network under two conditions, over one forward of both"
                )
                peers = {
                    "bare, seconds": statistics.median(wall[bare]),
                    "step, seconds": statistics.median(wall[f"{what}-{which}"]),
                    "ratio of processor time": statistics.median(cpu),
                }
                notes = {"threads": count, "parameters, million": parameters, "particles": particles, "ratios": each, "processor time": cpu}
                claim = f"time of a step, {says}, {name}, {count} thread{'s' * (count > 1)}"
                error = statistics.stdev(each) / len(each) ** 0.5
                rows.append(Row(claim, statistics.median(each), error, "", bar, "<=", peers, sum(wall[f"{what}-{which}"]), notes))
    torch.set_num_threads(threads[0])
    return rows


def memory(options: argparse.Namespace) -> list[Row]:
    particles, width = (4, 16) if options.quick else (64, 48)
    kinds = ("bare-stacked", "product-shared", "both-shared", "product-two", "both-two")[: 2 if options.quick else None]
    peak = {kind: peak_megabytes("compose_cost", "call_of", kind, particles, width) for kind in kinds}
    bare = peak["bare-stacked"]
    if bare is None:
        return []
    names = {"product": "FKC product", "both": "AND", "shared": "one network under two conditions", "two": "two networks"}
    rows = []
    for kind in kinds[1:]:
        what, which = kind.split("-")
        claim = f"peak memory of a step, {names[what]}, {names[which]}, over one bare forward of the stacked batch"
        peers = {"bare, MB": bare, "step, MB": peak[kind]}
        rows.append(Row(claim, peak[kind] / bare, None, "", 1.3, "<=", peers))
    return rows


def resampling(options: argparse.Namespace) -> list[Row]:
    """Systematic resampling of normalised weights: ours with all it checks and casts, the peer compiled by numba and warmed up."""
    n, repeats, rows = *((10**4, 5) if options.quick else (10**6, 51)), []
    try:
        from particles import resampling as peer
    except ImportError as error:
        return [
            Row(
                "systematic resampling against the library particles", float("nan"), None, "", None, "<=", {"particles": f"absent: {error}"}
            )
        ]
    torch.set_num_threads(1)
    for dtype in (torch.float64, torch.float32):
        weights = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(0).to(dtype)
        array, rng = weights.numpy(), torch.Generator().manual_seed(0)
        calls: dict[str, Call] = {"ours": lambda w=weights, g=rng: systematic(w, g), "particles": lambda w=array: peer.systematic(w, M=n)}
        wall, busy = alternate(calls, repeats)
        each = ratios(wall, "ours", "particles")
        peers = {f"{k}, ms": 1e3 * statistics.median(v) for k, v in wall.items()}
        peers["ratio of processor time"] = statistics.median(ratios(busy, "ours", "particles"))
        claim = f"systematic resampling of {n} weights in {str(dtype).removeprefix('torch.')}: time over the library particles"
        rows.append(Row(claim, statistics.median(each), statistics.stdev(each) / len(each) ** 0.5, "", 1.0, "<=", peers, sum(wall["ours"])))
    return rows


def main(options: argparse.Namespace) -> list[Row]:
    """Cost of composing beyond the networks themselves."""
    configured = torch.get_num_threads()
    threads = sorted({1, configured} if options.quick else {1, configured, os.cpu_count() or 1})
    return [*resampling(options), *memory(options), *steps(options, threads)]


if __name__ == "__main__":
    run("compose_cost", main)
