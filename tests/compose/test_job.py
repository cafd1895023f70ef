"""The sampling job: what strings name, and that a killed run ends with the bytes of an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from popflow.compose import gaussian_mixture, igso3_mixture
from popflow.compose.config import SampleConfig
from popflow.compose.expert_loading import load_experts
from popflow.compose.job import of_experts, run
from popflow.compose.particles import icosahedron, lennard_jones
from popflow.core import Streams
from popflow.core.checkpoint import load_tensors
from popflow.runs import ConfigError, Run, config_of

MINE = gaussian_mixture(torch.zeros(1, 2), 1.0, name="mine")
TURNS = igso3_mixture(torch.eye(3).unsqueeze(0), 0.3)
SMALL = {"steps": 20, "particles": 16, "runs": 3, "sigma_min": 0.1, "sigma_max": 10.0}
EVEN = {"experts": ["zoo:digits-even"]}


def sampled(folder: Path, **values) -> tuple[dict, str]:
    """The last state and the page of a run."""
    config = config_of(SampleConfig, values)
    with Run.open(folder, config, job="sample") as opened:
        opened.finish(run(config, opened))
    return load_tensors(folder / "sample.safetensors")[0], (folder / "report.html").read_text()


def sampler(**values):
    return of_experts(config_of(SampleConfig, values)).sampler


def test_a_kernel_file_is_the_mixture_of_its_rows(tmp_path):
    points = np.array([[0.0, 1.0], [2.0, 3.0]])
    np.save(tmp_path / "points.npy", points)
    np.savetxt(tmp_path / "points.csv", points, delimiter=",")
    y, direct = torch.ones(1, 2, dtype=torch.float64), gaussian_mixture(torch.from_numpy(points), 0.5)
    for expert in load_experts([f"kernel:{tmp_path / file}:0.5" for file in ("points.npy", "points.csv")]):
        assert torch.equal(expert.score(y, 1.0), direct.score(y, 1.0))
    (tmp_path / "named.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"could not convert string 'a' .*, column 1\. Fix: a \.csv holds numbers"):
        load_experts([f"kernel:{tmp_path / 'named.csv'}:0.5"])


def test_python_experts_and_guidance_compose(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import torch\nfrom popflow.compose import gaussian_mixture\n"
        "wide = gaussian_mixture(torch.zeros(1, 2), 2.0, name='wide')\nnarrow = gaussian_mixture(torch.ones(1, 2), 1.0, name='narrow')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    values = SMALL | {"particles": 2000, "steps": 100}
    out, _ = sampled(tmp_path / "run", experts=["python:my_models:narrow"], unconditional="python:my_models:wide", guidance=2.0, **values)
    # N(1, 1)^2 / N(0, 4) has precision 2 - 1/4 and mean 2 / (2 - 1/4) at no noise
    mean = (out["log_w"].softmax(-1).unsqueeze(-1) * out["x"]).sum(1).mean()
    assert float(mean) == pytest.approx(2 / 1.75, abs=0.06)


def test_labels_of_one_network_share_one_call():
    made = sampler(experts=["zoo:digits-class:3", "zoo:digits-class:5"], unconditional="zoo:digits-class", guidance=2.0)
    assert len({id(expert.model) for expert in made.experts}) == 1
    assert [expert.name for expert in made.experts] == ["digits-class", "digits-class:3", "digits-class:5"]


@pytest.mark.parametrize("op", ["or", "and", "average"])
def test_superpositions_run(tmp_path, op):
    out, _ = sampled(tmp_path / "run", experts=["zoo:digits-even", "zoo:digits-prime"], op=op, **SMALL | {"steps": 3})
    assert out["x"].shape == (3, 16, 1, 8, 8)
    assert out["aux.log_q"].shape == (3, 16, 2)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"experts": ["zoo:digits-evn"]}, "did you mean 'digits-even'"),
        ({"experts": ["zoo:digits-even:2"]}, "takes no label"),
        ({"experts": ["zoo:digits-class:two"]}, "wanted a class number"),
        ({"experts": ["zoo:digits-class:²"]}, "wanted a class number"),
        ({"experts": ["zoo:digits-class:11"]}, "0 to 10"),
        ({"experts": ["zoo:lj13:3"]}, "takes no label"),
        ({"experts": ["zoo:lj31"]}, "did you mean 'lj13'"),
        ({"experts": ["zoo:lj13", "zoo:digits-even"]}, "model different things"),
        ({"experts": ["zoo:lj13", "zoo:dw4"]}, "model different things"),
        ({"experts": ["python:absent_module:a"]}, "cannot import"),
        ({"experts": ["python:popflow.compose:karras"]}, "wanted a popflow.compose.Expert"),
        (EVEN | {"beta": [-1.0]}, "the exponents sum to -1"),
        (EVEN | {"beta": [0.0]}, "every exponent is zero"),
        (EVEN | {"sigma_min": 20.0}, "sigma_min < sigma_max"),
        (EVEN | {"kernel_width": 0.2}, "kernel_width=0.2 has no effect without Langevin steps"),
        ({"experts": ["zoo:dw4"], "kernel_width": 0.2}, "kernel_width=0.2 has no effect without Langevin steps"),
        ({"experts": ["python:tests.compose.test_job:TURNS"]} | SMALL, "the step of rotations from noise level"),
    ],
)
def test_bad_input_is_named_and_leaves_no_directory(tmp_path, values, says):
    with pytest.raises(ConfigError, match=says):
        sampled(tmp_path / "run", **values)
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
    assert done.returncode == 2
    assert "expert 'python:broken_models:x': cannot import it: NameError: name 'absent_name' is not defined" in done.stderr


def test_a_killed_run_ends_with_the_same_bytes(tmp_path):
    command = [sys.executable, "-m", "popflow.cli.app", "sample", "--expert", "zoo:digits-even", "--expert", "zoo:digits-prime"]
    command += ["--kernel-steps", "2", "--steps", "60", "--particles", "64", "--runs", "2", "--checkpoint-every", "5", "--device", "cpu"]
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
    assert "log Z in 64 dimensions: its error may be larger than its spread" in (whole / "report.html").read_text()


def test_exponents_are_temperatures_and_reports_know_it(tmp_path):
    """zoo:dw4 to the power 2 is the system at half of the temperature it was trained at, whichever way the power is given."""
    states = []
    for name, values in (("beta", {"beta": [2.0]}), ("temperature", {"temperature": 1.0})):
        out, page = sampled(tmp_path / name, experts=["zoo:dw4"], steps=6, particles=16, **values)
        assert out["x"].shape == (1, 16, 4, 2)
        assert float(out["x"].mean(2).abs().max()) < 1e-4
        assert "Against ground truth at T = 1" in page
        assert "walkers of a short Monte Carlo run at the same temperature" in page
        assert "Langevin steps per level: 1." in page
        assert "1 independent run of 16 particles, 6 steps" in page
        assert "log Z in 8 dimensions" not in page
        assert ("of its initial particles; its effective sample size is overstated" in page) == (len(out["aux.ancestor"].unique()) < 10)
        results = json.loads((tmp_path / name / "report.json").read_text())["report"]["results"]
        assert {"distance_w2", "energy_w1", "mean_energy", "distinct_ancestors"} <= results.keys()
        states.append(out["x"])
    assert torch.equal(*states)


def test_the_temperature_of_an_expert_that_knows_its_own_is_the_temperature_itself():
    """dw4 was trained at T = 2: at T = 0.5 it is the power 4; experts without a temperature are taken at T = 1."""
    made = (sampler(experts=["zoo:dw4"], temperature=0.5), sampler(experts=["zoo:dw4"]), sampler(**EVEN, temperature=0.5))
    assert [one.precision(1.0) for one in made] == [4.0, 1.0, 2.0]


def test_cold_particles_take_langevin_steps_of_a_size_that_suits_them():
    """By weights alone they descend from a few; a step for data of width 0.3 would throw atoms onto one another."""
    cold = {"experts": ["zoo:lj13"], "temperature": 0.8}
    made = [sampler(**values) for values in (cold, cold | {"kernel_steps": 3}, {"experts": cold["experts"]}, cold | {"correct": False})]
    assert [one.evaluations for one in made] == [2, 4, 1, 1]
    x = icosahedron().float().expand(1, 64, 13, 3) * 1.02
    moved = made[1].step(made[1].start(x, 0.02), 0.02**2, 0.01**2, Streams(0)).x
    assert float((lennard_jones(13).energy(moved.double()) - lennard_jones(13).energy(x.double())).max()) < 25.0


def test_warm_particles_take_more_noise_than_the_reverse_diffusion():
    """Tempered noise is ``zeta^2 = T_S / T_L``, above 1 as well: the move of a point without a score is noise alone."""
    x = torch.zeros(1, 4000, 4, 2)
    for temperature in (1.0, 2.0, 4.0):
        made = sampler(experts=["zoo:dw4"], temperature=temperature, correct=False)
        far = made.step(made.start(x, 16.0), 16.0**2, 15.9**2, Streams(0)).x
        spread = float(far.var() * 4 / 3) / (16.0**2 - 15.9**2)
        assert spread == pytest.approx(temperature / 2, rel=0.05)


def test_annealed_data_takes_more_noise_and_a_width_sets_the_langevin_step():
    spreads = []
    for values in ({}, {"beta": [2.0]}, {"zeta": 0.5}):
        made = sampler(experts=["python:tests.compose.test_job:MINE"], correct=False, **values)
        x = torch.zeros(1, 20000, 2)
        spreads.append(float(made.step(made.start(x, 15.0), 15.0**2, 14.99**2, Streams(0)).x.var()) / (15.0**2 - 14.99**2))
    assert spreads == pytest.approx([1.0, 2.0, 0.25], rel=0.05)
    for width, eta in ((None, 0.009), (1.0, 0.1)):  # the Langevin step of a standard normal, at no noise, has noise 2 eta - eta^2
        made = sampler(experts=["python:tests.compose.test_job:MINE"], kernel_steps=1, zeta=0.0, kernel_width=width)
        x = torch.zeros(1, 20000, 2)
        assert float(made.step(made.start(x, 0.02), 0.02**2, 1e-8, Streams(0)).x.var()) == pytest.approx(2 * eta - eta**2, rel=0.03)


def test_what_is_left_open_follows_the_experts():
    data = of_experts(config_of(SampleConfig, EVEN))
    assert (len(data.levels), float(data.levels[0]), data.particles, data.runs) == (301, 15.0, 64, 8)
    particles = of_experts(config_of(SampleConfig, {"experts": ["zoo:lj13"], "runs": 3}))
    assert (float(particles.levels[-1]), float(particles.levels[0]), particles.particles, particles.runs) == (0.005, 8.0, 1000, 3)
    assert torch.allclose(particles.levels[1:] / particles.levels[:-1], particles.levels[1] / particles.levels[0])  # geometric


def test_a_temperature_without_a_table_says_so(tmp_path):
    _, page = sampled(tmp_path / "run", experts=["zoo:dw4"], temperature=1.3, steps=3, particles=8)
    assert "No ground truth is tabulated at T = 1.3" in page
