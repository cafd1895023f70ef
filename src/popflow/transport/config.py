"""The settings of ``popflow flow`` and of its demo. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from popflow import citations
from popflow.runs.config import Flag, check


@dataclass(frozen=True)
class FlowConfig:
    """Learn how a population moves, grows and spreads between snapshots, and predict held-out times; or how patients respond, and predict unseen ones.

    Lengths are in the scaled coordinates, times in the unit of the file; responses of patients are in the unit of the features.

    Attributes:
        cells: AnnData file (``.h5ad``). It is not changed.
        time: Column of ``obs`` with the time of each cell. Numbers, or text that reads as numbers; durations and dates count in days, dates from the
            first.
        populations: Column of ``obs`` with the patient (donor, sample) of each cell, to learn responses to treatments instead of times.
        treatment: Column of ``obs`` with the treatment of each cell (``populations``).
        control: The treatment that stands for none (``populations``).
        cofactor: Features are ``arcsinh(x / cofactor)``, as usual for mass cytometry (``populations``). If None: features as they are.
        neighbours: Neighbours of a cell in the graph that embeds its population (``populations``).
        members: Flows of different seeds, whose spread tells how far to trust a prediction (``populations``).
        rep: Key of ``obsm`` with the coordinates. ``X`` takes all columns of the matrix itself (``populations``).
        dims: Number of leading coordinates to use.
        scale: Scaling of the coordinates: unit variance of each (``whiten``), one factor for all (``global``) or ``none``. It is fitted
            without held-out cells.
        lagrangian: Mass is conserved (``transport``), cells also divide and die (``unbalanced``), or paths are noisy (``bridge``).
        lam: Cost of transport relative to growth, in units of one over length squared (``unbalanced``). Mass is not carried further than
            ``pi / sqrt(lam)``.
        noise: Standard deviation of the noise, in units of length per square root of time (``bridge``).
        draws: Draws of the noise for each cell, over which its fate and its place one snapshot later are averaged (``bridge``).
        masses: Total mass of the snapshots: the same for all (``equal``), or proportional to the number of cells (``counts``). The latter is
            for ``unbalanced`` only, and for experiments that sequence the same fraction of every population.
        acceleration: Let all cells accelerate like the means of the training snapshots.
        velocity: Key of ``obsm`` with RNA velocity in the same coordinates as ``rep``. The flow follows it where the snapshots leave a choice. If None:
            not used.
        smooth: Prefer smooth trajectories across snapshots. The flow follows the velocities that the training snapshots imply, like a
            spline; it takes at least three.
        bandwidth: Length over which velocities are averaged (``velocity``, ``smooth``).
        strength: Factor on RNA velocities, whose direction is more reliable than their speed.
        hold_out: Time, or patient, to hold out of the fit and score the flow on. Repeat it for several; neither the first nor the last time.
        types: Column of ``obs`` with cell types, for fates and growth rates by type. If None: no types.
        baseline: Fit and score OT-conditional flow matching for comparison.
        steps: Training steps.
        width: Hidden width of the networks.
        lr: Learning rate.
        seed: Random seed.
    """

    cells: Annotated[Path, Flag("CELLS")]
    time: Annotated[str | None, Flag(metavar="KEY")] = None
    populations: Annotated[str | None, Flag(metavar="KEY")] = None
    treatment: Annotated[str | None, Flag(metavar="KEY")] = None
    control: Annotated[str | None, Flag(metavar="NAME")] = None
    cofactor: Annotated[float | None, Flag(gt=0)] = None
    neighbours: Annotated[int, Flag(ge=0)] = 10
    members: Annotated[int, Flag(ge=1)] = 3
    rep: Annotated[str, Flag(metavar="KEY")] = "X_pca"
    dims: Annotated[int, Flag(ge=1)] = 5
    scale: Literal["whiten", "global", "none"] = "whiten"
    lagrangian: Literal["transport", "unbalanced", "bridge"] = "transport"
    lam: Annotated[float, Flag(gt=0)] = 1.0
    noise: Annotated[float, Flag(gt=0)] = 0.3
    draws: Annotated[int, Flag(ge=1)] = 32
    masses: Literal["equal", "counts"] = "equal"
    acceleration: bool = False
    velocity: Annotated[str | None, Flag(metavar="KEY")] = None
    smooth: bool = False
    bandwidth: Annotated[float, Flag(gt=0)] = 1.0
    strength: Annotated[float, Flag(gt=0)] = 1.0
    hold_out: Annotated[tuple[str | float, ...], Flag(metavar="WHAT")] = ()
    types: Annotated[str | None, Flag(metavar="KEY")] = None
    baseline: bool = True
    steps: Annotated[int, Flag(ge=1)] = 1500
    width: Annotated[int, Flag(ge=1)] = 64
    lr: Annotated[float, Flag(gt=0)] = 3e-3
    seed: Annotated[int, Flag(ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        self._check_source()
        if self.smooth and self.velocity is not None:
            raise ValueError(f"smooth=True and velocity={self.velocity!r}, wanted one of them: a flow has one reference drift.")
        if self.masses == "counts" and self.lagrangian != "unbalanced":
            raise ValueError(f"masses='counts' with lagrangian={self.lagrangian!r}, which conserves mass. Fix: lagrangian='unbalanced'.")
        followed = self.smooth or self.velocity is not None
        for name, read, where in (
            ("lam", self.lagrangian == "unbalanced", "lagrangian='unbalanced'"),
            ("noise", self.lagrangian == "bridge", "lagrangian='bridge'"),
            ("draws", self.lagrangian == "bridge", "lagrangian='bridge'"),
            ("bandwidth", followed, "smooth or velocity"),
            ("strength", self.velocity is not None, "velocity"),
        ):
            if not read and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect without {where}.")
        if self.cells.is_dir():
            raise ValueError(f"cells={str(self.cells)!r} is a folder, wanted an AnnData file (.h5ad).")

    def _check_source(self) -> None:
        """Times or patients, and no setting of the other."""
        if (self.time is None) == (self.populations is None):
            raise ValueError(
                f"time={self.time!r} and populations={self.populations!r}, wanted one of them: the column with times, or the one with patients."
            )
        patients = self.populations is not None
        if patients and (self.treatment is None or self.control is None):
            raise ValueError(
                f"treatment={self.treatment!r} and control={self.control!r} with populations={self.populations!r}, wanted the column with the "
                "treatments and the name of the control."
            )
        of_patients = ("treatment", "control", "cofactor", "neighbours", "members")
        of_times = ("scale", "draws", "acceleration", "velocity", "smooth")
        for name in of_times if patients else of_patients:
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect {'with' if patients else 'without'} populations.")
        if patients and self.rep == "X" and self.dims != type(self).dims:
            raise ValueError(f"dims={self.dims!r} has no effect with rep='X', which takes all columns of the matrix.")


@dataclass(frozen=True)
class PatientsConfig:
    """Predict how populations never seen respond, where the answer is known and depends on the population.

    Attributes:
        seed: Random seed.
        quick: Run a smaller version in seconds. At most 40 populations, 100 cells and 350 steps.
        populations: Populations to learn from.
        cells: Cells of each, before and after.
        steps: Training steps of each flow.
        width: Hidden width of the velocity.
    """

    seed: Annotated[int, Flag(ge=0)] = 0
    quick: bool = False
    populations: Annotated[int, Flag(ge=8)] = 60
    cells: Annotated[int, Flag(ge=32)] = 300
    steps: Annotated[int, Flag(ge=20)] = 600
    width: Annotated[int, Flag(ge=4)] = 64

    def __post_init__(self) -> None:
        check(self)


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
    if config.populations is not None:
        other = (citations.OT_FLOW_MATCHING,) if config.lagrangian == "transport" else (citations.WASSERSTEIN_LAGRANGIAN_FLOWS,)
        return (citations.META_FLOW_MATCHING, *other)
    return (
        citations.WASSERSTEIN_LAGRANGIAN_FLOWS,
        *((citations.WASSERSTEIN_SPLINES,) if config.smooth else ()),
        *((citations.OT_FLOW_MATCHING,) if config.baseline else ()),
    )
