"""Molecules: nuclei, charge and spin, from a line of text, an XYZ file, ASE or PySCF. Lengths are kept in bohr, energies are in Hartree.

V(x) = sum_{i<j} 1 / |r_i - r_j| - sum_{i,A} Z_A / |r_i - R_A| + sum_{A<B} Z_A Z_B / |R_A - R_B|
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from popflow.core.errors import PopflowWarning, unknown

BOHR = 0.529177210903
"""One bohr in Angstrom (CODATA 2018)."""
ELEMENTS: tuple[str, ...] = (
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar",
    "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr",
)  # fmt: skip
"""Symbols of the elements that are known, by charge minus one. All electrons are treated; there are no pseudopotentials."""
UNPAIRED = (1, 0, 1, 0, 1, 2, 3, 2, 1, 0, 1, 0, 1, 2, 3, 2, 1, 0, 1, 0, 1, 2, 3, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0)
"""Unpaired electrons of the ground state of each neutral atom, by electrons minus one."""
Unit = Literal["bohr", "angstrom"]


class MoleculeError(ValueError):
    """A molecule that cannot be: an unknown element, nuclei on one another, an impossible charge or spin, text that is no geometry."""


@dataclass(frozen=True)
class Molecule:
    """Nuclei at rest and their electrons, in Hartree atomic units.

    Attributes:
        symbols: Elements.
        positions: Coordinates of the nuclei, in bohr: one triple each.
        charge: Total charge: protons minus electrons.
        spin: Unpaired electrons ``N_up - N_down``. If None: that of the ground state of a lone atom, or lone ion of up to 18 electrons; otherwise 0 or
            1, which is `spin_assumed`.

    Raises:
        MoleculeError: naming what cannot be.

    Example:
        >>> h2 = Molecule.of("H 0 0 0; H 0 0 1.4", unit="bohr")
        >>> h2.up, h2.down, round(h2.nuclear_repulsion, 4)
        (1, 1, 0.7143)
    """

    symbols: tuple[str, ...]
    positions: tuple[tuple[float, float, float], ...]
    charge: int = 0
    spin: int | None = None

    def __post_init__(self) -> None:
        if not self.symbols or len(self.symbols) != len(self.positions):
            raise MoleculeError(
                f"{len(self.symbols)} symbols and {len(self.positions)} positions, wanted one position for each of at least one."
            )
        for symbol in self.symbols:
            if symbol not in ELEMENTS:
                raise MoleculeError(unknown("element", symbol, ELEMENTS))
        for symbol, place in zip(self.symbols, self.positions, strict=True):
            if len(place) != 3 or not all(math.isfinite(one) for one in place):
                raise MoleculeError(f"the nucleus {symbol} is at {place}, wanted three finite coordinates.")
        self._look_at_distances()
        for name, value in (("charge", self.charge), ("spin", self.spin)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise MoleculeError(f"{name}={value!r}, wanted a whole number.")
        n = self.electrons
        most = 2 * sum(self.charges) + len(self.charges) - 1  # Lieb, Phys. Rev. A 29, 3018 (1984)
        if n > most:
            raise MoleculeError(
                f"charge={self.charge} makes {n} electrons for {sum(self.charges)} protons, wanted at most {most}: further ones are bound by no nuclei."
            )
        if n < 1:
            raise MoleculeError(f"charge={self.charge} leaves {n} electrons of {sum(self.charges)} protons, wanted at least one electron.")
        if self.spin is not None and (not 0 <= self.spin <= n or (n - self.spin) % 2):
            possible = ", ".join(str(k) for k in range(n % 2, min(n, 8) + 1, 2))
            raise MoleculeError(f"spin={self.spin} is impossible with {n} electrons, wanted N_up - N_down from {possible}.")

    @classmethod
    def of(cls, geometry: str, *, unit: Unit = "angstrom", charge: int = 0, spin: int | None = None) -> Molecule:
        """Read ``"H 0 0 0; H 0 0 1.4"``: an element and three coordinates per atom, separated by semicolons or line breaks.

        A lone element is an atom at the origin: ``Molecule.of("Li")``. ``CO`` is neither cobalt nor a geometry.

        Raises:
            MoleculeError: for anything else.
        """
        if unit not in ("bohr", "angstrom"):
            raise MoleculeError(unknown("unit", str(unit), ("bohr", "angstrom")))
        rows = [line.replace(",", " ").split() for line in geometry.replace(";", "\n").splitlines() if line.strip()]
        if len(rows) == 1 and len(rows[0]) == 1:
            word = rows[0][0]
            known = word.capitalize() in ELEMENTS
            if not known or (len(word) > 1 and word.isupper() and all(letter in ELEMENTS for letter in word)):  # CO is not cobalt
                said = f"{word!r} may be a formula." if known else unknown("element", word, ELEMENTS)
                raise MoleculeError(
                    f"{said} Fix: an element as in the periodic table ('Co'), or every atom with its place: 'H 0 0 0; H 0 0 0.74'."
                )
            rows = [[word, "0", "0", "0"]]
        factor = 1.0 if unit == "bohr" else 1 / BOHR
        symbols, places = [], []
        for row in rows:
            try:
                x, y, z = (float(one) * factor for one in row[1:])
            except ValueError:
                raise MoleculeError(
                    f"geometry has {' '.join(row)!r}, wanted an element and three numbers: 'H 0 0 0; H 0 0 0.74'."
                ) from None
            symbols.append(row[0].capitalize())
            places.append((x, y, z))
        return cls(tuple(symbols), tuple(places), charge, spin)

    @classmethod
    def from_xyz(cls, path: str | Path, *, unit: Unit = "angstrom", charge: int = 0, spin: int | None = None) -> Molecule:
        """Read an XYZ file: the number of atoms, a comment, one atom per line (further columns are not read). Its unit is Angstrom by custom.

        Raises:
            MoleculeError: when the file is absent or no XYZ file.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()  # comments come in any encoding
            count = int(lines[0])
        except OSError as error:
            raise MoleculeError(f"cannot read {path}: {error.strerror or error}. Fix: give the path of an XYZ file.") from error
        except (ValueError, IndexError):
            raise MoleculeError(f"{path} is no XYZ file: its first line is not the number of atoms.") from None
        atoms = [line for line in lines[2 : 2 + count] if line.strip()]
        if len(atoms) != count or count < 1:
            raise MoleculeError(f"{path} says {count} atoms and has {len(atoms)}, wanted one line for each.")
        if any(line.strip() for line in lines[2 + count :]):
            warnings.warn(
                f"{path} goes on after its {count} atoms: its first geometry was read, the others were not.", PopflowWarning, stacklevel=2
            )
        return cls.of("\n".join(" ".join(line.split()[:4]) for line in atoms), unit=unit, charge=charge, spin=spin)

    @classmethod
    def from_ase(cls, atoms: Any, *, charge: int = 0, spin: int | None = None) -> Molecule:
        """Take the symbols and positions of an ASE ``Atoms`` object, which is in Angstrom.

        Raises:
            MoleculeError: when it is periodic.
        """
        if any(atoms.pbc):
            raise MoleculeError(f"the ASE atoms have pbc={[bool(one) for one in atoms.pbc]}, wanted a molecule: atoms.pbc = False.")
        places = tuple((float(x) / BOHR, float(y) / BOHR, float(z) / BOHR) for x, y, z in atoms.get_positions())
        return cls(tuple(atoms.get_chemical_symbols()), places, charge, spin)

    @classmethod
    def from_pyscf(cls, mol: Any) -> Molecule:
        """Take nuclei, charge and spin of a PySCF ``Mole`` that was built.

        Raises:
            MoleculeError: when it has pseudopotentials.
        """
        if mol.has_ecp():
            raise MoleculeError("the PySCF molecule has effective core potentials, wanted all electrons: build it without ecp=.")
        places = tuple((float(x), float(y), float(z)) for x, y, z in mol.atom_coords(unit="Bohr"))
        return cls(tuple(mol.atom_pure_symbol(i) for i in range(mol.natm)), places, int(mol.charge), int(mol.spin))

    @property
    def charges(self) -> tuple[int, ...]:
        """Charges ``Z`` of the nuclei."""
        return tuple(ELEMENTS.index(symbol) + 1 for symbol in self.symbols)

    @property
    def electrons(self) -> int:
        """Number of electrons."""
        return sum(self.charges) - self.charge

    @property
    def up(self) -> int:
        """Electrons with spin up; never fewer than `down`."""
        n, spin = self.electrons, self.spin
        if spin is None:
            spin = UNPAIRED[n - 1] if self._lone else n % 2
        return (n + spin) // 2

    @property
    def down(self) -> int:
        """Electrons with spin down."""
        return self.electrons - self.up

    @property
    def spin_assumed(self) -> bool:
        """Whether the lowest spin was taken, because none was given and no table knows: O2 is a triplet, for one."""
        return self.spin is None and not self._lone

    @property
    def _lone(self) -> bool:
        # ions fill as neutral atoms of as many electrons do up to 18; in the transition metals s leaves before d
        return len(self.symbols) == 1 and (self.charge == 0 or self.electrons <= 18)

    @property
    def dim(self) -> int:
        """Dimension of space."""
        return 3

    @property
    def centres(self) -> Tensor:
        """Positions of the nuclei ``[A, 3]``, float64, in bohr."""
        return torch.tensor(self.positions, dtype=torch.float64)

    @property
    def smooth(self) -> bool:
        """Whether the potential is finite at the centres: not at nuclei."""
        return False

    @cached_property
    def nuclear_repulsion(self) -> float:
        """Energy of the nuclei among themselves, in Hartree."""
        z, r = self.charges, self.positions
        return sum(z[a] * z[b] / math.dist(r[a], r[b]) for a in range(len(z)) for b in range(a))

    @property
    def formula(self) -> str:
        """Sum formula, elements in the order in which they appear."""
        counts = {symbol: self.symbols.count(symbol) for symbol in dict.fromkeys(self.symbols)}
        sign = "" if not self.charge else f"{self.charge:+d}"
        return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in counts.items()) + sign

    def potential(self, x: Tensor) -> Tensor:
        """Potential energy ``[B]`` of electrons at ``x [B, N, 3]``, in Hartree."""
        z = torch.tensor(self.charges, dtype=x.dtype, device=x.device)
        r = (x.unsqueeze(2) - self.centres.to(x)).square().sum(-1).sqrt()
        return self.nuclear_repulsion - (z / r).sum((1, 2)) + repulsion(x)

    def start(self, like: Tensor, noise: Tensor) -> Tensor:
        """Place electrons at nuclei, one by one where most charge is left, spins alternating, and add ``noise [B, N, 3]``."""
        left = [float(z) for z in self.charges]
        spins: dict[bool, list[int]] = {True: [], False: []}
        balance = [0] * len(left)
        for _ in range(self.electrons):
            a = max(range(len(left)), key=lambda i: (left[i], -i))
            left[a] -= 1
            wish = balance[a] < 0 or (balance[a] == 0 and len(spins[True]) <= len(spins[False]))
            is_up = wish if len(spins[wish]) < (self.up if wish else self.down) else not wish
            spins[is_up].append(a)
            balance[a] += 1 if is_up else -1
        at = self.centres[spins[True] + spins[False]]
        return at.to(like) + noise

    def _look_at_distances(self) -> None:
        z, r = self.charges, self.positions
        pairs = [(math.dist(r[a], r[b]), b, a) for a in range(len(r)) for b in range(a)]
        if not pairs:
            return
        least, a, b = min(pairs)
        if least < 0.1:
            raise MoleculeError(f"the nuclei {self._names(a, b)} are {least:.3g} bohr apart, wanted at least 0.1: two atoms at one place?")
        # the shortest bonds are 1.4 bohr of two hydrogens, 1.7 of one, 2 of none; 1 Angstrom taken for 1 bohr halves them
        short = [(d / (1.5, 1.3, 0.75)[(z[a], z[b]).count(1)], d, a, b) for d, a, b in pairs]
        share, least, a, b = min(short)
        far = max(min(d for d, i, j in pairs if k in (i, j)) for k in range(len(r)))
        if share < 1:
            self._question(
                f"the nuclei {self._names(a, b)} are {least:.3g} bohr apart, closer than any bond: were these Angstrom, read as bohr?"
            )
        elif far > 15:
            self._question(f"a nucleus is {far:.3g} bohr from its nearest neighbour: were these bohr, read as Angstrom?")

    def _names(self, a: int, b: int) -> str:
        return f"{self.symbols[a]}{a + 1} and {self.symbols[b]}{b + 1}"

    @staticmethod
    def _question(text: str) -> None:
        warnings.warn(
            text + " Fix: state the unit (unit='angstrom' or 'bohr'); ignore this for a geometry that is meant.",
            PopflowWarning,
            stacklevel=5,
        )


def repulsion(x: Tensor) -> Tensor:
    """Sum of ``1 / |x_i - x_j|`` over pairs of electrons: ``[B, N, d] -> [B]``."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    return (1 / (x[:, i] - x[:, j]).square().sum(-1).sqrt()).sum(-1)
