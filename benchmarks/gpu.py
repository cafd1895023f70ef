"""All that is claimed of a GPU, in one script: at most 8 minutes on one large GPU, with torch and this package alone, and nothing to download.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json          (make bench-gpu)

A room declares its rows with ``@part("ROOM", seconds)``: a function of `Machine` that returns rows, and the time it may take. A part that fails is a
missed row with its error, and the others still run. Calls that are compared take turns; a time is the median over turns, waited for by
synchronising. Without a GPU only ``--quick`` runs: tiny sizes on the processor, which show that the script works and nothing else.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from circuits_speed import DEPTH, ours
from harness import Row, run
from optimizer_tasks import Transformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from unet import UNet

from popflow.compose import VP, both, feynman_kac, from_network
from popflow.core import Population, Streams, simulate, systematic
from popflow.core.calculus import value_and_grad
from popflow.core.checks import put_off
from popflow.electrons import LocalEnergy, Molecule, Objective, PsiFormer, Walkers, equilibrate, evaluate, place, search
from popflow.learn.learner import Learner
from popflow.optim import SINGD

BUDGET = 480.0
"""Seconds for the whole script."""
Call = Callable[[], object]


@dataclass(frozen=True)
class Machine:
    """Where the rows are measured, and for how long.

    Attributes:
        device: ``cuda``, or ``cpu`` for the tiny form.
        seconds: What a part may take.
    """

    device: torch.device
    seconds: float

    @property
    def quick(self) -> bool:
        """Whether sizes are tiny."""
        return self.device.type == "cpu"

    def wait(self) -> None:
        """Wait for all that was started."""
        if not self.quick:
            torch.cuda.synchronize()

    def milliseconds(self, calls: dict[str, Call], share: float = 1.0) -> dict[str, float]:
        """Return the median time of each call, over turns in a share of the part's time; one turn before is not counted."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        end = time.perf_counter() + share * self.seconds
        for turn in range(2 if self.quick else 200):
            if turn >= 3 and time.perf_counter() > end:
                break
            for name in calls if turn % 2 == 0 else reversed(calls):
                self.wait()
                begin = time.perf_counter()
                calls[name]()
                self.wait()
                times[name].append(1e3 * (time.perf_counter() - begin))
        return {name: statistics.median(values) for name, values in times.items()}

    def peak(self, call: Call) -> float:
        """Return the most memory in MiB that tensors take while a call runs, those from before included; NaN on a processor."""
        if self.quick:
            return math.nan
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() / 2**20


PARTS: dict[str, tuple[Callable[[Machine], Iterable[Row]], float]] = {}
"""Name of a part -> what measures its rows, and the seconds that it may measure for."""


def part(name: str, seconds: float) -> Callable[[Callable[[Machine], Iterable[Row]]], Callable[[Machine], Iterable[Row]]]:
    """Declare a part."""

    def declare(measure: Callable[[Machine], Iterable[Row]]) -> Callable[[Machine], Iterable[Row]]:
        PARTS[name] = (measure, seconds)
        return measure

    return declare


@part("compose", 60)
def composed_steps(where: Machine) -> list[Row]:
    """Steps of AND and of a product of two prompts, with a U-Net of the size of Stable Diffusion 1.5 in bfloat16, over a plain loop of it."""
    side, width, levels, steps = (8, 8, (1, 2), 3) if where.quick else (64, 320, (1, 2, 4, 4), 10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(4, width=width, levels=levels, classes=10).eval()
        nn.init.normal_(net.leave[-1].weight, std=0.02)  # a last layer of zeros would make all weights equal
    net = net.to(where.device, torch.bfloat16)
    event, schedule, rng = (4, side, side), VP(), Streams(0, where.device)
    clock = torch.linspace(10.0, 1.0, steps + 1, dtype=torch.float64)
    one, two = torch.tensor(3, device=where.device), torch.tensor(7, device=where.device)
    first = from_network(net, schedule, event, cond=one, name="first")
    samplers = {"AND": both([first, first.given(two, "second")]), "product": feynman_kac(first * first.given(two, "second"))}
    start = rng.normal("start", torch.empty(1, 2, *event, device=where.device)) * 10.0

    @torch.no_grad()
    def compose(name: str) -> Population:
        sampler = samplers[name]
        with put_off():  # as `sample` does on an accelerator
            return simulate(sampler.step, sampler.start(start, 10.0), clock.square(), rng=rng)

    @torch.no_grad()
    def plain() -> Tensor:
        """Euler steps of the probability-flow ODE with classifier-free guidance: the same rows of the network, and nothing around them."""
        y, labels = start[0], torch.stack([one, two]).repeat_interleave(2)
        for high, low in pairwise(clock.tolist()):
            times = torch.full((4,), schedule.time(high), device=where.device, dtype=torch.bfloat16)
            eps = net((schedule.alpha(high) * y).repeat(2, 1, 1, 1).bfloat16(), times, labels).float()
            y = y + (low - high) * (eps[:2] + 7.5 * (eps[2:] - eps[:2]))
        return y

    times = where.milliseconds({"plain": plain, **{name: partial(compose, name) for name in samplers}})
    memory = {name: where.peak(call) for name, call in {"plain": plain, **{name: partial(compose, name) for name in samplers}}.items()}
    about = {"parameters (millions)": sum(p.numel() for p in net.parameters()) / 1e6, "latents": event, "dtype": "bfloat16", "steps": steps}
    rows = []
    for name in samplers:
        peers = {f"{who}, ms a step": times[who] / steps for who in ("plain", name)}
        claim = f"{name} of 2 prompts, 4 rows of the network: time over that of a plain loop"
        rows.append(Row(claim, times[name] / times["plain"], None, "", None if where.quick else 1.03, "<=", peers, 0.0, about))
        if not where.quick:
            peers = {f"{who}, MiB": memory[who] for who in ("plain", name)}
            rows.append(
                Row(
                    f"{name} of 2 prompts: peak memory over that of a plain loop",
                    memory[name] / memory["plain"],
                    None,
                    "",
                    1.05,
                    "<=",
                    peers,
                )
            )
        waits = host_waits(partial(compose, name))
        claim = f"{name} of 2 prompts: waits of the host for the device in {steps} steps, from a profiler trace"
        rows.append(
            Row(
                claim,
                float(sum(waits.values())),
                None,
                "",
                None if where.quick else 0.0,
                "<=",
                {kind: float(count) for kind, count in waits.items()},
            )
        )
    return rows


_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH", "Memcpy HtoD (Pageable")


def host_waits(call: Call) -> dict[str, int]:
    """Count the events of a call at which the host waits for the device, each by its name in the trace; on a processor there are none."""
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, *([kinds.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=activities) as trace, torch.profiler.record_function("measured"):
        call()
    inside = [event for event in trace.events() if event.name == "measured"]  # what the profiler itself waits for comes after it
    begin, end = min(e.time_range.start for e in inside), max(e.time_range.end for e in inside)
    seen = [event.name for event in trace.events() if begin <= event.time_range.start < end]
    return {kind: count for kind in _WAITS if (count := sum(name.startswith(kind) for name in seen))}


@part("diffusers", 60)
def composed_pipeline(where: Machine) -> list[Row]:
    """Steps of a composed pipeline over those of the pipeline's own loop, by `diffusers_cost`; absent without diffusers."""
    claim = "AND of 2 prompts in a Stable Diffusion 1.5 pipeline, bfloat16: time of a step over that of its own loop"
    if where.quick:
        return []  # `diffusers_cost --quick` is this on a processor
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        return [Row(claim, math.nan, None, "", None, "<=", {"diffusers": f"absent: {error}"})]
    from diffusers_cost import CLAIM, SIDES, alternate, pipeline

    made = alternate(pipeline("cuda", "cuda", torch.bfloat16), 2, 20, 0)
    median = {name: statistics.median(whole for whole, _ in made[name]) for name in SIDES}
    peers = {f"{name}, ms": 1e3 * value for name, value in median.items()}
    return [Row(claim, median["ours"] / median["theirs"], None, "", CLAIM, "<=", peers)]


@part("circuits", 60)
def circuit_gradients(where: Machine) -> list[Row]:
    """Value and gradient of an energy, to 26 qubits."""
    rows = []
    sizes = (8,) if where.quick else (16, 18, 20, 22, 24, 26)
    for n in sizes:
        gradient = ours(n, device=where.device.type)
        took = where.milliseconds({"this": gradient}, 0.8 / len(sizes))["this"]
        peers = {"peak memory, states": where.peak(gradient) * 2**20 / (8 * 2**n)}
        rows.append(Row(f"n={n}: value and gradient, depth {DEPTH}", took, None, "ms", None, "<=", peers))
        del gradient
    return rows


@part("optim", 90)
def language_model(where: Machine) -> list[Row]:
    """A training step of a transformer of 100 million parameters in bfloat16: tokens a second and memory, SINGD beside AdamW."""
    vocabulary, length, width, depth, batch = (32, 8, 16, 1, 2) if where.quick else (8192, 512, 768, 12, 16)
    noise = torch.Generator(where.device).manual_seed(0)
    tokens = torch.randint(vocabulary, (batch, length + 1), device=where.device, generator=noise)
    makers = {"AdamW": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-4), "SINGD": lambda net: SINGD(net, lr=1e-4)}
    steps: dict[str, Call] = {}
    memory, about = {}, {}
    for name, make in makers.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Transformer(vocabulary, length, width, depth)
        net = net.to(where.device, torch.bfloat16)
        optimizer = make(net)

        def step(net: nn.Module = net, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            F.cross_entropy(net(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
            optimizer.step()

        before = 0.0 if where.quick else torch.cuda.memory_allocated() / 2**20
        steps[name] = step
        step()
        memory[name] = where.peak(step) - before
        about = {"parameters (millions)": sum(p.numel() for p in net.parameters()) / 1e6, "tokens a step": batch * length}
    taken = where.milliseconds(steps, 0.8)
    speed = {f"{name}, tokens a second": 1e3 * batch * length / value for name, value in taken.items()}
    claim = f"transformer of {about['parameters (millions)']:.0f} M parameters: time of a SINGD step over AdamW's"
    rows = [Row(claim, taken["SINGD"] / taken["AdamW"], None, "", None, "<=", speed, 0.0, about)]
    if not where.quick:
        peers = {f"{name}, MiB": value for name, value in memory.items()}
        rows.append(Row("the same: memory of a step over AdamW's", memory["SINGD"] / memory["AdamW"], None, "", None, "<=", peers))
    return rows


@part("learn", 60)
def training_steps(where: Machine) -> list[Row]:
    """The step of `learn.fit` on a loss with input gradients: eager, compiled, and compiled and captured in a CUDA graph."""
    batch, width, dim = (8, 8, 2) if where.quick else (4096, 512, 50)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = (dim + 1, width, width, width, 1)
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        net = nn.Sequential(*layers[:-1]).to(where.device)
    rng = Streams(0, where.device)
    data = (rng.normal("x", torch.empty(batch, dim, device=where.device)), rng.uniform("t", (batch,), torch.float32))

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value, (dx, dt) = value_and_grad(lambda x, t: functional_call(net, params, (torch.cat([x, t[:, None]], 1),))[:, 0], *batch)
        return (dt + 0.5 * dx.square().sum(1)).mean() + value.mean(), {"potential": value.mean()}

    def learner() -> Learner:
        optimizer = partial(torch.optim.AdamW, lr=1e-3, capturable=not where.quick)
        made = Learner(loss, dict(net.named_parameters()), optimizer, False, None)
        made(data)
        return made

    eager, compiled = learner(), learner()
    compiled.compile(data)
    calls: dict[str, Call] = {"eager": lambda: eager(data), "compiled": lambda: compiled(data)}
    peers: dict[str, float | str] = {"graph": "absent: no CUDA"}
    if not where.quick:
        try:
            graphed = learner()
            graphed.compile(data)
            calls["graph"] = captured(partial(graphed, data))
            peers = {}
        except Exception as error:  # whatever the capture refuses
            peers = {"graph": f"absent: {type(error).__name__}: {str(error)[:200]}"}
    took = where.milliseconds(calls, 0.8)
    shown = peers | {f"{name}, ms": value for name, value in took.items()}
    size = f"batch {batch}, width {width}, d {dim}"
    rows = [Row(f"step of learn.fit, {size}: compiled over eager", took["compiled"] / took["eager"], None, "", None, "<=", shown)]
    if "graph" in took:
        rows.append(
            Row(
                f"step of learn.fit, {size}: captured in a CUDA graph over compiled", took["graph"] / took["compiled"], None, "", None, "<="
            )
        )
    return rows


def captured(call: Call) -> Call:
    """Return a call that replays what one call starts on the device, captured in a CUDA graph after three on a stream of their own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@part("electrons", 120)
def ground_state(where: Machine) -> list[Row]:
    """Fisher-Rao and mixed descent of beryllium from one start: variance and time of an iteration; then an iteration with more walkers."""
    walkers, many, warm, steps = (8, 16, 2, 2) if where.quick else (1024, 4096, 500, 2000)
    atom, rng = Molecule.of("Be"), Streams(0, where.device)
    psi = PsiFormer(atom, width=8 if where.quick else 64, layers=1 if where.quick else 4, rng=rng).to(where.device)
    begun = equilibrate(psi, place(psi, atom, walkers, rng), rng)
    begun = search(psi, atom, begun, steps=warm, rng=rng).walkers
    start, streams = {name: value.clone() for name, value in psi.state_dict().items()}, rng.state()
    objectives = {"Fisher-Rao": Objective.fisher_rao(), "mixed": Objective(0.1, 1.0)}

    def iterations(name: str, count: int) -> tuple[Walkers, float]:
        """Search from the start; the milliseconds of an iteration."""
        psi.load_state_dict(start)
        rng.load(streams)
        where.wait()
        before = time.perf_counter()
        last = search(psi, atom, begun, objective=objectives[name], steps=count, rng=rng).walkers
        where.wait()
        return last, 1e3 * (time.perf_counter() - before) / count

    slowest = max(iterations(name, 10)[1] for name in objectives)
    steps = min(steps, max(2, int(1e3 * where.seconds / 4 / slowest)))
    seen, took = {}, {"iterations": float(steps)}
    for name in objectives:
        last, took[f"{name}, ms an iteration"] = iterations(name, steps)
        seen[name] = evaluate(psi, atom, last, sweeps=2 if where.quick else 100, rng=rng).energy
    energies = {f"{name}, mHa above the exact energy": 1e3 * (energy.value + 14.667356) for name, energy in seen.items()}
    ratio = seen["Fisher-Rao"].variance / seen["mixed"].variance
    rows = [Row(f"Be, {walkers} walkers: variance of Fisher-Rao over that of mixed", ratio, None, "x", None, ">=", energies | took)]
    crowd = place(psi, atom, many, rng)
    locals_ = {"eager": LocalEnergy(psi, atom, chunk=many)} | (
        {} if where.quick else {"compiled": LocalEnergy(psi, atom, chunk=many, compile=True)}
    )
    calls: dict[str, Call] = {name: partial(local, crowd.x, gradient=True) for name, local in locals_.items()}
    times = {f"local energy and gradient, {name}, ms": value for name, value in where.milliseconds(calls, 0.2).items()}
    step = where.milliseconds({"one": lambda: search(psi, atom, crowd, objective=Objective(0.1, 1.0), steps=1, rng=rng)}, 0.2)["one"]
    return [*rows, Row(f"Be, {many} walkers: an iteration of mixed descent, eager", step, None, "ms", None, "<=", times)]


@part("core", 10)
def resampling(where: Machine) -> list[Row]:
    """Systematic resampling of many weights."""
    n = 10**3 if where.quick else 10**7
    rng = torch.Generator(where.device).manual_seed(0)
    weights = torch.rand(n, device=where.device, generator=rng, dtype=torch.float64)
    weights /= weights.sum()
    took = where.milliseconds({"this": lambda: systematic(weights, rng)})["this"]
    waits = host_waits(lambda: systematic(weights, rng))
    return [
        Row(f"systematic resampling of {n} weights", took, None, "ms", None, "<=", {kind: float(count) for kind, count in waits.items()})
    ]


def main(options: argparse.Namespace) -> list[Row]:
    """All rows of a GPU, at most 8 minutes; --quick: tiny ones on the processor."""
    if not options.quick and not torch.cuda.is_available():
        sys.exit("torch sees no GPU. Fix: run this on a machine with one, or with --quick, which shows that it works.")
    device, begin, rows = torch.device("cpu" if options.quick else "cuda"), time.perf_counter(), []
    for name in options.only:
        measure, seconds = PARTS[name]
        before = time.perf_counter()
        if before - begin + seconds > BUDGET:
            rows.append(Row(f"{name}: not measured", 0.0, None, "", 1.0, ">=", {"this": f"absent: {BUDGET:.0f} s are over"}))
            continue
        try:
            found = list(measure(Machine(device, seconds)))
        except Exception as error:  # the other parts are measured all the same
            if options.quick:
                raise
            found = [Row("failed", 0.0, None, "", 1.0, ">=", {"this": f"absent: {type(error).__name__}: {str(error)[:300]}"})]
        for row in found:
            row.claim, row.seconds = f"{name}: {row.claim}", (time.perf_counter() - before) / len(found)
        rows += found
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


if __name__ == "__main__":
    run("gpu", main, seeds=1, parts=tuple(PARTS))
