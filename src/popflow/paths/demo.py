"""``popflow demo doob``: paths across the surface of Mueller and Brown, whose least action is known from a grid."""

from __future__ import annotations

from dataclasses import replace

import torch

from popflow.paths import job
from popflow.paths.config import DemoConfig, PathConfig
from popflow.paths.report import report
from popflow.paths.scene import Scene, scene
from popflow.runs import Report, Run, Verdict, once

GAP, QUICK_GAP = 0.8, 4.0


def demo(config: DemoConfig, run: Run) -> Report:
    """Fit the conditioned process and compare its action with the exact one."""
    if config.quick:
        sizes = {"family": "full", "components": 3, "steps": 500, "batch": 384, "evaluations": 200_000, "paths": 400}
    else:
        sizes = {"shots": 20}
    setting = PathConfig(seed=config.seed, **sizes)
    made = scene(setting)
    found = replace(job.solve(setting, made, run), exact=exact(made, run))
    page, bar = report(found, run), QUICK_GAP if config.quick else GAP
    gap, error = found.action.value - found.exact, found.action.error  # pyright: ignore[reportOptionalOperand]
    return replace(
        page,
        verdict=Verdict(
            -3 * error <= gap <= bar and found.arrival >= 0.95,
            f"the action is {found.action}, {gap:.2f} over the least possible, {found.exact:.3f}; {found.arrival:.1%} of the paths arrive",
            f"at most {bar} nats over the exact action of the grid, never below it by more than three standard errors, and 95% of the paths arrive",
        ),
        next=("popflow path --potential dual-channel --family full --components 2",),
    )


def exact(made: Scene, run: Run) -> float:
    """Action of the Schroedinger bridge between the laws of both ends, on a grid of spacing sigma0, once per run."""

    def bridge() -> dict[str, torch.Tensor]:
        grid = made.grid(made.sigma0)
        assert grid is not None
        found = grid.bridge(grid.gaussian(made.start, made.sigma0), grid.gaussian(made.end, made.sigma0), made.time, 110)
        return {"action": torch.tensor(found.action)}

    run.progress("grid", 0, 1)
    action = float(once(run, "grid", bridge)["action"])
    run.progress("grid", 1, 1)
    return action
