"""Milliseconds per training step of a loss with input gradients: `popflow.learn` eager and compiled, and JAX, on one core.

Loss ``mean(d_t s + 1/2 |grad_x s|^2) + mean(s)`` (action matching, Hamilton-Jacobi residual), three hidden layers, SiLU, AdamW, float32.
Everything is in the time: gradients, optimiser, dispatch from Python. The same initial parameters and batches for all; windows of steps
are interleaved, medians of wall and processor time are reported, and the losses after the same number of steps are compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

CORE = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {CORE})  # before the libraries start their threads
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from harness import Row, run  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402

from popflow.core.calculus import value_and_grad  # noqa: E402
from popflow.core.streams import Streams  # noqa: E402
from popflow.learn import fit  # noqa: E402
from popflow.learn.learner import Learner  # noqa: E402

ADAMW = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
SIZES = {"large": (512, 256, 10, 1.15), "small": (128, 64, 2, 1.5)}  # batch, width, dimension, target ratio
Step = Callable[[], float | None]


def torch_problem(batch: int, width: int, dim: int):
    torch.manual_seed(0)
    layers = [
        nn.Linear(dim + 1, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, 1),
    ]
    network, rng = nn.Sequential(*layers), Streams(0)
    x, t = rng.normal("x", torch.empty(batch, dim)), rng.uniform("t", (batch,), torch.float32)

    def loss(params, batch):
        def potential(x, t):
            return functional_call(network, params, (torch.cat([x, t[:, None]], 1),))[:, 0]

        value, (dx, dt) = value_and_grad(potential, *batch)
        return (dt + 0.5 * dx.square().sum(1)).mean() + value.mean(), {"potential": value.mean()}

    return loss, dict(network.named_parameters()), (x, t)


def jax_step(params: dict[str, torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[Step, Callable[[], float]]:
    """The same step in JAX: vjp inside value_and_grad, optax.adamw, all in one jit, buffers donated."""
    import jax
    import jax.numpy as jnp
    import optax

    x, t = (jnp.asarray(value.numpy()) for value in batch)
    weights = [
        (jnp.asarray(params[f"{k}.weight"].detach().numpy().T.copy()), jnp.asarray(params[f"{k}.bias"].detach().numpy()))
        for k in (0, 2, 4, 6)
    ]

    def potential(weights, x, t):
        h = jnp.concatenate([x, t[:, None]], 1)
        for weight, bias in weights[:-1]:
            h = jax.nn.silu(h @ weight + bias)
        return (h @ weights[-1][0] + weights[-1][1])[:, 0]

    def loss(weights, x, t):
        value, back = jax.vjp(partial(potential, weights), x, t)
        dx, dt = back(jnp.ones_like(value))
        return (dt + 0.5 * (dx**2).sum(1)).mean() + value.mean(), value.mean()

    optimizer = optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(weights, state, x, t):
        (value, metric), grads = jax.value_and_grad(loss, has_aux=True)(weights, x, t)
        change, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, change), state, value, metric

    state = {"now": (weights, optimizer.init(weights), None, None)}

    def step():
        state["now"] = update(*state["now"][:2], x, t)

    def wait() -> float:
        return float(state["now"][2])

    return step, wait


def torch_step(loss, params, batch, compile: bool) -> tuple[Step, Callable[[], float]]:
    """The step of `popflow.learn.fit`; compiled, it takes its first step eagerly as `fit` does."""
    learner = Learner(loss, params, ADAMW, False, None)
    last = {"values": learner(batch)}
    first = [compile]

    def step():
        last["values"] = learner.compile(batch) if first[0] else learner(batch)
        first[0] = False

    return step, lambda: float(last["values"][0])


def window(step: Step, wait: Callable[[], float], steps: int) -> tuple[float, float]:
    """Wall and processor milliseconds per step, everything waited for, after two steps that warm the caches."""
    for _ in range(2):
        step()
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - wall) * 1e3 / steps, (time.process_time() - cpu) * 1e3 / steps


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    batch, width, dim, target = SIZES[name]
    start = time.perf_counter()
    loss, params, data = torch_problem(batch, width, dim)
    runners = {"eager": torch_step(loss, params, data, False), "compiled": torch_step(loss, params, data, True)}
    peers: dict[str, float | str] = {}
    try:
        runners["jax"] = jax_step(params, data)
    except ImportError as error:
        peers["jax"] = f"absent: {error}"
    first = {}
    for kind, (step, wait) in runners.items():
        begin = time.perf_counter()
        step()
        wait()
        first[kind] = time.perf_counter() - begin
    if "jax" in runners:  # torch has taken one eager step more
        runners["jax"][0]()
    losses = {kind: wait() for kind, (_, wait) in runners.items()}
    spread = max(abs(value - losses["eager"]) for value in losses.values())
    steps, windows = ((5, 3) if options.quick else (5, 41)) if name == "large" else ((50, 3) if options.quick else (40, 101))
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in runners}
    for _ in range(windows):
        for kind, (step, wait) in runners.items():
            times[kind].append(window(step, wait, steps))
    wall = {kind: statistics.median(w for w, _ in rows) for kind, rows in times.items()}
    cpu = {kind: statistics.median(c for _, c in rows) for kind, rows in times.items()}
    calm = {kind: sorted(w for w, _ in rows)[len(rows) // 20] for kind, rows in times.items()}
    notes = {
        "batch": batch,
        "width": width,
        "dimension": dim,
        "core": CORE,
        "threads": 1,
        "windows": windows,
        "steps_per_window": steps,
        "wall_ms": wall,
        "cpu_ms": cpu,
        "wall_ms_of_the_calmest_twentieth": calm,
        "first_call_seconds": first,
        "loss_after_two_steps": losses,
        "jax": version("jax"),
        "optax": version("optax"),
        "numpy": np.__version__,
    }
    size = f"batch {batch}, width {width}, d {dim}"
    rows = []
    if "jax" in runners:
        ratios = sorted(a / b for (a, _), (b, _) in zip(times["compiled"], times["jax"], strict=True))
        quarter = (ratios[3 * len(ratios) // 4] - ratios[len(ratios) // 4]) / 2
        rows.append(
            Row(
                f"compiled step / JAX step, {size}",
                statistics.median(ratios),
                quarter,
                "",
                target,
                peers=wall,
                notes=notes | {"error": "half interquartile range"},
            )
        )
        rows.append(Row(f"losses agree after two steps, {size}", spread, None, "", 1e-5, peers=losses))
    else:
        rows.append(Row(f"compiled step, {size}", wall["compiled"], None, "ms", peers=peers | wall, notes=notes))
    rows.append(Row(f"eager step / compiled step, {size}", wall["eager"] / wall["compiled"], None, "", 1.0, ">=", peers=cpu))
    rows.append(
        Row(f"first compiled call, {size}", first["compiled"], None, "s", peers={k: v for k, v in first.items() if k != "compiled"})
    )
    for row in rows:
        row.seconds = time.perf_counter() - start
    return rows


def overhead(options: argparse.Namespace) -> Row:
    """Processor time that `fit` adds to its own eager step: schedules, averages of metrics, guard, records."""
    start = time.perf_counter()
    loss, params, data = torch_problem(*SIZES["small"][:3])
    steps = 100 if options.quick else 1000
    extra = []
    for _ in range(3 if options.quick else 5):
        bare = window(*torch_step(loss, params, data, False), steps)[1]
        begin = time.process_time()
        fit(loss, params, lambda rng: data, steps=steps, rng=Streams(0), optimizer=ADAMW, compile=False)
        extra.append((time.process_time() - begin) * 1e3 / steps - bare)
    value = statistics.median(extra)
    return Row(
        "fit adds to its step (processor time)",
        value,
        None,
        "ms",
        0.1,
        notes={"steps": steps, "all": extra},
        seconds=time.perf_counter() - start,
    )


def version(module: str) -> str:
    from importlib.metadata import PackageNotFoundError, version as of

    try:
        return of(module)
    except PackageNotFoundError:
        return "absent"


def main(options: argparse.Namespace) -> list[Row]:
    """Training steps with input gradients, compiled against JAX, on one core."""
    torch.set_num_threads(1)
    rows = [row for name in (("small",) if options.quick else SIZES) for row in measure(name, options)]
    return [*rows, overhead(options)]


if __name__ == "__main__":
    run("inner_loop", main)
