"""Populations from the arrays of runs: the right particles, weights and times, and no trust in the files."""

from __future__ import annotations

import json
import struct

import pytest
import torch

from popflow.core import Population, State, Streams
from popflow.core.checkpoint import save_tensors
from popflow.view import populations
from popflow.view.populations import FRAMES, PARTICLES, Populations, read


def saved(run, k, x, log_w, name="temper"):
    state = State(k, 0.5, Population(x, log_w, torch.zeros(log_w.shape[:-1]), {}), Streams(0))
    save_tensors(run / f"{name}.safetensors", state.tensors(), {"stage": name, "k": k})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_a_state_is_shown_with_its_weights(tmp_path, new_run, dtype, batch):
    """Weights are those of each population by itself; the effective share is the mean of ESS / n."""
    run, n = new_run(tmp_path / "a"), 5
    generator = torch.Generator().manual_seed(0)
    x, log_w = torch.randn(*batch, n, 2, dtype=dtype, generator=generator), torch.randn(*batch, n, dtype=dtype, generator=generator) + 900
    saved(run, 25, x, log_w)
    found = Populations(run)
    found.look()
    frame = found.frame("temper.safetensors", 0, None)
    pop = Population(x, log_w, torch.zeros(batch, dtype=dtype), {})
    assert frame["at"] == "step 25"
    assert frame["ess"] == pytest.approx(float((pop.ess() / n).mean()), rel=1e-5)
    assert frame["weights"] == pytest.approx((pop.weights() * n).flatten().tolist(), rel=1e-4)
    assert frame["x"] == pytest.approx(x[..., 0].flatten().tolist(), rel=1e-4)
    assert frame["y"] == pytest.approx(x[..., 1].flatten().tolist(), rel=1e-4)
    assert frame["low"] == pytest.approx([min(frame["x"]), min(frame["y"])])


def test_states_are_kept_as_they_are_seen_and_begin_anew_when_a_step_comes_again(tmp_path, new_run):
    run, found = new_run(tmp_path / "a"), Populations(tmp_path / "a")
    for k in (5, 10, 15):
        saved(run, k, torch.full((1, 1), float(k)), torch.zeros(1))
        found.look()
        found.look()
    (film,) = found.plain()["films"]
    assert (film["frames"], film["grows"], film["particles"]) == (["step 5", "step 10", "step 15"], True, 1)
    assert [found.frame("temper.safetensors", i, None)["x"] for i in range(3)] == [[5.0], [10.0], [15.0]]
    saved(run, 10, torch.ones(1, 1), torch.zeros(1))
    found.look()
    assert found.plain()["films"][0]["frames"] == ["step 10"]
    (run / "temper.safetensors").unlink()
    found.look()
    assert found.plain()["films"] == []


def test_paths_have_a_time_and_thinning_keeps_the_ends(tmp_path, new_run):
    run, paths, times = new_run(tmp_path / "a"), PARTICLES + 7, FRAMES + 9
    x = torch.arange(paths).double()[:, None, None] + 1000 * torch.arange(times)[None, :, None].double() + torch.zeros(1, 1, 2)
    save_tensors(run / "paths.safetensors", {"x": x, "log_w": torch.zeros(paths, dtype=torch.float64)})
    found = Populations(run)
    found.look()
    (film,) = found.plain()["films"]
    assert (film["particles"], len(film["frames"]), film["grows"]) == (paths, FRAMES, False)
    assert (film["frames"][0], film["frames"][-1]) == (f"time 1 of {times}", f"time {times} of {times}")
    last = found.frame("paths.safetensors", FRAMES - 1, None)
    assert len(last["x"]) == PARTICLES
    assert (last["x"][0], last["x"][-1]) == (1000 * (times - 1), pytest.approx(1000 * (times - 1) + paths - 1, rel=1e-4))


def test_many_coordinates_are_seen_along_the_widest_directions(tmp_path, new_run):
    run, generator = new_run(tmp_path / "a"), torch.Generator().manual_seed(0)
    x = 0.01 * torch.randn(300, 1, 3, 3, generator=generator)
    x[:, 0, 1, 2] += 5 * torch.randn(300, generator=generator)
    save_tensors(run / "picked.safetensors", {"x": x})
    found = Populations(run)
    found.look()
    frame = found.frame("picked.safetensors", 0, None)
    along = torch.tensor(frame["x"])
    assert abs(torch.corrcoef(torch.stack([along, x[:, 0, 1, 2]]))[0, 1]) > 0.9999
    assert found.frame("picked.safetensors", 0, (5, 0))["x"] == pytest.approx(x[:, 0, 1, 2].tolist(), rel=1e-4)
    for asked in (
        ("picked.safetensors", 0, (9, 0)),
        ("picked.safetensors", 1, None),
        ("other.safetensors", 0, None),
        ("picked.safetensors", 0, (-1, 0)),
    ):
        with pytest.raises(LookupError):
            found.frame(*asked)


def test_walkers_are_a_population_of_equal_weights_and_parameters_are_none(tmp_path, new_run):
    run = new_run(tmp_path / "a")
    save_tensors(run / "search.safetensors", {"walkers/x": torch.ones(4, 2, 3), "psi/w": torch.ones(2)}, {"step": 70})
    save_tensors(run / "fit.safetensors", {"opt.0.step": torch.ones(1), "ema.x": torch.ones(4, 2)})
    found = Populations(run)
    found.look()
    (film,) = found.plain()["films"]
    assert (film["name"], film["frames"], film["coordinates"], film["particles"]) == ("search.safetensors", ["step 70"], 6, 4)
    assert found.frame("search.safetensors", 0, None)["weights"] == [1.0] * 4


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path, new_run):
    run = new_run(tmp_path / "a")
    save_tensors(
        run / "sample.safetensors",
        {"x": torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [2.0, float("inf")]]), "log_w": torch.zeros(3)},
        {"k": 1},
    )
    save_tensors(run / "lost.safetensors", {"x": torch.full((3, 3), float("nan")), "log_w": torch.full((3,), -float("inf"))}, {"k": 1})
    found = Populations(run)
    found.look()
    frame = found.frame("sample.safetensors", 0, None)
    assert (frame["x"], frame["y"], frame["left_out"]) == ([0.0], [1.0], 2)
    lost = found.frame("lost.safetensors", 0, None)
    assert (lost["x"], lost["ess"], lost["left_out"]) == ([], None, 3)
    save_tensors(
        run / "huge.safetensors", {"x": torch.tensor([[1e300, 3e38, 0.0], [-1e300, -3e38, 1.0], [0.0, 3e38, 2.0]], dtype=torch.float64)}
    )
    found.look()
    huge = found.frame("huge.safetensors", 0, (2, 1))
    assert huge["x"] == [0.0, 1.0, 2.0]
    json.dumps([frame, lost, huge], allow_nan=False)


def header(about, data=b""):
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return struct.pack("<Q", len(text)) + text + data


X = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 40,
        header(b"[" * 100_000),
        header({"x": 3}),
        header([1]),
        header({"x": X}),
        header({"x": X | {"shape": [-2, -1]}}, bytes(8)),
        header({"x": X | {"shape": [10**9, 10**9]}}, bytes(8)),
        header({"x": X | {"data_offsets": [0, 10**12]}}, bytes(8)),
        header({"x": X | {"data_offsets": "no"}}, bytes(8)),
        header({"x": X | {"dtype": "I64"}}, bytes(16)),
        header({"x": X, "log_w": X | {"shape": [3]}}, bytes(8)),
        header({"x": X, "__metadata__": {"about": "{"}}, bytes(8)),
        header({"x": X, "__metadata__": {"about": "[]"}}, bytes(8)),
        header({"x": X | {"shape": [0, 1], "data_offsets": [0, 0]}}),
        header({"x": X | {"shape": [], "data_offsets": [0, 4]}}, bytes(4)),
    ],
    ids=str,
)
def test_a_damaged_file_is_told_and_stops_nothing(tmp_path, new_run, content):
    run = new_run(tmp_path / "a")
    (run / "sample.safetensors").write_bytes(content)
    film = read(run, "sample.safetensors")
    assert film is not None
    assert film.frames == []
    assert "cannot be shown" in film.why


def test_large_arrays_are_not_read(tmp_path, new_run, monkeypatch):
    run = new_run(tmp_path / "a")
    monkeypatch.setattr(populations, "LARGEST", 2**20)
    save_tensors(run / "sample.safetensors", {"x": torch.zeros(3 * 2**18, 1), "log_w": torch.zeros(3 * 2**18)})
    film = read(run, "sample.safetensors")
    assert film is not None
    assert film.why == "it cannot be shown: x has 3 MiB, more than 1"


def test_memory_is_bounded(tmp_path, new_run, monkeypatch):
    monkeypatch.setattr(populations, "FRAMES", 12)
    run, found = new_run(tmp_path / "a"), Populations(tmp_path / "a")
    for k in range(15):
        saved(run, k, torch.zeros(2, 1), torch.zeros(2))
        found.look()
    frames = found.plain()["films"][0]["frames"]
    assert len(frames) <= 12
    assert (frames[0], frames[-1]) == ("step 0", "step 14")
    for i in range(populations.FILMS + 3):
        saved(run, 1, torch.zeros(2, 1), torch.zeros(2), f"more-{i:02d}")
    found.look()
    assert len(found.films) == populations.FILMS
