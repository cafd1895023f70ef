"""Every benchmark runs with --quick and writes the rows that the documentation is made from, naming the peers that are missing."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from popflow.optim import rows

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


def _module(name: str) -> ModuleType:
    """A module of the benchmarks, which are no package."""
    found = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(found)  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


harness = _module("harness")
BENCHMARKS = harness.benchmarks()
SCRIPTS = {"collect", "guidance_figure", "optimizer_page"}  # they make a page and its figures
MAKERS = {"draw_start_pool", "make_activity_arrays", "train_smiles_model"}  # they make what the package ships
LIMIT = 40  # processor seconds; most need less than 10 on a quiet machine, and the same work takes more of them on a busy one
ROW = {"claim", "value", "error", "unit", "target", "direction", "holds", "peers", "seconds", "notes"}


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda script: script.stem)
def test_quick_run_writes_the_documented_rows(script: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--quick", "--seeds", "1", "--json", str(tmp_path / "out.json")]
    before = _processor_seconds()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert document.keys() == {"benchmark", "machine", "options", "rows"}
    assert document["benchmark"] == script.stem
    assert document["options"]["quick"] is True
    assert {"processor", "cores", "torch_threads", "torch", "python"} <= document["machine"].keys()
    claims = [row["claim"] for row in document["rows"]]
    assert claims, "no claim was measured"
    assert len(set(claims)) == len(claims), "a claim was measured twice"
    for row in document["rows"]:
        assert row.keys() == ROW
        assert isinstance(row["claim"], str)
        assert row["claim"]
        assert isinstance(row["value"], int | float)
        assert row["target"] is None or isinstance(row["target"], int | float)
        assert row["direction"] in {"<=", ">="}
        # a peer gives a number (alone, or with its error), or a text that says why there is none
        for peer, value in row["peers"].items():
            assert isinstance(value, int | float) or "absent" in value or value == "failed" or re.match(r"-?[0-9.]+( |$)", value), (
                f"{peer}: {value!r}"
            )
    assert f"| {document['rows'][0]['claim']} |" in done.stdout
    spent = _processor_seconds() - before
    assert spent < LIMIT, f"--quick took {spent:.0f} s of one processor, wanted under {LIMIT}"


def test_every_file_is_a_benchmark_serves_one_or_is_a_known_script() -> None:
    found = {path.stem for path in FOLDER.glob("*.py")}
    benchmarks = {path.stem for path in BENCHMARKS}
    served = {name for path in FOLDER.glob("*.py") for name in _imported(path) if name in found}
    assert {"annealing", "diffusers_cost", "gpu"} <= benchmarks
    assert found - benchmarks - served == SCRIPTS | MAKERS
    assert {json.loads(path.read_text())["benchmark"] for path in (FOLDER / "results").glob("*.json")} <= benchmarks


def test_a_benchmark_is_found_wherever_it_is_declared(tmp_path: Path) -> None:
    """In a block of a block as at the top; a call for another file, or in a text, declares nothing."""
    texts = {
        "a": "run('a', main)",
        "b": "if x:\n  if y:\n    pass\n  else:\n    run('b', main)",
        "c": "run('a', main)",
        "d": "x = 'run(1)'",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert [path.stem for path in harness.benchmarks(tmp_path)] == ["a", "b"]


def test_make_bench_runs_them_all() -> None:
    """All but the one that needs a GPU."""
    listed = subprocess.run([sys.executable, "benchmarks/harness.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert listed == [f"benchmarks/{path.name}" for path in BENCHMARKS if path.stem != "gpu"]
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$$($(BIN)/python benchmarks/harness.py)" in rules
    assert "benchmarks/gpu.py --json" in rules


def test_parts_are_kept_and_measured_again_in_their_order() -> None:
    rows = [{"claim": claim, "notes": {"part": part}} for claim, part in (("x", "a"), ("y", "b"), ("z", "c"))]
    before = {"options": {"quick": False, "seeds": 5, "only": ["a", "c"]}, "rows": [rows[0], rows[2]]}
    again = {"claim": "x, again", "notes": {"part": "a"}}
    found, parts = harness.merged(before, [rows[1], again], {"quick": False, "seeds": 5, "only": ["b", "a"]}, "abc")
    assert ([row["claim"] for row in found], parts) == (["x, again", "y", "z"], ["a", "b", "c"])
    with pytest.raises(SystemExit, match="wanted the same quick and seeds"):
        harness.merged(before, [], {"quick": True, "seeds": 5, "only": ["b"]}, "abc")


def test_the_page_of_results_tells_where_seeds_were_fewer() -> None:
    rows = [
        {"claim": "a: x", "notes": {"seeds": 3}},
        {"claim": "b, w = 1: x", "notes": {"seeds": 1}},
        {"claim": "b, w = 1: y", "notes": {}},
    ]
    assert _module("collect").seeds_of({"options": {"seeds": 3}, "rows": rows}) == "3 seeds; b, w = 1: 1"


def test_the_page_of_results_tells_of_a_further_run_in_part() -> None:
    machine = {"processor": "a", "cores": 1, "torch_threads": 1, "gpu": None, "python": "3", "torch": "2"}
    document = {"benchmark": "race", "machine": machine, "options": {"quick": False, "seeds": 1, "only": ["a", "b"]}, "rows": []}
    page = _module("collect")
    assert "1 seed; day not recorded." in page.section("race_newer", document)
    assert "1 seed; 2026-12-01." in page.section("race", {**document, "machine": machine | {"date": "2026-12-01"}})
    assert "A further run of `race.py`; parts: a, b." in page.section("race_newer", document)
    assert "further run" not in page.section("race", document)


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_the_u_net_reads_one_image_at_a_time_and_starts_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = importlib.import_module("unet").UNet(2, width=8, levels=(1, 2), classes=2).double()
        x, t, cond = torch.randn(4, 2, 8, 4, dtype=torch.float64), torch.linspace(0, 1, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
        assert network(x, t, cond).abs().max() == 0
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.2)
    y = network(x, t, cond)
    assert y.shape == x.shape
    torch.testing.assert_close(network(x[1:2], t[1:2], cond[1:2]), y[1:2])
    for other in (network(x, t + 0.1, cond), network(x, t, (cond + 1) % 3)):
        assert (other - y).flatten(1).abs().amax(1).min() > 1e-4


def test_jets_give_the_residual_of_nested_derivatives_and_its_gauss_newton_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tasks = importlib.import_module("optimizer_tasks")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = tasks.Jets((1, 5, 4, 1)).double()
    x = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)[:, None].requires_grad_()
    h = x
    for i, layer in enumerate(net.layers):
        h = (torch.tanh(h) if i else h) @ layer.weight[:, :-1].T + layer.weight[:, -1]
    slope = torch.autograd.grad((h * x * (1 - x)).sum(), x, create_graph=True)[0]
    bend = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
    nested = (bend + math.pi**2 * torch.sin(math.pi * x))[:, 0]
    residual, found = rows(net, lambda: net(x.detach()), torch.ones_like)
    torch.testing.assert_close(residual, nested, rtol=1e-12, atol=1e-12)
    for one in found:
        jacobian = torch.stack([torch.autograd.grad(value, one.layer.weight, retain_graph=True)[0] for value in nested])
        captured = torch.einsum("nrd,nrp->ndp", one.g[0], one.a[0])
        torch.testing.assert_close(captured.flatten(1).T @ captured.flatten(1), jacobian.flatten(1).T @ jacobian.flatten(1))


def test_parts_of_molecules_stay_while_their_results_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A docstring changes no digest; a changed digest keeps the parts if the cheapest one comes out the same, and drops them if not."""
    monkeypatch.syspath_prepend(str(FOLDER))
    parts = importlib.import_module("molecules_parts")
    assert parts.bare('"""A."""\nx = 1  # one') == parts.bare("x = 1")
    assert parts.bare("x = 1") != parts.bare("x = 2")
    file = tmp_path / "parts.jsonl"
    areas = {("a", 0): 0.5, ("b", 0): 0.25}
    monkeypatch.setattr(parts, "digest", lambda name: "old")
    monkeypatch.setattr(
        parts,
        "made",
        lambda task, name, seed, budget=10: {
            "task": task,
            "recipe": name,
            "seed": seed,
            "area": areas[task, seed],
            "curve": [areas[task, seed]],
            "seconds": 1.0,
            "digest": parts.digest(name),
        },
    )
    assert len(list(parts.fill(["lm"], ["a", "b"], [0], file, 10))) == 2
    with file.open("a") as lines:
        lines.write('{"task": "a", "rec')  # a torn line
    areas["b", 1] = 0.75
    assert [one["area"] for one in parts.fill(["lm"], ["b"], [0, 1], file, 10)] == [0.75]
    assert not list(parts.fill(["lm"], ["b"], [0, 1], file, 10))
    monkeypatch.setattr(parts, "digest", lambda name: "new")
    parts.renew("lm", file)
    assert [one["digest"] for one in parts.stored(file).values()] == ["new", "new", "new"]
    monkeypatch.setattr(parts, "digest", lambda name: "newer")
    areas["a", 0] = 0.6
    assert [one["area"] for one in parts.fill(["lm"], ["a", "b"], [0], file, 10)] == [0.6, 0.25]


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    page = _module("collect")
    documents = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    table = (ROOT / "README.md").read_text().partition(page.START)[2].partition(page.END)[0]
    assert table == page.figures(documents), "run benchmarks/collect.py benchmarks/results/*.json"


def test_the_page_of_results_says_what_was_not_reached() -> None:
    """Every missed target stands in a table of its own, and the page that is committed says of each claim whether it was reached."""
    page = _module("collect")
    documents = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))}
    text = page.PAGE.read_text()
    assert page.summary(documents) in text, "run benchmarks/collect.py benchmarks/results/*.json"
    for name, document in documents.items():
        assert page.section(name, document).rpartition("; ")[0] in text
    missed = [row for document in documents.values() for row in document["rows"] if row["holds"] is False]
    assert text.partition("## Not reached")[2].partition("\n## ")[0].count("\n| [") == len(missed) > 0
