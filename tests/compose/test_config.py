"""The configuration of ``popflow sample``: options become its fields, what does not belong together is refused, and files it reads are its inputs."""

import dataclasses
import json
import subprocess
import sys

import pytest

from popflow import citations, registry
from popflow.cli.app import main
from popflow.compose.config import DemoConfig, SampleConfig, SuperDiffDemoConfig, cite
from popflow.compose.constrained.config import OptimizeConfig
from popflow.compose.zoo.catalogue import find
from popflow.runs import ConfigError, Report, Run, config_of, options
from popflow.runs.config import inputs
from popflow.runs.run import identity

TWO = {"experts": ["zoo:digits-even", "zoo:digits-class:3"]}
PIPE = {"diffusers": ["owner/name"], "prompts": ["a cat", "a dog"]}
PRODUCT = TWO | {
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
    "variance": "euler",
    "correct": True,
    "kernel_steps": 5,
    "kernel_width": 0.2,
    "ess_below": 0.9,
    "clip": 2.0,
    "checkpoint_every": 3,
    "seed": 9,
}
OR = TWO | {"op": "or", "sharpness": 10.0, "bias": [1.0, -1.0], "deterministic": True}
AND = TWO | {"op": "and", "ridge": 1e-4, "feedback": 0.2, "bias": [1.0, 0.0]}
IMAGES = PIPE | {
    "negative_prompt": "red",
    "height": 64,
    "width": 32,
    "image": "photo.png",
    "strength": 0.6,
    "mask_image": "photo.png",
    "noise_above": 0.1,
    "precision": "float16",
    "chunk": 4,
}


def test_importing_the_configuration_imports_no_torch():
    code = "import popflow.compose.config, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("values", [PRODUCT, TWO | {"correct": False}, OR, AND, IMAGES], ids=["product", "naive", "or", "and", "images"])
def test_options_become_the_fields(monkeypatch, capsys, tmp_path, values):
    def job(config, run):
        return Report(config.op, f"{len(config.models)} models on {run.device}")

    monkeypatch.setitem(registry.TASKS, "sample", dataclasses.replace(registry.TASKS["sample"], run=job))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"an image")
    flags = {"correct": ("--naive", "--correct"), "deterministic": ("--sde", "--ode")}
    names = {"experts": "--expert", "prompts": "--prompt", "guidance": "--cfg"}
    line = ["sample", "--out", "here", "--device", "cpu", "--json"]
    for name, value in values.items():
        if name in flags:
            line.append(flags[name][value])
        else:
            for one in value if isinstance(value, list) else [value]:
                line += [names.get(name, "--" + name.replace("_", "-")), str(one)]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)["title"] == values.get("op", "product")
    kept = json.loads((tmp_path / "here/config.json").read_text())
    assert {name: kept[name] for name in ("job", *values)} == {"job": "sample", **values}
    assert main(["cite", "here"]) == 0
    assert ("Superposition" in capsys.readouterr().out) is (values.get("op") in ("or", "and"))


def test_every_field_is_among_them():
    assert PRODUCT.keys() | OR.keys() | AND.keys() | IMAGES.keys() == {field.name for field in dataclasses.fields(SampleConfig)}


def test_help_says_what_stands_for_every_default_of_none():
    for config in (SampleConfig, OptimizeConfig):
        assert [one.name for one in options(config) if one.default is None and not (one.required or one.otherwise)] == []
    said = {one.name: one.otherwise for one in options(SampleConfig)}
    for name in ("digits-even", "lj13", "dw4"):
        for size, value in vars(find(name).recipe.sizes).items():
            words = said[size].replace(",", "").replace(";", "").split()
            assert (value if isinstance(value, str) else f"{value:g}") in words, (name, size)


def test_the_operation_decides_what_is_cited():
    for op in ("product", "or", "and", "average"):
        entry = citations.FEYNMAN_KAC_CORRECTORS if op == "product" else citations.SUPERDIFF
        assert cite(config_of(SampleConfig, TWO | {"op": op})) == (entry,)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "experts is empty, wanted at least one: for example --expert zoo:digits-even"),
        (TWO | PIPE, "experts and diffusers are both given"),
        ({"experts": ["digits-even"]}, "wanted zoo:NAME"),
        ({"experts": ["kernel:absent.npy:0.1"]}, "cannot read"),
        ({"experts": ["kernel:absent.npy"]}, "kernel width"),
        ({"experts": ["kernel:points.npy:0"]}, "kernel width '0' is not a number above 0"),
        ({"experts": ["kernel:points.npy:..."]}, "kernel width"),
        ({"experts": ["python:module"]}, "wanted python:MODULE:NAME"),
        (TWO | {"op": "nand"}, "did you mean 'and'"),
        (TWO | {"stepps": 3}, "did you mean 'steps'"),
        (TWO | {"beta": [1.0, 2.0, 3.0]}, "beta has 3 values for 2 models, wanted one for each, or one for all"),
        (TWO | {"op": "or", "bias": [1.0]}, "bias has 1 values for 2 models, wanted one for each"),
        (TWO | {"guidance": 3.0}, "guidance=3.0 without an unconditional expert"),
        (TWO | {"op": "or", "temperature": 0.5}, "temperature=0.5 has no effect with op='or': it belongs to 'product'"),
        (TWO | {"op": "and", "correct": False}, "correct=False has no effect with op='and'"),
        (TWO | {"correct": False, "clip": 2.0}, r"clip=2.0 has no effect with correct=False \(--naive\)"),
        (TWO | {"correct": False, "ess_below": 0.9}, "ess_below=0.9 has no effect with correct=False"),
        (TWO | {"particles": 1, "ess_below": 0.9}, "ess_below=0.9 has no effect with particles=1"),
        (PIPE | {"particles": 1, "ess_below": 0.9}, "ess_below=0.9 has no effect with particles=1"),
        (TWO | {"op": "and", "sharpness": 5.0}, "sharpness=5.0 has no effect with op='and': it belongs to 'or'"),
        (TWO | {"op": "average", "bias": [1.0, 0.0]}, "bias=.* has no effect with op='average': it belongs to 'or' and 'and'"),
        (
            TWO | {"op": "or", "deterministic": True, "variance": "local"},
            r"variance='local' has no effect with deterministic=True \(--ode\)",
        ),
        (TWO | {"variance": "optimum"}, "unknown variance .optimum.: did you mean .optimal."),
        (TWO | {"ridge": 0.1}, "ridge=0.1 has no effect with op='product': it belongs to 'and'"),
        ({"experts": ["zoo:digits-even"], "op": "and"}, "at least two"),
        (TWO | {"prompts": ["a cat"]}, "prompts=.* has no effect with experts: it belongs to diffusers"),
        (PIPE | {"sigma_min": 0.1}, "sigma_min=0.1 has no effect with diffusers: it belongs to experts"),
        (PIPE | {"op": "or", "zeta": 1.4}, "zeta=1.4 has no effect with op='or': it belongs to 'product'"),
        ({"diffusers": ["owner/name"], "prompts": ["a cat"], "op": "and"}, "at least two"),
        (PIPE | {"image": "absent.png"}, "image='absent.png': no such file"),
        (PIPE | {"strength": 0.5}, "strength=0.5 without an image to edit"),
        (PIPE | {"strength": 0.0}, "strength=0.0, wanted a number > 0, <= 1"),
        (TWO | {"temperature": 0.0}, "temperature=0.0, wanted a number > 0"),
        (TWO | {"zeta": -1.0}, "zeta=-1.0, wanted a number >= 0"),
        (TWO | {"ess_below": 0.0}, "ess_below=0.0, wanted a number > 0, <= 1"),
        (TWO | {"ess_below": 2.0}, "ess_below=2.0, wanted"),
        (TWO | {"particles": 0}, "particles=0, wanted an integer >= 1"),
        (TWO | {"seed": -1}, "seed=-1, wanted an integer >= 0"),
        (TWO | {"kernel_width": float("inf")}, "kernel_width=inf, wanted a number >= 0"),
    ],
)
def test_bad_input_is_named(values, says):
    with pytest.raises(ConfigError, match=says):
        config_of(SampleConfig, values)


def test_demo_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="runs=1, wanted an integer >= 2"):
        DemoConfig(runs=1)
    with pytest.raises(ValueError, match="wanted sigma_min < sigma_max"):
        DemoConfig(sigma_min=20.0)
    with pytest.raises(ConfigError, match="unknown key of SuperDiffDemoConfig 'kernel_steps'"):  # its samplers take none
        config_of(SuperDiffDemoConfig, {"kernel_steps": 3})


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Every kind of input, by the configuration that reads it."""
    monkeypatch.chdir(tmp_path)
    for name in ("points.csv", "photo.png", "mask.png", "models_here.py", "pipe/unet/weights.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1, 2")
    pipe = {"diffusers": ["pipe"], "prompts": ["a cat"]}
    return {
        "points.csv": {"experts": ["zoo:digits-even"], "unconditional": "kernel:points.csv:0.3"},
        "models_here.py": {"experts": ["python:models_here:mine"]},
        "pipe/unet/weights.safetensors": pipe,
        "photo.png": pipe | {"image": "photo.png"},
        "mask.png": pipe | {"image": "photo.png", "mask_image": "mask.png"},
    }


def test_a_changed_input_is_another_run(files, tmp_path):
    for name, values in files.items():
        config = config_of(SampleConfig, values)
        before = identity("sample", config)
        with Run.open(tmp_path / "runs" / name, config, job="sample") as run:
            run.metrics.add("sample", 0, {"ess": 1.0})
        (tmp_path / name).write_text("1, 3")
        assert identity("sample", config) != before, name
        with pytest.raises(Exception, match="changed since that run read it"):
            Run.open(tmp_path / "runs" / name, config, job="sample")
        (tmp_path / name).write_text("1, 2")
        assert identity("sample", config) == before, name


def test_what_is_not_a_file_is_no_input():
    assert list(inputs(config_of(SampleConfig, TWO))) == []
    assert list(inputs(config_of(SampleConfig, PIPE))) == []  # on the hub
    assert list(inputs(config_of(SampleConfig, {"experts": ["python:absent_module:a"]}))) == []
