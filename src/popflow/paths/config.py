"""The settings of ``popflow path`` and of its demo. Importing this module imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from popflow import citations
from popflow.core.errors import unknown
from popflow.runs.config import Flag, check
from popflow.runs.user_code import source_of


@dataclass(frozen=True)
class Preset:
    """The usual setting of a known potential; duration, noise and widths in its own units. And the usual sizes of a run."""

    time: float
    noise: float
    sigma0: float
    dt: float
    steps: int = 2500
    batch: int = 512
    evaluations: int = 400_000
    paths: int = 2000


MOLECULES = Preset(time=1.0, noise=math.nan, sigma0=0.01, dt=1e-3, steps=500, batch=256, evaluations=20_000, paths=100)
"""The usual setting of molecules: ps and nm; their noise follows from temperature and friction."""
CALCULATED = Preset(time=0.1, noise=math.nan, sigma0=0.005, dt=5e-4, steps=100, batch=16, evaluations=256, paths=20)
"""The usual setting of molecules whose every force is a call of an ASE calculator."""
PRESETS = {
    "mueller-brown": Preset(time=0.0275, noise=5.0, sigma0=0.025, dt=1e-4),
    "double-well": Preset(time=1.0, noise=1.0, sigma0=0.1, dt=2e-3),
    "dual-channel": Preset(time=1.0, noise=0.1, sigma0=0.025, dt=2e-3),
}
"""Known potentials of `popflow.paths.POTENTIALS` by name."""
OWN = Preset(time=math.nan, noise=math.nan, sigma0=math.nan, dt=math.nan)
"""Sizes for a user's own potential, whose other settings are given."""


@dataclass(frozen=True)
class PathConfig:
    """Find transition paths between two states of a molecule or of a potential, and weigh them towards the process conditioned on its ends.

    Molecules follow underdamped Langevin dynamics in nm, ps, kJ/mol and K. Potentials follow overdamped dynamics in units of their own, with mobility 1,
    so that ``kT = noise^2 / 2``.

    Attributes:
        a: PDB file of state A of a molecule, or XYZ with a calculator of ASE. If None: states of ``potential``.
        b: File of state B: the same atoms in the same order. If None: states of ``potential``.
        forcefield: OpenMM's name of a force field file; repeat the option for several, such as implicit/obc2.xml (molecules).
        calculator: What computes forces: MODULE:FUNCTION that makes an ASE calculator, such as popflow.paths:gfn2_xtb, in place of a force field, each call
            recorded in calls.jsonl; or openmm or openmm:PLATFORM for the force field by OpenMM. If None: the force field in torch.
        workers: Processes that call an ASE calculator at once.
        temperature: Temperature, K (molecules).
        friction: Friction, 1/ps (molecules).
        minimise: Relax both states first (molecules).
        potential: A known potential (mueller-brown, double-well or dual-channel), or FILE.py:FUNCTION, a function of torch ``[*batch, D] -> [*batch]``.
        start: State A, as numbers with commas between them. If None: the first minimum of a known potential.
        end: State B. If None: the last minimum of a known potential.
        time: Duration of the transition; ps for molecules. If None: 1 ps (0.1 ps with an ASE calculator), or that of the known potential.
        noise: Noise, a length per square root of time. If None: that of the known potential.
        sigma0: Standard deviation of the Gaussian laws around A and B; nm for molecules. If None: 0.01 nm (0.005 nm with an ASE calculator), or that of the known
            potential.
        dt: Mean time step of the simulated paths, which are denser in time at both ends; it must divide the time. If None: 0.001 ps (0.0005 ps with an ASE calculator),
            or that of the known potential.
        family: Paths of Gaussians with independent coordinates (``diagonal``) or any covariance (``full``), or a Gaussian path bent by a flow that depends
            on time (``flow``), which comes closest but takes two coordinates or more. For molecules: positions and velocities near thermal equilibrium about a
            moving mean (``thermal``), or with independent coordinates (``kinematic``). If None: thermal for molecules, else flow.
        components: Gaussians in the mixture, for transitions by several channels. A flow has one.
        steps: Training steps. If None: 2500, 500 for molecules, 100 with an ASE calculator.
        batch: Force evaluations in a training step; as many Hessian-vector products follow, of two calls each with a calculator. If None: 512, 256 for molecules, 16
            with an ASE calculator.
        lr: Highest learning rate.
        evaluations: Force evaluations for the action and its error. If None: 400 000, 20 000 for molecules, 256 with an ASE calculator.
        paths: Paths to simulate and to weigh, one force evaluation each per step. If None: 2000, 100 for molecules, 20 with an ASE calculator.
        shots: Moves of shooting beside the fitted paths, in 200 chains; 0 leaves them out.
        shooting: Accept every path and weigh it (``always``), or go on from fitted paths that arrive by two-way shots, most of which are rejected
            (``two-way``).
        seed: Random seed.
    """

    a: Annotated[Path | None, Flag("A")] = None
    b: Annotated[Path | None, Flag("B")] = None
    forcefield: Annotated[tuple[str, ...], Flag(metavar="FILE")] = ("amber14/protein.ff14SB.xml",)
    calculator: Annotated[str | None, Flag(metavar="MODULE:FUNCTION")] = None
    workers: Annotated[int, Flag(ge=1)] = 1
    temperature: Annotated[float, Flag(gt=0)] = 300.0
    friction: Annotated[float, Flag(gt=0)] = 1.0
    minimise: bool = False
    potential: Annotated[str, Flag(metavar="NAME")] = "mueller-brown"
    start: Annotated[str | None, Flag(metavar="X,Y")] = None
    end: Annotated[str | None, Flag(metavar="X,Y")] = None
    time: Annotated[float | None, Flag("--time", "--time-ps", gt=0)] = None
    noise: Annotated[float | None, Flag(gt=0)] = None
    sigma0: Annotated[float | None, Flag(gt=0)] = None
    dt: Annotated[float | None, Flag(gt=0)] = None
    family: Literal["flow", "full", "diagonal", "thermal", "kinematic"] | None = None
    components: Annotated[int, Flag(ge=1)] = 1
    steps: Annotated[int | None, Flag(ge=1)] = None
    batch: Annotated[int | None, Flag(ge=2)] = None
    lr: Annotated[float, Flag(gt=0)] = 1e-2
    evaluations: Annotated[int | None, Flag(ge=64)] = None
    paths: Annotated[int | None, Flag(ge=2)] = None
    shots: Annotated[int, Flag(ge=0)] = 0
    shooting: Literal["always", "two-way"] = "always"
    seed: Annotated[int, Flag(ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        self._check_states()
        if self.kind() == "flow" and self.components > 1:
            raise ValueError(f"components={self.components} with family='flow', which has one. Fix: family='full'.")
        if (self.kind() in ("thermal", "kinematic")) != self.molecular:
            wanted = "thermal or kinematic for molecules" if self.molecular else "flow, full or diagonal for a potential"
            raise ValueError(f"family={self.kind()!r}, wanted {wanted}.")
        if self.shooting != "always" and not self.shots:
            raise ValueError(f"shooting={self.shooting!r} with shots=0, wanted shots to make. Fix: shots=20.")
        batch, evaluations = self.setting("batch"), self.setting("evaluations")
        if batch < 2 * self.components:
            raise ValueError(f"batch={batch} for components={self.components}, wanted at least {2 * self.components}.")
        if evaluations < 4 * self.components:
            raise ValueError(f"evaluations={evaluations} for components={self.components}, wanted at least {4 * self.components}.")
        time, dt = self.setting("time"), self.setting("dt")
        steps = round(time / dt)
        if steps < 1 or not math.isclose(steps * dt, time, rel_tol=1e-6):
            near = time / max(1, steps)
            raise ValueError(f"dt={dt!r} does not divide time={time!r}, wanted a whole number of steps: for example dt={near:.6g}.")

    def _check_states(self) -> None:
        """A molecule or a potential, and no setting of the other."""
        if (self.a is None) != (self.b is None):
            raise ValueError(f"a={_told(self.a)} and b={_told(self.b)}, wanted both PDB files of a molecule, or neither.")
        others = (
            ("potential", "start", "end", "noise", "shots", "shooting")
            if self.molecular
            else ("forcefield", "calculator", "workers", "temperature", "friction", "minimise")
        )
        for name in others:
            if getattr(self, name) != getattr(type(self), name):
                where = "a potential, not for the molecule of a and b" if self.molecular else "a molecule, given by a and b"
                raise ValueError(f"{name}={getattr(self, name)!r} is for {where}.")
        if self.molecular:
            self._check_forces()
            return
        if self.source() is None:
            missing = [name for name in ("start", "end", "time", "noise", "sigma0", "dt") if getattr(self, name) is None]
            if missing:
                raise ValueError(
                    f"potential={self.potential!r} is your own, and {', '.join(missing)} not given. Fix: give each; only known potentials bring "
                    "their own."
                )
        a, b = self.state("start"), self.state("end")
        if a is not None and b is not None and len(a) != len(b):
            raise ValueError(f"start has {len(a)} coordinates, end {len(b)}: wanted as many.")
        if a is not None and a == b:
            raise ValueError(f"start={self.start!r} and end={self.end!r} are the same state, wanted two.")
        if self.kind() == "flow" and a is not None and len(a) < 2:
            raise ValueError("family='flow' for one coordinate, wanted two or more. Fix: family='diagonal'.")

    def _check_forces(self) -> None:
        """A force field or a calculator, and files that it can read."""
        if not self.forcefield:
            raise ValueError("forcefield is empty, wanted at least one file such as amber14/protein.ff14SB.xml.")
        kind, mark, name = (self.calculator or "openmm").partition(":")
        if (mark and not name) or not (kind == "openmm" or mark):
            raise ValueError(
                f"calculator={self.calculator!r}, wanted MODULE:FUNCTION, openmm or openmm:PLATFORM, such as popflow.paths:gfn2_xtb."
            )
        if self.costly and self.forcefield != type(self).forcefield:
            raise ValueError(
                f"forcefield={self.forcefield!r} with calculator={self.calculator!r}, which needs none. Fix: give one of them."
            )
        if self.workers != 1 and not self.costly:
            raise ValueError(f"workers={self.workers!r} is for calculator=MODULE:FUNCTION; a force field needs no processes.")
        xyz = [str(file) for file in (self.a, self.b) if file is not None and file.suffix.lower() == ".xyz"]
        if xyz and not self.costly:
            raise ValueError(
                f"{xyz[0]} names no residues, which a force field needs. Fix: a PDB file, or calculator=MODULE:FUNCTION such as popflow.paths:gfn2_xtb."
            )

    @property
    def costly(self) -> bool:
        """Whether every force is a call of an ASE calculator."""
        return self.calculator is not None and self.calculator.partition(":")[0] != "openmm"

    @property
    def molecular(self) -> bool:
        """Whether the states are those of a molecule."""
        return self.a is not None

    def kind(self) -> str:
        """The family of paths."""
        return self.family or ("thermal" if self.molecular else "flow")

    def source(self) -> Preset | None:
        """The setting of a known potential, or None for the user's own file.

        Raises:
            ValueError: for a name that is neither.
        """
        if ".py:" in self.potential:
            return None
        if self.potential not in PRESETS:
            raise ValueError(unknown("potential", self.potential, PRESETS) + " Or FILE.py:FUNCTION.")
        return PRESETS[self.potential]

    def setting(self, name: str) -> Any:
        """A setting, or that of molecules or of the known potential."""
        given = getattr(self, name)
        usual = CALCULATED if self.costly else MOLECULES if self.molecular else self.source() or OWN
        return getattr(usual, name) if given is None else given

    def state(self, name: str) -> tuple[float, ...] | None:
        """The coordinates of ``start`` or ``end``, or None.

        Raises:
            ValueError: when it does not read as finite numbers.
        """
        text = getattr(self, name)
        if text is None:
            return None
        try:
            numbers = tuple(float(one) for one in text.split(","))
        except ValueError:
            numbers = (math.nan,)
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name}={text!r}, wanted finite numbers with commas between them, such as -0.5,1.4.")
        return numbers

    def file(self) -> Path | None:
        """The user's file, or None."""
        return None if self.molecular or self.source() else Path(self.potential.rpartition(":")[0])

    def inputs(self) -> Iterable[Path]:
        """Return the files with the potential and the calculator, if they are the user's own, and force field files that are on disk."""
        module = source_of(str(self.calculator).partition(":")[0]) if self.costly else None
        files = (self.file(), module, *(Path(name) for name in self.forcefield))
        return tuple(file for file in files if file is not None and (file.is_file() or file is files[0]))


def _told(file: Path | None) -> str:
    return "None" if file is None else repr(str(file))


@dataclass(frozen=True)
class DemoConfig:
    """Cross the surface of Mueller and Brown; the action of the true conditioned process is known from a grid.

    Attributes:
        seed: Random seed.
        quick: Run a smaller version in seconds: a Gaussian path of three components instead of a flow, and fewer steps.
    """

    seed: Annotated[int, Flag(ge=0)] = 0
    quick: bool = False

    def __post_init__(self) -> None:
        check(self)


def cite(config: PathConfig) -> tuple[str, ...]:
    """Return the BibTeX entries of what a run builds on."""
    return (citations.DOOBS_LAGRANGIAN,)
