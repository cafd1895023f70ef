"""The sampling job: what strings name, and that a killed run ends with the bytes of an uninterrupted one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from popflow.compose import gaussian_mixture
from popflow.compose.job import DATA, SampleConfig, composition, load_expert, run, sizes
from popflow.compose.particles import icosahedron, lennard_jones
from popflow.core import Streams
from popflow.core.checkpoint import load_tensors
from popflow.runs import ConfigError, Run, config_of

MINE = gaussian_mixture(torch.zeros(1, 2), 1.0, name="mine")
SMALL = {"steps": 20, "particles": 16, "runs": 3, "sigma_min": 0.1, "sigma_max": 10.0}


def sampled(tmp_path: Path, **values) -> dict:
    config = config_of(SampleConfig, SMALL | values)
    with Run.open(tmp_path / "run", config, job="sample") as opened:
        opened.finish(run(config, opened))
    return load_tensors(tmp_path / "run" / "sample.safetensors")[0]


def test_a_kernel_file_is_the_mixture_of_its_rows(tmp_path):
    points = np.array([[0.0, 1.0], [2.0, 3.0]])
    np.save(tmp_path / "points.npy", points)
    np.savetxt(tmp_path / "points.csv", points, delimiter=",")
    y, direct = torch.ones(1, 2, dtype=torch.float64), gaussian_mixture(torch.from_numpy(points), 0.5)
    for file in ("points.npy", "points.csv"):
        assert torch.equal(load_expert(f"kernel:{tmp_path / file}:0.5").score(y, 1.0), direct.score(y, 1.0))


def test_python_experts_and_guidance_compose(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import torch\nfrom popflow.compose import gaussian_mixture\n"
        "wide = gaussian_mixture(torch.zeros(1, 2), 2.0, name='wide')\nnarrow = gaussian_mixture(torch.ones(1, 2), 1.0, name='narrow')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = sampled(
        tmp_path, experts=["python:my_models:narrow"], unconditional="python:my_models:wide", guidance=2.0, particles=2000, steps=100
    )
    # N(1, 1)^2 / N(0, 4) has precision 2 - 1/4 and mean 2 / (2 - 1/4) at no noise
    mean = (out["log_w"].softmax(-1).unsqueeze(-1) * out["x"]).sum(1).mean()
    assert float(mean) == pytest.approx(2 / 1.75, abs=0.06)


def test_labels_of_one_network_share_one_call():
    config = SampleConfig(experts=("zoo:digits-class:3", "zoo:digits-class:5"), unconditional="zoo:digits-class", guidance=2.0)
    sampler = composition(config)
    assert len({id(expert.model) for expert in sampler.experts}) == 1
    assert [expert.name for expert in sampler.experts] == ["digits-class", "digits-class:3", "digits-class:5"]


@pytest.mark.parametrize("op", ["or", "and", "average"])
def test_superpositions_run(tmp_path, op):
    out = sampled(tmp_path, experts=["zoo:digits-even", "zoo:digits-prime"], op=op, steps=5)
    assert out["x"].shape == (3, 16, 1, 8, 8)
    assert out["aux.log_q"].shape == (3, 16, 2)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"experts": []}, "at least one"),
        ({"experts": ["zoo:digits-evn"]}, "did you mean 'digits-even'"),
        ({"experts": ["digits-even"]}, "wanted zoo:NAME"),
        ({"experts": ["zoo:digits-even:2"]}, "takes no label"),
        ({"experts": ["zoo:digits-class:two"]}, "wanted a class number"),
        ({"experts": ["zoo:digits-class:11"]}, "0 to 10"),
        ({"experts": ["kernel:absent.npy:0.1"]}, "cannot read"),
        ({"experts": ["kernel:absent.npy"]}, "kernel width"),
        ({"experts": ["python:absent_module:a"]}, "cannot import"),
        ({"experts": ["python:popflow.compose:karras"]}, "wanted a popflow.compose.Expert"),
        ({"experts": ["zoo:digits-even"], "op": "nand"}, "did you mean 'and'"),
        ({"experts": ["zoo:digits-even"], "beta": [1.0, 2.0]}, "one for each"),
        ({"experts": ["zoo:digits-even"], "guidance": 3.0}, "unconditional"),
        ({"experts": ["zoo:digits-even"], "temperature": 0.0}, "positive"),
        (
            {"experts": ["zoo:digits-even", "zoo:digits-odd"], "op": "or", "temperature": 0.5},
            "temperature=0.5 means nothing to op='or': it belongs to 'product'",
        ),
        ({"experts": ["zoo:digits-even", "zoo:digits-odd"], "op": "and", "correct": False}, "correct=False means nothing to op='and'"),
        (
            {"experts": ["zoo:digits-even", "zoo:digits-odd"], "op": "and", "sharpness": 5.0},
            "sharpness=5.0 means nothing to op='and': it belongs to 'or'",
        ),
        (
            {"experts": ["zoo:digits-even", "zoo:digits-odd"], "op": "average", "bias": [1.0, 0.0]},
            "bias=.* means nothing to op='average': it belongs to 'or' and 'and'",
        ),
        ({"experts": ["zoo:digits-even", "zoo:digits-odd"], "ridge": 0.1}, "ridge=0.1 means nothing to op='product': it belongs to 'and'"),
        ({"experts": ["zoo:digits-even", "zoo:digits-odd"], "op": "or", "bias": [1.0]}, "one finite number for each of 2"),
        ({"experts": ["zoo:digits-even"], "op": "and"}, "at least two"),
        ({"experts": ["zoo:digits-class:²"]}, "wanted a class number"),
        ({"experts": ["kernel:points.npy:0"]}, "kernel width '0' is not a number above 0"),
        ({"experts": ["kernel:points.npy:..."]}, "kernel width"),
        ({"experts": ["python:module"]}, "wanted python:MODULE:NAME"),
        ({"experts": ["zoo:digits-even"], "beta": [-1.0]}, "the exponents sum to -1"),
        ({"experts": ["zoo:digits-even"], "beta": [0.0]}, "every exponent is zero"),
        ({"experts": ["zoo:digits-even"], "zeta": -1.0}, "zeta=-1.0"),
        ({"experts": ["zoo:digits-even"], "ess_below": 2.0}, "ess_below=2.0"),
        ({"experts": ["zoo:digits-even"], "particles": 0}, "particles=0, wanted at least 1"),
        ({"experts": ["zoo:digits-even"], "checkpoint_every": 0}, "checkpoint_every=0, wanted at least 1"),
        ({"experts": ["zoo:digits-even"], "kernel_width": -1.0}, "kernel_width=-1.0"),
        ({"experts": ["zoo:digits-even"], "stepps": 3}, "did you mean 'steps'"),
        ({"experts": ["zoo:digits-even"], "sigma_min": 20.0}, "sigma_min < sigma_max"),
        ({"experts": ["zoo:digits-even"], "steps": 0}, "at least 1"),
    ],
)
def test_bad_input_is_named(tmp_path, values, says):
    with pytest.raises((ValueError, ConfigError), match=says):
        sampled(tmp_path, **values)


def test_what_is_wrong_with_the_settings_alone_leaves_no_run_directory(tmp_path):
    for values in ({"sigma_min": 20.0}, {"beta": [-1.0]}, {"zeta": -1.0}, {"op": "and"}, {"particles": 0}):
        with pytest.raises(ConfigError):
            sampled(tmp_path, experts=["zoo:digits-even"], **values)
    assert not (tmp_path / "run").exists()


def test_a_module_of_the_current_folder_is_found_by_the_installed_command(tmp_path):
    """The script of an installed command has its own folder on the path, not the current one."""
    (tmp_path / "models_of_mine.py").write_text(
        "import torch\nfrom popflow.compose import gaussian_mixture\nmine = gaussian_mixture(torch.zeros(1, 2), 1.0)\n"
    )
    (tmp_path / "broken_models.py").write_text("absent_name\n")
    code = "import sys; sys.path.remove(''); from popflow.cli.app import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "sample", "--steps", "2", "--particles", "4", "--runs", "1", "--out", "run", "--expert"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [*command, "python:models_of_mine:mine"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    command[command.index("run")] = "other"
    done = subprocess.run([*command, "python:broken_models:x"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "expert 'python:broken_models:x': cannot import it: NameError: name 'absent_name' is not defined" in done.stderr


def test_a_killed_run_ends_with_the_same_bytes(tmp_path):
    command = [sys.executable, "-m", "popflow.cli.app", "sample", "--expert", "zoo:digits-even", "--expert", "zoo:digits-prime"]
    command += ["--kernel-steps", "2", "--steps", "150", "--particles", "64", "--runs", "4", "--checkpoint-every", "10", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    for folder in (whole, broken):
        folder.parent.mkdir()
    subprocess.run([*command, "--out", "run"], cwd=whole.parent, env=environment, check=True, capture_output=True, timeout=900)
    process = subprocess.Popen([*command, "--out", "run"], cwd=broken.parent, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while not (broken / "sample.safetensors").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "picked.safetensors").exists()
    assert not (broken / "report.html").exists()
    subprocess.run([*command, "--out", "run"], cwd=broken.parent, env=environment, check=True, capture_output=True, timeout=900)
    for name in ("sample.safetensors", "picked.safetensors", "metrics.jsonl", "config.json", "report.json", "report.html"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name


def test_particles_are_sampled_at_a_temperature_and_held_against_ground_truth(tmp_path):
    config = config_of(SampleConfig, {"experts": ["zoo:dw4"], "temperature": 1.0, "steps": 30, "particles": 64})
    with Run.open(tmp_path / "run", config, job="sample") as opened:
        report = run(config, opened)
        opened.finish(report)
    out = load_tensors(tmp_path / "run" / "sample.safetensors")[0]
    assert out["x"].shape == (1, 64, 4, 2)
    assert float(out["x"].mean(2).abs().max()) < 1e-4
    assert {"distance_w2", "energy_w1", "mean_energy", "distinct_ancestors"} <= report.results.keys()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Against ground truth at T = 1" in page
    assert "ground truth" in page
    assert "walkers of a short Monte Carlo run at the same temperature" in page


def test_the_temperature_of_an_expert_that_knows_its_own_is_the_temperature_itself():
    """dw4 has learned at T = 2: at T = 0.5 it is the power 4; experts without a temperature are taken at T = 1."""
    cold = composition(SampleConfig(experts=("zoo:dw4",), temperature=0.5))
    plain = composition(SampleConfig(experts=("zoo:dw4",)))
    digits = composition(SampleConfig(experts=("zoo:digits-even",), temperature=0.5))
    assert [sampler.precision(1.0) for sampler in (cold, plain, digits)] == [4.0, 1.0, 2.0]


def test_exponents_are_temperatures_and_reports_know_it(tmp_path):
    """zoo:dw4 to the power 2 is the system at half of the temperature it has learned, whichever way the power is given."""
    settings = {"experts": ["zoo:dw4"], "steps": 6, "particles": 16}
    pages = []
    for name, values in (("beta", {"beta": [2.0]}), ("temperature", {"temperature": 1.0})):
        config = config_of(SampleConfig, settings | values)
        with Run.open(tmp_path / name, config, job="sample") as opened:
            opened.finish(run(config, opened))
        pages.append((tmp_path / name / "report.html").read_text())
        assert "Against ground truth at T = 1" in pages[-1]
        assert "Langevin steps a level: 1." in pages[-1]
        ancestors = load_tensors(tmp_path / name / "sample.safetensors")[0]["aux.ancestor"].unique()
        assert ("of its initial particles: the effective number overstates" in pages[-1]) == (len(ancestors) < 10)
    assert torch.equal(*(load_tensors(tmp_path / name / "sample.safetensors")[0]["x"] for name in ("beta", "temperature")))


def test_cold_particles_take_langevin_steps_of_a_size_that_suits_them():
    """By weights alone they descend from a few; a step for data of width 0.3 would throw atoms onto one another."""
    cold = SampleConfig(experts=("zoo:lj13",), temperature=0.8)
    many, hot, naive = (
        SampleConfig(experts=cold.experts, **kw)
        for kw in ({"temperature": 0.8, "kernel_steps": 3}, {}, {"temperature": 0.8, "correct": False})
    )
    assert [composition(one).evaluations for one in (cold, many, hot, naive)] == [2, 4, 1, 1]
    x = icosahedron().float().expand(1, 64, 13, 3) * 1.02
    start = composition(many).start(x, 0.02)
    moved = composition(many).step(start, 0.02**2, 0.01**2, Streams(0)).x
    assert float((lennard_jones(13).energy(moved.double()) - lennard_jones(13).energy(x.double())).max()) < 25.0


def test_warm_particles_take_more_noise_than_the_reverse_diffusion():
    """Tempered noise is ``zeta^2 = T_S / T_L``, above 1 as well: the move of a point without a score is noise alone."""
    x = torch.zeros(1, 4000, 4, 2)
    for temperature in (1.0, 2.0, 4.0):
        sampler = composition(SampleConfig(experts=("zoo:dw4",), temperature=temperature, correct=False))
        far = sampler.step(sampler.start(x, 16.0), 16.0**2, 15.9**2, Streams(0)).x
        spread = float(far.var() * 4 / 3) / (16.0**2 - 15.9**2)
        assert spread == pytest.approx(temperature / 2, rel=0.05)


def test_what_is_left_open_follows_the_experts():
    assert sizes(SampleConfig(experts=("zoo:digits-even",))) == DATA
    particles = sizes(SampleConfig(experts=("zoo:lj13",), runs=3))
    assert (particles.sigma_min, particles.sigma_max, particles.grid, particles.runs) == (0.005, 8.0, "geometric", 3)


def test_a_temperature_without_a_table_says_so(tmp_path):
    config = config_of(SampleConfig, {"experts": ["zoo:dw4"], "temperature": 1.3, "steps": 5, "particles": 8})
    with Run.open(tmp_path / "run", config, job="sample") as opened:
        opened.finish(run(config, opened))
    assert "No ground truth is tabulated at T = 1.3" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": ["zoo:lj13", "zoo:digits-even"]}, "model different things"),
        ({"experts": ["zoo:lj13", "zoo:dw4"]}, "model different things"),
        ({"experts": ["zoo:lj13:3"]}, "takes no label"),
        ({"experts": ["zoo:lj31"]}, "did you mean 'lj13'"),
        ({"experts": ["zoo:lj13"], "temperature": -0.8}, "wanted a positive number"),
    ],
)
def test_bad_input_of_particles(values, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        config_of(SampleConfig, values)
