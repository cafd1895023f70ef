"""`popflow optimize` with an objective, several targets, and configurations that contradict themselves."""

import csv
import json

import numpy as np
import pytest

from popflow.cli.app import main
from popflow.compose.constrained.config import OptimizeConfig
from popflow.runs import Ledger

SMALL = ["--steps", "40", "--width", "16", "--members", "2", "--particles", "24", "--reverse-steps", "3", "--moves", "1", "--n", "12"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x, kind = rng.normal(size=(120, 2)), rng.choice(["p", "q"], 120)
    lines = [f"{a},{b},{k},{-((a - 1) ** 2)},{-(b**2)}" for (a, b), k in zip(x, kind, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,kind,y,z", *lines]) + "\n")
    (tmp_path / "my_objective.py").write_text(
        "from popflow.runs import Infeasible\n\n\ndef value(row):\n    if row['kind'] == 'q':\n        raise Infeasible('no q')\n    return -(row['a'] - 1) ** 2\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(folder) -> list[dict[str, str]]:
    with open(folder / "R" / "candidates.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")
def test_a_black_box_is_asked_through_the_ledger_and_never_twice(folder, monkeypatch, capsys) -> None:
    job = ["optimize", "rows.csv", "--objective", "my_objective:value", "--beta", "2", "--out", "R", *SMALL]
    assert main(job) == 0
    found = rows(folder)
    assert (
        "all 5 columns are chosen (a, b, kind, y, z); --target COLUMN leaves a measured one out" in (folder / "R" / "log.txt").read_text()
    )
    assert found[0].keys() == {"a", "b", "kind", "y", "z", "objective", "objective uncertainty", "feasibility", "acceptance", "ess"}
    assert all(row["kind"] == "p" and row["objective uncertainty"] == "" for row in found)
    for row in found:
        assert float(row["objective"]) == pytest.approx(-((float(row["a"]) - 1) ** 2), rel=1e-5)
    ledger = Ledger.read(folder / "R" / "calls.jsonl")
    assert ledger.counts()["infeasible"] > 0
    before = (folder / "R" / "calls.jsonl").read_text()
    (folder / "R" / "tempering.safetensors").unlink()
    assert main(job) == 0  # sampled again: every call is known
    after = (folder / "R" / "calls.jsonl").read_text().splitlines()
    assert [line for line in after if '"key"' in line] == [line for line in before.splitlines() if '"key"' in line]


@pytest.mark.filterwarnings("ignore")
def test_several_targets_give_a_front(folder) -> None:
    assert main(["optimize", "rows.csv", "--target", "y", "--target", "z", "--populations", "3", "--out", "R", *SMALL]) == 0
    found = rows(folder)
    assert {"y", "y uncertainty", "z", "z uncertainty"} <= found[0].keys()
    assert len(found) == 12
    report = json.loads((folder / "R" / "report.json").read_text())["report"]
    assert any("front" in row[0] for table in report["comparison"] if "rows" in table for row in table["rows"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "target is empty and there is no objective"),
        ({"target": ("y", "y")}, "names a column twice"),
        ({"objective": "nowhere"}, "wanted MODULE:FUNCTION"),
        ({"objective": "m:f", "route": "guided"}, "a black box has no gradient"),
        ({"target": ("y", "z"), "route": "guided"}, "a front needs route='exact'"),
        ({"target": ("y",), "workers": 2}, "workers=2 has no effect without an objective"),
        ({"target": ("y",), "populations": 3}, "populations=3 has no effect on a single target"),
        ({"objective": "m:f", "kappa": 1.0}, "kappa=1.0 has no effect with an objective"),
        ({"target": ("y",), "beta": 0.0}, "all rows are equally good. Fix: --select draw"),
        ({"objective": "m:f", "on_error": "worst"}, "on_error='worst' without a target"),
        ({"target": ("y",), "beta": -1.0}, "beta=-1.0, wanted a number >= 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, settings, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        OptimizeConfig(data=tmp_path / "rows.csv", **settings)


def test_an_objective_that_is_not_there_is_a_mistake_of_the_command(folder, capsys) -> None:
    for name, message in (("my_objective:valu", "has no attribute 'valu'"), ("no_such_module:f", "No module named")):
        assert main(["optimize", "rows.csv", "--objective", name, "--out", "R"]) == 2
        assert message in capsys.readouterr().err
        assert not (folder / "R").exists()
