"""The verb: files, report, bad input, values to hit, several objectives, errors of oracles."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from popflow.cli.app import main
from popflow.evolve.config import EvolveConfig
from popflow.evolve.constraints import Alerts, Similarity, refused
from popflow.evolve.molecules import Chem
from popflow.evolve.oracles.pmo import Objective

_SPEC = importlib.util.spec_from_file_location("chat_server", Path(__file__).parent / "chat_server.py")
server_module = importlib.util.module_from_spec(_SPEC)
sys.modules["chat_server"] = server_module
_SPEC.loader.exec_module(server_module)
chat_server, says = server_module.chat_server, server_module.says

SEEDS = ["CCOc1ccccc1", "CC(=O)Nc1ccc(O)cc1", "CCN(CC)CC(=O)Nc1c(C)cccc1C", "OCC1CCCCN1C", "CC(N)Cc1ccccc1"]


@pytest.fixture
def seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds.smi").write_text("\n".join(SEEDS) + "\n")
    return tmp_path / "seeds.smi"


def evolve(*options: str, out: str = "run") -> int:
    return main(["evolve", "seeds.smi", "--budget", "16", "--offspring", "4", *options, "--out", out])


def test_the_files_hold_the_best_molecules(seeds: Path) -> None:
    assert evolve("--oracle", "qed") == 0
    rows = list(csv.DictReader((seeds.parent / "run" / "top.csv").open()))
    assert len(rows) == 16
    assert [float(row["score"]) for row in rows] == sorted((Objective("qed")(row["smiles"]) for row in rows), reverse=True)
    drawn = list(Chem.SDMolSupplier(str(seeds.parent / "run" / "top.sdf")))
    assert [Chem.MolToSmiles(one) for one in drawn] == [row["smiles"] for row in rows]
    assert float(drawn[0].GetProp("score")) == pytest.approx(float(rows[0]["score"]), rel=1e-5)
    report = json.loads((seeds.parent / "run" / "report.json").read_text())["report"]
    assert {table["title"] for table in report["diagnostics"] if "title" in table} == {"Credit of the operators", "Outcomes of the calls"}
    page = (seeds.parent / "run" / "report.html").read_text()
    assert "Lineage of the best molecule" in page
    assert "<script" not in page


def test_two_objectives_and_a_value_to_hit(seeds: Path) -> None:
    assert evolve("--oracle", "qed", "--minimize", "sa", "--goal", "nsga2", out="two") == 0
    report = json.loads((seeds.parent / "two" / "report.json").read_text())["report"]
    (front,) = (table for table in report["comparison"] if table.get("title") == "Pareto front")
    pairs = [(row[1], row[2]) for row in front["rows"]]
    assert not any(a[0] >= b[0] and a[1] >= b[1] and a != b for a in pairs for b in pairs)
    for row in csv.DictReader((seeds.parent / "two" / "top.csv").open()):
        assert float(row["value: -sa"]) == pytest.approx(-float(row["sa"]))
        assert float(row["score"]) == pytest.approx(float(row["value: qed"]) - float(row["sa"]))
    assert evolve("--oracle", "qed", "--target", "0.5", "--width", "0.1", "--core", "c1ccccc1", out="hit") == 0
    rows = list(csv.DictReader((seeds.parent / "hit" / "top.csv").open()))
    assert abs(Objective("qed")(rows[0]["smiles"]) - 0.5) < 0.05
    benzene = Chem.MolFromSmarts("c1ccccc1")
    assert all(Chem.MolFromSmiles(row["smiles"]).HasSubstructMatch(benzene) for row in rows)


def test_an_oracle_that_fails_now_and_then(seeds: Path) -> None:
    (seeds.parent / "fickle.py").write_text(
        "def score(smiles):\n    if 'N' in smiles:\n        return float('nan')\n    if 'n' in smiles:\n        raise OSError('<b>down</b>')\n"
        "    return -float(len(smiles))\n\ndef text(smiles):\n    return 'high'\n"
    )
    assert evolve("--oracle", "fickle:score") == 0
    report = json.loads((seeds.parent / "run" / "report.json").read_text())["report"]
    (calls,) = (dict(table["rows"]) for table in report["diagnostics"] if table.get("title") == "Outcomes of the calls")
    assert sum(calls.values()) == 16
    assert calls["not finite"] >= 3


def test_an_oracle_that_always_fails_costs_the_first_generation_alone(seeds: Path, capsys: pytest.CaptureFixture) -> None:
    (seeds.parent / "dead.py").write_text("def score(smiles):\n    raise OSError('no licence')\n")
    assert evolve("--oracle", "dead:score") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no value for any of 5 molecules" in said
    assert "no licence" in said
    assert "mend it, then delete" in said
    assert len((seeds.parent / "run" / "calls.jsonl").read_text().splitlines()) == 1 + 5, "a heading and five calls"


def mistakes() -> dict[str, tuple[list[str], str]]:
    return {
        "no objective": ([], "oracle is empty"),
        "unknown oracle": (["--oracle", "qedd"], "did you mean 'qed'"),
        "text": (["--oracle", "mistaken:text"], "text 'high', wanted one number"),
        "no module": (["--oracle", "absent_one:score"], "cannot import it"),
        "small budget": (["--oracle", "qed", "--budget", "3"], "budget=3 is smaller than the start population of 5"),
        "negative": (["--oracle", "mistaken:score", "--recipe", "graph-ga"], "Here: --parents rank or --parents shifted."),
        "goal": (["--oracle", "qed", "--goal", "front"], "wanted several"),
        "box": (["--oracle", "vina:receptor.pdbqt"], "--box FILE"),
        "chat": (["--oracle", "qed", "--operators", "graph,chat"], "belong together"),
        "nsga2": (["--oracle", "qed", "--minimize", "sa", "--goal", "nsga2", "--parents", "proportional"], "--parents rank"),
        "edits": (["--oracle", "qed", "--recipe", "edits"], "--operators graph=0.7,edits=0.3"),
        "share": (["--oracle", "qed", "--operators", "graph=much"], "'much' is no share"),
        "no function": (["--oracle", "mistaken:number"], "is of the type int"),
        "twice": (["--oracle", "qed", "--minimize", "qed"], "'qed' is named twice as an objective"),
        "core": (
            ["--oracle", "qed", "--core", "c1ccc2ccccc2c1"],
            "none of the 5 seeds is what a molecule must be. The first, 'CCOc1ccccc1':",
        ),
        "workers": (["--oracle", "qed", "--workers", "100000"], "8 for each core: every worker is a process"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_a_mistake_is_named(name: str, seeds: Path, capsys: pytest.CaptureFixture) -> None:
    (seeds.parent / "mistaken.py").write_text(
        "def score(smiles):\n    return -1.0 * len(smiles)\n\ndef text(smiles):\n    return 'high'\n\nnumber = 3\n"
    )
    options, message = mistakes()[name]
    assert evolve(*options) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_is_no_file_of_seeds(seeds: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evolve", ".", "--oracle", "qed", "--out", "run"]) == 2
    assert "seeds='.' is a folder, wanted a file" in " ".join(capsys.readouterr().err.split())


def test_each_pair_of_three_objectives_is_drawn(seeds: Path) -> None:
    given = ("--oracle", "qed", "--oracle", "tpsa", "--minimize", "sa", "--goal", "nsga2", "--recipe", "graph-ga")
    assert evolve(*given, "--budget", "9") == 0
    report = json.loads((seeds.parent / "run" / "report.json").read_text())["report"]
    drawn = [figure for figure in report["diagnostics"] if "by two of the 3 objectives" in figure.get("caption", "")]
    assert len(drawn) == 3
    (front,) = (table for table in report["comparison"] if table.get("title") == "Pareto front")
    assert {len(row) for row in front["rows"]} == {4}


def test_bad_seeds_are_named_by_line(seeds: Path, capsys: pytest.CaptureFixture) -> None:
    seeds.write_text("CCO\nC1CC\nCCO.Cl\n" + "C" * 3000 + "\n")
    assert evolve("--oracle", "qed") == 2
    said = capsys.readouterr().err
    assert "line 2" in said
    assert "line 3" in said
    assert "line 4" in said
    seeds.write_text("\n")
    assert evolve("--oracle", "qed") == 2
    assert "holds no molecule" in capsys.readouterr().err


def chat(*options: str, out: str = "run") -> int:
    return evolve("--operators", "chat", "--chat-model", "m", *options, out=out)


def test_a_chat_model_is_told_the_sign_and_what_it_leaves_is_counted(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with chat_server([says("I cannot help with that.")]) as server:
        assert (
            chat("--oracle", "qed", "--minimize", "sa", "--reveal", "--recipe", "crossover", "--parents", "rank", "--chat-url", server.url)
            == 0
        )
        asked = next(body for _, body, _ in server.seen if body is not None)
    assert "scored for high qed and low sa; higher is better" in asked["messages"][1]["content"]
    report = json.loads((seeds.parent / "run" / "report.json").read_text())["report"]
    (cost,) = (dict(table["rows"]) for table in report["diagnostics"] if table.get("title") == "Cost of the chat model")
    assert cost["attempts left to the fallback"] >= 11
    rows = list(csv.DictReader((seeds.parent / "run" / "top.csv").open()))
    assert {row["operator"] for row in rows} == {"start", "fallback"}
    near = EvolveConfig(Path("seeds.smi"), oracle=("tpsa",), target=60.0)
    assert near.told() == "tpsa near 60"


@pytest.mark.parametrize("url", ["https://me:hunter2@host/v1", "https://host/v1?key=hunter2"])
def test_a_secret_in_an_address_is_written_nowhere(url: str, seeds: Path, capsys: pytest.CaptureFixture) -> None:
    assert chat("--oracle", "qed", "--chat-url", url) == 2
    said = capsys.readouterr()
    assert "put the key into POPFLOW_CHAT_KEY" in " ".join(said.err.split())
    assert "hunter2" not in said.err + said.out
    assert not any(b"hunter2" in file.read_bytes() for file in seeds.parent.rglob("*") if file.is_file())


def test_a_command_that_was_edited_is_another_run(seeds: Path, capsys: pytest.CaptureFixture) -> None:
    script = seeds.parent / "score.py"
    script.write_text("print(len(input()))\n")
    config = EvolveConfig(seeds, oracle=("cmd:python3 score.py",))
    assert list(config.inputs()) == [Path("score.py")]
    assert list(EvolveConfig(seeds, oracle=("cmd:python3 'open",)).inputs()) == []
    options = ("--oracle", "cmd:python3 score.py", "--budget", "5")
    assert evolve(*options) == 0
    script.write_text("print(-len(input()))\n")
    capsys.readouterr()
    assert evolve(*options) == 2
    assert "score.py" in capsys.readouterr().err


def test_shares_are_read() -> None:
    config = EvolveConfig(Path("seeds.smi"), oracle=("qed",), operators="lm=0.7, graph=0.3")
    assert config.mixture() == {"lm": 0.7, "graph": 0.3}


def test_the_front_is_a_file(seeds: Path) -> None:
    assert evolve("--oracle", "qed", "--minimize", "sa", "--recipe", "graph-ga", "--goal", "front", "--parents", "rank") == 0
    top, front = (list(csv.DictReader((seeds.parent / "run" / f"{name}.csv").open())) for name in ("top", "front"))
    values = {row["smiles"]: (float(row["value: qed"]), float(row["value: -sa"])) for row in top}
    free = {a for a in values if not any(values[b] != values[a] and all(map(float.__ge__, values[b], values[a])) for b in values)}
    assert {row["smiles"] for row in front} == free
    assert front[0].keys() == top[0].keys()


def test_constraints_hold_for_all_that_is_scored(seeds: Path) -> None:
    window = ("--similar-to", SEEDS[1], "--least-similarity", "0.1", "--most-similarity", "0.9")
    assert evolve("--oracle", "qed", "--alerts", "BRENK", "--alerts", "PAINS", *window) == 0
    rows = [row["smiles"] for row in csv.DictReader((seeds.parent / "run" / "top.csv").open())]
    assert rows
    assert all(refused(one, [Alerts("BRENK"), Alerts("PAINS"), Similarity(SEEDS[1], 0.1, 0.9)]) is None for one in rows)
    assert SEEDS[1] not in rows, "it is too near to itself"


def test_the_language_model_learns_from_parents(seeds: Path) -> None:
    assert evolve("--oracle", "qed", "--operators", "lm", "--learn", "--budget", "9") == 0
    made = {row["operator"] for row in csv.DictReader((seeds.parent / "run" / "top.csv").open())}
    assert made & {"lm: fill gap", "lm: link fragments"}


def test_a_model_in_a_folder_breeds(seeds: Path, causal: Path) -> None:
    options = ("--recipe", "graph-ga", "--operators", f"hf:{causal}", "--template", "{smiles}>", "--budget", "9")
    assert evolve("--oracle", "qed", *options) == 0
    report = json.loads((seeds.parent / "run" / "report.json").read_text())["report"]
    (credit,) = (table for table in report["diagnostics"] if table.get("title") == "Credit of the operators")
    assert credit["rows"][0][0] == f"hf:{causal}"
    rows = {row["smiles"]: row["operator"] for row in csv.DictReader((seeds.parent / "run" / "top.csv").open())}
    assert rows["OCCc1ccccc1"] == f"hf:{causal}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--operators", "hf:nowhere"), "holds no config.json"),
        (("--template", "{smiles}"), "--operators graph,hf:FOLDER"),
        (("--learn",), "--operators lm,graph --learn"),
        (("--similar-to", "CCO"), "belong together"),
        (("--least-similarity", "0.4"), "belong together"),
        (("--similar-to", "CCO", "--least-similarity", "0.4", "--most-similarity", "0.3"), "wanted least <= most"),
        (("--alerts", "PAIN"), "did you mean 'PAINS'"),
        (("--operators", "graph,graph"), "names 'graph' twice"),
        (("--wish", "Better"), "holds {goal}"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_folder_is_made(
    options: tuple[str, ...], message: str, seeds: Path, capsys: pytest.CaptureFixture
) -> None:
    assert evolve("--oracle", "qed", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (seeds.parent / "run").exists()


def test_a_window_about_no_molecule_is_refused_by_name(tmp_path, capsys) -> None:
    (tmp_path / "seeds.smi").write_text("CCO\nCCN\n")
    given = ["--oracle", "qed", "--similar-to", "C1CC(", "--least-similarity", "0.3", "--budget", "4", "--population", "2"]
    assert main(["evolve", str(tmp_path / "seeds.smi"), *given, "--out", str(tmp_path / "run")]) == 2
    assert "similar_to='C1CC('" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
