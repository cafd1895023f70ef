"""Transition paths on the surface of Mueller and Brown, against the exact Schroedinger bridge of a grid.

    python benchmarks/mueller_brown.py [--only diagonal full mixture flow reweighting rare shooting] [--quick] [--keep]

Published setting: T = 0.0275, noise 5, end laws N(A, 0.025^2 I) and N(B, 0.025^2 I), 512 forces in each of 2500 steps (1.28 million, and as many
Hessian-vector products, counted apart). All paths have these end laws by construction, so that no action may be below the grid's.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial

import torch
from harness import Row, run

from popflow.core import Streams
from popflow.core.statistics import tail_shape
from popflow.paths import (
    Always,
    DiagonalPath,
    FlowPath,
    FullPath,
    Grid,
    MuellerBrown,
    Overdamped,
    Paths,
    Shooter,
    action,
    clock_grid,
    fit,
    probability,
    shoot,
    simulate,
    transitions,
    two_way,
)

T, NOISE, SIGMA0, RADIUS = 0.0275, 5.0, 0.025, 0.1
A, B = (torch.tensor(MuellerBrown.minima[k]) for k in (0, -1))
PROCESS = Overdamped(MuellerBrown(), noise=NOISE)
EXACT, EXACT_PROBABILITY = 11.159, 3.38e-5  # spacing 0.0125 and 220 steps; the part `truth` computes them again
FAMILIES = {
    "diagonal": (partial(DiagonalPath), 18.6),
    "full": (partial(FullPath), 15.0),
    "mixture": (partial(FullPath, components=3), 12.6),
    "flow": (partial(FlowPath), 11.8),
}
WORDS = {
    "diagonal": "diagonal Gaussian",
    "full": "full covariance",
    "mixture": "mixture of three, full covariance",
    "flow": "coupling flow",
}


def learn(name: str, seed: int, steps: int, sigma0: float | tuple[float, float] = SIGMA0):
    """Fit one family; return the path in float64, and what it cost."""
    start = time.perf_counter()
    path = FAMILIES[name][0](A, B, T, noise=NOISE, sigma0=sigma0, rng=Streams(seed))
    fitted = fit(PROCESS, path, steps=steps, batch=512, rng=Streams(seed), lr=1e-2, bar=False)
    return fitted.path.double(), fitted, time.perf_counter() - start


def family(name: str, options: argparse.Namespace) -> list[Row]:
    """Rows of one family: the action, mean over seeds, and its distance to the exact one in standard errors."""
    steps, draws = (20, 2000) if options.quick else (2500, 1_000_000)
    runs, seconds, counts = [], 0.0, (0, 0)
    for seed in range(options.seeds):
        path, fitted, spent = learn(name, seed, steps)
        runs.append(action(PROCESS, path, draws, Streams(1000 + seed)))
        seconds, counts = seconds + spent, (fitted.forces, fitted.hvps)
    values = [run.value for run in runs]
    low = min((run.value - EXACT) / run.error for run in runs)
    notes = {
        "actions": values,
        "standard errors": [run.error for run in runs],
        "forces": counts[0],
        "Hessian-vector products": counts[1],
        "forces of the estimate": runs[0].forces,
        "force share": [run.force for run in runs],
        "kinetic share": [run.free for run in runs],
    }
    error = max(run.error for run in runs)
    word = WORDS[name]
    return [
        Row(
            f"action, {word}",
            sum(values) / len(values),
            error,
            "nats",
            FAMILIES[name][1],
            peers={"exact": EXACT},
            seconds=seconds,
            notes=notes,
        ),
        Row(f"largest standard error, {word}", error, unit="nats", target=0.05),
        Row(f"lowest action over the exact one, {word}", low, unit="standard errors", target=-3.0, direction=">="),
    ]


def truth(options: argparse.Namespace) -> list[Row]:
    """The exact action, and the exact probability to be within 0.1 of B, from grids."""
    grid = Grid(PROCESS, *MuellerBrown.domain, 0.05 if options.quick else 0.0125)
    sigma0, steps = (0.05, 55) if options.quick else (SIGMA0, 220)
    bridge = grid.bridge(grid.gaussian(A, sigma0), grid.gaussian(B, sigma0), T, steps)
    reached = grid.probability(A, near_b, T, steps)
    return [
        Row("exact action (grid)", bridge.action, unit="nats"),
        Row("exact probability to end within 0.1 of B (grid)", reached, unit="1"),
    ]


def near_b(x: torch.Tensor) -> torch.Tensor:
    """Whether states are within 0.1 of B."""
    return (x - B.to(x)).square().sum(-1) < RADIUS**2


def reweighting(options: argparse.Namespace) -> list[Row]:
    """Paths of the fitted flow, weighted to the bridge, against the marginals of the grid at five times."""
    n, steps, fitting = (200, 50, 20) if options.quick else (10_000, 1000, 2500)
    path, _, _ = learn("flow", 0, fitting)
    begin, rng = time.perf_counter(), Streams(50)
    times = clock_grid(T, steps)
    shares = (0.1, 0.3, 0.5, 0.7, 0.9)
    keep = sorted({0, steps, *(int((times - s * T).abs().argmin()) for s in shares)})
    paths = simulate(PROCESS, path, n, times, rng, keep=keep)
    ends = [state.double() + SIGMA0 * rng.normal("ends", torch.empty(200_000, 2, dtype=torch.float64)) for state in (A, B)]
    weighted = paths.projected(*ends)
    bound, bound_error = paths.pinned(lambda x: -(x - B).square().sum(-1) / (2 * SIGMA0**2) - math.log(2 * math.pi * SIGMA0**2)).log_bound()
    seconds = time.perf_counter() - begin
    spacing, sigma0 = (0.05, 0.05) if options.quick else (0.025, SIGMA0)
    grid = Grid(PROCESS, *MuellerBrown.domain, spacing)
    bridge = grid.bridge(grid.gaussian(A, sigma0), grid.gaussian(B, sigma0), T, 50 if options.quick else 440)
    table, zs = {}, []
    for k, t in enumerate(weighted.times.tolist()[1:-1], start=1):
        x = weighted.x[:, k]
        mean, error = weighted.mean(x)
        variance, variance_error = weighted.mean((x - mean).square())
        exact, covariance, _ = bridge.moments(t)
        sd, exact_sd = variance.sqrt(), covariance.diagonal().sqrt()
        z = torch.cat([(mean - exact) / error, (sd - exact_sd) / (variance_error / (2 * sd))])
        zs += z.tolist()
        table[f"t/T = {t / T:.3f}"] = {
            "mean": mean.tolist(),
            "exact mean": exact.tolist(),
            "sd": sd.tolist(),
            "exact sd": exact_sd.tolist(),
            "z": z.tolist(),
        }
    notes = {
        "law": weighted.law,
        "forces": paths.forces,
        "log-probability bound, times the density of B": [bound, bound_error],
        "moments": table,
        "effective share towards P alone": paths.ess / n,
        "shape of the tail of the weights": tail_shape(weighted.log_w),
    }
    return [
        Row(
            f"effective share of {n} paths weighted to the bridge",
            weighted.ess / n,
            target=0.15,
            direction=">=",
            seconds=seconds,
            notes=notes,
        ),
        Row("largest z of 20 reweighted moments", max(map(abs, zs)), unit="standard errors"),
        Row("moments with z above 2, of 20", float(sum(abs(z) > 2 for z in zs))),
    ]


def rare(options: argparse.Namespace) -> list[Row]:
    """Probability to end within 0.1 of B, from a point at A."""
    n, steps, fitting = (200, 50, 20) if options.quick else (20_000, 1000, 2500)
    path, fitted, _ = learn("flow", 0, fitting, sigma0=(0.01, 0.06))
    begin = time.perf_counter()
    got = probability(PROCESS, path, near_b, n, clock_grid(T, steps, 1e-4), Streams(60), start=A.double())
    notes = {
        "estimate": got.value,
        "interval": [got.low, got.high],
        "exact": EXACT_PROBABILITY,
        "exact lies in the interval": got.low <= EXACT_PROBABILITY <= got.high,
        "share of paths that end there": got.hits,
        "effective paths": got.ess,
        "forces": got.forces,
        "shape of the tail of the weights": got.tail,
        "forces of the fit": fitted.forces,
        "forces of brute force at this error": EXACT_PROBABILITY / got.error**2 * steps if got.error else math.nan,
    }
    off = abs(got.value / EXACT_PROBABILITY - 1)
    return [
        Row(
            "relative error of P(|x_T - B| < 0.1)",
            off,
            got.error / EXACT_PROBABILITY,
            target=0.1,
            seconds=time.perf_counter() - begin,
            notes=notes,
        )
    ]


def near_a(x: torch.Tensor) -> torch.Tensor:
    """Whether states are within 0.1 of A."""
    return (x - A.to(x)).square().sum(-1) < RADIUS**2


def at_saddle(x: torch.Tensor) -> torch.Tensor:
    """How much to shoot from states ``[n, 2]``: around the higher saddle."""
    return (-(x - x.new_tensor(MuellerBrown.saddles[0])).square().sum(-1) / (2 * 0.2**2)).exp()


def first_marks(n: int, steps: int, rng: Streams) -> torch.Tensor:
    """States ``[n, 2]`` outside of A and B with the law ``exp(-U / kT) at_saddle``, by Metropolis' method: energies alone, no forces."""

    def log_density(x: torch.Tensor) -> torch.Tensor:
        inside = near_a(x) | near_b(x)
        return torch.where(inside, -math.inf, at_saddle(x).log() - PROCESS.potential(x) / (NOISE**2 / 2))

    x = torch.tensor(MuellerBrown.saddles[0], dtype=torch.float64).expand(n, 2).clone()
    now = log_density(x)
    for _ in range(steps):
        new = x + 0.1 * rng.normal("proposal", x)
        then = log_density(new)
        taken = rng.uniform("taken", (n,)).log() < then - now
        x, now = torch.where(taken[:, None], new, x), torch.where(taken, then, now)
    return x


def shooting(options: argparse.Namespace) -> list[Row]:
    """Shooting that accepts every path and two-way shooting, each with its own count of forces; frequency and committor against the grid's."""
    chains, moves, settle, dt = (20, 2, 20, 1e-4) if options.quick else (400, 20, 1000, 2.5e-5)
    grid = Grid(PROCESS, *MuellerBrown.domain, 0.05 if options.quick else 0.0125)
    a, b, pi = grid.where(near_a), grid.where(near_b), grid.equilibrium
    committor = grid.committor(a, b)
    exact = 2 * grid.rate(a, b) * float(pi @ (1 - committor))  # both directions
    mass = float((pi * ~a * ~b) @ at_saddle(grid.points))
    shooter, rng = Shooter(PROCESS, dt, near_a, near_b), Streams(70)

    def observe(paths: Paths) -> torch.Tensor:
        """Duration in steps, share of both ends in B, and the grid's committor where the path was grown from."""
        ends = ((shooter.state(paths.x[:, 0]) == 1).double() + (shooter.state(paths.last) == 1).double()) / 2
        mark = paths.x[torch.arange(len(ends)), paths.mark]
        return torch.stack([paths.length.double() - 1, ends, grid.at(committor, mark)], -1)

    begin = time.perf_counter()
    first, forces = shooter.start(first_marks(chains, settle, rng), rng)
    always = shoot(shooter, Always(at_saddle), first, moves, rng, observe)
    seconds, begin = time.perf_counter() - begin, time.perf_counter()
    forces += always.forces
    found, error = always.frequency(mass, dt)
    met = always.weight > 0
    duration, spread = (value[0] for value in always.mean())
    bins = []
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        here = (always.values[..., 2] >= low) & (always.values[..., 2] < low + 0.2)
        off = torch.where(here, always.values[..., 1] - always.values[..., 2], 0.0).sum(0)  # [chains], which are independent
        bins.append(float(off.sum() / (off.square().sum().sqrt() + 1e-12)))
    start = transitions(shooter, always.paths)
    twice = shoot(shooter, two_way, start, moves, rng) if len(start.length) else None
    rows = [
        Row(
            "transitions per time, shooting that accepts all: distance to the grid",
            abs(found - exact) / error if error else math.nan,
            unit="standard errors",
            target=3.0,
            peers={"found": found, "grid": exact},
            seconds=seconds,
            notes={"error": error, "forces": forces, "transition paths": int(met.sum()), "paths": met.numel(), "mean duration": float(duration) * dt},
        ),
        Row("committor of the shots, five bins: largest distance to the grid", max(map(abs, bins)), unit="standard errors", target=3.0),
        Row("forces for a transition path, shooting that accepts all", forces / max(1, int(met.sum()))),
    ]  # fmt: skip
    if twice is not None:
        later, after = twice.mean()
        rows += [
            Row("forces for an accepted path, two-way shooting", twice.forces / max(1, int(twice.accepted.sum())), seconds=time.perf_counter() - begin,
                notes={"acceptance": twice.acceptance, "forces": twice.forces, "chains": len(start.length)}),
            Row("mean duration, two-way shooting against the one that accepts all", float((later - duration).abs() / (after**2 + spread**2).sqrt()),
                unit="standard errors", target=3.0, notes={"durations": [float(later) * dt, float(duration) * dt]}),
        ]  # fmt: skip
    return rows


PARTS = {
    "truth": truth,
    **{name: partial(family, name) for name in FAMILIES},
    "reweighting": reweighting,
    "rare": rare,
    "shooting": shooting,
}


def main(options: argparse.Namespace) -> list[Row]:
    """Measure the actions of path families, reweighting and a rare event on the Mueller-Brown surface."""
    torch.manual_seed(0)
    rows = []
    for name in options.only:
        found = PARTS[name](options)
        for row in found:
            row.notes["part"] = name
        rows += found
    return rows


if __name__ == "__main__":
    run("mueller_brown", main, parts=tuple(PARTS))
