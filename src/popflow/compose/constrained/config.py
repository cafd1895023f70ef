"""The settings of ``popflow optimize`` and of its demo. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from popflow import citations
from popflow.runs.config import Flag, check
from popflow.runs.user_code import source_of


@dataclass(frozen=True)
class OptimizeConfig:
    """Propose rows that are good by a target or an objective, and could be rows of the table.

    Attributes:
        data: Table of measured rows: ``.csv``, ``.tsv``, or ``.npz`` with an array ``x`` and one for each target. It is not changed.
        target: Column to optimise. Repeat it for several; the candidates then form a front.
        n: Number of candidates.
        objective: Function of one row (a mapping of column names to values) as ``MODULE:FUNCTION``. If None: a surrogate
            of the target is learned.
        minimize: Look for low values rather than high ones.
        beta: Inverse temperature, in units of one over the standard deviation of the target. 0 samples the data's distribution.
        route: Sequential Monte Carlo (``exact``), guided diffusion (``guided``), or guided diffusion and Langevin steps (``langevin``).
        select: The best different rows among the particles (``best``), or draws of the distribution (``draw``).
        categorical: Column whose numbers are labels. Repeat it for several; ``all`` for every column. Columns of text are recognised. If None: columns of text alone.
        missing: Refuse rows with missing values (``raise``), or leave them out (``drop``).
        kappa: Uncertainties added to a prediction on the optimistic side. Negative values are cautious.
        populations: Weights of the targets to look for at once (several targets).
        particles: Rows that are moved together.
        moves: Noise-denoise moves at each temperature.
        reverse_steps: Steps of a reverse diffusion.
        steps: Training steps of the prior, and of the surrogate.
        width: Hidden width of the networks.
        members: Networks of the surrogate.
        on_error: What a row gets whose objective fails: it is ruled out (``skip``), takes the ``worst`` value of the table, or ends the run (``raise``).
        workers: Calls of the objective at once.
        timeout: Seconds after which a call of the objective is ended. If None: no limit.
        seed: Random seed.
    """

    data: Annotated[Path, Flag("DATA")]
    target: Annotated[tuple[str, ...], Flag(metavar="COLUMN")] = ()
    n: Annotated[int, Flag(ge=1)] = 256
    objective: Annotated[str | None, Flag(metavar="MODULE:FUNCTION")] = None
    minimize: bool = False
    beta: Annotated[float, Flag(ge=0)] = 4.0
    route: Literal["exact", "langevin", "guided"] = "exact"
    select: Literal["best", "draw"] = "best"
    categorical: Annotated[tuple[str, ...], Flag(metavar="COLUMN")] = ()
    missing: Literal["raise", "drop"] = "raise"
    kappa: Annotated[float, Flag(ge=-10, le=10)] = 0.0
    populations: Annotated[int, Flag(ge=1)] = 8
    particles: Annotated[int, Flag(ge=1)] = 1024
    moves: Annotated[int, Flag(ge=1)] = 3
    reverse_steps: Annotated[int, Flag(ge=1)] = 30
    steps: Annotated[int, Flag(ge=1)] = 3000
    width: Annotated[int, Flag(ge=1)] = 256
    members: Annotated[int, Flag(ge=1)] = 4
    on_error: Literal["skip", "worst", "raise"] = "skip"
    workers: Annotated[int, Flag(ge=1)] = 1
    timeout: Annotated[float | None, Flag(gt=0, metavar="SECONDS")] = None
    seed: Annotated[int, Flag(ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        if not self.target and self.objective is None:
            raise ValueError(
                "target is empty and there is no objective, wanted something to optimise. Fix: --target COLUMN, or --objective MODULE:FUNCTION."
            )
        if len(set(self.target)) < len(self.target):
            raise ValueError(f"target={self.target!r} names a column twice, wanted different ones.")
        if self.objective is not None and not all(self.objective.partition(":")):
            raise ValueError(f"objective={self.objective!r}, wanted MODULE:FUNCTION, for example my_module:yield_of.")
        if len(self.target) > 1 and self.route != "exact":
            raise ValueError(f"route={self.route!r} with {len(self.target)} targets: a front needs route='exact'.")
        if self.objective is not None and len(self.target) > 1:
            raise ValueError(f"objective with {len(self.target)} targets, wanted one target or none: a function returns one number here.")
        if self.objective is not None and self.route != "exact":
            raise ValueError(f"objective with route={self.route!r}: a black box has no gradient. Fix: route='exact'.")
        if self.populations != type(self).populations and len(self.target) < 2:
            raise ValueError(f"populations={self.populations} has no effect on a single target.")
        if self.beta == 0 and self.select == "best":
            raise ValueError("beta=0 with select='best': all rows are equally good. Fix: --select draw.")
        if self.on_error == "worst" and not self.target:
            raise ValueError(
                "on_error='worst' without a target: no measured value says what the worst is. Fix: --target COLUMN, or --on-error skip."
            )
        if self.objective is None:
            for name in ("on_error", "workers", "timeout"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"{name}={getattr(self, name)!r} has no effect without an objective.")
        elif self.kappa:
            raise ValueError(f"kappa={self.kappa} has no effect with an objective: there is no surrogate.")
        if self.data.is_dir():
            raise ValueError(f"data={str(self.data)!r} is a folder, wanted a table (.csv, .tsv, .npz).")

    def inputs(self) -> Iterable[Path]:
        """Yield the source of the objective."""
        if self.objective is not None:
            found = source_of(self.objective.partition(":")[0])
            if found is not None:
                yield found


@dataclass(frozen=True)
class DemoConfig:
    """Minimise Branin's function where data lie in a rotated ellipse that only the data know.

    Two of the three minima lie in the ellipse; the third is what an optimiser reports that does not know where the data are.

    Attributes:
        seed: Random seed.
        quick: Run a smaller version in seconds. At most 600 training steps and 400 particles.
        steps: Training steps of the prior.
        particles: Rows that are moved together.
        beta: Inverse temperature, in units of one over the standard deviation of the function on the data.
    """

    seed: Annotated[int, Flag(ge=0)] = 0
    quick: bool = False
    steps: Annotated[int, Flag(ge=10)] = 2000
    particles: Annotated[int, Flag(ge=16)] = 1000
    beta: Annotated[float, Flag(ge=0)] = 60.0

    def __post_init__(self) -> None:
        check(self)


def cite(config: OptimizeConfig) -> tuple[str, ...]:
    """BibTeX of the method, and of samplers where the exact route is used."""
    return (citations.DIFFOPT, *((citations.SMC_SAMPLERS,) if config.route == "exact" else ()))
