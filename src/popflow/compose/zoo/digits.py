"""Handwritten digits, 8 x 8: the data shared by the shipped experts, the demo and the 64-dimensional checks.

Images of the UCI set that comes with scikit-learn, grey values 0 to 16 scaled to [-1, 1], shape ``[n, 1, 8, 8]``. Three disjoint parts, by row:

- `training`: even rows (899 images): for the experts;
- `for_classifier`: three of four odd rows (674): for the classifier that judges samples;
- `held_out`: the rest (224): unseen by both.

The kernel mixture of bandwidth ``BANDWIDTH`` over training images is the exact model: score, density and (see `popflow.compose.zoo.exact`) draws
from its products are known in closed form.

Source: Alpaydin and Kaynak, *Optical recognition of handwritten digits*, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from popflow.compose.experts import kernel_mixture
from popflow.compose.target import Expert

EVENT = (1, 8, 8)
"""Shape of one image."""
BANDWIDTH = 0.3
"""Kernel width of the exact experts, in the units of the images."""

EVEN, ODD, PRIME, ALL = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9), (2, 3, 5, 7), tuple(range(10))


@dataclass(frozen=True, eq=False)
class Digits:
    """Images ``[n, 1, 8, 8]`` in [-1, 1] and their labels ``[n]``.

    Example:
        >>> from popflow.compose.zoo import digits
        >>> twos = digits.training().of((2,))
        >>> len(twos), tuple(twos.images.shape)
        (86, (86, 1, 8, 8))
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, classes: Iterable[int]) -> Digits:
        """Return the images of some classes.

        Raises:
            ValueError: for a class outside 0 to 9, or no class at all.
        """
        wanted = sorted(set(classes))
        if not wanted or not set(wanted) <= set(ALL):
            raise ValueError(f"classes={wanted}, wanted digits between 0 and 9, at least one.")
        return self.take(torch.isin(self.labels, torch.tensor(wanted)))

    def take(self, index: Tensor) -> Digits:
        """Return the images at an index, or where a mask is true."""
        return Digits(self.images[index], self.labels[index])


@cache
def everything() -> Digits:
    """All 1797 images in the order of the published file."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, *EVENT) / 8 - 1
    return Digits(images, torch.from_numpy(labels).long())


def training() -> Digits:
    """Images for the experts: even rows."""
    return _rows(0, 2, 4, 6)


def for_classifier() -> Digits:
    """Images for the classifier: rows 1, 3 and 5 of every eight."""
    return _rows(1, 3, 5)


def held_out() -> Digits:
    """Images that neither experts nor classifier were trained on: row 7 of every eight."""
    return _rows(7)


def halves() -> tuple[Digits, Digits]:
    """The training images in two fixed, disjoint random halves: for two models of one distribution from different data."""
    data = training()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    middle = (len(data) + 1) // 2
    return data.take(order[:middle].sort().values), data.take(order[middle:].sort().values)


def kernel_expert(classes: Iterable[int] = ALL, *, bandwidth: float = BANDWIDTH, name: str = "digits", chunk: int | None = None) -> Expert:
    """Make the exact expert of some classes: the kernel mixture of their training images.

    Example:
        >>> even, prime = kernel_expert(EVEN, name="even"), kernel_expert(PRIME, name="prime")
        >>> (even * prime).describe()
        'even^1 * prime^1'
    """
    return kernel_mixture(training().of(classes).images, bandwidth, name=name, chunk=chunk)


def _rows(*of_eight: int) -> Digits:
    data = everything()
    return data.take(torch.isin(torch.arange(len(data)) % 8, torch.tensor(of_eight)))
