"""The digits classifier that judges samples: small, fixed, trained on images that no expert was trained on.

A convolutional network of 48 thousand parameters, trained by `benchmarks/train_zoo.py` on `popflow.compose.zoo.digits.for_classifier`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.compose.zoo.networks import DATA
from popflow.core.checkpoint import load_tensors


class Classifier(nn.Module):
    """Images ``[rows, 1, 8, 8]`` in [-1, 1] to logits ``[rows, 10]``.

    Example:
        >>> from popflow.compose.zoo import classifier, digits
        >>> images = digits.training().of((2,)).images
        >>> round(float(classifier.load()(images).softmax(1)[:, 2].mean()), 1)
        1.0
    """

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(1, 16, 3, padding=1)
        self.shrink = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(32, 32, 3, padding=1)
        self.dense = nn.Linear(512, 64)
        self.last = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        """Return the 64 values before the last layer."""
        h = F.silu(self.shrink(F.silu(self.fine(x))))
        h = F.silu(self.coarse(h)) + h
        return F.silu(self.dense(h.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.last(self.features(x))


@cache
def load() -> Classifier:
    """Load the classifier; its parameters are frozen."""
    with torch.random.fork_rng(devices=[]):  # layers draw their first parameters from the global generator
        network = Classifier()
    tensors, _ = load_tensors(DATA / "digits-classifier.safetensors")
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
    return network.eval().requires_grad_(False)


def share(images: Tensor, of: int) -> Tensor:
    """Share of images ``[*batch, n, 1, 8, 8]`` that the classifier takes for a digit, ``[*batch]``."""
    flat = images.reshape(-1, *images.shape[-3:])
    with torch.no_grad():
        said = load()(flat).argmax(1)
    return (said == of).float().reshape(images.shape[:-3]).mean(-1)
