r"""A molecule in two states: from a pair of PDB files to a topology, an OpenMM ``System``, masses and two aligned sets of positions.

The files have to name the same atoms in the same order, with the same handedness: a path between mirror images would have to pass through a plane.
Positions are in nm, masses in Da, energies in kJ/mol.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popflow.core.errors import MissingExtraError, PopflowWarning
from popflow.paths.coordinates import kabsch
from popflow.paths.forcefield import simple

STEEP = 1e3
"""Largest force in kJ/mol/nm at a state that is taken for a minimum."""
ABSURD = 1e6
"""Force in kJ/mol/nm beyond which the positions are taken to be in another unit."""
LONG = 0.28
"""Length in nm that no bond has, stretched as it may be: twice that of carbon to carbon, nearly."""
_FLAT = 0.1
"""Volume of three unit bond vectors below which an atom is not called left- or right-handed."""


@dataclass(frozen=True, eq=False)
class Molecule:
    """A molecule in two states.

    Attributes:
        topology: The ``openmm.app.Topology``.
        system: The ``openmm.System``: no constraints, no virtual sites, no box.
        a: Positions ``[N, 3]`` of the first state in nm, centred, and turned onto the second.
        b: Positions ``[N, 3]`` of the second state in nm, centred.
    """

    topology: Any
    system: Any
    a: Tensor
    b: Tensor

    @classmethod
    def from_pdb(
        cls, a: str | Path, b: str | Path, forcefield: Sequence[str] = ("amber14/protein.ff14SB.xml",), warn: bool = True
    ) -> Molecule:
        """Read two PDB files of one molecule.

        Args:
            a: The first state.
            b: The second state.
            forcefield: OpenMM's names of force field files; add ``"implicit/obc2.xml"`` for solvent.
            warn: Whether to warn of states that are not minimised.

        Raises:
            ValueError: when the files do not name the same atoms in the same order or with the same handedness (it names the atoms), when the force
                field lacks a residue (it names it), and for positions in another unit.
            MissingExtraError: without openmm.
        """
        (topology, x), (other, y) = (read_pdb(Path(path)) for path in (a, b))
        same_atoms(topology, other)
        molecule = cls.of(topology, system_of(topology, forcefield), x, y)
        molecule.check_forces(warn)
        return molecule

    @classmethod
    def of(cls, topology: Any, system: Any, a: Tensor, b: Tensor) -> Molecule:
        """Make a molecule of parts, and check them: shapes, a plain system, bonds that no box cuts, the same handedness."""
        simple(system)
        n = system.getNumParticles()
        for name, x in (("a", a), ("b", b)):
            if x.shape != (n, 3) or not x.isfinite().all():
                raise ValueError(
                    f"{name} has shape {tuple(x.shape)}, wanted finite positions [{n}, 3]: one row for each atom of the system."
                )
        whole(topology, a, b)
        same_hand(topology, a, b)
        turned, centred = kabsch(a.double(), b.double())
        return cls(topology, system, turned, centred)

    @property
    def masses(self) -> Tensor:
        """Masses ``[3 N]`` in Da, one for each coordinate."""
        n = self.system.getNumParticles()
        return torch.tensor([self.system.getParticleMass(i)._value for i in range(n)], dtype=torch.float64).repeat_interleave(3)

    @property
    def names(self) -> list[str]:
        """Names of the atoms, such as ``ALA2:CA``."""
        return [label(atom) for atom in self.topology.atoms()]

    @property
    def elements(self) -> list[str]:
        """Symbols of the elements."""
        return [atom.element.symbol for atom in self.topology.atoms()]

    @property
    def bonds(self) -> list[tuple[int, int]]:
        """Pairs of bonded atoms."""
        return bonds_of(self.topology)

    def check_forces(self, warn: bool = True, force: Callable[[Tensor], Tensor] | None = None) -> None:
        """Refuse absurd forces at the ends, and warn of steep ones.

        Args:
            warn: Whether to warn.
            force: Forces ``[3 N]`` at positions ``[3 N]``; those of the system unless given.

        Raises:
            ValueError: beyond `ABSURD`.
        """
        for name, x in (("A", self.a), ("B", self.b)):
            forces = (_forces(self.system, x) if force is None else force(x.flatten()).reshape(-1, 3)).norm(dim=1)
            worst = int(forces.argmax())
            seen = f"state {name}: the force on {self.names[worst]} is {float(forces[worst]):.3g} kJ/mol/nm"
            if not float(forces[worst]) < ABSURD:
                raise ValueError(
                    f"{seen}, wanted below {ABSURD:g}. Fix: PDB files hold angstroms and this library nm; look for atoms on top of each other."
                )
            if warn and forces[worst] > STEEP:
                warnings.warn(f"{seen}: it is not a minimum. Fix: molecule.minimised(), or --minimise.", PopflowWarning, stacklevel=3)

    def minimised(self, tolerance: float = 1.0) -> Molecule:
        """Return the molecule with both states relaxed, until the root mean square force is below ``tolerance`` kJ/mol/nm, and aligned again.

        >>> water().minimised().a.shape
        torch.Size([3, 3])
        """
        a, b = (minimise(self.system, x, tolerance) for x in (self.a, self.b))
        same_hand(self.topology, a, b)
        turned, centred = kabsch(a, b)
        return replace(self, a=turned, b=centred)


def water() -> Molecule:
    """A water molecule in two states, for examples: bonds at rest and stretched.

    >>> water().names
    ['HOH1:O', 'HOH1:H1', 'HOH1:H2']
    """
    openmm = _openmm()
    topology, element = openmm.app.Topology(), openmm.app.element
    residue = topology.addResidue("HOH", topology.addChain())
    oxygen, *hydrogens = [topology.addAtom(name, getattr(element, kind), residue) for name, kind in
                          (("O", "oxygen"), ("H1", "hydrogen"), ("H2", "hydrogen"))]  # fmt: skip
    for hydrogen in hydrogens:
        topology.addBond(oxygen, hydrogen)
    a = torch.tensor([[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [-0.024, 0.0927, 0.0]], dtype=torch.float64)
    return Molecule.of(topology, system_of(topology, ["amber14/tip3p.xml"]), a, 1.05 * a)


def system_of(topology: Any, forcefield: Sequence[str]) -> Any:
    """Make the ``openmm.System`` of a topology: all pairs, no constraints.

    Raises:
        ValueError: when the force field has no parameters for a residue, which it names, or when a file is not found.
    """
    app = _openmm().app
    try:
        field = app.ForceField(*forcefield)
        missing = field.getUnmatchedResidues(topology)
    except ValueError as error:
        raise ValueError(
            f"forcefield={list(forcefield)}: {error}. Fix: give files that OpenMM has or paths, such as amber14/protein.ff14SB.xml."
        ) from error
    if missing:
        names = [f"{residue.name}{residue.id} ({len(list(residue.atoms()))} atoms)" for residue in missing[:5]]
        raise ValueError(
            f"the force field {', '.join(forcefield)} has no parameters for residue {', '.join(names)}. Fix: add the file that has them; check names "
            "and missing hydrogens; a residue beside one that is unknown is not found either."
        )
    return field.createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False)


def minimise(system: Any, x: Tensor, tolerance: float = 1.0) -> Tensor:
    """Relax positions ``[N, 3]`` to the nearest minimum of a system, by OpenMM's L-BFGS in double precision."""
    openmm = _openmm()
    context = _context(system, x)
    openmm.LocalEnergyMinimizer.minimize(context, tolerance)
    return torch.tensor(context.getState(getPositions=True).getPositions(asNumpy=True)._value, dtype=torch.float64)


def same_atoms(a: Any, b: Any) -> None:
    """Refuse two topologies that do not name the same atoms in the same order, with the same elements."""
    first, second = list(a.atoms()), list(b.atoms())
    if len(first) != len(second):
        raise ValueError(f"A has {len(first)} atoms and B has {len(second)}, wanted the same atoms. Fix: prepare both files the same way.")
    for place, (one, other) in enumerate(zip(first, second, strict=True)):
        if one.element is not other.element:
            kinds = [atom.element.symbol if atom.element else "unknown" for atom in (one, other)]
            raise ValueError(
                f"atom {place + 1} is {label(one)} ({kinds[0]}) in A and {label(other)} ({kinds[1]}) in B: the elements differ."
            )
        if (one.name, one.residue.name) != (other.name, other.residue.name):
            raise ValueError(
                f"atom {place + 1} is {label(one)} in A and {label(other)} in B, wanted one order. Fix: sort the atoms of one file."
            )


def whole(topology: Any, a: Tensor, b: Tensor) -> None:
    """Refuse a state of which a bond is longer than `LONG`: a periodic box has cut the molecule, or its atoms are not those of the topology."""
    atoms = list(topology.atoms())
    for name, x in (("A", a), ("B", b)):
        for i, j in bonds_of(topology):
            length = float((x[i] - x[j]).norm())
            if length > LONG:
                raise ValueError(
                    f"the bond {label(atoms[i])} to {label(atoms[j])} is {length:.3g} nm long in {name}, wanted below {LONG:g}. Fix: make the molecule whole if "
                    "a periodic box cut it; give every residue a number of its own; PDB files hold angstroms, not bohr."
                )


def same_hand(topology: Any, a: Tensor, b: Tensor) -> None:
    """Refuse states of which an atom with four neighbours is left-handed in one and right-handed in the other, naming the atoms.

    Two hydrogens of one carbon with exchanged names are such a case, too.
    """
    atoms = list(topology.atoms())
    neighbours: list[list[int]] = [[] for _ in atoms]
    for i, j in bonds_of(topology):
        neighbours[i].append(j)
        neighbours[j].append(i)
    for centre, around in enumerate(neighbours):
        if len(around) != 4:
            continue
        one, other = _volume(a, centre, sorted(around)), _volume(b, centre, sorted(around))
        if one * other < 0 and min(abs(one), abs(other)) > _FLAT:
            raise ValueError(
                f"{label(atoms[centre])} with {', '.join(label(atoms[i]) for i in sorted(around))} has one handedness in A and the other in B: no path "
                "of small moves joins them. Fix: exchange the names of two equal atoms in one file, or use the same enantiomer."
            )


def bonds_of(topology: Any) -> list[tuple[int, int]]:
    """Pairs of indices of bonded atoms."""
    return [(bond[0].index, bond[1].index) for bond in topology.bonds()]


def label(atom: Any) -> str:
    """Name an atom with its residue."""
    return f"{atom.residue.name}{atom.residue.id}:{atom.name}"


def _volume(x: Tensor, centre: int, around: list[int]) -> float:
    """Signed volume of the first three unit bond vectors of an atom: about 0.77 of a tetrahedron's."""
    return float(torch.linalg.det(torch.nn.functional.normalize(x[around[:3]] - x[centre], dim=1)))


def _openmm() -> Any:
    try:
        import openmm
        import openmm.app
    except ImportError as error:
        raise MissingExtraError("openmm is not installed; it reads force fields. Fix: pip install 'popflow[md]'.") from error
    return openmm


def read_pdb(path: Path) -> tuple[Any, Tensor]:
    """Return the topology of a PDB file and its positions ``[N, 3]`` in nm."""
    try:
        pdb = _openmm().app.PDBFile(str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Fix: give a PDB file.") from error
    except (ValueError, IndexError, AssertionError) as error:
        why = "it holds no atoms" if isinstance(error, IndexError) else " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as a PDB file: {why}.") from error
    return pdb.topology, torch.tensor(pdb.getPositions(asNumpy=True)._value, dtype=torch.float64)


def _context(system: Any, x: Tensor) -> Any:
    openmm = _openmm()
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    context.setPositions(x.detach().double().numpy())
    return context


def _forces(system: Any, x: Tensor) -> Tensor:
    return torch.tensor(_context(system, x).getState(getForces=True).getForces(asNumpy=True)._value, dtype=torch.float64)
