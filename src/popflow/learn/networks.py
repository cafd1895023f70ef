"""Small time-conditioned networks: ``network(x, t, cond) -> like x``.

Both take a time of any scale of order one to ten: ``t`` in [0, 1] for flows, ``log sigma`` for diffusion. Rows never read each other
(group normalisation stays within a row), so that `popflow.core.calculus` applies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimeEmbedding(nn.Module):
    """``[t, sin(w_k t), cos(w_k t)]`` with frequencies from 1/4 to 16, geometric, each ``[rows]`` -> ``[rows, 2 k + 1]``.

    The slowest turns over once in 25 units (``log sigma`` from -7 to 5), the fastest once in 0.4 (``t`` in [0, 1]); time derivatives of
    what is learned stay moderate.
    """

    def __init__(self, frequencies: int = 16):
        super().__init__()
        self.size = 2 * frequencies + 1
        self.register_buffer("omega", torch.logspace(-2, 4, frequencies, base=2.0), persistent=False)
        self.omega: Tensor

    def forward(self, t: Tensor) -> Tensor:
        """Embed one time per row."""
        phase = t[:, None] * self.omega
        return torch.cat([t[:, None], phase.sin(), phase.cos()], 1)


class MLP(nn.Module):
    """Time-conditioned perceptron on flat events, SiLU, so that it has all derivatives.

    Args:
        dim: Numbers per row of ``x``.
        out: Numbers per row of the result; ``dim`` unless given (1 for a potential; squeeze it yourself).
        width: Hidden width.
        depth: Hidden layers.
        classes: Number of class labels; 0 for none. Label ``classes`` means "no class" (guidance without classifier).

    Shapes:
        x ``[rows, dim]``; t ``[rows]`` or one for all; cond ``[rows]`` labels 0..classes, None for "no class".

    Example:
        >>> MLP(2, width=16, classes=3)(torch.zeros(5, 2), torch.zeros(5), torch.tensor([0, 1, 2, 3, 3])).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int, *, out: int | None = None, width: int = 128, depth: int = 3, classes: int = 0):
        super().__init__()
        _at_least_one(dim=dim, width=width, depth=depth)
        self.time = TimeEmbedding()
        self.first = nn.Linear(dim + self.time.size, width)
        self.label = _labels(classes, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, dim if out is None else out)

    def forward(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Evaluate row by row."""
        h = self.first(torch.cat([x, self.time(_per_row(t, x))], 1)) + _label(self.label, cond, x)
        for layer in self.hidden:
            h = layer(F.silu(h))
        return self.last(F.silu(h))


class UNet(nn.Module):
    """Residual U-Net for small images: group normalisation, time and class as scale and shift, attention at the coarsest level.

    Each entry of ``levels`` is one resolution, half the one before, with ``level * width`` channels and two residual blocks on the way
    down, two on the way up. Sizes: ``UNet(1, width=16)`` (8x8 digits) 0.3 M parameters, ``UNet(3, width=64, levels=(1, 2, 2))`` 5 M.

    Args:
        channels: Channels of the image.
        width: Channels at the finest level; a multiple of 8.
        levels: Channel multipliers; the image sides must be divisible by ``2 ** (len(levels) - 1)``.
        classes: As in `MLP`.

    Shapes:
        x ``[rows, channels, height, width]``; t ``[rows]`` or one for all; cond ``[rows]``.

    Raises:
        ValueError: for an image that cannot be halved often enough.

    Example:
        >>> UNet(1, width=8)(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
        torch.Size([2, 1, 8, 8])

    Source: Ho et al., DDPM (2020), app. B; Dhariwal and Nichol (2021) for scale and shift.
    """

    def __init__(self, channels: int, *, width: int = 32, levels: Sequence[int] = (1, 2), classes: int = 0):
        super().__init__()
        _at_least_one(channels=channels, levels=len(levels))
        if width < 8 or width % 8:
            raise ValueError(
                f"width={width!r}, wanted a multiple of 8 (eight groups of channels are normalised together): try {_eights(width)}."
            )
        self.halvings, embedding = len(levels) - 1, 4 * width
        self.time = TimeEmbedding()
        self.embed = nn.Sequential(nn.Linear(self.time.size, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = _labels(classes, embedding)
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        sizes = [width * level for level in levels]
        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))
        here = width
        for k, size in enumerate(sizes):
            self.down.append(nn.ModuleList([Residual(here, size, embedding), Residual(size, size, embedding)]))
            if k < self.halvings:
                self.shrink.append(nn.Conv2d(size, size, 3, stride=2, padding=1))
            here = size
        self.middle = nn.ModuleList([Residual(here, here, embedding), Attention(here), Residual(here, here, embedding)])
        for k, size in reversed(list(enumerate(sizes))):
            self.up.append(nn.ModuleList([Residual(here + size, size, embedding), Residual(size, size, embedding)]))
            if k > 0:
                self.grow.append(nn.Conv2d(size, size, 3, padding=1))
            here = size
        self.leave = nn.Sequential(nn.GroupNorm(8, here), nn.SiLU(), _zero(nn.Conv2d(here, channels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Evaluate image by image."""
        if any(side % 2**self.halvings for side in x.shape[2:]):
            raise ValueError(f"x has shape {list(x.shape)}, wanted sides divisible by {2**self.halvings}: pad it, or use fewer levels.")
        e = self.embed(self.time(_per_row(t, x))) + _label(self.label, cond, x)
        h, kept = self.enter(x), []
        for k, (first, second) in enumerate(self.down):  # pyright: ignore[reportGeneralTypeIssues]
            h = second(first(h, e), e)
            kept.append(h)
            if k < self.halvings:
                h = self.shrink[k](h)
        first, attention, second = self.middle
        h = second(attention(first(h, e)), e)
        for k, (first, second) in enumerate(self.up):  # pyright: ignore[reportGeneralTypeIssues]
            h = second(first(torch.cat([h, kept.pop()], 1), e), e)
            if k < self.halvings:
                h = self.grow[k](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.leave(h)


class Residual(nn.Module):
    """``x + conv(silu((1 + a(e)) norm(conv(silu(norm x))) + b(e)))``; starts as the identity."""

    def __init__(self, here: int, there: int, embedding: int):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(8, here), nn.Conv2d(here, there, 3, padding=1)
        self.scale_shift = nn.Linear(embedding, 2 * there)
        self.norm_again, self.conv_again = nn.GroupNorm(8, there), _zero(nn.Conv2d(there, there, 3, padding=1))
        self.skip = nn.Conv2d(here, there, 1) if here != there else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Apply the block to images ``x`` with embeddings ``e``."""
        scale, shift = self.scale_shift(F.silu(e))[:, :, None, None].chunk(2, 1)
        h = self.norm_again(self.conv(F.silu(self.norm(x)))) * (1 + scale) + shift
        return self.skip(x) + self.conv_again(F.silu(h))


class Attention(nn.Module):
    """Self-attention over the pixels of one image, one head per 32 channels, written out so that it can be differentiated twice."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // 32))  # of about 32 channels, equal in size
        self.norm, self.qkv = nn.GroupNorm(8, channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Let every pixel of an image attend to every other."""
        rows, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(rows, 3, self.heads, -1, height * width).unbind(1)
        attention = (q.mT @ k / math.sqrt(q.shape[2])).softmax(-1)
        return x + self.out((v @ attention.mT).reshape(rows, channels, height, width))


def _per_row(t: Tensor | float, x: Tensor) -> Tensor:
    return torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))


def _labels(classes: int, size: int) -> nn.Embedding | None:
    return nn.Embedding(classes + 1, size) if classes else None


def _label(embedding: nn.Embedding | None, cond: Tensor | None, x: Tensor) -> Tensor | float:
    """Embed the labels; the last one of the table stands for "no class"."""
    if embedding is None:
        if cond is not None:
            raise ValueError("cond is given to a network made with classes=0, wanted None: drop cond, or make the network with classes=...")
        return 0.0
    if cond is None:
        cond = torch.full((len(x),), embedding.num_embeddings - 1, device=x.device)
    return embedding(cond)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    for value in layer.parameters():
        nn.init.zeros_(value)
    return layer


def _eights(width: int) -> int:
    return max(8, round(width / 8) * 8)


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size!r}, wanted at least 1.")
