"""A U-Net of the usual size, for benchmarks that measure what composing costs beyond the networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.learn.networks import TimeEmbedding


class UNet(nn.Module):
    """Residual U-Net: group normalisation, time and class as scale and shift, attention at the coarsest level.

    Each entry of ``levels`` is one resolution, half the one before, with ``level * width`` channels and two residual blocks on the way
    down, two on the way up. ``width`` is a multiple of 8, an image side one of ``2 ** (len(levels) - 1)``. The output is zero at first.

    Source: Ho et al., DDPM (2020), app. B; Dhariwal and Nichol (2021) for scale and shift.
    """

    def __init__(self, channels: int, *, width: int, levels: Sequence[int], classes: int):
        super().__init__()
        self.halvings, embedding = len(levels) - 1, 4 * width
        self.time = TimeEmbedding()
        self.embed = nn.Sequential(nn.Linear(self.time.size, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(classes + 1, embedding)
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

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Evaluate images ``[rows, channels, height, width]`` at times and labels ``[rows]``."""
        e = self.embed(self.time(t)) + self.label(cond)
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
        """Let every pixel of an image read every other."""
        rows, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(rows, 3, self.heads, -1, height * width).unbind(1)
        attention = (q.mT @ k / math.sqrt(q.shape[2])).softmax(-1)
        return x + self.out((v @ attention.mT).reshape(rows, channels, height, width))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    for value in layer.parameters():
        nn.init.zeros_(value)
    return layer
