"""Figures: the same tensors give the same bytes, the pixels are those of the tensors, and wrong shapes are named."""

import base64
import io
import subprocess
import sys

import pytest
import torch

from popflow.runs import Figure
from popflow.runs.figures import clusters, histogram, image_grid, lines, scatter


def rand(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def decode(uri):
    return base64.b64decode(uri.partition(",")[2])


def every():
    """Every kind of figure, from fixed values."""
    x = torch.logspace(2, -2, 30)
    return {
        "grid": image_grid({"grey": rand(17, 1, 8, 8), "plain": rand(3, 8, 8)}),
        "lines": lines(
            x,
            {"a $b": rand(30), "c": (1 + rand(30)).tolist()},
            x_label="σ",
            y_label="ESS",
            log_x=True,
            log_y=True,
            downwards=True,
            reference={"truth": 0.5},
            bands={"c": (rand(30), 1 + rand(30))},
        ),
        "scatter": scatter({"a": rand(20, 2)}, x_label="x", y_label="y"),
        "histogram": histogram({"a": rand(50)}, x_label="x", weights={"a": rand(50)}, density={"truth": (x, x)}),
        "clusters": clusters({"space": rand(3, 5, 3), "plane": rand(2, 4, 2)}, reach=0.5),
    }


def test_bytes_are_the_same_in_another_process():
    here = every()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_figures; print('\\n'.join(test_figures.every().values()), 'matplotlib.pyplot' in sys.modules)"
    folder = __file__.rpartition("/")[0]
    there = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout.split()
    assert [*here.values(), "False"] == there, "other bytes, or pyplot with its global state was imported"
    for uri in here.values():
        assert b"<dc:date>" not in decode(uri)
        Figure(uri, "a caption")


def test_pixels_are_those_of_the_images():
    from matplotlib.image import imread

    images = torch.zeros(2, 3, 64, 64)
    images[0, 0], images[1, 2] = 1.0, 1.0
    found = imread(io.BytesIO(decode(image_grid({"": images}))))[..., :3]
    red, blue = (found == [1, 0, 0]).all(-1), (found == [0, 0, 1]).all(-1)
    assert red.sum() > 0.1 * red.size
    assert abs(int(red.sum()) - int(blue.sum())) < 0.05 * red.sum()
    assert red.nonzero()[1].max() < blue.nonzero()[1].min()


def test_limits_are_kept_and_what_is_not_finite_is_grey():
    from matplotlib.image import imread

    found = imread(io.BytesIO(decode(image_grid({"": torch.full((1, 64, 64), 0.25)}, limits=(0.0, 1.0)))))[..., 0]
    assert (abs(found - 0.25) < 0.01).sum() > 0.3 * found.size
    found = imread(io.BytesIO(decode(image_grid({"": torch.full((1, 64, 64), torch.nan)}))))[..., 0]
    assert (abs(found - 0.5) < 0.01).sum() > 0.3 * found.size


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (3, 2, 4, 4), (4, 4), (1, 1, 1, 4, 4)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="wanted"):
        image_grid({"a": torch.zeros(shape)})


def test_other_wrong_input_is_named():
    with pytest.raises(ValueError, match="groups is empty, wanted at least one labelled block of images"):
        image_grid({})
    with pytest.raises(ValueError, match=r"shape \(3, 3\), wanted \[n, 2\]"):
        scatter({"a": rand(3, 3)}, x_label="x", y_label="y")
    with pytest.raises(ValueError, match="no finite value"):
        histogram({"a": torch.full((3,), torch.nan)}, x_label="x")
    with pytest.raises(ValueError, match=r"group 'a' has shape \(3, 4\), wanted \[n, particles, 2 or 3\]"):
        clusters({"a": rand(3, 4)}, reach=1.0)
    with pytest.raises(ValueError, match="groups is empty"):
        clusters({}, reach=1.0)


def test_no_global_state_of_matplotlib_is_touched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    every()
    assert dict(matplotlib.rcParams) == before


def test_one_image_one_point_one_value():
    image_grid({"one": rand(1, 1, 1, 1)})
    lines([0.0], {"a": [1.0]}, x_label="x", y_label="y")
    histogram({"a": torch.ones(1)}, x_label="x")


@pytest.mark.parametrize("values", [[torch.nan, torch.nan], [-1.0, 0.0], [torch.inf, torch.inf]])
def test_curves_without_a_point_on_logarithmic_axes_are_drawn_empty(values):
    for log_x, log_y in ((True, True), (True, False), (False, True)):
        lines([1.0, 2.0], {"a": values}, x_label="x", y_label="y", log_x=log_x, log_y=log_y)
    with_points = lines([1.0, 100.0], {"a": values, "b": [1.0, 100.0]}, x_label="x", y_label="y", log_x=True, log_y=True)
    assert with_points != lines([1.0, 100.0], {"a": values, "b": [1.0, 100.0]}, x_label="x", y_label="y")
