"""One suite over every registered method and verb: declared in full, quick, decided, the same for the same seed, unharmed by an interruption.

A new method is tested by being registered; a new verb adds a line to `SMALLEST`, `INPUTS` and `MISTAKES`.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from popflow.cli import verbs
from popflow.cli.app import main
from popflow.registry import BUILT_IN, TASKS, Method
from popflow.runs import config_of, options, plain, read_report, render


def cells(folder: Path, seed: int = 0) -> Path:
    """Write an AnnData file of three snapshots in two coordinates."""
    anndata, numpy = pytest.importorskip("anndata"), pytest.importorskip("numpy")
    rng, each = numpy.random.default_rng(seed), 12
    x = numpy.concatenate([rng.normal(size=(each, 2)) * 0.3 + [k, 0.0] for k in range(3)])
    table = anndata.AnnData(numpy.zeros((3 * each, 1), dtype="float32"))
    table.obs["day"], table.obsm["X_pca"] = numpy.repeat([0.0, 1.0, 2.0], each), x
    table.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def points(folder: Path, seed: int = 0) -> Path:
    """Write an array of samples for a kernel mixture."""
    numpy = pytest.importorskip("numpy")
    numpy.save(folder / "points.npy", numpy.random.default_rng(seed).normal(size=(5, 2)))
    return folder / "points.npy"


def mnist(folder: Path, seed: int = 0) -> Path:
    """Write the four files of MNIST, with a few images of threes and sevens."""
    torch = pytest.importorskip("torch")
    for part, count in (("train", 12), ("t10k", 6)):
        images = torch.randint(256, (count, 28, 28), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        labels = torch.tensor([3, 7]).repeat(count // 2).to(torch.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            shape = b"".join(length.to_bytes(4, "big") for length in array.shape)
            (folder / name).write_bytes(bytes([0, 0, 8, array.ndim]) + shape + array.numpy().tobytes())
    return folder / "train-images-idx3-ubyte"


SMALLEST: dict[str, Callable[[Path], list[str]]] = {
    "sample": lambda folder: ["--expert", f"kernel:{points(folder)}:0.5", "--steps", "6", "--particles", "1", "--runs", "1"],
    "flow": lambda folder: [str(cells(folder)), "--time", "day", "--dims", "2", "--steps", "2", "--width", "4"],
    "search": lambda folder: [
        "--data",
        "digits:3,7:2",
        "--depth",
        "1",
        "--curve",
        "1",
        "--restarts",
        "1",
        "--steps",
        "2",
        "--calls",
        "8",
        "--runs",
        "1",
    ],
}
"""Verb -> the options of its smallest job (one particle, one restart), on input made in a folder."""

INPUTS: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path, int], Path]]] = {
    "sample": (lambda folder: [], points),
    "flow": (lambda folder: [], cells),
    "search": (lambda folder: ["--data", f"mnist:3,7:{mnist(folder).parent}"], mnist),
}
"""Verb -> options that name an input file beside the smallest ones, and what writes it: the same path, other content for another seed."""

MISTAKES: dict[str, tuple[list[str], list[str], str]] = {
    "sample": (["--expert", "zoo:digits-evn"], ["--expert", "zoo:digits-even"], "did you mean 'digits-even'"),
    "flow": (["--rep", "X_pc"], ["--rep", "X_pca"], "X_pca"),
    "search": (["--activation", "rleu"], ["--activation", "relu"], "did you mean 'relu'"),
}
"""Verb -> options with a misspelt name, the right ones, and what the error says."""

METHODS = pytest.mark.parametrize("method", BUILT_IN, ids=lambda method: method.name)
VERBS = pytest.mark.parametrize("verb", TASKS)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that carries out a command line, interrupts it at the n-th report of progress, and returns the number of reports."""

    def carry_out(*arguments: str, at: int | None = None) -> int:
        told = 0

        class Progress(verbs.ProgressLine):
            def __call__(self, stage: str, done: int, total: int) -> None:
                nonlocal told
                told += 1
                if told == at:
                    raise KeyboardInterrupt

        monkeypatch.setattr(verbs, "ProgressLine", Progress)
        assert main(arguments) == (0 if at is None else 1)
        return told

    return carry_out


def results(folder: Path) -> dict[str, bytes]:
    """Return what equal runs share byte for byte; the name of the directory is left out."""
    kept = {"config.json", "metrics.jsonl", "report.json", "report.html"}
    files = (one for one in folder.iterdir() if one.name in kept or one.suffix == ".safetensors")
    return {one.name: one.read_bytes().replace(str(folder).encode(), b"RUN") for one in files}


@METHODS
def test_a_demo_is_quick_decided_and_unharmed_by_an_interruption(method: Method, interrupted, tmp_path: Path, capsys) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    demo = ("demo", method.name, "--quick", "--json", "--out")
    start = time.process_time()
    reports = interrupted(*demo, str(whole))
    assert time.process_time() - start < 20, "seconds of one processor for --quick"
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert verdict["passed"] is True
    assert verdict["criterion"]
    assert render(read_report(whole)) == (whole / "report.html").read_text()
    interrupted(*demo, str(cut), at=max(2, reports // 2))
    interrupted(*demo, str(cut))
    first, second = results(whole), results(cut)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


@METHODS
def test_a_method_is_described_and_its_demo_declared(method: Method) -> None:
    assert method.summary.endswith(".")
    assert "\n" not in method.summary
    assert all(entry.startswith("@") for entry in method.cite)
    config = method.demo.load("config")
    _declared(config)
    assert {"seed", "quick"} <= {option.name for option in options(config)}
    assert config_of(config, plain(config())) == config()


@VERBS
def test_a_verb_is_declared_without_torch(verb: str) -> None:
    """Its help is made from the configuration alone, whose module imports nothing heavy."""
    config = TASKS[verb].load("config")
    _declared(config)
    code = f"import sys, {config.__module__}; print({{'torch', 'numpy', 'matplotlib'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@VERBS
def test_every_option_is_in_the_help(verb: str, capsys) -> None:
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    for option in options(TASKS[verb].load("config")):
        assert option.names[0].partition("/")[0] in said
        assert " ".join(option.help.split()[:3]) in " ".join(said.split())


def _declared(config: type) -> None:
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    for option in options(config):
        assert option.help.endswith("."), f"{option.name}: {option.help!r} is not a sentence"


@VERBS
def test_the_smallest_job_runs_and_comes_out_the_same_after_an_interruption(verb: str, interrupted, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    smallest = SMALLEST[verb](tmp_path)
    reports = interrupted(verb, *smallest, "--out", str(whole))
    assert render(read_report(whole)) == (whole / "report.html").read_text()
    interrupted(verb, *smallest, "--out", str(cut), at=max(1, reports // 2))
    interrupted(verb, *smallest, "--out", str(cut))
    assert results(whole) == results(cut)


@pytest.mark.parametrize("verb", INPUTS)
def test_a_changed_input_is_a_new_run_or_a_named_refusal(verb: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    reading, write = INPUTS[verb]
    smallest = [*SMALLEST[verb](tmp_path), *reading(tmp_path)]
    for arguments in (smallest, [*smallest, "--out", "here"]):
        assert main([verb, *arguments]) == 0
    path = write(tmp_path, 1)
    capsys.readouterr()
    assert main([verb, *smallest, "--out", "here"]) == 1
    said = capsys.readouterr().err
    assert path.name in said
    assert "changed since that run read it" in said
    assert main([verb, *smallest]) == 0
    first, second = (results(folder) for folder in (tmp_path / "runs").iterdir())
    assert first["report.json"] != second["report.json"]


@VERBS
def test_a_mistake_leaves_nothing_and_the_right_name_then_runs(verb: str, tmp_path: Path, capsys) -> None:
    smallest, (wrong, right, message) = SMALLEST[verb](tmp_path), MISTAKES[verb]
    if "--expert" in wrong:
        smallest = smallest[2:]
    out = tmp_path / "here"
    assert main([verb, *smallest, *wrong, "--out", str(out)]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not out.exists()
    assert main([verb, *smallest, *right, "--out", str(out)]) == 0


@VERBS
def test_an_unknown_key_is_told_the_closest(verb: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.json").write_text('{"sede": 1}')
    assert main([verb, "--config", str(tmp_path / "mine.json")]) == 2
    assert "'sede': did you mean 'seed'?" in capsys.readouterr().err


def test_every_verb_takes_part() -> None:
    assert TASKS.keys() == SMALLEST.keys() == MISTAKES.keys() == INPUTS.keys()
