"""The objectives equal those of the Therapeutics Data Commons, the activity models those of scikit-learn."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from popflow.evolve import Hit, oracles
from popflow.evolve.oracles import OTHERS, TASKS, Command, Objective, activity, oracle, pmo, terms

FOLDER = Path(__file__).parent / "data"
REFERENCE = json.loads((FOLDER / "pmo_reference.json").read_text())
"""Values of the code of the Therapeutics Data Commons."""
TARGETS = {
    "celecoxib_rediscovery": "CC1=CC=C(C=C1)C1=CC(=NN1C1=CC=C(C=C1)S(N)(=O)=O)C(F)(F)F",
    "troglitazone_rediscovery": "Cc1c(C)c2OC(C)(COc3ccc(CC4SC(=O)NC4=O)cc3)CCc2c(C)c1O",
    "thiothixene_rediscovery": "CN(C)S(=O)(=O)c1ccc2Sc3ccccc3C(=CCCN4CCN(C)CC4)c2c1",
    "albuterol_similarity": "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1",
    "mestranol_similarity": "COc1ccc2[C@H]3CC[C@@]4(C)[C@@H](CC[C@@]4(O)C#C)[C@@H]3CCc2c1",
    "aripiprazole_similarity": "Clc4cccc(N3CCN(CCCCOc2ccc1c(NC(=O)CC1)c2)CC3)c4Cl",
}


def test_there_are_23_tasks() -> None:
    assert len(TASKS) == 23
    assert set(REFERENCE["values"]) == set(TASKS) - {"jnk3", "gsk3b", "drd2"}


@pytest.mark.parametrize("name", REFERENCE["values"])
def test_objectives_equal_those_of_the_commons(name: str) -> None:
    objective = Objective(name)
    assert [objective(smiles) for smiles in REFERENCE["molecules"]] == pytest.approx(REFERENCE["values"][name], abs=1e-12)


@pytest.mark.parametrize("name", TARGETS)
def test_the_targets_themselves_score_one(name: str) -> None:
    assert Objective(name)(TARGETS[name]) == pytest.approx(1.0, abs=1e-12)


def test_isomers_score_one_and_their_neighbours_less() -> None:
    isomer = terms.isomer("C3H8O")
    parsed = [terms.parse(smiles) for smiles in ("CCCO", "CC(C)O", "CCOC", "CCO")]
    assert [isomer(molecule) for molecule in parsed[:3]] == [1.0, 1.0, 1.0]
    # C2H6O: one carbon and two hydrogens fewer, three atoms fewer of twelve
    assert isomer(parsed[3]) == pytest.approx(np.exp(-0.5 * (1 + 4 + 0 + (3 / 2) ** 2) / 4))


def test_forests_equal_those_of_scikit_learn_and_the_machine_nearly() -> None:
    with np.load(FOLDER / "activity_reference.npz") as stored:
        bits = np.unpackbits(stored["bits"], axis=1)
        for name in ("jnk3", "gsk3b"):
            ours = [activity._forest(f"{name}_rf")(row) for row in bits]
            assert np.abs(np.array(ours) - stored[name]).max() <= 2e-10
        ours = [activity.machine(row.astype(np.float64)) for row in stored["counts"]]
        assert np.abs(np.array(ours) - stored["drd2"]).max() <= 1e-9
        assert np.ptp(stored["drd2"]) > 0.5, "the reference has molecules of both kinds"


@pytest.mark.parametrize(
    ("name", "mean", "largest"),
    [
        ("qed", 0.730, 0.941),
        ("jnk3", 0.020, 0.13),
        ("gsk3b", 0.036, 0.27),
        ("drd2", 0.009, 0.17),
        ("mestranol_similarity", 0.170, 0.274),
        ("deco_hop", 0.530, 0.586),
        ("scaffold_hop", 0.379, 0.463),
    ],
)
def test_the_first_molecules_of_zinc_score_as_measured_elsewhere(name: str, mean: float, largest: float, data) -> None:
    with gzip.open(data / "chem" / "zinc250k.smiles.gz", "rt") as lines:
        values = [Objective(name)(next(lines).strip()) for _ in range(50)]
    assert np.mean(values) == pytest.approx(mean, abs=6e-4)
    assert max(values) == pytest.approx(largest, abs=5e-3)


@pytest.mark.parametrize("name", [*TASKS, *OTHERS])
def test_objectives_travel_to_workers_and_keep_their_range(name: str) -> None:
    objective = pickle.loads(pickle.dumps(Objective(name)))
    values = [objective(smiles) for smiles in (*REFERENCE["molecules"][:2], "C")]
    assert np.isfinite(values).all()
    if name in TASKS:
        assert 0 <= min(values) <= max(values) <= 1


def test_penalised_logp_takes_off_for_large_rings() -> None:
    small, large = (pmo.penalised_logp(terms.parse(f"C1{'C' * n}C1")) for n in (4, 6))
    assert small > large


def test_unknown_names_and_bad_molecules_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'qed'"):
        Objective("qedd")
    with pytest.raises(ValueError, match="no molecule"):
        Objective("qed")("C1CC")
    with pytest.raises(ValueError, match="did you mean 'jnk3'"):
        oracle("jnk33")


def test_a_command_reads_the_molecule_and_prints_the_score(tmp_path) -> None:
    script = tmp_path / "score.py"
    script.write_text("import sys\nprint('loading')\nprint(len(input() if len(sys.argv) < 2 else sys.argv[1]) / 2)\n")
    assert oracle(f"cmd:python3 {script}")("CCO") == 1.5
    assert Command(f"python3 {script} {{}}")("C#C; rm -rf *") == 6.5
    assert Command(f"python3 {script} --smiles={{}}")("CCO") == 6.0
    assert oracle(f"cmd:python3 {script}").timeout is None, "the caller owns the limit"


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("print('high')", ValueError, "printed 'high' last"),
        ("pass", ValueError, "printed '' last"),
        ("raise SystemExit('no licence')", RuntimeError, "ended with 1 for 'CCO': no licence"),
        ("import time; time.sleep(60)", TimeoutError, "more than 0.5 s"),
    ],
)
def test_a_command_that_fails_says_how(code: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Command(f'python3 -c "{code}"', timeout=0.5 if error is TimeoutError else 30)("CCO")


def test_commands_that_cannot_run_are_refused_before_any_call() -> None:
    for text, message in (("", "empty"), ("no-such-program --x", "no program"), ("python3 'open", "cannot be split")):
        with pytest.raises(ValueError, match=message):
            Command(text)
    with pytest.raises(ValueError, match="timeout"):
        Command("python3", timeout=0)


def test_functions_are_found_by_module_and_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_oracle.py").write_text("def score(smiles):\n    return float(len(smiles))\nlimit = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert oracle("my_oracle:score")("CCO") == 3.0
    with pytest.raises(ValueError, match="is of the type int, wanted a function"):
        oracle("my_oracle:limit")
    with pytest.raises(ValueError, match="cannot import it"):
        oracle("no_such_module:score")
    (tmp_path / "broken_oracle.py").write_text("def score(smiles:\n")
    with pytest.raises(ValueError, match="cannot import it: SyntaxError"):
        oracle("broken_oracle:score")


def test_a_value_to_hit_is_best_at_the_value() -> None:
    hit = Hit(Objective("tpsa"), target=37.3, width=5.0)
    assert hit("CC(C)Cc1ccc(cc1)C(C)C(=O)O") == pytest.approx(1.0)
    assert hit("CCCCCC") == pytest.approx(np.exp(-0.5 * (37.3 / 5) ** 2))
    with pytest.raises(ValueError, match="width"):
        Hit(Objective("tpsa"), 1.0, 0.0)


def test_the_door_of_the_oracles_opens() -> None:
    assert oracles.Objective is Objective
