"""Crossover and mutation of molecular graphs, as in the genetic algorithm of Jensen (2019).

Crossover cuts each parent at an acyclic single bond, or at two bonds of a ring, and joins a piece of one with a piece of the other. Mutation
changes one atom or bond, closes or opens a ring. Both keep what sanitises, has a size below a fresh draw of N(39.15, 3.50) atoms and, where rings
were touched, has rings of at most six atoms without allenes and without double bonds in rings of three or four.

The published operators make every product of a reaction, sanitise all of them and choose one of those that pass. Here the candidates are tried
in random order and the first that passes is taken: the same distribution, at a fraction of the work. Parents are never changed.

Source: Jensen, "A graph-based genetic algorithm and generative model/Monte Carlo tree search for the exploration of chemical space", Chem. Sci. 10,
3567 (2019), as shipped with PMO. There the join of two ring pieces by a single bond is lost, and the double bond alone is kept; so it is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from popflow.evolve.graph_edits import DOUBLE, ELEMENTS, MUTATIONS, SINGLE, Edit, set_bond
from popflow.evolve.molecules import Chem, canonical_or_none, parse
from popflow.evolve.operators import Child, Parent

MEAN_ATOMS, SD_ATOMS = 39.15, 3.50
TRIES = 10
MOST_MATCHES = 1000
LARGEST_RING = 6

_ACYCLIC = Chem.MolFromSmarts("[*]-;!@[*]")
_RING_PATHS = Chem.MolFromSmarts("[R]@[R]@[R]@[R]"), Chem.MolFromSmarts("[R]@[R;!D2]@[R]")
_ALLENE = Chem.MolFromSmarts("[R]=[R]=[R]")
_STRAINED = Chem.MolFromSmarts("[r3,r4]=[r3,r4]")


@dataclass(frozen=True, slots=True)
class Piece:
    """What a cut leaves of a molecule in Kekulé form, without dummy atoms.

    Attributes:
        molecule: The piece, not sanitised.
        ends: Atoms whose bonds were cut; as the first partner of a join, and as the second, they come in these two orders.
        room: Valence that each end has for a bond, hydrogens given up; None where counting valences does not tell (sulfur, charges).
        span: Bonds between the two ends of a cut ring; 0 where they are one atom.
    """

    molecule: Chem.Mol
    ends: tuple[tuple[int, ...], tuple[int, ...]]
    room: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    span: int


class Graph:
    """A parent in Kekulé form, with its cuts and matches kept: parents come back from generation to generation."""

    def __init__(self, molecule: Chem.Mol):
        self.smiles = Chem.MolToSmiles(molecule)
        self.molecule = Chem.Mol(molecule)
        Chem.Kekulize(self.molecule, clearAromaticFlags=True)
        self._pieces: dict[tuple[int, ...], tuple[Piece, ...]] = {}
        self._matches: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._ring_cuts: dict[tuple[int, tuple[int, ...]], tuple[int, int] | None] = {}
        self._cycles = [frozenset(ring) for ring in self.molecule.GetRingInfo().BondRings()]

    def matches(self, edit: Edit) -> tuple[tuple[int, ...], ...]:
        """Return the places where an edit can be made."""
        if edit.pattern not in self._matches:
            self._matches[edit.pattern] = self.molecule.GetSubstructMatches(edit.query, uniquify=False, maxMatches=MOST_MATCHES)
        return self._matches[edit.pattern]

    def bonds(self, pattern: Chem.Mol, key: str) -> tuple[tuple[int, ...], ...]:
        """Return the different sets of atoms that match a pattern of bonds to cut."""
        if key not in self._matches:
            self._matches[key] = self.molecule.GetSubstructMatches(pattern)
        return self._matches[key]

    def pieces(self, bonds: tuple[int, ...]) -> tuple[Piece, ...]:
        """Return the two pieces that cutting bonds leaves."""
        if bonds not in self._pieces:
            self._pieces[bonds] = _cut(self.molecule, bonds)
        return self._pieces[bonds]

    def cut_chain(self, rng: np.random.Generator) -> tuple[Piece, ...]:
        """Return the two pieces of a cut at a random acyclic single bond; none where there is no such bond."""
        matches = self.bonds(_ACYCLIC, "acyclic")
        if not matches:
            return ()
        a, b = matches[int(rng.random() * len(matches))]
        return self.pieces((self.molecule.GetBondBetweenAtoms(a, b).GetIdx(),))

    def cut_ring(self, rng: np.random.Generator) -> tuple[Piece, ...]:
        """Return the two pieces of a cut at two bonds of a ring, in ten tries; none where that fails."""
        for _ in range(TRIES):
            kind = int(rng.random() >= 0.5)
            matches = self.bonds(_RING_PATHS[kind], f"ring {kind}")
            if not matches:
                return ()
            path = kind, matches[int(rng.random() * len(matches))]
            if path not in self._ring_cuts:
                self._ring_cuts[path] = self._ring_cut(*path)
            bonds = self._ring_cuts[path]
            if bonds is not None:
                return self.pieces(bonds)
        return ()

    def _ring_cut(self, kind: int, path: tuple[int, ...]) -> tuple[int, int] | None:
        """The two bonds of a path to cut, or None if that does not separate: two bonds separate if they lie in the same cycles."""
        cut = ((path[0], path[1]), (path[2], path[3])) if kind == 0 else ((path[0], path[1]), (path[1], path[2]))
        first, second = (self.molecule.GetBondBetweenAtoms(a, b).GetIdx() for a, b in cut)
        return (first, second) if all((first in cycle) == (second in cycle) for cycle in self._cycles) else None


def _cut(molecule: Chem.Mol, bonds: tuple[int, ...]) -> tuple[Piece, ...]:
    """Cut bonds whose loss separates a molecule."""
    room: dict[int, int | None] = {}
    atoms = dummy = molecule.GetNumAtoms()
    for index in bonds:
        bond = molecule.GetBondWithIdx(index)
        for atom in (bond.GetEndAtom(), bond.GetBeginAtom()):
            plain = atom.GetAtomicNum() in {6, 7, 8} and atom.GetFormalCharge() == 0
            room[dummy] = int(bond.GetBondTypeAsDouble()) + atom.GetNumImplicitHs() if plain else None
            dummy += 1
    cut = Chem.FragmentOnBonds(molecule, bonds, addDummies=True, dummyLabels=[(1, 1)] * len(bonds))
    numbers: list[tuple[int, ...]] = []
    parts = Chem.GetMolFrags(cut, asMols=True, sanitizeFrags=False, fragsMolAtomMapping=numbers)
    return tuple(_piece(part, atoms, room, old) for part, old in zip(parts, numbers, strict=True))


def _piece(part: Chem.Mol, atoms: int, room: dict[int, int | None], old: tuple[int, ...]) -> Piece:
    """Take the dummy atoms away from a piece, and order its ends as RDKit's reactions would join them.

    Dummy atoms have the last numbers. The first partner of a join is searched from its atoms, the second from its dummy atoms.
    """
    size = sum(number < atoms for number in old)
    dummies = range(size, len(old))
    partner = {dummy: part.GetAtomWithIdx(dummy).GetBonds()[0].GetOtherAtomIdx(dummy) for dummy in dummies}
    bare = Chem.RWMol(part)
    for dummy in reversed(dummies):
        bare.RemoveAtom(dummy)
    orders = sorted(dummies, key=lambda dummy: (partner[dummy], dummy)), dummies
    ends = [tuple(partner[dummy] for dummy in order) for order in orders]
    rooms = [tuple(room[old[dummy]] for dummy in order) for order in orders]
    piece = bare.GetMol()
    apart = len(ends[0]) == 2 and ends[0][0] != ends[0][1]
    span = len(Chem.GetShortestPath(piece, *ends[0])) - 1 if apart else 0
    return Piece(piece, (ends[0], ends[1]), (rooms[0], rooms[1]), span)


def crossover(parent_a: Graph, parent_b: Graph, rng: np.random.Generator) -> Chem.Mol | None:
    """Return a child of two parents that differs from both, or None after ten tries.

    >>> rng = np.random.default_rng(0)
    >>> child = crossover(Graph(parse("CCOc1ccccc1C")), Graph(parse("CCCNC1CCCCC1")), rng)
    >>> child is None or child.GetNumAtoms() > 5
    True
    """
    parents = parent_a.smiles, parent_b.smiles
    sizes = parent_a.molecule.GetNumAtoms(), parent_b.molecule.GetNumAtoms()
    for _ in range(TRIES):
        child = cross_chains(parent_a, parent_b, rng) if rng.random() <= 0.5 else cross_rings(parent_a, parent_b, rng)
        if child is not None and (child.GetNumAtoms() not in sizes or Chem.MolToSmiles(child) not in parents):
            return child
    return None


def cross_chains(parent_a: Graph, parent_b: Graph, rng: np.random.Generator) -> Chem.Mol | None:
    """Cut both parents at an acyclic single bond and join two of the pieces by a single bond."""
    for _ in range(TRIES):
        pieces_a, pieces_b = parent_a.cut_chain(rng), parent_b.cut_chain(rng)
        if not pieces_a or not pieces_b:
            return None
        for choice in rng.permutation(4):
            a, b = pieces_a[choice // 2], pieces_b[choice % 2]
            if not size_ok(a.molecule.GetNumAtoms() + b.molecule.GetNumAtoms(), rng):
                continue
            child = _join(a, b, SINGLE)
            if not Chem.SanitizeMol(child, catchErrors=True):
                return child.GetMol()
    return None


def cross_rings(parent_a: Graph, parent_b: Graph, rng: np.random.Generator) -> Chem.Mol | None:
    """Cut a ring of each parent at two bonds, join two of the pieces by a double bond and close the ring by a single or double bond."""
    for _ in range(TRIES):
        pieces_a, pieces_b = parent_a.cut_ring(rng), parent_b.cut_ring(rng)
        if not pieces_a or not pieces_b:
            return None
        pairs = [(a, b) for a in pieces_a for b in pieces_b if _opens(a, b, rng)]
        # a ring is closed from either end, so each closure stands twice among the products that the choice is made from
        candidates = [(a, b, order) for a, b in pairs for order in (SINGLE, DOUBLE) for _ in range(2)]
        for choice in rng.permutation(len(candidates)):
            a, b, order = candidates[choice]
            if not size_ok(a.molecule.GetNumAtoms() + b.molecule.GetNumAtoms(), rng) or not _closes(a, b, order):
                continue
            child = _join(a, b, DOUBLE)
            set_bond(child, a.ends[0][1], a.molecule.GetNumAtoms() + b.ends[1][1], order)
            if not Chem.SanitizeMol(child, catchErrors=True) and rings_ok(child):
                return child.GetMol()
    return None


def _join(a: Piece, b: Piece, order: Chem.BondType) -> Chem.RWMol:
    """Join the first ends of two pieces by a bond."""
    joined = Chem.RWMol(Chem.CombineMols(a.molecule, b.molecule))
    joined.AddBond(a.ends[0][0], a.molecule.GetNumAtoms() + b.ends[1][0], order)
    return joined


def _opens(a: Piece, b: Piece, rng: np.random.Generator) -> bool:
    """Whether two ring pieces may be joined by a double bond: the size with two open ends is allowed, and both ends have room.

    The published code sanitises this open molecule. Where valences can be counted that asks for room alone, since the pieces are Kekulé forms of valid
    molecules; where they cannot, the closed child is sanitised in its place.
    """
    atoms = a.molecule.GetNumAtoms() + b.molecule.GetNumAtoms() + 2
    return size_ok(atoms, rng) and _fits(a.room[0][0]) and _fits(b.room[1][0])


def _closes(a: Piece, b: Piece, order: Chem.BondType) -> bool:
    """Whether a ring that two joined pieces close has at most six atoms, and its bond finds room."""
    if a.span == b.span == 0:
        return True  # the bond of the join is there already, and only its order changes
    return a.span + b.span + 2 <= LARGEST_RING and (order == SINGLE or (_fits(a.room[0][1]) and _fits(b.room[1][1])))


def _fits(room: int | None) -> bool:
    """Whether an end can take a double bond, as far as counting valences tells."""
    return room is None or room >= 2


def size_ok(atoms: int, rng: np.random.Generator) -> bool:
    """Whether a number of atoms lies above 5 and below a fresh draw of N(39.15, 3.50)."""
    return 5 < atoms < MEAN_ATOMS + SD_ATOMS * rng.standard_normal()


def rings_ok(molecule: Chem.Mol) -> bool:
    """Whether a sanitised molecule has rings of at most six atoms, no allene in a ring, no double bond in a ring of three or four."""
    sizes = [len(ring) for ring in molecule.GetRingInfo().AtomRings()]
    if not sizes:
        return True
    if max(sizes) > LARGEST_RING or molecule.HasSubstructMatch(_ALLENE):
        return False
    return min(sizes) > 4 or not molecule.HasSubstructMatch(_STRAINED)


_MOVES = tuple((name, weight, edits, np.cumsum([edit.weight for edit in edits])) for name, (weight, edits) in MUTATIONS.items())
_MOVE_WEIGHTS = np.cumsum([weight for _, weight, _, _ in _MOVES])
"""What is left of 1 is the change of an element."""


def mutate(parent: Graph, rng: np.random.Generator) -> Chem.Mol | None:
    """Return a mutant of a parent, or None after ten tries.

    >>> mutant = mutate(Graph(parse("CCOc1ccccc1C")), np.random.default_rng(0))
    >>> mutant is None or mutant.GetNumAtoms() > 5
    True
    """
    atoms = parent.molecule.GetNumAtoms()
    for _ in range(TRIES):
        move = int(np.searchsorted(_MOVE_WEIGHTS, rng.random(), side="right"))
        edit = _element_change(parent, rng) if move == len(_MOVES) else _drawn(move, rng)
        if edit is None:
            continue
        matches = parent.matches(edit)
        size = atoms + (edit.new is not None) - (edit.deleted is not None)
        for choice in rng.permutation(len(matches)):
            if not size_ok(size, rng):
                continue
            mutant = edit.apply(parent.molecule, matches[choice])
            if not Chem.SanitizeMol(mutant, catchErrors=True) and rings_ok(mutant):
                return mutant.GetMol()
    return None


def _drawn(move: int, rng: np.random.Generator) -> Edit:
    _, _, edits, weights = _MOVES[move]
    return edits[min(int(np.searchsorted(weights, rng.random() * weights[-1], side="right")), len(edits) - 1)]


def _element_change(parent: Graph, rng: np.random.Generator) -> Edit | None:
    """Draw an element that the parent has and another to put in its place; None where it has none of the seven."""
    present = {atom.GetAtomicNum() for atom in parent.molecule.GetAtoms()} & ELEMENTS.keys()
    if not present:
        return None
    old = _element([one for one in ELEMENTS if one in present], rng)
    return _exchange(old, _element([one for one in ELEMENTS if one != old], rng))


def _element(among: list[int], rng: np.random.Generator) -> int:
    weights = np.cumsum([ELEMENTS[one] for one in among])
    return among[min(int(np.searchsorted(weights, rng.random() * weights[-1], side="right")), len(among) - 1)]


@lru_cache(maxsize=64)
def _exchange(old: int, new: int) -> Edit:
    return Edit("change_atom", 1.0, f"[#{old}]", (), freed=(0,), element=new)


@lru_cache(maxsize=1024)
def _graph(smiles: str) -> Graph:
    return Graph(parse(smiles))


def _key(child: Chem.Mol | None) -> str | None:
    """The key of a child; None for none, and for one that does not survive being written and read again."""
    return None if child is None else canonical_or_none(Chem.MolToSmiles(child))


@dataclass(frozen=True, slots=True)
class Crossover:
    """The operator that crosses two parents drawn independently, and mutates the child now and then, as PMO's graph GA does.

    Args:
        mutation_rate: Probability that a child is mutated, too.

    Example:
        >>> parents = [Parent("CCOc1ccccc1C", 0.1), Parent("CCCNC1CCCCC1", 0.2)]
        >>> children = Crossover()(parents, 5, np.random.default_rng(0))
        >>> all(child.operator == "crossover" for child in children)
        True
    """

    mutation_rate: float = 0.067

    def __post_init__(self) -> None:
        if not 0 <= self.mutation_rate <= 1:
            raise ValueError(f"mutation_rate={self.mutation_rate!r}, wanted a probability between 0 and 1.")

    def __call__(self, parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        """Try ``n`` times and return the children that came of it."""
        children = []
        for _ in range(n if parents else 0):
            mother, father = (parents[int(rng.random() * len(parents))].smiles for _ in range(2))
            child = crossover(_graph(mother), _graph(father), rng)
            if child is not None and rng.random() <= self.mutation_rate:
                child = mutate(Graph(child), rng)
            key = _key(child)
            if key is not None and key not in (mother, father):
                children.append(Child(key, "crossover", (mother, father)))
        return children


@dataclass(frozen=True, slots=True)
class Mutation:
    """The operator that mutates one parent.

    Example:
        >>> [child.parents for child in Mutation()([Parent("CCOc1ccccc1C", 0.1)], 1, np.random.default_rng(0))]
        [('CCOc1ccccc1C',)]
    """

    def __call__(self, parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        """Try ``n`` times and return the mutants that differ from their parent."""
        children = []
        for _ in range(n if parents else 0):
            parent = parents[int(rng.random() * len(parents))].smiles
            key = _key(mutate(_graph(parent), rng))
            if key is not None and key != parent:
                children.append(Child(key, "mutation", (parent,)))
        return children
