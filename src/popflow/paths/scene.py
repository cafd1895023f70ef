"""What a configuration of ``popflow path`` stands for: dynamics, states, a path to fit, and the exact answer where there is one."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.core import Streams
from popflow.core.checks import function
from popflow.paths.ase_force import ASEForce
from popflow.paths.calculated import calculator, last_failure, relaxed, states
from popflow.paths.config import PathConfig
from popflow.paths.curves import through
from popflow.paths.exact import Grid
from popflow.paths.first_paths import distance_path, first_paths
from popflow.paths.flow_path import FlowPath
from popflow.paths.forcefield import TorchForce
from popflow.paths.gaussian_path import DiagonalPath, FullPath, KinematicPath
from popflow.paths.molecule import Molecule
from popflow.paths.openmm_force import OpenMMForce
from popflow.paths.potentials import POTENTIALS
from popflow.paths.process import Overdamped, Potential, Process, Underdamped
from popflow.paths.thermal_path import thermal_path
from popflow.runs import Ledger

FEWER = {"coefficients": 8, "rounds": 2, "samples": 1, "floating": True}
"""Sizes of a thermal path whose every force is a call."""
_SINGLE = 1e-4
"""Displacement in nm for differences of forces in single precision."""
BEND = 0.05
"""Bends of the first paths of a mixture, as a share of the way of an atom: larger ones push atoms into one another."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Two states of a process.

    Attributes:
        process: The dynamics.
        start: Positions ``[D]`` of state A, float64.
        end: State B.
        time: Duration.
        sigma0: Width of the laws around both.
        molecule: The molecule, or None for a potential.
    """

    process: Process
    start: Tensor
    end: Tensor
    time: float
    sigma0: float
    molecule: Molecule | None = None

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.start)

    @property
    def reach(self) -> float:
        """Distance from a state within which a path counts as arrived: three standard deviations of each coordinate."""
        return 3 * self.sigma0 * self.dim**0.5

    @property
    def kt(self) -> float:
        """Thermal energy."""
        return (
            self.process.kt
            if isinstance(self.process, Underdamped)
            else float(self.process.noise) ** 2 / (2 * float(self.process.mobility))
        )

    @property
    def unit(self) -> str:
        """Unit of energies, as the end of a label."""
        return ", kJ/mol" if self.molecule else ""

    def place(self, x: Tensor) -> Tensor:
        """Positions ``[..., D]`` of states."""
        return x[..., : self.dim]

    def energy(self, x: Tensor) -> Tensor:
        """Energy of states relative to A."""
        with torch.no_grad():
            return self.process.potential(self.place(x)) - self.process.potential(self.start)

    def arrived(self, x: Tensor) -> Tensor:
        """Whether the positions of states ``[n, .]`` are within `reach` of B."""
        return (self.place(x) - self.end).norm(dim=-1) < self.reach

    def log_end(self, x: Tensor) -> Tensor:
        """Logarithm ``[n]`` of the density through which the end of the reference is seen, up to a constant: N(B, sigma0^2), Maxwell velocities."""
        density = -(self.place(x) - self.end).square().sum(-1) / (2 * self.sigma0**2)
        if not isinstance(self.process, Underdamped):
            return density
        return density - (torch.as_tensor(self.process.mass) * x[..., self.dim :].square()).sum(-1) / (2 * self.kt)

    def grid(self, spacing: float) -> Grid | None:
        """The grid of a known potential in one or two coordinates; None for others."""
        domain = getattr(self.process.potential, "domain", None)
        if domain is None or self.dim > 2 or isinstance(self.process, Underdamped):
            return None
        return Grid(self.process, domain[0], domain[1], spacing)


def scene(config: PathConfig, ledger: Ledger | None = None) -> Scene:
    """Make the dynamics and the states of a configuration.

    Args:
        config: The configuration.
        ledger: Where calls of an ASE calculator are recorded; in memory unless given.

    Raises:
        ValueError: when the potential cannot be loaded, does not give one finite energy and force for each state, or the
            states overlap.
    """
    made = surface(config) if not config.molecular else calculated(config, ledger) if config.costly else molecular(config)
    apart = float((made.end - made.start).norm())
    if apart < 1e-6 * made.reach:
        raise ValueError("A and B are the same state, wanted two. Fix: another file; minimising may have led both to one minimum.")
    if 2 * made.reach >= apart:
        raise ValueError(
            f"sigma0={made.sigma0!r} makes balls of radius {made.reach:.3g} around A and B, which are {apart:.3g} apart: they overlap, and a path "
            f"that never leaves A would arrive. Fix: sigma0 below {apart * made.sigma0 / (2 * made.reach):.3g}."
        )
    return made


def surface(config: PathConfig) -> Scene:
    """Make the dynamics and the states of a potential.

    Raises:
        ValueError: see `scene`.
    """
    potential = POTENTIALS[config.potential] if config.source() else load(config)
    known = getattr(potential, "minima", None)
    given = config.state("start") or known[0], config.state("end") or known[-1]  # pyright: ignore[reportOptionalSubscript]
    if known is not None and not len(given[0]) == len(given[1]) == len(known[0]):
        raise ValueError(
            f"start has {len(given[0])} coordinates, end {len(given[1])}, wanted {len(known[0])}: those of {config.potential}."
        )
    start, end = (torch.tensor(one, dtype=torch.float64) for one in given)
    process = Overdamped(potential, noise=config.setting("noise"))
    ends = torch.stack([start, end])
    try:
        energy, pull = process.potential(ends), process.drift(ends)
    except Exception as error:
        raise ValueError(f"potential={config.potential!r} fails at start and end: {type(error).__name__}: {error}") from error
    if energy.shape != (2,) or not bool(torch.isfinite(energy).all() and torch.isfinite(pull).all()):
        raise ValueError(
            f"potential={config.potential!r} gives energies {energy.tolist()} and forces {pull.tolist()} at start and end, wanted one finite "
            "energy and a finite force for each."
        )
    return Scene(process, start, end, config.setting("time"), config.setting("sigma0"))


def molecular(config: PathConfig) -> Scene:
    """Make the dynamics and the states of a molecule.

    Raises:
        ValueError: for files that do not fit each other or the force field; see `Molecule.from_pdb`.
        MissingExtraError: without openmm.
    """
    assert config.a is not None
    assert config.b is not None
    molecule = Molecule.from_pdb(config.a, config.b, config.forcefield, warn=not config.minimise)
    if config.minimise:
        molecule = molecule.minimised()
    if config.calculator is None:
        potential = TorchForce(molecule.system)
    else:
        platform = config.calculator.partition(":")[2] or "Reference"
        potential = OpenMMForce(molecule.system, platform, step=1e-5 if platform == "Reference" else _SINGLE)
    return of_molecule(config, molecule, potential)


def calculated(config: PathConfig, ledger: Ledger | None) -> Scene:
    """Make the dynamics and the states of a molecule with an ASE calculator.

    Raises:
        ValueError: for files that do not fit each other, and a calculator that cannot be made, fails at a state, or gives absurd forces there.
        MissingExtraError: without openmm or ase.
    """
    assert config.a is not None
    assert config.b is not None
    assert config.calculator is not None
    make = calculator(config.calculator)
    molecule = states(config.a, config.b)
    potential = ASEForce(molecule.elements, make, ledger, workers=config.workers, name=config.calculator)
    for name, x in (("A", molecule.a), ("B", molecule.b)):
        if not potential.recorded(x.flatten())[1].isfinite().all():
            raise ValueError(
                f"calculator={config.calculator!r} fails at state {name}: {last_failure(potential)}. Fix: look at charge, spin and the positions, and at "
                "what the calculator needs."
            )
    if config.minimise:
        molecule = relaxed(molecule, potential)
    molecule.check_forces(not config.minimise, potential.force)
    potential.failed = 0.0  # from here on a failure is an outcome: it is counted, and has no force
    return of_molecule(config, molecule, potential)


def of_molecule(config: PathConfig, molecule: Molecule, potential: Potential) -> Scene:
    """The dynamics of a molecule in a potential."""
    process = Underdamped(potential, molecule.masses, config.friction, config.temperature)
    return Scene(process, molecule.a.flatten(), molecule.b.flatten(), config.setting("time"), config.setting("sigma0"), molecule)


def load(config: PathConfig) -> Potential:
    """Read the potential FILE.py:FUNCTION.

    Raises:
        ValueError: when there is no such file or function.
    """
    file, name = config.file(), config.potential.rpartition(":")[2]
    assert file is not None
    spec = importlib.util.spec_from_file_location(f"popflow_potential_{file.stem}", file)
    try:
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, name)
    except Exception as error:
        raise ValueError(
            f"cannot load potential={config.potential!r}: {type(error).__name__}: {error}. Wanted FILE.py:FUNCTION."
        ) from error
    function("potential", found, "def energy(x): return x.square().sum(-1)")
    return found


def path(config: PathConfig, scene: Scene, rng: Streams) -> Any:
    """Make the path to fit: in float32 for potentials; a molecule's positions need float64, and begin on paths of whole molecules."""
    if scene.molecule is not None and isinstance(scene.process, Underdamped):
        if config.kind() == "thermal":
            potential = scene.process.potential
            energy = (lambda x: potential.recorded(x)[0]) if isinstance(potential, ASEForce) else potential
            curves = [through(images) for images in first_paths(scene.molecule, energy, config.components, scene.kt)]
            sizes = FEWER if config.costly else {}  # a reaction begins on an elastic band
            return thermal_path(scene.process, curves, scene.time, sigma0=scene.sigma0, rng=rng, **sizes)
        thermal = (scene.kt / torch.as_tensor(scene.process.mass)).sqrt()
        given = {
            "noise": scene.process.noise,
            "sigma0": scene.sigma0,
            "components": config.components,
            "initial": through(distance_path(scene.molecule)),
            "bend": BEND,
            "rng": rng,
        }
        return KinematicPath(scene.start, scene.end, scene.time, thermal=thermal, **given)
    family = {"diagonal": DiagonalPath, "full": FullPath, "flow": FlowPath}[config.kind()]
    mixed = {} if family is FlowPath else {"components": config.components}
    ends = scene.start.float(), scene.end.float()
    return family(*ends, scene.time, noise=float(scene.process.noise), sigma0=scene.sigma0, rng=rng, **mixed)
