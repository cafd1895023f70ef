"""Molecules whose energies an ASE calculator computes: two states from PDB or XYZ files, and no force field.

Two atoms are bonded where they are within `BOND` times the sum of their covalent radii (Cordero et al., Dalton Trans. (2008) 2832) in both states: a bond that breaks
or forms joins nothing, so that a reaction may turn a centre inside out, and a conformational change may not. The states are superposed by masses, which is
the least motion of a reaction whose light atoms move far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popflow.core.errors import MissingExtraError
from popflow.paths.ase_force import ANGSTROM, ASEForce
from popflow.paths.coordinates import kabsch
from popflow.paths.molecule import Molecule, read_pdb, same_atoms, same_hand
from popflow.runs.user_code import load

BOND, CRUSHED = 1.25, 0.5
"""Distances over the sum of covalent radii: of bonded atoms at most; of any two at least."""
_MOST, _STIFF = 500, 300.0
"""Steps of a relaxation; root of the force constant of a bond in kJ/mol/nm^2, in whose unit of length the first step is of length one at most."""


def calculator(text: str) -> Callable[[], Any]:
    """Return the function that ``MODULE:FUNCTION`` names, which makes an ASE calculator with forces; it is called once to see.

    Raises:
        ValueError: when it cannot be imported, raises, or makes something else.

    Example:
        >>> calculator("ase.calculators.lj:LennardJones")().__class__.__name__
        'LennardJones'
        >>> calculator("math:pi")
        Traceback (most recent call last):
        ValueError: calculator='math:pi' is a float, wanted a function that makes an ASE calculator. Fix: def mine(): return EMT()
    """
    module, _, name = text.partition(":")
    make = load(f"calculator={text!r}", module, name)
    if not callable(make):
        raise ValueError(
            f"calculator={text!r} is a {type(make).__name__}, wanted a function that makes an ASE calculator. Fix: def mine(): return EMT()"
        )
    try:
        made = make()
    except Exception as error:  # a program that is not installed, a file that is not there, arguments that it needs
        raise ValueError(
            f"calculator={text!r} cannot be made: {type(error).__name__}: {error}. Fix: a function without arguments, of a module in this folder, "
            "that returns the calculator with its settings."
        ) from error
    if "forces" not in getattr(made, "implemented_properties", ()):
        raise ValueError(f"calculator={text!r} makes a {type(made).__name__}, wanted an ASE calculator with energies and forces.")
    return make


def states(a: Path, b: Path) -> Molecule:
    """Read two states of a molecule from PDB or XYZ files, and superpose them by masses. The system has masses alone.

    Raises:
        ValueError: when the files do not name the same elements in the same order, have an atom of unknown element, a box, several structures, positions that are in
            another unit, or another handedness at an atom whose bonds stay.
        MissingExtraError: without openmm, or without ase for XYZ files.
    """
    import openmm

    (first, x), (second, y) = _read(a), _read(b)
    same_atoms(first, second)
    atoms = list(first.atoms())
    bonds = _bonds(atoms, x, a) & _bonds(atoms, y, b)
    topology, system = _topology(atoms, bonds), openmm.System()
    for atom in atoms:
        system.addParticle(atom.element.mass)
    same_hand(topology, x, y)
    return _superposed(Molecule(topology, system, x, y))


def relaxed(molecule: Molecule, potential: ASEForce, tolerance: float = 1.0) -> Molecule:
    """Return the molecule with both states at minima of a potential: no component of the force above ``tolerance`` kJ/mol/nm. By L-BFGS; every call is recorded.

    Raises:
        ValueError: when the calculator fails on the way, or no minimum is found.
    """
    from scipy.optimize import minimize

    def energy(scaled: Any) -> tuple[float, Any]:
        value, pull = potential.recorded(torch.as_tensor(scaled / _STIFF)[None])
        if not value.isfinite().all():
            raise ValueError(f"the calculator fails while a state is relaxed: {last_failure(potential)}. Fix: begin nearer to a minimum.")
        return float(value), -pull[0].numpy() / _STIFF

    found = []
    for name, x in (("A", molecule.a), ("B", molecule.b)):
        options = {"maxiter": _MOST, "gtol": tolerance / _STIFF, "ftol": 1e-14}
        end = minimize(energy, _STIFF * x.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
        left = _STIFF * float(abs(end.jac).max())
        if left > 30 * tolerance:  # the noise of a self-consistent field may stop the line search before
            raise ValueError(
                f"state {name} has a force of {left:.3g} kJ/mol/nm after {end.nit} steps: {end.message}. Fix: begin nearer to a minimum."
            )
        found.append(torch.as_tensor(end.x / _STIFF).reshape(-1, 3))
    same_hand(molecule.topology, *found)
    return _superposed(replace(molecule, a=found[0], b=found[1]))


def last_failure(potential: ASEForce) -> str:
    """What the calculator said when it failed last."""
    messages = [one.message for one in potential.costly.ledger.values() if one.kind != "value"]
    return messages[-1] if messages else "an energy or a force that is not finite"


def _superposed(molecule: Molecule) -> Molecule:
    a, b = kabsch(molecule.a, molecule.b, molecule.masses[::3])
    return replace(molecule, a=a, b=b)


def _read(path: Path) -> tuple[Any, Tensor]:
    """A topology and positions ``[N, 3]`` in nm."""
    if path.suffix.lower() == ".pdb":
        topology, x = read_pdb(path)
        for atom in topology.atoms():
            if atom.element is None:
                raise ValueError(f"{path}: atom {atom.name} of {atom.residue.name} has no element. Fix: fill columns 77 and 78.")
        return topology, x
    if path.suffix.lower() != ".xyz":
        raise ValueError(f"{path} ends in {path.suffix!r}, wanted a PDB or an XYZ file: .pdb or .xyz.")
    return _read_xyz(path)


def _read_xyz(path: Path) -> tuple[Any, Tensor]:
    try:
        import ase.io
    except ImportError as error:
        raise MissingExtraError("ase is not installed; it reads XYZ files. Fix: pip install 'popflow[md]'.") from error
    from openmm import app

    try:
        frames: Any = ase.io.read(str(path), index=":")
    except Exception as error:  # the reader raises what it meets
        raise ValueError(f"{path} cannot be read as an XYZ file: {type(error).__name__}: {error}.") from error
    if len(frames) != 1:
        raise ValueError(f"{path} holds {len(frames)} structures, wanted one.")
    if frames[0].pbc.any():
        raise ValueError(f"{path} has a periodic box, wanted a molecule without one.")
    elements = [app.Element.getBySymbol(symbol) for symbol in frames[0].get_chemical_symbols()]
    return _named(elements), ANGSTROM * torch.tensor(frames[0].positions, dtype=torch.float64)


def _named(elements: Sequence[Any]) -> Any:
    """A topology of one residue, atoms named by element and number."""
    from openmm import app

    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number, element in enumerate(elements, 1):
        topology.addAtom(f"{element.symbol}{number}", element, residue)
    return topology


def _topology(atoms: Sequence[Any], bonds: set[tuple[int, int]]) -> Any:
    """The topology of atoms with these bonds alone, residues kept."""
    from openmm import app

    topology = app.Topology()
    chain, residues, copies = topology.addChain(), {}, []
    for atom in atoms:
        key = atom.residue.index
        if key not in residues:
            residues[key] = topology.addResidue(atom.residue.name, chain, atom.residue.id)
        copies.append(topology.addAtom(atom.name, atom.element, residues[key]))
    for i, j in sorted(bonds):
        topology.addBond(copies[i], copies[j])
    return topology


def _bonds(atoms: Sequence[Any], x: Tensor, path: Path) -> set[tuple[int, int]]:
    """Pairs of bonded atoms; distances that no molecule has in angstroms are refused."""
    from ase.data import covalent_radii

    numbers = [atom.element.atomic_number for atom in atoms]
    radii = ANGSTROM * torch.tensor([float(covalent_radii[number]) for number in numbers], dtype=torch.float64)
    share = torch.cdist(x, x) / (radii[:, None] + radii)
    i, j = torch.triu_indices(len(x), len(x), 1)
    pairs = share[i, j]
    if len(pairs) and float(pairs.min()) < CRUSHED:
        k = int(pairs.argmin())
        one, other = (f"{atoms[int(place[k])].name}" for place in (i, j))
        raise ValueError(
            f"{path}: {one} and {other} are {float((x[i[k]] - x[j[k]]).norm()) / ANGSTROM:.3g} angstroms apart, wanted at least "
            f"{CRUSHED:g} of the sum of their covalent radii. Fix: PDB and XYZ files hold angstroms, not nanometres."
        )
    bonded = pairs < BOND
    if 1 in numbers and len(x) > 1 and not bonded.any():
        raise ValueError(
            f"{path}: no two atoms are within a bond's length, the nearest at {float(pairs.min()):.3g} of the sum of their covalent radii. "
            "Fix: PDB and XYZ files hold angstroms, not bohr."
        )
    return {(int(p), int(q)) for p, q in zip(i[bonded], j[bonded], strict=True)}
