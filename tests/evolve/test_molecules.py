"""Molecules as text: one key for all spellings, and bad lines of a file named by number."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from popflow.evolve import canonical, canonical_or_none, count_fingerprints, parse, read_seeds, seeds, tanimoto
from popflow.evolve.molecules import Chem

LIGANDS = ["CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O", "C[NH+]1CCC[C@H]1COc1ncc(F)cc1Cl", "F/C=C/C(=O)Nc1ccccc1"]


@pytest.mark.parametrize("smiles", LIGANDS)
def test_every_spelling_has_the_same_key_and_the_key_is_its_own(smiles: str) -> None:
    key = canonical(smiles)
    assert canonical(key) == key
    assert {canonical(spelling) for spelling in Chem.MolToRandomSmilesVect(parse(smiles), 10, 1)} == {key}


def test_stereoisomers_are_different_molecules() -> None:
    assert len({canonical(smiles) for smiles in ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "CC(N)C(=O)O", "F/C=C/F", "F/C=C\\F")}) == 5


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("C1CC", "grammar"),
        ("c1ccccc1C(C)(C)(C)C", "valence"),
        ("c1cccc1", "[kK]ekul"),
        ("[Na+].[Cl-]", "2 parts"),
        ("CC*", "dummy"),
        ("C" * 200, "200 heavy atoms, wanted at most 150"),
        ("C" * 3000, "3000 characters"),
        ("CC O", "blanks"),
        ("<script>alert(1)</script>", "no molecule"),
    ],
)
def test_what_is_no_usable_molecule_is_refused_with_the_reason(smiles: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(smiles)
    assert canonical_or_none(smiles) is None


def test_bad_lines_are_named_by_their_numbers(tmp_path) -> None:
    file = tmp_path / "seeds.smi"
    file.write_text("smiles name\nCCO ethanol\n\n# a remark\nC1CC\nOCC twice\nCC.Cl salt\n" + "C" * 400 + "\n")
    with pytest.raises(ValueError, match=r"seeds.smi has 3 lines") as failure:
        read_seeds(file)
    text = str(failure.value)
    assert [f"line {number}" in text for number in range(1, 9)] == [False, False, False, False, True, False, True, True]
    file.write_text("smiles\nCCO ethanol\nOCC twice\nc1ccccc1\t3\n")
    assert read_seeds(file) == ["CCO", "c1ccccc1"]


def test_many_bad_lines_are_not_all_shown() -> None:
    with pytest.raises(ValueError, match="20 lines") as failure:
        seeds(["X"] * 20)
    assert "and 12 more" in str(failure.value)


def test_a_file_without_molecules_or_that_is_none_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_seeds(tmp_path / "absent.smi")
    (tmp_path / "bytes.smi").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        read_seeds(tmp_path / "bytes.smi")
    with pytest.raises(ValueError, match="holds no molecule"):
        seeds(["", "# nothing"])


def test_the_log_of_rdkit_is_silent_in_a_process_of_its_own() -> None:
    code = "from popflow.evolve import canonical_or_none\nprint(canonical_or_none('C1CC'), canonical_or_none('c1cccc1'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None None"
    assert done.stderr == ""


def test_fingerprints_count_fragments() -> None:
    counts = count_fingerprints(["C", "CC", "CCCCCC"])
    assert counts.shape == (3, 2048)
    assert np.array_equal(counts.sum(1), [1, 3, 6 + 6 + 5 - 1])  # atoms of radius 0, 1 and 2, without those that repeat the same bonds
    assert tanimoto("CCO", ["CCO", "c1ccccc1"]) == pytest.approx([1.0, 0.0])


def test_atom_maps_are_no_part_of_the_key() -> None:
    assert canonical("[CH3:1][CH2:2]O") == canonical("CCO") == "CCO"
