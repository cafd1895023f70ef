"""The settings of ``popflow flow`` and of its demo. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from popflow import citations
from popflow.runs.config import Flag, check


@dataclass(frozen=True)
class FlowConfig:
    """Learn how a population moves, grows and spreads between snapshots, and predict held-out times.

    Lengths are in the scaled coordinates, times in the unit of the file.

    Attributes:
        cells: AnnData file (``.h5ad``). It is not changed.
        time: Column of ``obs`` with the time of each cell. Numbers, or text that reads as numbers.
        rep: Key of ``obsm`` with the coordinates.
        dims: Number of leading coordinates to use.
        scale: Scaling of the coordinates: unit variance of each (``whiten``), one factor for all (``global``) or ``none``. It is fitted
            without held-out cells.
        lagrangian: Mass is conserved (``transport``), cells also divide and die (``unbalanced``), or paths are noisy (``bridge``).
        lam: Cost of transport relative to growth, in units of one over length squared (``unbalanced``). Mass is not carried further than
            ``pi / sqrt(lam)``.
        noise: Standard deviation of the noise, in units of length per square root of time (``bridge``).
        masses: Total mass of the snapshots: the same for all (``equal``), or proportional to the number of cells (``counts``). The latter is
            for ``unbalanced`` only, and for experiments that sequence the same fraction of every population.
        acceleration: Let all cells accelerate like the means of the training snapshots.
        velocity: Key of ``obsm`` with RNA velocity in the same coordinates as ``rep``. The flow follows it where the snapshots leave a choice.
        smooth: Prefer smooth trajectories across snapshots. The flow follows the velocities that the training snapshots imply, like a
            spline; it takes at least three.
        bandwidth: Length over which velocities are averaged (``velocity``, ``smooth``).
        strength: Factor on RNA velocities, whose direction is more reliable than their speed.
        hold_out: Time to hold out of the fit and score the flow on. Repeat it for several; neither the first nor the last.
        types: Column of ``obs`` with cell types, for fates and growth rates by type.
        baseline: Fit and score OT-conditional flow matching for comparison.
        steps: Training steps.
        width: Hidden width of the networks.
        lr: Learning rate.
        seed: Random seed.
    """

    cells: Annotated[Path, Flag("CELLS")]
    time: Annotated[str, Flag(metavar="KEY")]
    rep: Annotated[str, Flag(metavar="KEY")] = "X_pca"
    dims: Annotated[int, Flag(ge=1)] = 5
    scale: Literal["whiten", "global", "none"] = "whiten"
    lagrangian: Literal["transport", "unbalanced", "bridge"] = "transport"
    lam: Annotated[float, Flag(gt=0)] = 1.0
    noise: Annotated[float, Flag(gt=0)] = 0.3
    masses: Literal["equal", "counts"] = "equal"
    acceleration: bool = False
    velocity: Annotated[str | None, Flag(metavar="KEY")] = None
    smooth: bool = False
    bandwidth: Annotated[float, Flag(gt=0)] = 1.0
    strength: Annotated[float, Flag(gt=0)] = 1.0
    hold_out: Annotated[tuple[float, ...], Flag(metavar="TIME")] = ()
    types: Annotated[str | None, Flag(metavar="KEY")] = None
    baseline: bool = True
    steps: Annotated[int, Flag(ge=1)] = 1500
    width: Annotated[int, Flag(ge=1)] = 64
    lr: Annotated[float, Flag(gt=0)] = 3e-3
    seed: Annotated[int, Flag(ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        if self.smooth and self.velocity is not None:
            raise ValueError(f"smooth=True and velocity={self.velocity!r}, wanted one of them: a flow has one reference drift.")
        if self.masses == "counts" and self.lagrangian != "unbalanced":
            raise ValueError(f"masses='counts' with lagrangian={self.lagrangian!r}, which conserves mass. Fix: lagrangian='unbalanced'.")
        followed = self.smooth or self.velocity is not None
        for name, read, where in (
            ("lam", self.lagrangian == "unbalanced", "lagrangian='unbalanced'"),
            ("noise", self.lagrangian == "bridge", "lagrangian='bridge'"),
            ("bandwidth", followed, "smooth or velocity"),
            ("strength", self.velocity is not None, "velocity"),
        ):
            if not read and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect without {where}.")
        if self.cells.is_dir():
            raise ValueError(f"cells={str(self.cells)!r} is a folder, wanted an AnnData file (.h5ad).")


@dataclass(frozen=True)
class DemoConfig:
    """Learn four flows of least action whose answers are known in closed form.

    Attributes:
        seed: Random seed.
        quick: Run a smaller version in seconds. At most 128 cells and 120 steps; 400 for far atoms, whose time dependence is learned slowly.
        steps: Training steps of each problem.
        cells: Samples in each snapshot of the Gaussian problems.
        width: Hidden width of the networks.
    """

    seed: Annotated[int, Flag(ge=0)] = 0
    quick: bool = False
    steps: Annotated[int, Flag(ge=20)] = 600
    cells: Annotated[int, Flag(ge=16)] = 1024
    width: Annotated[int, Flag(ge=4)] = 64

    def __post_init__(self) -> None:
        check(self)


def cite(config: FlowConfig) -> tuple[str, ...]:
    """BibTeX of the flow, and of the reference drift and the baseline where they are used."""
    return (
        citations.WASSERSTEIN_LAGRANGIAN_FLOWS,
        *((citations.WASSERSTEIN_SPLINES,) if config.smooth else ()),
        *((citations.OT_FLOW_MATCHING,) if config.baseline else ()),
    )
