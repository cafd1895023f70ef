"""Networks of frames as experts: schedules, units, masks, against closed forms; and checkpoints of which nothing is run."""

from __future__ import annotations

import importlib.util
import math
import pickle
import sys
from pathlib import Path

import pytest
import torch

from popflow.compose import feynman_kac, sample
from popflow.compose.spaces.igso3 import igso3_kernels, igso3_score
from popflow.core import CheckpointError, Streams

_spec = importlib.util.spec_from_file_location("framediff_adapter", Path(__file__).parents[3] / "examples" / "framediff_adapter.py")
assert _spec is not None
assert _spec.loader is not None
adapter = importlib.util.module_from_spec(_spec)
sys.modules["framediff_adapter"] = adapter
_spec.loader.exec_module(adapter)

F64 = torch.float64
L = 4
perfect, TURNS, PLACES = adapter.one_backbone(L, Streams(5))


def test_scores_come_out_in_angstroms_at_both_clocks():
    expert = adapter.framediff_expert(perfect, L)
    sigma = 12.0
    x = expert.home.start(torch.empty(6, *expert.event, dtype=F64), sigma, 1.0, Streams(0))
    turn, push = expert.home.split_tangent(expert.score(x, sigma))
    rotations, places = expert.home.split(x)
    assert torch.allclose(push, (PLACES - places) / sigma**2, atol=1e-9)
    _, slope = igso3_kernels(rotations, TURNS, adapter.RotationClock()(sigma) ** 2)
    assert torch.allclose(turn, igso3_score(rotations, TURNS, slope), atol=1e-9)


def test_levels_and_clock_are_the_published_schedules():
    levels = adapter.framediff_levels(100)
    assert adapter.time_of(float(levels[0])) == pytest.approx(1.0)
    assert adapter.time_of(float(levels[-1])) == pytest.approx(0.01)
    clock = adapter.RotationClock()
    t, h = 0.3, 1e-5
    sigma, at = adapter.framediff_levels(1, t), [float(adapter.framediff_levels(1, s)[-1]) for s in (t - h, t + h)]
    level = clock(float(sigma[-1]))
    g2 = 2 * (math.exp(1.5) - math.exp(0.1)) * level * math.exp(-level)  # the diffusion coefficient of the paper: d sigma^2 / dt
    assert (clock(at[1]) ** 2 - clock(at[0]) ** 2) / (2 * h) == pytest.approx(g2, rel=1e-6)


def test_sampling_a_perfect_network_ends_at_its_data():
    expert = adapter.framediff_expert(perfect, L)
    grid = torch.cat([adapter.framediff_levels(40), torch.zeros(1, dtype=F64)])
    out = sample(feynman_kac(expert), grid, particles=4, rng=Streams(0), dtype=F64)
    rotations, places = expert.home.split(out.x[0])
    assert (places - PLACES).abs().max() < 0.05
    assert (rotations - TURNS).abs().max() < 0.1
    assert places.mean(1).abs().max() < 1e-9


def test_residues_that_are_not_there_have_no_score():
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0])
    expert = adapter.framediff_expert(perfect, L, mask)
    x = expert.home.start(torch.empty(2, *expert.event, dtype=F64), 5.0, 1.0, Streams(0))
    turn, _ = expert.home.split_tangent(expert.score(x, 5.0))
    assert turn[:, 2].abs().max() == 0
    assert turn[:, 1].abs().min() > 0
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), wanted \(4,\)"):
        adapter.framediff_expert(perfect, L, mask[:3])


def test_scores_of_the_wrong_shape_and_other_clocks_are_refused():
    wrong = adapter.framediff_expert(lambda r, x, t, mask: (x[:, :1], x), L)
    with pytest.raises(ValueError, match=r"the network returned shapes \(2, 1, 3\) and \(2, 4, 3\), wanted \(2, 4, 3\) twice"):
        wrong.score(wrong.home.start(torch.empty(2, *wrong.event), 5.0, 1.0, Streams(0)), 5.0)
    with pytest.raises(ValueError, match="live in the spaces"):
        adapter.framediff_expert(perfect, L) * adapter.framediff_expert(perfect, L, clock=adapter.RotationClock(0.2))
    assert adapter.framediff_space(L) == adapter.framediff_space(L)


# checkpoints


def test_tensors_are_read_and_prefixes_dropped(tmp_path: Path):
    torch.save({"model": {"module.a": torch.ones(2)}, "conf": {"width": 256}}, tmp_path / "w.pth")
    assert torch.equal(adapter.published_weights(tmp_path / "w.pth")["a"], torch.ones(2))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(self.path),))  # pyright: ignore[reportAttributeAccessIssue]


def test_nothing_in_a_file_is_run(tmp_path: Path):
    bomb = Bomb()
    bomb.path = str(tmp_path / "ran")  # pyright: ignore[reportAttributeAccessIssue]
    torch.save({"model": {"a": torch.ones(1)}, "conf": bomb}, tmp_path / "bad.pth", pickle_module=pickle)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of plain tensors: .* Nothing in it was run"):
        adapter.published_weights(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_absent_and_empty_checkpoints_are_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no file .*: weights of FrameDiff are not part of this library. Fix: download"):
        adapter.published_weights(tmp_path / "none.pth")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds no tensors under 'model'"):
        adapter.published_weights(tmp_path / "other.pth")
    for content in (b"", b"junk", b"PK\x03\x04 half an archive"):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a checkpoint of plain tensors"):
            adapter.published_weights(tmp_path / "broken.pth")
