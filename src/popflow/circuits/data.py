"""Binary classification tasks: those whose best binary network is known by enumeration, and MNIST files of the user.

Labels are 0 and 1; of two digits, the second has label 1.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from popflow.core.checks import at_least_one


@dataclass(frozen=True, slots=True)
class Dataset:
    """Inputs ``[N, inputs]`` (float64) and labels ``[N]`` for training and for testing; without test data those are empty."""

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def gaussians(points: int = 2000) -> Dataset:
    """Return the paper's task, with a fixed seed: class 0 at (-1,-2), class 1 in equal parts at (-2,1), (1,1) and (2,-2), variance 0.1."""
    import numpy as np

    at_least_one(points=points)
    rng = np.random.default_rng(0)
    y = (rng.random(points) >= 0.5).astype(int)
    k = np.where(y == 0, 0, 1 + rng.integers(0, 3, points))
    means = np.array([[-1.0, -2.0], [-2.0, 1.0], [1.0, 1.0], [2.0, -2.0]])
    x = torch.from_numpy(means[k] + np.sqrt(0.1) * rng.standard_normal((points, 2)))
    return Dataset(f"gaussians:{points}", x, torch.from_numpy(y), x[:0], torch.from_numpy(y[:0]))


def digits(first: int, second: int, side: int = 4) -> Dataset:
    """Return two of scikit-learn's handwritten digits, 8 x 8 in [0, 1], as ``side x side`` block means; every fifth image is for testing.

    Raises:
        ValueError: on digits that do not exist or are equal, or an impossible side.
    """
    from sklearn.datasets import load_digits

    check_pair(first, second)
    cuts = {3: [0, 3, 5, 8], 4: [0, 2, 4, 6, 8], 8: list(range(9)), 2: [0, 4, 8]}
    if side not in cuts:
        raise ValueError(f"side={side}: 8 x 8 images are pooled to one of {sorted(cuts)}.")
    pixels, target = load_digits(return_X_y=True)
    keep = (target == first) | (target == second)
    images = torch.from_numpy(pixels[keep].reshape(-1, 8, 8) / 16.0)
    y = torch.from_numpy((target[keep] == second).astype(int))
    spans = list(zip(cuts[side][:-1], cuts[side][1:], strict=True))
    pooled = torch.stack([images[:, a:b, c:d].mean((1, 2)) for a, b in spans for c, d in spans], 1)
    test = torch.arange(len(y)) % 5 == 4
    return Dataset(f"digits:{first},{second} {side}x{side}", pooled[~test], y[~test], pooled[test], y[test])


def mnist(folder: str | Path, first: int, second: int) -> Dataset:
    """Return two digits of MNIST at 4 x 4 pixels, from the user's files (``train-images-idx3-ubyte`` and so on, gzipped or not).

    The paper scales 28 x 28 images bilinearly without smoothing, which is exactly the pixels at rows and columns 3, 10, 17 and 24.

    Raises:
        FileNotFoundError: naming the missing file.
        ValueError: when a file is not of this format, or holds no image of a digit.
    """
    check_pair(first, second)
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(_find(Path(folder), f"{part}-images-idx3-ubyte"))
        labels = read_idx(_find(Path(folder), f"{part}-labels-idx1-ubyte"))
        if images.shape[1:] != (28, 28) or len(images) != len(labels):
            raise ValueError(f"{folder}: {part} holds images {tuple(images.shape)} and {len(labels)} labels, wanted N x 28 x 28 and N.")
        keep = (labels == first) | (labels == second)
        for digit in (first, second):
            if not bool((labels == digit).any()):
                raise ValueError(
                    f"{folder}: {part} holds no image of the digit {digit} among {len(labels)}, wanted both {first} and {second}."
                )
        small = images[keep][:, 3::7, 3::7].double() / 255
        parts += [small.flatten(1), (labels[keep] == second).long()]
    return Dataset(f"mnist:{first},{second} 4x4", *parts)


def read_idx(path: str | Path) -> Tensor:
    """Read an array of bytes in the IDX format of the MNIST files, gzipped or not.

    Raises:
        ValueError: when the header and the size of the file do not agree.
    """
    data = Path(path).read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} begins with the bytes {data[:4].hex(' ')}, wanted 00 00 08: an IDX file of unsigned bytes.")
    ranks = data[3]
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(ranks)]
    start, size = 4 + 4 * ranks, math.prod(shape)
    if len(data) - start != size:
        raise ValueError(f"{path} holds {len(data) - start} bytes after its header, wanted {size} for the shape {tuple(shape)}.")
    return torch.frombuffer(bytearray(data[start:]), dtype=torch.uint8).reshape(shape)


def check_pair(first: int, second: int) -> None:
    """Check that two digits exist and differ."""
    for digit in (first, second):
        if digit not in range(10):
            raise ValueError(f"digit {digit}: wanted one of 0..9.")
    if first == second:
        raise ValueError(f"digits {first} and {second} are the same: wanted two classes.")


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise FileNotFoundError(f"{folder} holds no {name} or {name}.gz. Fix: give the folder of the MNIST files.")
