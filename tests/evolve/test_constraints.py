"""Constraints refuse what they should, with a reason, and nothing else."""

from __future__ import annotations

import pytest

from popflow.evolve import Alerts, Core, Forbidden, Required, Similarity, refused

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def test_required_and_forbidden_patterns() -> None:
    assert Required("C(=O)[OX2H]")(ASPIRIN) is None
    assert "lacks the pattern" in str(Required("[#7]")(ASPIRIN))
    assert Forbidden("[#7]")(ASPIRIN) is None
    assert "forbidden pattern" in str(Forbidden("c1ccccc1")(ASPIRIN))
    for kind in (Required, Forbidden):
        with pytest.raises(ValueError, match="no SMARTS"):
            kind("[#7")
        with pytest.raises(ValueError, match="no SMARTS"):
            kind("")


def test_a_window_of_similarity() -> None:
    assert Similarity(ASPIRIN, low=0.99)(ASPIRIN) is None
    assert "wanted 0 to 0.9" in str(Similarity(ASPIRIN, high=0.9)(ASPIRIN))
    assert "wanted 0.5 to 1" in str(Similarity(ASPIRIN, low=0.5)("CCCCCC"))
    with pytest.raises(ValueError, match="low <= high"):
        Similarity(ASPIRIN, 0.8, 0.2)
    with pytest.raises(ValueError, match="no molecule"):
        Similarity("C1CC")


def test_alerts_name_the_group() -> None:
    assert "PAINS alert" in str(Alerts("PAINS")("O=C1C=CC(=O)C=C1"))
    assert Alerts("PAINS")("CCO") is None
    with pytest.raises(ValueError, match="did you mean 'PAINS'"):
        Alerts("PAIN")


@pytest.mark.parametrize(
    ("core", "smiles", "allowed"),
    [
        ("c1ccccc1", ASPIRIN, True),
        ("c1ccncc1", ASPIRIN, False),
        ("c1ccccc1*", "CCc1ccccc1", True),
        ("c1ccccc1*", "CCc1ccc(C)cc1", False),
        ("c1ccccc1[1*]", "CCc1ccccc1", True),
        ("c1ccccc1[*:1]", "CCc1ccccc1", True),
        ("c1ccccc1[1*]", "CCc1ccc(C)cc1", False),
        ("*c1ccc(*)cc1", "CCc1ccc(C)cc1", True),
        ("*c1ccc(*)cc1", "CCc1ccccc1", True),
        ("*c1ccc(*)cc1", "CCc1cccc(C)c1", False),
        ("*N(*)C(=O)C", "CCN(C)C(C)=O", True),
        ("*NC(=O)C", "CCN(C)C(C)=O", False),
        ("*[C@H](F)Cl", "C[C@H](F)Cl", True),
        ("*[C@H](F)Cl", "C[C@@H](F)Cl", False),
        ("*c1c[nH]cn1", "Cc1c[nH]cn1", True),
    ],
)
def test_a_core_stays_and_is_decorated_where_it_may_be(core: str, smiles: str, allowed: bool) -> None:
    assert (Core(core)(smiles) is None) is allowed


def test_a_core_that_is_none_is_refused() -> None:
    for core in ("C1CC", "*", ""):
        with pytest.raises(ValueError, match="core"):
            Core(core)


def test_the_first_reason_is_given() -> None:
    constraints = [Required("[#6]"), Forbidden("[OX2H]"), Forbidden("c")]
    assert "OX2H" in str(refused(ASPIRIN, constraints))
    assert refused("CCCC", constraints) is None
    assert refused(ASPIRIN, []) is None
