"""The settings of ``popflow ground`` and of its demo. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from popflow import citations
from popflow.runs.config import Flag, check

TRAPS = ("hooke", "dot", "oscillator")
"""Names of the solvable systems."""


@dataclass(frozen=True)
class GroundConfig:
    """Find the ground state of a molecule with a neural wave function.

    Energies are in Hartree. All electrons are treated.

    Attributes:
        molecule: Geometry, element, XYZ file or trap: 'H 0 0 0; H 0 0 0.74', Li, water.xyz, or one of hooke, dot, oscillator.
        unit: Unit of the coordinates.
        charge: Total charge.
        spin: Unpaired electrons. If None: the ground state of a lone atom, or lone ion of up to 18 electrons; otherwise 0 or 1.
        metric: Geometry of the descent: imaginary time, transport of walkers, or both.
        cost: Cost of transport, which bounds the velocity.
        growth: Weight of the Fisher-Rao part beside transport of weight 1 (``mixed``).
        warm: Share of the steps that is Fisher-Rao alone before transport begins (``wasserstein``, ``mixed``).
        optimiser: Update of the parameters. If None: minsr for fisher-rao, singd for transport.
        network: Wave function.
        width: Width of the network.
        layers: Attention layers (``psiformer``).
        determinants: Determinants (``psiformer``).
        walkers: Walkers.
        steps: Steps of the search.
        moves: Metropolis moves between two steps.
        lr: First learning rate. If None: the usual one of the optimiser.
        pretrain: Fit the orbitals to Hartree-Fock first; auto does where PySCF is installed and there are two electrons or more.
        basis: Basis of Hartree-Fock, with functions up to d.
        pretrain_steps: Steps of this fit.
        start: Run whose wave function to begin from, of the same electrons and centres at another geometry. If None: it begins anew.
        sweeps: Sweeps of the evaluation with frozen parameters.
        gradients: Also compute the gradient of the local energy where the descent does not need it.
        double: Compute in float64.
        seed: Random seed.
    """

    molecule: Annotated[str, Flag("MOLECULE")]
    unit: Literal["angstrom", "bohr"] = "angstrom"
    charge: int = 0
    spin: Annotated[int | None, Flag(ge=0)] = None
    metric: Literal["fisher-rao", "wasserstein", "mixed"] = "fisher-rao"
    cost: Literal["tanh", "sign", "clip"] = "tanh"
    growth: Annotated[float, Flag(gt=0)] = 1.0
    warm: Annotated[float, Flag(ge=0, lt=1)] = 0.3
    optimiser: Literal["minsr", "spring", "singd", "ikfac", "adam"] | None = None
    network: Literal["psiformer", "slater-jastrow"] = "psiformer"
    width: Annotated[int, Flag(ge=1)] = 32
    layers: Annotated[int, Flag(ge=1)] = 2
    determinants: Annotated[int, Flag(ge=1)] = 4
    walkers: Annotated[int, Flag(ge=2)] = 256
    steps: Annotated[int, Flag(ge=1)] = 1000
    moves: Annotated[int, Flag(ge=1)] = 10
    lr: Annotated[float | None, Flag(gt=0)] = None
    pretrain: Literal["auto", "hartree-fock", "none"] = "auto"
    basis: Annotated[str, Flag(metavar="BASIS")] = "cc-pvdz"
    pretrain_steps: Annotated[int, Flag(ge=1)] = 500
    start: Annotated[Path | None, Flag(metavar="RUN")] = None
    sweeps: Annotated[int, Flag(ge=1)] = 300
    gradients: bool = False
    double: bool = False
    seed: Annotated[int, Flag(ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        trap = self.molecule in TRAPS
        for name in ("unit", "charge", "spin", "basis"):
            if trap and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect on {self.molecule}, which has no nuclei.")
        for name in ("cost", "warm"):
            if self.metric == "fisher-rao" and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect with metric='fisher-rao': it belongs to transport.")
        if self.metric != "mixed" and self.growth != type(self).growth:
            raise ValueError(f"growth={self.growth!r} has no effect with metric={self.metric!r}: it belongs to 'mixed'.")
        for name in ("layers", "determinants"):
            if self.network == "slater-jastrow" and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect with network='slater-jastrow': it belongs to 'psiformer'.")
        without = "pretrain='none'" if self.pretrain == "none" else "--start" if self.start is not None else ""
        without = without or ("network='slater-jastrow'" if self.network != "psiformer" else self.molecule if trap else "")
        for name in ("basis", "pretrain_steps"):
            if without and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect with {without}: it belongs to Hartree-Fock.")
        if self.pretrain == "hartree-fock" and (trap or self.network != "psiformer" or self.start is not None):
            why = f"start={str(self.start)!r}" if self.start is not None else self.molecule if trap else self.network
            raise ValueError(f"pretrain='hartree-fock' does not go with {why}. Fix: pretrain='none'.")

    @property
    def file(self) -> Path | None:
        """The XYZ file, if the molecule is one."""
        return Path(self.molecule) if self.molecule.lower().endswith(".xyz") else None

    def inputs(self) -> Iterable[Path]:
        """Return the files that are read: the XYZ file, the wave function to begin from."""
        return [path for path in (self.file, self.start and self.start / "psi.safetensors") if path is not None]


@dataclass(frozen=True)
class DemoConfig:
    """Two electrons in a quantum dot, whose ground state is known, by three geometries of descent.

    Attributes:
        seed: Random seed.
        quick: Run a smaller version in seconds, of a small Slater-Jastrow function.
        steps: Steps of each search.
        walkers: Walkers.
    """

    seed: Annotated[int, Flag(ge=0)] = 0
    quick: bool = False
    steps: Annotated[int, Flag(ge=10)] = 500
    walkers: Annotated[int, Flag(ge=16)] = 256

    def __post_init__(self) -> None:
        check(self)


def cite(config: GroundConfig) -> tuple[str, ...]:
    """Return the BibTeX entries of what a search builds on."""
    transport = (citations.WASSERSTEIN_QMC,) if config.metric != "fisher-rao" else ()
    network = (citations.PSIFORMER,) if config.network == "psiformer" else ()
    return (*transport, *network, citations.FORWARD_LAPLACIAN)
