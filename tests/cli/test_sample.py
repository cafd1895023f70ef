"""`sample`: options become the fields of the real configuration, and the operation decides the method that is cited."""

import dataclasses
import json

import pytest

from popflow import citations, registry
from popflow.cli.app import main
from popflow.compose.job import SampleConfig
from popflow.registry import Method
from popflow.runs import Report

PRODUCT = {
    "experts": ["zoo:digits-even", "zoo:digits-class:3"],
    "op": "product",
    "beta": [1.0, 2.5],
    "temperature": 0.5,
    "unconditional": "zoo:digits-class",
    "guidance": 3.0,
    "steps": 7,
    "sigma_min": 0.1,
    "sigma_max": 9.0,
    "grid": "linear",
    "particles": 4,
    "runs": 2,
    "zeta": 1.4,
    "correct": False,
    "kernel_steps": 5,
    "kernel_width": 0.2,
    "ess_below": 0.9,
    "clip": 2.0,
    "checkpoint_every": 3,
    "seed": 9,
}
OR = {"experts": PRODUCT["experts"], "op": "or", "sharpness": 10.0, "bias": [1.0, -1.0], "deterministic": True}
AND = {"experts": PRODUCT["experts"], "op": "and", "ridge": 1e-4, "feedback": 0.2, "bias": [1.0, 0.0]}


def job(name):
    return lambda config, run: Report(name, f"{len(config.experts)} experts on {run.device}")


@pytest.fixture(autouse=True)
def methods(monkeypatch, tmp_path):
    """Two methods that take the real configuration and only say who they are."""
    built_in = tuple(
        Method(name, "Summary.", (cite,), SampleConfig, job(name), job(name), SampleConfig)
        for name, cite in (("fkc", citations.FEYNMAN_KAC_CORRECTORS), ("superdiff", citations.SUPERDIFF))
    )
    monkeypatch.setattr(registry, "BUILT_IN", built_in)
    monkeypatch.chdir(tmp_path)


def test_every_field_has_an_option():
    assert PRODUCT.keys() | OR.keys() | AND.keys() == {field.name for field in dataclasses.fields(SampleConfig)}


@pytest.mark.parametrize(("values", "method"), [(PRODUCT, "fkc"), (OR, "superdiff"), (AND, "superdiff")])
def test_options_become_the_fields(capsys, tmp_path, values, method):
    flags = {"correct": ("--naive", "--correct"), "deterministic": ("--sde", "--ode")}
    line = ["sample", "--out", "here", "--device", "cpu", "--json"]
    for name, value in values.items():
        option = {"experts": "--expert"}.get(name, "--" + name.replace("_", "-"))
        if name in flags:
            line.append(flags[name][value])
        else:
            for one in value if isinstance(value, list) else [value]:
                line += [option, str(one)]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)["title"] == method
    kept = json.loads((tmp_path / "here/config.json").read_text())
    assert {name: kept[name] for name in ("job", *values)} == {"job": "sample", **values}


def test_what_is_not_given_stays_as_the_configuration_has_it(tmp_path):
    (tmp_path / "mine.json").write_text('{"experts": ["zoo:digits-all"], "beta": [2], "seed": 4, "steps": 11}')
    assert main(["sample", "--config", "mine.json", "--seed", "5", "--out", "here"]) == 0
    config = json.loads((tmp_path / "here/config.json").read_text())
    assert (config["experts"], config["beta"], config["seed"], config["steps"], config["op"]) == (
        ["zoo:digits-all"],
        [2.0],
        5,
        11,
        "product",
    )


@pytest.mark.parametrize(
    ("op", "name"), [(None, "fkc"), ("product", "fkc"), ("and", "superdiff"), ("or", "superdiff"), ("average", "superdiff")]
)
def test_the_operation_decides_what_is_cited(capsys, op, name):
    experts = ["--expert", "zoo:digits-all", "--expert", "zoo:digits-odd"]
    assert main(["sample", *experts, *(["--op", op] if op else []), "--out", "here"]) == 0
    assert f"\n{name}\n" in capsys.readouterr().out
    assert main(["cite", "here"]) == 0
    assert ("Superposition" in capsys.readouterr().out) is (name == "superdiff")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "experts is empty, wanted at least one: for example --expert zoo:digits-even"),
        (["--expert", "zoo:digits-all", "--steps", "0"], "steps=0, wanted at least 1"),
        (["--expert", "zoo:digits-all", "--op", "and"], "wanted at least two"),
        (["--expert", "zoo:digits-all", "--op", "produt"], "unknown op 'produt': did you mean 'product'"),
        (["--expert", "zoo:digits-all", "--particles", "few"], "--particles"),
        (["--expert", "zoo:digits-all", "--op", "or", "--beta", "2"], "it belongs to 'product'"),
        (["--experts", "zoo:digits-all"], "No such option: --experts"),
    ],
)
def test_bad_usage(capsys, tmp_path, arguments, message):
    assert main(["sample", *arguments, "--out", "here"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "here").exists()
