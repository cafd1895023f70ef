"""Figures of clouds: the same bytes every time, frames that differ, shapes that are named."""

import base64
import io

import pytest
import torch

from popflow.runs.point_figures import moving, trajectories, value_map


def cloud(n=50, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


LABELS = {"x_label": "PC 1", "y_label": "PC 2"}


def test_figures_are_pngs_and_the_same_every_time():
    x, paths, frames = cloud(7000), cloud(12).reshape(3, 4, 2), torch.stack([cloud(), cloud() + 2])
    for draw in (
        lambda: value_map(x, x[:, 0], **LABELS, value_label="growth", symmetric=True),
        lambda: trajectories(x, paths, **LABELS, times=[0.0, 1.0, 2.0]),
        lambda: moving(frames, torch.ones(2, 50), [("day 0", cloud())], **LABELS, times=[0.0, 1.0], seconds=1.0),
    ):
        assert draw() == draw()
        assert draw().startswith("data:image/png;base64,")


def test_a_film_has_a_frame_for_each_time():
    from PIL import Image

    frames = torch.stack([cloud(), cloud() + 2, cloud() + 4])
    image = moving(frames, torch.ones(3, 50), [("day 0", cloud())], **LABELS, times=[0.0, 1.0, 2.0], seconds=3.0)
    film = Image.open(io.BytesIO(base64.b64decode(image.split(",", 1)[1])))
    assert film.n_frames == 3
    assert film.info["duration"] == 1000
    assert film.info["loop"] == 0


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"points has shape \(3, 3\), wanted \[n, 2\]"):
        value_map(torch.zeros(3, 3), torch.zeros(3), **LABELS, value_label="")
    with pytest.raises(ValueError, match=r"values has shape \(2,\), wanted \[3\]"):
        value_map(torch.zeros(3, 2), torch.zeros(2), **LABELS, value_label="")
    with pytest.raises(ValueError, match=r"paths has shape \(3, 2\)"):
        trajectories(cloud(), torch.zeros(3, 2), **LABELS, times=[0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"frames has shape \(2, 3, 2\), weights \(2, 4\)"):
        moving(torch.zeros(2, 3, 2), torch.zeros(2, 4), [], **LABELS, times=[0.0, 1.0], seconds=1.0)
