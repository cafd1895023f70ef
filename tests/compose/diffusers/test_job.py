"""``popflow sample --diffusers``: images, grid, weights and report of one command; an interrupted run ends with the same bytes."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from popflow.cli.app import main
from popflow.compose.config import SampleConfig
from popflow.compose.diffusers import ComposedPipeline, tiny
from popflow.compose.diffusers.configured import planned
from popflow.compose.job import run
from popflow.core.checkpoint import load_tensors
from popflow.runs import Run

FILES = ("sample.safetensors", "picked.safetensors", "metrics.jsonl", "report.json", "grid.png", "image-0.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.save(tiny.stable_diffusion, tmp_path_factory.mktemp("pipe"))


def test_one_command_makes_images_weights_and_a_report(folder, tmp_path, capsys):
    line = ["sample", "--diffusers", folder, "--prompt", "a cat", "--prompt", "a <b>dog", "--op", "and", "--cfg", "7.5", "--steps", "5"]
    out = tmp_path / "RUN"
    assert main([*line, "--particles", "4", "--runs", "2", "--out", str(out), "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["title"] == "and of a cat, a <b>dog"
    (particles,) = report["comparison"]
    assert particles["columns"] == [
        "run",
        "particle",
        "weight",
        "ancestor",
        "log q(a cat)",
        "log q(a <b>dog)",
        "kappa(a cat)",
        "kappa(a <b>dog)",
    ]
    assert len(particles["rows"]) == 8
    assert sum(row[2] for row in particles["rows"] if row[0] == "1") == pytest.approx(1)
    config = json.loads((out / "config.json").read_text())
    assert (config["job"], config["guidance"], config["prompts"]) == ("sample", 7.5, ["a cat", "a <b>dog"])
    assert [Image.open(out / f"image-{r}.png").size for r in range(2)] == [(32, 32)] * 2
    assert Image.open(out / "grid.png").size[0] > 4 * 32
    html = (out / "report.html").read_text()
    assert "a &lt;b&gt;dog" in html
    assert "<b>dog" not in html
    assert main(["cite", str(out)]) == 0
    assert "Superposition" in capsys.readouterr().out


def test_an_interrupted_run_ends_with_the_same_bytes(folder, tmp_path, monkeypatch):
    config = SampleConfig(diffusers=(folder,), prompts=("a cat", "a dog"), guidance=2.0, steps=6, checkpoint_every=2)
    with Run.open(tmp_path / "whole", config, job="sample") as opened:
        opened.finish(run(config, opened))

    class Stopped(Exception):
        pass

    calls = []

    def stop(stage, done, total):
        calls.append(done)
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped), Run.open(tmp_path / "broken", config, job="sample", progress=stop) as opened:
        run(config, opened)
    with Run.open(tmp_path / "broken", config, job="sample") as opened:
        assert opened.resumed
        opened.finish(run(config, opened))
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


def test_editing_from_files_and_class_numbers(folder, tmp_path):
    picture, mask = tmp_path / "in.png", tmp_path / "mask.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(picture)
    Image.new("L", (32, 32), 0).save(mask)
    line = [
        "sample",
        "--diffusers",
        folder,
        "--prompt",
        "a cat",
        "--image",
        str(picture),
        "--strength",
        "0.5",
        "--steps",
        "4",
        "--device",
        "cpu",
    ]
    assert main([*line, "--mask-image", str(mask), "--cfg", "1", "--particles", "1", "--runs", "1", "--out", str(tmp_path / "edit")]) == 0
    kept = load_tensors(tmp_path / "edit" / "picked.safetensors")[0]["x"]
    latents = ComposedPipeline.from_pretrained(folder).experts()[0].latents
    assert torch.allclose(kept, latents.encode(Image.open(picture)), atol=1e-5)
    classes = ComposedPipeline((tiny.unconditional(classes=4),))
    config = SampleConfig(diffusers=("x",), prompts=("1", "3"), negative_prompt="0", guidance=2.0)
    assert [expert.name for expert in planned(config, classes, 1).experts] == ["1", "3"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--diffusers", "FOLDER", "--sigma-min", "0.1"], "sigma_min=0.1 has no effect with diffusers: it belongs to experts"),
        (["--diffusers", "FOLDER", "--op", "nand"], "did you mean 'and'"),
        (["--diffusers", "FOLDER", "--image", "absent.png"], "image='absent.png': no such file"),
        (["--diffusers", "/absent/folder"], "no such folder"),
        (["--diffusers", "FOLDER", "--height", "33"], "wanted multiples of 2"),
        (["--expert", "zoo:digits-all"], "prompts=('a cat',) has no effect with experts: it belongs to diffusers"),
    ],
)
def test_bad_usage(folder, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    line = [folder if one == "FOLDER" else one for one in arguments]
    assert main(["sample", *line, "--prompt", "a cat", "--out", "here"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "here").exists()
