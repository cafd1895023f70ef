"""Milliseconds per training step of a Wasserstein Lagrangian flow, eager and compiled, and of the same loss in JAX, on one core.

Transport between two snapshots in five dimensions, 256 conditional paths, three hidden layers of 64, AdamW, float32: the regression of the gradient of the
potential on the velocities of the paths. The same initial parameters and batch for all; windows of steps are interleaved.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

from inner_loop import CORE, torch_step, version, window  # first: it fixes the core before the libraries start their threads

# isort: split
import torch
from harness import Row, run

from popflow.core import Streams
from popflow.learn import MLP
from popflow.transport import path_coupling
from popflow.transport.conditional_paths import ConditionalPaths
from popflow.transport.lagrangian import Lagrangian
from popflow.transport.saddle import Potential, saddle_loss
from popflow.transport.snapshots import Snapshots

DIM, WIDTH, SLICES, PATHS = 5, 64, 16, 16


def problem():
    rng = Streams(0)
    snapshots = Snapshots.of([rng.normal("cells", torch.empty(200, DIM)) + k for k in (0.0, 1.0)], times=[0, 1])
    with rng.layers():
        potential = Potential(Lagrangian(), snapshots, MLP(DIM, out=1, width=WIDTH, depth=3))
    batch = ConditionalPaths.of(Lagrangian(), snapshots, path_coupling.least_action, rng).draw(rng, SLICES, PATHS)
    params = {f"s.{name}": p.detach() for name, p in potential.named_parameters()}
    return potential, saddle_loss(Lagrangian(), potential, None, 1.0, 1.0), params, batch


def jax_step(potential: Potential, params: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]):
    """The same step in JAX: gradient in x by vjp inside value_and_grad, optax.adamw, all in one jit, buffers donated."""
    import jax
    import jax.numpy as jnp
    import optax

    a, b, t = (jnp.asarray(batch[name].flatten(0, 1).numpy()) for name in "abt")
    order = ["first", "hidden.0", "hidden.1", "last"]
    weights = [tuple(jnp.asarray(params[f"s.network.{k}.{part}"].numpy().T.copy()) for part in ("weight", "bias")) for k in order]
    means, radii = jnp.asarray(potential.means.numpy()), jnp.asarray(potential.radii.numpy())
    omega, unit = jnp.asarray(potential.network.time.omega.numpy()), potential.unit

    def value_of(weights, x, t):
        gap = means[1] - means[0]
        away = x - (means[0] + t[:, None] * gap)
        phase = t[:, None] * omega
        h = jnp.concatenate([away / (radii[0] + t * (radii[1] - radii[0]))[:, None], t[:, None], jnp.sin(phase), jnp.cos(phase)], 1)
        h = h @ weights[0][0] + weights[0][1]
        for weight, bias in weights[1:]:
            h = jax.nn.silu(h) @ weight + bias
        return (gap * away).sum(1) + unit * h[:, 0]

    def loss(weights, a, b, t):
        x, velocity = (1 - t)[:, None] * a + t[:, None] * b, b - a
        value, back = jax.vjp(lambda x: value_of(weights, x, t), x)
        slope = back(jnp.ones_like(value))[0]
        upper = ((velocity**2).sum(1) / 2).mean()
        return -((velocity * slope).sum(1) - (slope**2).sum(1) / 2).mean(), upper

    optimizer = optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(weights, state, a, b, t):
        (value, metric), grads = jax.value_and_grad(loss, has_aux=True)(weights, a, b, t)
        change, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, change), state, value, metric

    now = {"state": (weights, optimizer.init(weights), None, None)}

    def step():
        now["state"] = update(*now["state"][:2], a, b, t)

    return step, lambda: float(now["state"][2])


def main(options: argparse.Namespace) -> list[Row]:
    """Training steps of the regression along conditional paths, compiled against JAX, on one core."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    potential, loss, params, batch = problem()
    runners = {"eager": torch_step(loss, params, batch, False), "compiled": torch_step(loss, params, batch, True)}
    peers: dict[str, float | str] = {}
    try:
        runners["jax"] = jax_step(potential, params, batch)
    except ImportError as error:
        peers["jax"] = f"absent: {error}"
    for kind, (step, _) in runners.items():  # torch has taken an eager step already
        for _ in range(2 if kind == "jax" else 1):
            step()
    losses = {kind: wait() for kind, (_, wait) in runners.items()}
    steps, windows = (20, 3) if options.quick else (40, 61)
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in runners}
    for _ in range(windows):
        for kind, (step, wait) in runners.items():
            times[kind].append(window(step, wait, steps))
    wall = {kind: statistics.median(w for w, _ in rows) for kind, rows in times.items()}
    cpu = {kind: statistics.median(c for _, c in rows) for kind, rows in times.items()}
    size = f"{SLICES * PATHS} paths, width {WIDTH}, d {DIM}"
    notes = {"core": CORE, "windows": windows, "steps_per_window": steps, "wall_ms": wall, "cpu_ms": cpu, "jax": version("jax")}
    rows = [
        Row(f"compiled step, {size}", wall["compiled"], None, "ms", peers=peers | wall, seconds=time.perf_counter() - begin, notes=notes)
    ]
    if "jax" in runners:
        ratios = sorted(a / b for (a, _), (b, _) in zip(times["compiled"], times["jax"], strict=True))
        rows.append(Row(f"compiled step / JAX step, {size}", statistics.median(ratios), None, "", None))
        rows.append(
            Row("losses agree after two steps", max(abs(v - losses["eager"]) for v in losses.values()), None, "", 1e-5, peers=losses)
        )
    return [*rows, Row(f"eager step / compiled step, {size}", wall["eager"] / wall["compiled"], None, "", None)]


if __name__ == "__main__":
    run("lagrangian_speed", main)
