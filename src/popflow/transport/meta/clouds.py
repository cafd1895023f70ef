"""Clouds of cells: tensors, or files whose rows are read when they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """Cells in a ``.npy`` file. Rows are read when they are drawn and nothing stays in memory.

    Attributes:
        path: The file, ``[n, d]`` or ``[n]``.
        shape: Its shape.
    """

    path: Path
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]


Cloud = Tensor | Stored


def rows(cloud: Cloud, index: Tensor | None = None) -> Tensor:
    """Rows of a cloud by index ``[k]``; None: all of them.

    >>> rows(torch.arange(4), torch.tensor([2, 0])).tolist()
    [2, 0]
    """
    if isinstance(cloud, Tensor):
        return cloud if index is None else cloud[index]
    opened = np.load(cloud.path, mmap_mode="r")  # opened and closed each time, so that no page stays mapped
    return torch.from_numpy(np.array(opened if index is None else opened[index.cpu().numpy()]))
