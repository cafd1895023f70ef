"""`popflow search` from the command line to the report; names that are wrong; going on with a run."""

from __future__ import annotations

import json

import pytest
import torch

from popflow.circuits import job
from popflow.circuits.config import DemoConfig, SearchConfig, cite
from popflow.circuits.demo import demo
from popflow.circuits.job import run
from popflow.circuits.space import ACTIVATIONS
from popflow.circuits.task import LOSSES, task
from popflow.cli.app import main
from popflow.runs import ConfigError, Report, Run, config_of, options

SMALL = SearchConfig(data="digits:3,7:3", depth=2, curve=(1,), restarts=4, steps=30, calls=40, runs=5)


def test_search_from_the_command_line(tmp_path, capsys):
    arguments = ["search", "--data", "gaussians:60", "--net", "mlp:1-2", "--depth", "2", "--curve", "1", "--restarts", "3", "--steps", "20"]
    code = main(
        [*arguments, "--alphabet", "-1,1", "--loss", "squared", "--calls", "50", "--runs", "4", "--json", "--out", str(tmp_path / "run")]
    )
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["ok"]
    network = json.loads((tmp_path / "run/network.json").read_text())
    assert network["width"] in (1, 2)
    assert network["activation"] in ("relu", "sigmoid")
    assert len(network["bits"]) == len(network["names"]) == 11
    assert (tmp_path / "run/circuit.qasm").read_text().startswith("OPENQASM 3.0;")
    page = (tmp_path / "run/report.html").read_text()
    for part in (
        "Share of runs that find the exact optimum",
        "Success against depth",
        "Born distribution",
        "circuit diagram",
        "exact optimum",
    ):
        assert part in page


def test_a_run_goes_on_and_gives_the_same(tmp_path):
    with Run.open(tmp_path / "run", SMALL, job="search") as one:
        first = run(SMALL, one).plain()
    (tmp_path / "run/depth_2.safetensors").unlink()
    with Run.open(tmp_path / "run", SMALL, job="search") as two:
        assert run(SMALL, two).plain() == first
    assert first["results"]["exact optimum"]["value"] == pytest.approx(0.4957010649)


def test_every_choice_of_an_option_has_an_object():
    known = {"activation": ACTIVATIONS, "loss": LOSSES, "entangler": job.ENTANGLERS, "gate": job.GATES, "objective": job.OBJECTIVES}
    assert {option.name: option.choices for option in options(SearchConfig) if option.name in known} == {
        name: tuple(objects) for name, objects in known.items()
    }


def test_citations_follow_the_objective():
    assert [len(cite(SearchConfig(objective=objective))) for objective in ("energy", "free-energy")] == [1, 2]


def test_digits_are_as_fine_as_eighteen_bits_allow():
    assert [task(SearchConfig(net=net))[0].space.n for net in ("logistic", "mlp:2")] == [17, 14]
    cost, data = task(SearchConfig(data="digits:0,1:8", alphabet=("-1,1", "0,1")))
    assert (cost.space.n, data.x.shape[1]) == (66, 64)


def test_the_demo_finds_the_optimum(tmp_path):
    config = DemoConfig(quick=True)
    with Run.open(tmp_path / "run", config, job="demo qhn") as opened:
        report = demo(config, opened)
    assert report.verdict is not None
    assert report.verdict.passed
    assert torch.tensor(report.results["test accuracy"].value).item() == pytest.approx(0.9583, abs=1e-4)


def test_a_quick_demo_trains_no_more_restarts_than_asked_for(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(job, "run", lambda search, run: seen.append(search.restarts) or Report("", ""))
    with Run.open(tmp_path / "run", {}, job="demo qhn") as opened:
        for restarts in (4, 64):
            demo(DemoConfig(quick=True, restarts=restarts), opened)
    assert seen == [4, 8]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "digit:3,7"}, "unknown data 'digit': did you mean 'digits'"),
        ({"data": "digits:3"}, "wanted two digits from 0 to 9: digits:3,7 or digits:3,7:4"),
        ({"data": "digits:3,7:9"}, "data='digits:3,7:9', wanted a side of 2, 3, 4, 8"),
        ({"data": "digits:3,3"}, "wanted two different digits"),
        ({"data": "mnist:3,3:somewhere"}, "wanted two different digits"),
        ({"data": "gaussians:0"}, "data='gaussians:0', wanted at least 2 points"),
        ({"seed": -1}, "seed=-1, wanted an integer >= 0"),
        ({"net": "mpl:2"}, "wanted logistic, mlp:WIDTH"),
        ({"net": "mlp:3-2"}, "the narrowest first"),
        ({"activation": ["relo"]}, "'relo': did you mean 'relu'"),
        ({"alphabet": ["-1;1"]}, "wanted two numbers LOW,HIGH"),
        ({"restarts": 0}, "restarts=0, wanted an integer >= 1"),
        ({"activation": []}, "wanted at least one of relu, sigmoid, tanh"),
        ({"lr": -0.1}, "lr=-0.1, wanted a number > 0"),
        ({"curve": [0]}, "wanted an integer >= 1"),
        ({"net": "mlp:1-999999999999"}, "wanted widths from 1 to 26"),
        ({"activation": ["relu"]}, "has no effect with net='logistic'"),
        ({"optimiser": "lbfgs", "lr": 0.2}, "lr=0.2 has no effect with optimiser='lbfgs'"),
        ({"dept": 3}, "did you mean 'depth'"),
        ({"entangler": "brik"}, "brick"),
        ({"optimiser": "lbfgs", "objective": "free-energy"}, "Fix: optimiser='adam'"),
    ],
)
def test_bad_input(values, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        config_of(SearchConfig, values)
