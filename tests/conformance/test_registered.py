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

DEMO = 40  # processor seconds: 20 seconds on two cores. On a quiet machine 15 are enough; two workers on one core's threads need half as many again


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


def measured(folder: Path, seed: int = 0) -> Path:
    """Write a table of rows with a number, a category and a target."""
    numpy = pytest.importorskip("numpy")
    rng = numpy.random.default_rng(seed)
    rows = [f"{a:.6f},{'ab'[k % 2]},{a * a:.6f}" for k, a in enumerate(rng.normal(size=60))]
    (folder / "rows.csv").write_text("\n".join(["size,kind,loss", *rows]) + "\n")
    return folder / "rows.csv"


def molecules(folder: Path, seed: int = 0) -> Path:
    """Write a file of SMILES."""
    alcohols = ["CCO", "CC(O)CN", "c1ccccc1CCO", "CC(=O)Nc1ccc(O)cc1", "OCC1CCCCN1C", "CCOC(=O)c1ccccc1"]
    (folder / "seeds.smi").write_text("\n".join(alcohols[seed:]) + "\n")
    return folder / "seeds.smi"


def surface(folder: Path, seed: int = 0) -> Path:
    """Write a potential of two coordinates."""
    lines = ["def energy(x):", f"    return x[..., 0] ** 4 - 2 * x[..., 0] ** 2 + {1 + seed} * x[..., 1] ** 2"]
    (folder / "surface.py").write_text("\n".join(lines) + "\n")
    return folder / "surface.py"


def hydrogen(folder: Path, seed: int = 0) -> Path:
    """Write an XYZ file of one atom."""
    (folder / "atom.xyz").write_text(f"1\n\nH 0.0 0.0 {seed / 10}\n")
    return folder / "atom.xyz"


SMALLEST: dict[str, Callable[[Path], list[str]]] = {
    "sample": lambda folder: [
        "--expert",
        f"kernel:{points(folder)}:0.5",
        "--steps",
        "6",
        "--particles",
        "1",
        "--runs",
        "1",
        "--checkpoint-every",
        "2",
    ],
    "flow": lambda folder: [str(cells(folder)), "--time", "day", "--dims", "2", "--steps", "2", "--width", "4"],
    "path": lambda folder: [
        *("--potential", f"{surface(folder)}:energy", "--start=-1,0", "--end", "1,0", "--time", "1", "--noise", "1", "--sigma0", "0.1"),
        *("--dt", "0.1", "--family", "diagonal", "--steps", "2", "--batch", "2", "--evaluations", "64", "--paths", "2"),
    ],
    "search": lambda folder: [
        *("--data", f"mnist:3,7:{mnist(folder).parent}"),
        *["--depth", "1", "--curve", "1", "--restarts", "1", "--steps", "2", "--calls", "8", "--runs", "1"],
    ],
    "optimize": lambda folder: [
        *(str(measured(folder)), "--target", "loss", "--minimize", "--n", "1", "--particles", "1", "--reverse-steps", "2"),
        *("--steps", "2", "--width", "4", "--members", "1", "--moves", "1"),
    ],
    "evolve": lambda folder: [str(molecules(folder)), "--oracle", "qed", "--budget", "14", "--offspring", "3", "--population", "6"],
    "ground": lambda folder: [
        *(
            str(hydrogen(folder)),
            "--network",
            "slater-jastrow",
            "--width",
            "2",
            "--walkers",
            "2",
            "--steps",
            "20",
            "--moves",
            "1",
            "--sweeps",
            "10",
        ),
    ],
}
"""Verb -> the options of its smallest job (one particle, one restart), on input made in a folder."""

INPUTS: dict[str, Callable[[Path, int], Path]] = {
    "sample": points,
    "flow": cells,
    "path": surface,
    "search": mnist,
    "optimize": measured,
    "evolve": molecules,
    "ground": hydrogen,
}
"""Verb -> what writes its input file: the same path, other content for another seed."""

MISTAKES: dict[str, tuple[list[str], str]] = {
    "sample": (["--expert", "zoo:digits-evn"], "did you mean 'digits-even'"),
    "flow": (["--rep", "X_pc"], "X_pca"),
    "path": (["--potential", "mueler-brown"], "did you mean 'mueller-brown'"),
    "search": (["--activation", "rleu"], "did you mean 'relu'"),
    "optimize": (["--target", "los"], "did you mean 'loss'"),
    "evolve": (["--operators", "grahp"], "did you mean 'graph'"),
    "ground": (["--metric", "wasserstien"], "did you mean 'wasserstein'"),
}
"""Verb -> an option with a misspelt name, and what the error says."""

METHODS = pytest.mark.parametrize("method", BUILT_IN, ids=lambda method: method.name)
VERBS = pytest.mark.parametrize("verb", TASKS)


@pytest.fixture(autouse=True)
def no_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out animations, which take seconds and are tested with the figures."""
    from popflow.runs import point_figures

    image = "data:image/png;base64,iVBORw0KGgo="
    monkeypatch.setattr(point_figures, "moving", lambda *given, **options: image)


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
    spent = time.process_time() - start
    assert spent < DEMO, f"--quick took {spent:.0f} s of one processor, wanted under {DEMO}"
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert verdict["passed"] is True
    assert verdict["criterion"]
    assert render(read_report(whole)) == (whole / "report.html").read_text()
    interrupted(*demo, str(cut), at=max(2, reports // 2 - 5))  # between two checkpoints of a sampling stage, not at its end
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
    assert said.count("[required") == sum(option.required for option in options(TASKS[verb].load("config")))


def _declared(config: type) -> None:
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    for option in options(config):
        assert option.help.endswith("."), f"{option.name}: {option.help!r} is not a sentence"
        assert option.name != "seed" or option.range == ">= 0"  # as Python's and torch's generators take them


@VERBS
def test_a_run_survives_mistakes_interruptions_and_changed_inputs(verb: str, interrupted, tmp_path: Path, capsys, monkeypatch) -> None:
    """A mistake locks no directory; an interrupted run ends as a whole one; a changed input is refused there, and elsewhere a new run."""
    monkeypatch.chdir(tmp_path)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    smallest, (wrong, message) = SMALLEST[verb](tmp_path), MISTAKES[verb]

    assert main([verb, *smallest, *wrong, "--out", str(whole)]) == 2
    assert message in capsys.readouterr().err
    assert not whole.exists()

    reports = interrupted(verb, *smallest, "--out", str(whole))
    assert render(read_report(whole)) == (whole / "report.html").read_text()
    interrupted(verb, *smallest, "--out", str(cut), at=max(1, reports // 2))
    interrupted(verb, *smallest, "--out", str(cut))
    assert results(whole) == results(cut)

    changed = INPUTS[verb](tmp_path, 1)
    capsys.readouterr()
    assert main([verb, *smallest, "--out", str(whole)]) == 2
    said = capsys.readouterr().err
    assert changed.name in said
    assert "changed since that run read it" in said
    interrupted(verb, *smallest)
    (new,) = (tmp_path / "runs").iterdir()
    assert results(new)["config.json"] != results(whole)["config.json"]
    assert results(new)["report.json"] != results(whole)["report.json"]


@VERBS
def test_an_unknown_key_is_told_the_closest(verb: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.json").write_text('{"sede": 1}')
    assert main([verb, "--config", str(tmp_path / "mine.json")]) == 2
    assert "'sede': did you mean 'seed'?" in capsys.readouterr().err


def test_every_verb_takes_part() -> None:
    assert TASKS.keys() == SMALLEST.keys() == MISTAKES.keys() == INPUTS.keys()
