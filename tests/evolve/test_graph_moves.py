"""Each edit makes what the published reaction makes; the moves keep parents, sizes, rings and the seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from rdkit.Chem import AllChem

from popflow.evolve import Crossover, Mutation, Parent, canonical, crossover, mutate, parse
from popflow.evolve.graph_edits import MUTATIONS, Edit
from popflow.evolve.graph_moves import Graph, _exchange, cross_chains, cross_rings, rings_ok
from popflow.evolve.molecules import Chem

PARENTS = [
    "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",
    "C[NH+]1CCC[C@H]1COc1ncc(F)cc1Cl",
    "COc1cc2ncnc(Nc3ccc(Br)cc3F)c2cc1OCC1CCN(C)CC1",
    "CC(=O)N[C@@H](CS)C(=O)N1CC=CC1C#N",
    "O=S(=O)(NCc1c[nH]cn1)C1CC2CC1CC2",
    "CC(C)(C)OC(=O)N/N=C/c1cccs1",
]
REACTIONS = {
    "insert_atom": [
        *(f"[*:1]~[*:2]>>[*:1]{x}[*:2]" for x in "CNOS"),
        *(f"[*;!H0:1]~[*:2]>>[*:1]={x}-[*:2]" for x in "CN"),
        "[*;!R;!H1;!H0:1]~[*:2]>>[*:1]#C-[*:2]",
    ],
    "change_bond_order": [
        "[*:1]!-[*:2]>>[*:1]-[*:2]",
        "[*;!H0:1]-[*;!H0:2]>>[*:1]=[*:2]",
        "[*:1]#[*:2]>>[*:1]=[*:2]",
        "[*;!R;!H1;!H0:1]~[*:2]>>[*:1]#[*:2]",
    ],
    "delete_cyclic_bond": ["[*:1]@[*:2]>>([*:1].[*:2])"],
    "add_ring": [
        "[*;!r;!H0:1]~[*;!r:2]~[*;!r;!H0:3]>>[*:1]1~[*:2]~[*:3]1",
        "[*;!r;!H0:1]~[*!r:2]~[*!r:3]~[*;!r;!H0:4]>>[*:1]1~[*:2]~[*:3]~[*:4]1",
        "[*;!r;!H0:1]~[*!r:2]~[*:3]~[*:4]~[*;!r;!H0:5]>>[*:1]1~[*:2]~[*:3]~[*:4]~[*:5]1",
        "[*;!r;!H0:1]~[*!r:2]~[*:3]~[*:4]~[*!r:5]~[*;!r;!H0:6]>>[*:1]1~[*:2]~[*:3]~[*:4]~[*:5]~[*:6]1",
    ],
    "delete_atom": [
        "[*:1]~[D1:2]>>[*:1]",
        "[*:1]~[D2:2]~[*:3]>>[*:1]-[*:3]",
        "[*:1]~[D3:2](~[*;!H0:3])~[*:4]>>[*:1]-[*:3]-[*:4]",
        "[*:1]~[D4:2](~[*;!H0:3])(~[*;!H0:4])~[*:5]>>[*:1]-[*:3]-[*:4]-[*:5]",
        "[*:1]~[D4:2](~[*;!H0;!H1:3])(~[*:4])~[*:5]>>[*:1]-[*:3](-[*:4])-[*:5]",
    ],
    "append_atom": [
        *(f"[*;!H0:1]>>[*:1]-{x}" for x in ("C", "N", "O", "F", "S", "Cl", "Br")),
        *(f"[*;!H0;!H1:1]>>[*:1]={x}" for x in "CNO"),
        *(f"[*;H3:1]>>[*:1]#{x}" for x in "CN"),
    ],
}
"""The published mutations."""
CASES = [(name, text, edit) for name, (_, edits) in MUTATIONS.items() for text, edit in zip(REACTIONS[name], edits, strict=True)]
CASES += [
    ("change_atom", f"[#{old}:1]>>[#{new}:1]", _exchange(old, new)) for old, new in ((6, 7), (7, 6), (7, 35), (8, 16), (16, 8), (9, 17))
]


def constitution(molecule: Chem.Mol) -> str | None:
    """Constitution of a product, None where it does not sanitise."""
    if Chem.SanitizeMol(molecule, catchErrors=True):
        return None
    return Chem.CanonSmiles(Chem.MolToSmiles(molecule, isomericSmiles=False))


@pytest.mark.parametrize(("name", "text", "edit"), CASES, ids=[text for _, text, _ in CASES])
def test_an_edit_makes_the_products_of_its_reaction_as_often(name: str, text: str, edit: Edit) -> None:
    reaction = AllChem.ReactionFromSmarts(text)
    for smiles in PARENTS:
        graph = Graph(parse(smiles))
        ours = Counter(constitution(edit.apply(graph.molecule, match)) for match in graph.matches(edit))
        assert ours == Counter(constitution(product) for (product,) in reaction.RunReactants((graph.molecule,))), smiles
    assert edit.name == name


def test_probabilities_are_those_published() -> None:
    assert sum(weight for weight, _ in MUTATIONS.values()) == pytest.approx(1 - 0.14)
    for _, edits in MUTATIONS.values():
        assert sum(edit.weight for edit in edits) == pytest.approx(1)


def test_centres_keep_their_hand_when_a_neighbour_is_replaced() -> None:
    """An atom between the centre and its ring, bonds in any order: the hand, not the label, stays."""
    insertion = MUTATIONS["insert_atom"][1][0]
    for spelling in Chem.MolToRandomSmilesVect(parse("F[C@@H](Cl)c1ccccc1"), 12, 3):
        molecule = parse(spelling)
        graph = Graph(molecule)
        match = molecule.GetSubstructMatch(Chem.MolFromSmarts("[CX4]c"))
        product = insertion.apply(graph.molecule, match)
        Chem.SanitizeMol(product)
        assert canonical(Chem.MolToSmiles(product)) == canonical("F[C@@H](Cl)Cc1ccccc1"), spelling


def _products_of_published_chain_crossover(a: str, b: str) -> set[str]:
    """All joins of all pieces, by RDKit's reactions."""
    reaction = AllChem.ReactionFromSmarts("[*:1]-[1*].[1*]-[*:2]>>[*:1]-[*:2]")
    sides = []
    for smiles in (a, b):
        molecule = Graph(parse(smiles)).molecule
        bonds = [molecule.GetBondBetweenAtoms(*pair).GetIdx() for pair in molecule.GetSubstructMatches(Chem.MolFromSmarts("[*]-;!@[*]"))]
        cuts = [Chem.FragmentOnBonds(molecule, [bond], dummyLabels=[(1, 1)]) for bond in bonds]
        sides.append([piece for cut in cuts for piece in Chem.GetMolFrags(cut, asMols=True)])
    made = {constitution(reaction.RunReactants((one, other))[0][0]) for one in sides[0] for other in sides[1]}
    return {one for one in made if one and Chem.MolFromSmiles(one).GetNumAtoms() > 5}


def test_crossing_chains_reaches_all_published_products_and_no_other() -> None:
    a, b = "CCOc1ccccc1", "CC(N)C1CC1"
    rng = np.random.default_rng(0)
    first, second = Graph(parse(a)), Graph(parse(b))
    made = {constitution(Chem.Mol(child)) for child in (cross_chains(first, second, rng) for _ in range(2000)) if child}
    assert made == _products_of_published_chain_crossover(a, b)


def test_crossing_rings_makes_rings_of_allowed_size() -> None:
    rng = np.random.default_rng(0)
    first, second = Graph(parse(PARENTS[2])), Graph(parse(PARENTS[4]))
    children = [child for child in (cross_rings(first, second, rng) for _ in range(200)) if child]
    assert len(children) > 100
    assert all(rings_ok(child) and child.GetRingInfo().NumRings() for child in children)
    assert cross_rings(Graph(parse("CCCCCC")), first, rng) is None


@pytest.mark.parametrize(
    ("operator", "tries"),
    [(Crossover(), 1050), (Crossover(mutation_rate=1.0), 200), (Mutation(), 1050)],
    ids=["crossover", "both", "mutation"],
)
def test_a_thousand_children_sanitise_and_parents_stay(operator, tries: int) -> None:
    parents = [Parent(canonical(smiles), 1.0) for smiles in PARENTS]
    children = operator(parents, tries, np.random.default_rng(1))
    assert len(children) > 0.95 * tries
    for child in children:
        assert canonical(child.smiles) == child.smiles
        assert 5 < parse(child.smiles).GetNumAtoms() < 60
        assert child.smiles not in child.parents
        assert set(child.parents) <= {parent.smiles for parent in parents}
    assert len({child.smiles for child in children}) > 0.3 * tries
    again = operator(parents, 50, np.random.default_rng(1))
    assert again == children[: len(again)], "the same seed gives the same children"


def test_molecules_given_are_left_as_they_are() -> None:
    molecule, other = parse(PARENTS[0]), parse(PARENTS[1])
    before = molecule.ToBinary(), other.ToBinary()
    rng = np.random.default_rng(0)
    for _ in range(50):
        crossover(Graph(molecule), Graph(other), rng)
        mutate(Graph(molecule), rng)
    assert (molecule.ToBinary(), other.ToBinary()) == before


def test_no_element_to_change_is_no_endless_loop() -> None:
    mutants = [mutate(Graph(parse("[SiH3][SiH2][SiH2][SiH2][SiH2][SiH3]")), np.random.default_rng(seed)) for seed in range(20)]
    assert any(mutants)


def test_nothing_to_cross_gives_no_child() -> None:
    assert Crossover()([Parent("C", 0.0)], 5, np.random.default_rng(0)) == []
    assert Mutation()([], 5, np.random.default_rng(0)) == []
    with pytest.raises(ValueError, match="mutation_rate=2"):
        Crossover(mutation_rate=2.0)


@pytest.mark.parametrize(
    ("smiles", "fine"), [("CCCCC", True), ("C1CCCCCC1", False), ("C1=CC1", False), ("C1=C=CCCC1", False), ("C1=CCCC1", True)]
)
def test_rings_are_judged_as_published(smiles: str, fine: bool) -> None:
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        pytest.fail(f"{smiles} is no molecule")
    assert rings_ok(molecule) is fine
