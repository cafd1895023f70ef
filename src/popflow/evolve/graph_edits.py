"""The edits of Jensen's graph moves as tables: what a pattern matches, and which bonds and atoms change there.

Each edit stands for one reaction of the published operators, and makes the products that RDKit's reactions would make of it, one at a time. Parents
are in Kekulé form. An atom whose degree or element the reaction changes gives up hydrogens that were written in brackets; others keep
them. A changed element starts without charge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from popflow.evolve.molecules import Chem

SINGLE, DOUBLE, TRIPLE = Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE
_UNSPECIFIED = Chem.ChiralType.CHI_UNSPECIFIED

CARBON, NITROGEN, OXYGEN, FLUORINE, SULFUR, CHLORINE, BROMINE = 6, 7, 8, 9, 16, 17, 35


@dataclass(frozen=True)
class Edit:
    """One reaction.

    Attributes:
        name: Which of the seven mutations it belongs to.
        weight: How often it is drawn, relative to the others.
        pattern: SMARTS of what it changes; places below are places in a match.
        bonds: ``(place, place, order)`` of the bonds it makes or changes; order None takes a bond away. The place after the last is the new atom.
        new: Atomic number of the new atom, or None.
        deleted: Place of the atom that is taken away, or None.
        freed: Places whose degree in the reaction changes.
        element: Atomic number that the first atom of the match becomes, or None.
    """

    name: str
    weight: float
    pattern: str
    bonds: tuple[tuple[int, int, Chem.BondType | None], ...]
    new: int | None = None
    deleted: int | None = None
    freed: tuple[int, ...] = ()
    element: int | None = None

    @cached_property
    def query(self) -> Chem.Mol:
        """The pattern, compiled once."""
        return Chem.MolFromSmarts(self.pattern)

    def apply(self, molecule: Chem.Mol, match: Sequence[int]) -> Chem.RWMol:
        """Return an edited copy of a molecule in Kekulé form, not sanitised."""
        edited = Chem.RWMol(molecule)
        places = list(match)
        before = _handed(edited, places)
        if self.new is not None:
            places.append(edited.AddAtom(Chem.Atom(self.new)))
        for a, b, order in self.bonds:
            set_bond(edited, places[a], places[b], order)
        if self.element is not None:
            edited.GetAtomWithIdx(places[0]).SetAtomicNum(self.element)
            edited.GetAtomWithIdx(places[0]).SetFormalCharge(0)
        for place in self.freed:
            atom = edited.GetAtomWithIdx(places[place])
            atom.SetNumExplicitHs(0)
            atom.SetNoImplicit(False)
        gone = None if self.deleted is None else places[self.deleted]
        if before:
            _keep_hands(edited, before, gone)
        if gone is not None:
            edited.RemoveAtom(gone)
        return edited


def set_bond(molecule: Chem.RWMol, a: int, b: int, order: Chem.BondType | None) -> None:
    """Make, change or (order None) take away the bond of two atoms."""
    bond = molecule.GetBondBetweenAtoms(a, b)
    if order is None:
        molecule.RemoveBond(a, b)
    elif bond is None:
        molecule.AddBond(a, b, order)
    else:
        bond.SetBondType(order)


def _handed(molecule: Chem.RWMol, places: list[int]) -> dict[int, list[int]]:
    """Neighbours, in the order of their bonds, of the tetrahedral centres among some atoms."""
    atoms = (molecule.GetAtomWithIdx(place) for place in places)
    return {atom.GetIdx(): _neighbours(atom) for atom in atoms if atom.GetChiralTag() != _UNSPECIFIED}


def _neighbours(atom: Chem.Atom) -> list[int]:
    return [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()]


def _keep_hands(molecule: Chem.RWMol, before: dict[int, list[int]], gone: int | None) -> None:
    """Let each centre keep its hand: what replaces a neighbour takes its place in the order, an implicit hydrogen comes last.

    A centre that has more than one neighbour exchanged loses its hand.
    """
    for centre, old in before.items():
        if centre == gone:
            continue
        atom = molecule.GetAtomWithIdx(centre)
        new = [neighbour for neighbour in _neighbours(atom) if neighbour != gone]
        left, come = [one for one in old if one not in new], [one for one in new if one not in old]
        if len(left) > 1 or len(come) > 1:
            atom.SetChiralTag(_UNSPECIFIED)
            continue
        hydrogen = -1
        replaced = {left[0]: come[0] if come else hydrogen} if left else {hydrogen: come[0]} if come else {}
        wanted = [replaced.get(one, one) for one in _padded(old)]
        if sorted(wanted) != sorted(_padded(new)):
            atom.SetChiralTag(_UNSPECIFIED)
        elif _odd(wanted, _padded(new)):
            atom.InvertChirality()


def _padded(neighbours: list[int]) -> list[int]:
    return neighbours if len(neighbours) > 3 else [*neighbours, -1]


def _odd(order: list[int], other: list[int]) -> bool:
    """Whether an odd number of exchanges leads from one order to the other."""
    places = [other.index(one) for one in order]
    return sum(a > b for i, a in enumerate(places) for b in places[i + 1 :]) % 2 == 1


def _insertions() -> Iterator[Edit]:
    for element in (CARBON, NITROGEN, OXYGEN, SULFUR):
        yield Edit("insert_atom", 0.60 / 4, "[*]~[*]", ((0, 1, None), (0, 2, SINGLE), (2, 1, SINGLE)), new=element)
    for element in (CARBON, NITROGEN):
        yield Edit("insert_atom", 0.35 / 2, "[*;!H0]~[*]", ((0, 1, None), (0, 2, DOUBLE), (2, 1, SINGLE)), new=element)
    yield Edit("insert_atom", 0.05, "[*;!R;!H1;!H0]~[*]", ((0, 1, None), (0, 2, TRIPLE), (2, 1, SINGLE)), new=CARBON)


def _orders() -> Iterator[Edit]:
    for weight, pattern, order in (
        (0.45, "[*]!-[*]", SINGLE),
        (0.45, "[*;!H0]-[*;!H0]", DOUBLE),
        (0.05, "[*]#[*]", DOUBLE),
        (0.05, "[*;!R;!H1;!H0]~[*]", TRIPLE),
    ):
        yield Edit("change_bond_order", weight, pattern, ((0, 1, order),))


def _rings() -> Iterator[Edit]:
    for weight, pattern in (
        (0.05, "[*;!r;!H0]~[*;!r]~[*;!r;!H0]"),
        (0.05, "[*;!r;!H0]~[*!r]~[*!r]~[*;!r;!H0]"),
        (0.45, "[*;!r;!H0]~[*!r]~[*]~[*]~[*;!r;!H0]"),
        (0.45, "[*;!r;!H0]~[*!r]~[*]~[*]~[*!r]~[*;!r;!H0]"),
    ):
        last = pattern.count("~")
        yield Edit("add_ring", weight, pattern, ((0, last, SINGLE),), freed=(0, last))


def _deletions() -> Iterator[Edit]:
    yield Edit("delete_atom", 0.25, "[*]~[D1]", (), deleted=1, freed=(0,))
    yield Edit("delete_atom", 0.25, "[*]~[D2]~[*]", ((0, 2, SINGLE),), deleted=1)
    yield Edit("delete_atom", 0.25, "[*]~[D3](~[*;!H0])~[*]", ((0, 2, SINGLE), (2, 3, SINGLE)), deleted=1, freed=(2,))
    three = ((0, 2, SINGLE), (2, 3, SINGLE), (3, 4, SINGLE))
    yield Edit("delete_atom", 0.1875, "[*]~[D4](~[*;!H0])(~[*;!H0])~[*]", three, deleted=1, freed=(2, 3))
    star = ((0, 2, SINGLE), (2, 3, SINGLE), (2, 4, SINGLE))
    yield Edit("delete_atom", 0.0625, "[*]~[D4](~[*;!H0;!H1])(~[*])~[*]", star, deleted=1, freed=(2,))


def _additions() -> Iterator[Edit]:
    for element in (CARBON, NITROGEN, OXYGEN, FLUORINE, SULFUR, CHLORINE, BROMINE):
        yield Edit("append_atom", 0.60 / 7, "[*;!H0]", ((0, 1, SINGLE),), new=element, freed=(0,))
    for element in (CARBON, NITROGEN, OXYGEN):
        yield Edit("append_atom", 0.35 / 3, "[*;!H0;!H1]", ((0, 1, DOUBLE),), new=element, freed=(0,))
    for element in (CARBON, NITROGEN):
        yield Edit("append_atom", 0.05 / 2, "[*;H3]", ((0, 1, TRIPLE),), new=element, freed=(0,))


MUTATIONS: dict[str, tuple[float, tuple[Edit, ...]]] = {
    "insert_atom": (0.15, tuple(_insertions())),
    "change_bond_order": (0.14, tuple(_orders())),
    "delete_cyclic_bond": (0.14, (Edit("delete_cyclic_bond", 1.0, "[*]@[*]", ((0, 1, None),), freed=(0, 1)),)),
    "add_ring": (0.14, tuple(_rings())),
    "delete_atom": (0.14, tuple(_deletions())),
    "append_atom": (0.15, tuple(_additions())),
}
"""Six of the seven mutations, with their probabilities; the seventh, which changes an element with probability .14, has no table."""

ELEMENTS: dict[int, float] = {
    CARBON: 0.15,
    NITROGEN: 0.15,
    OXYGEN: 0.14,
    FLUORINE: 0.14,
    SULFUR: 0.14,
    CHLORINE: 0.14,
    BROMINE: 0.14,
}
"""Elements that a change of element takes and gives, with their probabilities."""
