"""Exact energies of small systems, non-relativistic and with nuclei at rest, in Hartree.

Sources: one electron at a nucleus and traps are closed forms; He: Hylleraas-type expansions; Li and Be: explicitly correlated Gaussians; B to Ne: Chakravorty et al., Phys. Rev. A 47, 3649
(1993), estimates; H2 at 1.4 bohr: Kolos and Wolniewicz; LiH at 3.015 bohr: Cencek and Rychlewski.
"""

from __future__ import annotations

import math

from popflow.electrons.molecule import Molecule
from popflow.electrons.traps import Trap

ATOMS = {
    "H": -0.5, "He": -2.903724377, "Li": -7.478060323, "Be": -14.667356, "B": -24.65391, "C": -37.8450, "N": -54.5892, "O": -75.0673,
    "F": -99.7339, "Ne": -128.9376,
}  # fmt: skip
"""Neutral atoms in their ground states; from B on these are estimates."""
DIATOMICS = {("H", "H"): (1.4, -1.174475714), ("H", "Li"): (3.015, -8.070548)}
"""Elements -> distance in bohr, and energy of the singlet there."""
CHEMICAL_ACCURACY = 1.6e-3
"""1 kcal/mol in Hartree."""


def estimated(system: Molecule | Trap) -> bool:
    """Whether the `reference` of a system is an estimate: for the atoms B to Ne.

    >>> estimated(Molecule.of("N")), estimated(Molecule.of("Be"))
    (True, False)
    """
    return isinstance(system, Molecule) and len(system.symbols) == 1 and system.charges[0] > 4 and system.symbols[0] in ATOMS


def reference(system: Molecule | Trap) -> float | None:
    """Return the exact energy of a system, or None where it is not known here.

    >>> reference(Molecule.of("Be"))
    -14.667356
    >>> reference(Molecule.of("He", charge=1))
    -2.0
    >>> reference(Molecule.of("H 0 0 0; H 0 0 1.4", unit="bohr"))
    -1.174475714
    >>> reference(Molecule.of("H 0 0 0; H 0 0 1.5", unit="bohr")) is None
    True
    """
    if isinstance(system, Trap):
        return system.energy
    if len(system.symbols) == 1 and system.electrons == 1:
        return -(system.charges[0] ** 2) / 2
    if system.charge:
        return None
    if len(system.symbols) == 1:
        ground = system.spin is None or Molecule(system.symbols, system.positions).up == system.up
        return ATOMS.get(system.symbols[0]) if ground else None
    first, last = sorted(system.symbols)[0], sorted(system.symbols)[-1]
    found = DIATOMICS.get((first, last)) if len(system.symbols) == 2 and system.up == system.down else None
    if found is None or abs(math.dist(*system.positions) - found[0]) > 1e-3:
        return None
    return found[1]
