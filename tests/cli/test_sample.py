"""`sample`: options become the fields of the configuration, and the operation decides the method."""

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from popflow import citations, registry
from popflow.cli.app import main
from popflow.registry import Method
from popflow.runs import Report


@dataclass(frozen=True)
class Settings:
    """The fields that the options must reach."""

    experts: tuple[str, ...]
    op: Literal["product", "power", "cfg", "and", "or", "average"] = "product"
    beta: tuple[float, ...] = ()
    temperature: float = 1.0
    guidance: float | None = None
    labels: tuple[str, ...] = ()
    steps: int = 100
    particles: int = 8
    runs: int = 1
    zeta: float = 1.0
    kernel_steps: int = 0
    seed: int = 0


def job(name):
    return lambda config, run: Report(name, f"{len(config.experts)} experts on {run.device}")


@pytest.fixture(autouse=True)
def methods(monkeypatch, tmp_path):
    """Two methods that say who they are."""
    built_in = tuple(
        Method(name, "Summary.", (cite,), Settings, job(name), job(name), Settings)
        for name, cite in (("fkc", citations.FEYNMAN_KAC_CORRECTORS), ("superdiff", citations.SUPERDIFF))
    )
    monkeypatch.setattr(registry, "BUILT_IN", built_in)
    monkeypatch.chdir(tmp_path)


def test_every_option_reaches_its_field(capsys, tmp_path):
    line = (
        "sample --expert zoo:a --expert zoo:b --op cfg --beta 1 --beta 2.5 --temperature 0.5 --guidance 3 --label 2 --label cat "
        "--steps 7 --particles 4 --runs 2 --zeta 1.4 --kernel-steps 5 --seed 9 --out here --device cpu --json"
    )
    assert main(line.split()) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "fkc"
    assert json.loads((tmp_path / "here/config.json").read_text()) == {
        "job": "sample",
        "experts": ["zoo:a", "zoo:b"],
        "op": "cfg",
        "beta": [1.0, 2.5],
        "temperature": 0.5,
        "guidance": 3.0,
        "labels": ["2", "cat"],
        "steps": 7,
        "particles": 4,
        "runs": 2,
        "zeta": 1.4,
        "kernel_steps": 5,
        "seed": 9,
    }


def test_what_is_not_given_stays_as_the_configuration_has_it(tmp_path):
    (tmp_path / "mine.json").write_text('{"experts": ["a"], "beta": [2], "seed": 4, "op": "power"}')
    assert main(["sample", "--config", "mine.json", "--seed", "5", "--out", "here"]) == 0
    config = json.loads((tmp_path / "here/config.json").read_text())
    assert (config["experts"], config["beta"], config["seed"], config["steps"], config["op"]) == (["a"], [2.0], 5, 100, "power")


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (None, "fkc"),
        ("product", "fkc"),
        ("power", "fkc"),
        ("cfg", "fkc"),
        ("and", "superdiff"),
        ("or", "superdiff"),
        ("average", "superdiff"),
    ],
)
def test_the_operation_decides_what_is_cited(capsys, op, name):
    assert main(["sample", "--expert", "a", *(["--op", op] if op else []), "--out", "here"]) == 0
    assert f"\n{name}\n" in capsys.readouterr().out
    assert main(["cite", "here"]) == 0
    assert ("Superposition" in capsys.readouterr().out) is (name == "superdiff")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Settings lacks 'experts'"),
        (["--expert", "a", "--op", "produt"], "unknown op 'produt': did you mean 'product'"),
        (["--expert", "a", "--particles", "few"], "--particles"),
        (["--experts", "a"], "No such option: --experts"),
    ],
)
def test_bad_usage(capsys, tmp_path, arguments, message):
    assert main(["sample", *arguments, "--out", "here"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "here").exists()


def test_a_run_of_another_job_is_not_a_configuration_of_this_one(capsys):
    assert main(["demo", "fkc", "--config", "absent.json"]) == 2
    assert main(["sample", "--expert", "a", "--out", "here"]) == 0
    capsys.readouterr()
    assert main(["demo", "fkc", "--config", "here/config.json"]) == 2
    assert (
        "here/config.json is of the job 'sample', wanted 'demo fkc'. Fix: give `popflow sample --config here/config.json`"
        in capsys.readouterr().err
    )
