"""Image files in the format of MNIST, and the scaling of the paper."""

from __future__ import annotations

import gzip

import pytest
import torch
from torch.nn.functional import interpolate

from popflow.circuits.config import SearchConfig
from popflow.circuits.data import mnist, read_idx
from popflow.circuits.task import task
from popflow.runs.run import identity


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(int(s).to_bytes(4, "big") for s in array.shape) + array.numpy().tobytes()


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 40), ("t10k", 12)):
        images = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.arange(count).remainder(10).to(torch.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_scaling_is_bilinear_without_smoothing(folder):
    data = mnist(folder, 3, 7)
    assert data.x.shape == (8, 16)
    assert data.y.tolist() == [0, 1] * 4
    images = read_idx(folder / "train-images-idx3-ubyte.gz")
    labels = read_idx(folder / "train-labels-idx1-ubyte")
    chosen = images[(labels == 3) | (labels == 7)].double() / 255
    scaled = interpolate(chosen.unsqueeze(1), size=(4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(data.x, scaled.flatten(1), atol=1e-12, rtol=0)


def test_bad_files(folder, tmp_path):
    with pytest.raises(ValueError, match="digits 3 and 3 are the same"):
        mnist(folder, 3, 3)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(torch.full((12,), 3, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="t10k holds no image of the digit 7 among 12"):
        mnist(folder, 3, 7)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="holds no t10k-labels-idx1-ubyte"):
        mnist(folder, 3, 7)
    other = tmp_path / "other"
    other.write_bytes(b"P6 12 12")
    with pytest.raises(ValueError, match="begins with the bytes 50 36 20 31"):
        read_idx(other)
    other.write_bytes(idx(torch.zeros(3, 3, dtype=torch.uint8))[:-1])
    with pytest.raises(ValueError, match=r"holds 8 bytes after its header, wanted 9"):
        read_idx(other)


def test_search_reads_the_users_files(folder):
    """`--data mnist:3,7:FOLDER` is this task, and its files are part of the identity of a run; a folder that does not exist is named."""
    config = SearchConfig(data=f"mnist:3,7:{folder}")
    (folder / "notes.txt").write_text("not of the data set")
    assert [path.name.partition("-")[0] for path in config.inputs()] == ["t10k", "t10k", "train", "train"]
    before = identity("search", config)
    cost, data = task(config)
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\7")
    assert identity("search", config) != before
    assert cost.space.n == 17
    assert data.x_test.shape == (2, 16)
    with pytest.raises(FileNotFoundError, match="nowhere holds no train-images"):
        task(SearchConfig(data="mnist:3,7:nowhere"))
