"""Speed of the forward Laplacian: beside jvp-of-grad in torch, and beside folx in JAX on the same network with the same weights.

python benchmarks/qmc_speed.py --json FILE

PsiFormer of 4 layers of width 64 with 4 heads and 4 determinants on Be (4 electrons), float32, 256 walkers, one core. Processor milliseconds, medians; seconds of
the first call (compilation) are in the notes. Peers (jax, folx) are in the extra ``bench``; where they are absent their errors stand in the rows.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from harness import Row, run
from torch.func import grad, jvp, vmap

from popflow.core import Streams
from popflow.electrons import LocalEnergy, Molecule, Objective, PsiFormer, equilibrate, place, pull, surrogate


def timed(f: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median processor milliseconds of a call, and wall-clock seconds of the first."""
    start = time.perf_counter()
    f()
    first, found = time.perf_counter() - start, []
    for _ in range(repeats):
        start = time.process_time()
        f()
        found.append(1e3 * (time.process_time() - start))
    return statistics.median(found), first


def jvp_of_grad(psi: PsiFormer, x: torch.Tensor) -> torch.Tensor:
    """The Laplacian as it is written without a forward Laplacian: a forward derivative of the gradient along every coordinate."""
    shape, size = x.shape[1:], x[0].numel()

    def of_one(y: torch.Tensor) -> torch.Tensor:
        slope = grad(lambda z: psi(z.reshape(1, *shape))[0])
        return vmap(lambda v: jvp(slope, (y,), (v,))[1] @ v)(torch.eye(size)).sum()

    return vmap(of_one)(x.flatten(1))


def folx_functions(psi: PsiFormer, system: Molecule) -> dict[str, Callable]:
    """The same network in JAX with the same weights: its local energy by folx, and the gradient of that, compiled."""
    import jax
    import jax.numpy as jnp
    from folx import forward_laplacian

    w = {name: jnp.asarray(value.detach().numpy()) for name, value in psi.state_dict().items()}
    n, heads, dets = system.electrons, psi.heads, psi.determinants
    pairs = w["jastrow.pairs"]

    def log_psi(flat):
        x = flat.reshape(n, 3)
        a = x[:, None] - w["features.centres"]
        r = jnp.sqrt((a * a).sum(-1))
        direction = (a / (1 + r)[..., None]).reshape(n, -1)
        h = jnp.concatenate([jnp.log1p(r), direction, w["features.spins"]], 1) @ w["embed.weight"].T
        for k in range(len(psi.attention)):
            q, key, v = ((h @ w[f"attention.{k}.{name}.weight"].T).reshape(n, heads, -1) for name in ("query", "key", "value"))
            weights = jax.nn.softmax(jnp.einsum("ihe,jhe->hij", q, key) / jnp.sqrt(q.shape[-1]), -1)
            h = h + jnp.einsum("hij,jhe->ihe", weights, v).reshape(n, -1) @ w[f"attention.{k}.out.weight"].T
            inner = jnp.tanh(h @ w[f"mlp.{k}.0.weight"].T + w[f"mlp.{k}.0.bias"])
            h = h + jnp.tanh(inner @ w[f"mlp.{k}.1.weight"].T + w[f"mlp.{k}.1.bias"])
        parts, first = [], 0
        for s, count in enumerate(psi.counts):
            mine = slice(first, first + count)
            envelope = (jnp.exp(-r[mine, None, :] * w[f"envelope.{s}.decay"]) * w[f"envelope.{s}.weight"]).sum(-1)
            parts.append(h[mine] @ w[f"orbital.{s}.weight"].T * envelope)
            first += count
        m = jnp.concatenate(parts).reshape(n, dets, n).transpose(1, 0, 2)
        sign, log = jnp.linalg.slogdet(m)
        top = log.max()
        total = (sign * jnp.exp(log - top)).sum()
        gap = x[pairs[0]] - x[pairs[1]]
        length = w["jastrow.length"][w["jastrow.kinds"]]
        jastrow = (-w["jastrow.slopes"] * length**2 / (length + jnp.sqrt((gap * gap).sum(-1)))).sum()
        return jnp.log(jnp.abs(total)) + top + jastrow

    charges = jnp.asarray(system.charges, jnp.float32)

    def energy(flat):
        out = forward_laplacian(log_psi, 6)(flat)
        x = flat.reshape(n, 3)
        gap = x[pairs[0]] - x[pairs[1]]
        r = jnp.sqrt(((x[:, None] - w["features.centres"]) ** 2).sum(-1))
        potential = (1 / jnp.sqrt((gap * gap).sum(-1))).sum() - (charges / r).sum()
        slope = out.jacobian.dense_array
        return potential - 0.5 * (out.laplacian + (slope * slope).sum())

    return {"energy": jax.jit(jax.vmap(energy)), "gradient": jax.jit(jax.vmap(jax.grad(energy)))}


def peers(psi: PsiFormer, system: Molecule, x: torch.Tensor, mine: torch.Tensor, repeats: int) -> dict[str, tuple[float, float] | str]:
    """Times of folx, after a check that it computes the same energies; its error where it is absent."""
    try:
        import jax

        found = folx_functions(psi, system)
        points = jax.numpy.asarray(x.flatten(1).numpy())
        off = (torch.tensor(jax.device_get(found["energy"](points)).tolist()) - mine).abs().median()
        assert off < 1e-3, f"the two networks disagree by {off} Hartree"
        return {name: timed(lambda f=f: f(points).block_until_ready(), repeats) for name, f in folx_functions(psi, system).items()}
    except ImportError as error:
        return dict.fromkeys(("energy", "gradient"), f"absent: {error}")


def parameter_step(psi: PsiFormer, x: torch.Tensor, local: LocalEnergy, objective: Objective) -> Callable[[], None]:
    """The part of an iteration that differs: local energies (and their gradient), then the gradient in the parameters."""

    def step() -> None:
        known = local(x, gradient=objective.weights(1.0)[0] > 0)
        value, _ = surrogate(psi, x, pull(objective, known, 1.0))
        torch.autograd.grad(value, list(psi.parameters()), allow_unused=True)

    return step


def main(options: Namespace) -> list[Row]:
    """Laplacians, local energies, their gradients, and whole iterations."""
    system, rng = Molecule.of("Be"), Streams(0)
    walkers, repeats, layers = (8, 1, 1) if options.quick else (256, 11, 4)
    psi = PsiFormer(system, width=64, layers=layers, heads=4, determinants=4, rng=rng)
    placed = equilibrate(psi, place(psi, system, walkers, rng), rng, sweeps=2)
    x = placed.x
    eager = LocalEnergy(psi, system)
    times = {"energy, eager": timed(lambda: eager(x), repeats), "gradient, eager": timed(lambda: eager(x, gradient=True), repeats)}
    with torch.no_grad():
        for name, laplacian in (("forward", psi.forward_laplacian), ("jvp of grad", lambda part: jvp_of_grad(psi, part))):
            in_chunks = [
                timed(lambda f=laplacian, size=size: [f(part) for part in x.split(size)], repeats) for size in {walkers, min(64, walkers)}
            ]
            times[f"Laplacian, {name}"] = min(in_chunks)  # at once or in chunks that stay in the cache, whichever is faster
        times["log psi"] = timed(lambda: psi(x), repeats)
    steps = {name: parameter_step(psi, x, eager, objective) for name, objective in (("FR", Objective()), ("W", Objective.wasserstein()))}
    times |= {f"step {name}, eager": timed(step, repeats) for name, step in steps.items()}
    if not options.quick:  # a compilation takes a minute
        compiled = LocalEnergy(psi, system, chunk=walkers, compile=True)
        times["energy, compiled"] = timed(lambda: compiled(x), repeats)
        times["gradient, compiled"] = timed(lambda: compiled(x, gradient=True), repeats)
        for name, objective in (("FR", Objective()), ("W", Objective.wasserstein())):
            times[f"step {name}, compiled"] = timed(parameter_step(psi, x, compiled, objective), repeats)
    other = peers(psi, system, x, eager(x).energy, repeats)
    return rows_of(times, other, options.quick)


def rows_of(times: dict[str, tuple[float, float]], other: dict[str, tuple[float, float] | str], quick: bool) -> list[Row]:
    """Ratios, with milliseconds and first calls in the notes."""
    notes = {name: {"ms": ms, "first call, s": first} for name, (ms, first) in times.items()} | {
        "folx": other,
        "threads": torch.get_num_threads(),
    }

    def target(value: float) -> float | None:
        return None if quick else value

    ratio = times["Laplacian, jvp of grad"][0] / times["Laplacian, forward"][0]
    rows = [Row("Laplacian: jvp of grad over forward Laplacian, torch eager", ratio, None, "x", target(5.0), ">=", notes=notes)]
    for what, kind, wanted in (
        ("energy", "compiled", 1.15),
        ("gradient", "compiled", 0.65),
        ("energy", "eager", None),
        ("gradient", "eager", 1.0),
    ):
        mine, theirs = times.get(f"{what}, {kind}"), other[what]
        if mine is None:
            continue
        claim = f"local energy's {what}, {kind}, over folx + jit" if what == "gradient" else f"local energy, {kind}, over folx + jit"
        if isinstance(theirs, str):
            rows.append(Row(claim.replace("over folx + jit", "(folx absent)"), mine[0], None, "ms", peers={"folx": theirs}))
        else:
            peer = {
                "folx + jit (ms)": theirs[0],
                "folx, first call (s)": theirs[1],
                "popflow (ms)": mine[0],
                "popflow, first call (s)": mine[1],
            }
            rows.append(Row(claim, mine[0] / theirs[0], None, "x", wanted and target(wanted), peers=peer))
    for kind in ("eager", "compiled"):
        if f"step W, {kind}" in times:
            # an iteration also makes ten moves, the same for both
            moves = 10 * times["log psi"][0]
            value = (times[f"step W, {kind}"][0] + moves) / (times[f"step FR, {kind}"][0] + moves)
            rows.append(
                Row(
                    f"Wasserstein iteration over Fisher-Rao, {kind}, ten moves",
                    value,
                    None,
                    "x",
                    target(1.9) if kind == "compiled" else None,
                )
            )
    return rows


if __name__ == "__main__":
    run("qmc_speed", main)
