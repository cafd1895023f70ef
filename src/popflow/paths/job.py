"""The job behind ``popflow path``: fit a path, measure its action, simulate it, weigh it, and shoot beside it; each a stage of the run."""

from __future__ import annotations

import zlib
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from popflow.core import Streams
from popflow.paths.config import PathConfig
from popflow.paths.curves import clock_grid
from popflow.paths.doob import Action, action, fit
from popflow.paths.ensemble import PathEnsemble, grid, simulate
from popflow.paths.report import CALLS, FILES, Outcome, Shot, report
from popflow.paths.scene import Scene, path, scene
from popflow.paths.shooting import Always, Paths, Shooter, shoot, two_way
from popflow.paths.thermal_path import ThermalPath
from popflow.paths.trajectory import write
from popflow.runs import ConfigError, Ledger, Report, Run, once, training

CHAINS = 200
FAR = 1e3
"""Distances between A and B beyond which a simulation is taken to be unstable."""


def run(config: PathConfig, run: Run) -> Report:
    """Fit, measure, simulate, report."""
    with Ledger(run.path / CALLS) if config.costly else nullcontext() as ledger:
        try:
            made = scene(config, ledger)
        except (ValueError, TypeError) as error:
            if ledger is not None and not run.resumed:
                (run.path / CALLS).unlink()  # nothing is left of a run that was refused: a mended one begins anew
            raise ConfigError(str(error)) from error
        return report(solve(config, made, run), run)


def solve(config: PathConfig, made: Scene, run: Run) -> Outcome:
    """Carry out the stages."""
    start = path(config, made, streams(config, "path"))
    steps, batch = config.setting("steps"), config.setting("batch")
    fitted = fit(
        made.process,
        start,
        steps=steps,
        batch=batch,
        rng=streams(config, "fit"),
        lr=config.lr,
        **training(run, "fit", steps),
    )
    best = fitted.path.double()
    measured = acted(config, made, best, run)
    run.log(f"action {measured} from {measured.forces} force evaluations")
    ensemble = walked(config, made, best, run)
    spent = steps * (batch // start.components) * start.components + getattr(start, "prepared", 0)
    if made.molecule is not None:
        one = made.place(ensemble.x[0])
        for name in FILES:
            write(run.path / name, one, made.molecule.topology, ensemble.times)
    return Outcome(config, made, best, measured, ensemble, spent, shot(config, made, ensemble, run))


def streams(config: PathConfig, stage: str) -> Streams:
    """Random streams of one stage, which no other stage shares."""
    return Streams(zlib.crc32(f"{config.seed}/{stage}".encode()))


def acted(config: PathConfig, made: Scene, best: Any, run: Run) -> Action:
    """The action of the fitted path, once per run."""

    def measure() -> dict[str, Tensor]:
        found = action(made.process, best, config.setting("evaluations"), streams(config, "action"))
        return {"action": torch.tensor([found.value, found.error, found.free, found.force, found.forces], dtype=torch.float64)}

    run.progress("action", 0, 1)
    *values, forces = once(run, "action", measure)["action"].tolist()
    run.progress("action", 1, 1)
    return Action(*values, forces=int(forces))


def walked(config: PathConfig, made: Scene, best: Any, run: Run) -> PathEnsemble:
    """Simulated paths with their weights towards the reference with its end seen through N(B, sigma0^2), once per run."""
    steps = round(made.time / config.setting("dt"))
    dense = not isinstance(best, ThermalPath)  # laws of thermal width at the ends need no small steps there
    times = clock_grid(made.time, steps) if dense else grid(made.time, config.setting("dt"))
    size = config.setting("paths")

    def measure() -> dict[str, Tensor]:
        found = simulate(made.process, best, size, times, streams(config, "paths"))
        return {"x": found.x, "log_w": found.log_w}

    run.progress("paths", 0, 1)
    saved = once(run, "paths", measure)
    run.progress("paths", 1, 1)
    away, apart = float((made.place(saved["x"]) - made.start).abs().max()), max(float((made.end - made.start).abs().max()), made.reach)
    if not made.place(saved["x"]).isfinite().all() or away > FAR * apart:
        raise ConfigError(
            f"dt={config.setting('dt')!r} is too long: simulated paths went {away:.3g} away, and A and B are {apart:.3g} apart. Fix: a smaller dt."
        )
    law = f"P: the reference chain of {steps} steps{', dense at both ends' if dense else ''}, from the start law of the path"
    found = PathEnsemble(saved["x"], times, saved["log_w"], law, size * steps)
    return found.pinned(made.log_end, "N(B, sigma0^2)" if made.molecule is None else "N(B, sigma0^2) with Maxwell velocities")


def shot(config: PathConfig, made: Scene, ensemble: PathEnsemble, run: Run) -> Shot | None:
    """Shooting from the frames of the fitted paths, once per run; None when there are to be no shots."""
    if not config.shots:
        return None
    steps = len(ensemble.times) - 1

    def near(x: Tensor, state: Tensor) -> Tensor:
        return (x - state).norm(dim=-1) < made.reach

    shooter = Shooter(made.process, made.time / steps, partial(near, state=made.start), partial(near, state=made.end), frames=steps + 1)

    def measure() -> dict[str, Tensor]:
        rng = streams(config, "shots")
        if config.shooting == "always":
            move, (first, forces) = Always(), shooter.start(chosen(ensemble.x, rng)[:, steps // 2], rng)
        else:
            move, (first, forces) = two_way, (joined(shooter, ensemble.x, rng), 0)
        if first is None:
            none = torch.zeros(config.shots, 1, dtype=torch.float64)
            return {"highest": none, "weight": none, "accepted": torch.tensor(0.0), "forces": torch.tensor(0)}
        shots = shoot(shooter, move, first, config.shots, rng, lambda paths: made.energy(paths.x).max(1).values)
        later = slice(config.shots // 2, None)  # the first moves remember the start
        return {
            "highest": shots.values[later],
            "weight": shots.weight[later],
            "accepted": torch.tensor(shots.acceptance),
            "forces": torch.tensor(shots.forces + forces),
        }

    run.progress("shots", 0, 1)
    saved = once(run, "shots", measure)
    run.progress("shots", 1, 1)
    return Shot(saved["highest"], saved["weight"], float(saved["accepted"]), int(saved["forces"]), config.shooting)


def chosen(x: Tensor, rng: Streams) -> Tensor:
    """A path for each chain, of paths ``x [n, frames, D]``."""
    return x[torch.randint(len(x), (CHAINS,), generator=rng("which"))]


def joined(shooter: Shooter, x: Tensor, rng: Streams) -> Paths | None:
    """A path for each chain, of those in ``x [n, frames, D]`` that join A and B; None when none does."""
    paths = Paths(x, torch.full((len(x),), x.shape[1]), torch.full((len(x),), x.shape[1] // 2))
    arrived = x[shooter.joins(paths) > 0]
    if not len(arrived):
        return None
    first = chosen(arrived, rng)
    return Paths(first, paths.length[:1].expand(CHAINS), paths.mark[:1].expand(CHAINS))
