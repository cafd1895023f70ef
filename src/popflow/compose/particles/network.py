"""A small equivariant network for particles: pair forces that depend on how crowded the two particles are.

With ``d_ij = x_i - x_j``, ``r_ij = |d_ij|`` and radial features ``phi_k(r)``, a configuration ``x [n, d]`` is mapped to

    a_i   = MLP(sum_j phi(r_ij), t)                           how crowded particle i is
    a_i  += MLP(sum_j phi(r_ij) * (B a_i + B a_j), t)         twice: how crowded its neighbours are, shell by shell
    w_ij  = sum_k phi_k(r_ij) (u_ik + u_jk),  u = U MLP(a)    strength of the force between i and j, symmetric
    v_i   = sum_j w_ij d_ij / (r_ij + 0.3)

so ``v`` is equivariant under rotations and permutations, invariant under translations, and sums to zero. All learned maps act on particles: a pair
costs its radial features and a few products.

In memory features come first and rows last. Pairs are arranged in circles: circle ``s`` holds the pairs of i and ``i + s (mod n)``, so that a sum
over neighbours is a sum of shifted slices. For even n the last circle holds each of its pairs twice and is halved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.learn.networks import TimeEmbedding

SOFTENING = 0.3
"""Forces vanish linearly below this distance, in scaled coordinates."""


class PairNetwork(nn.Module):
    """Equivariant raw network ``F(x, t)`` in the preconditioning of Karras et al. (2022), ``t = log(sigma) / 4``.

    Args:
        particles: ``n``.
        dimensions: ``d``.
        grid: Radial features: Gaussians whose centres are ``(first, last, count)`` pieces, as wide as they are spaced, in scaled units. Distances
            outside count as the first or last of them.
        width: Numbers per particle.
        rounds: Rounds of context.
        stiff: Noise level below which the score hardly depends on it, the inverse root of the Fisher information of a coordinate: the output is
            scaled by ``sigma / sqrt(sigma^2 + stiff^2)``, the size of what it has to learn (see `popflow.compose.particles.training`).

    Shapes:
        x ``[rows, n, d]``, t ``[rows]``; result like x.

    Example:
        >>> network = PairNetwork(3, 2, width=8)
        >>> v = network(torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(5))
        >>> v.shape, bool(v.sum(1).abs().max() < 1e-5)
        (torch.Size([5, 3, 2]), True)
    """

    def __init__(
        self,
        particles: int,
        dimensions: int,
        *,
        grid: Sequence[tuple[float, float, int]] = ((0.1, 0.4, 3), (0.5, 1.5, 17), (1.65, 5.0, 12)),
        width: int = 64,
        rounds: int = 2,
        stiff: float = 0.185,
    ):
        super().__init__()
        self.particles, self.dimensions, self.stiff = particles, dimensions, stiff
        centres = torch.cat([torch.linspace(*piece) for piece in grid])
        widths = torch.cat([torch.full((count,), (last - first) / (count - 1)) for first, last, count in grid])
        sharpness = (1 / (math.sqrt(2) * widths))[:, None, None]
        self.register_buffer("sharpness", sharpness, persistent=False)
        self.register_buffer("offset", -centres[:, None, None] * sharpness, persistent=False)
        self.sharpness: Tensor
        self.offset: Tensor
        self.range = float(centres[0]), float(centres[-1])
        features = len(centres)
        self.time = TimeEmbedding()
        self.level = nn.Linear(self.time.size, width)
        self.crowd = nn.Linear(features, width)
        self.first = nn.Linear(width, width)
        self.shells = nn.ModuleList(nn.Linear(width, features) for _ in range(rounds))
        self.seen = nn.ModuleList(nn.Linear(features, width) for _ in range(rounds))
        self.update = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.strength = nn.Linear(width, features)
        nn.init.zeros_(self.strength.weight)
        nn.init.zeros_(self.strength.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate configurations ``[rows, n, d]`` at ``t = log(sigma) / 4``, one per row."""
        n, points = self.particles, x.permute(2, 1, 0).contiguous()
        shifts, around = range(1, self.particles // 2 + 1), torch.cat([points, points], 1)
        between = [points - around[:, s : s + n] for s in shifts]
        r = [(d.square().sum(0) + 1e-12).sqrt() for d in between]
        phi = [self._features(one) for one in r]
        if n % 2 == 0:
            phi[-1] = phi[-1] / 2
        back = [torch.cat([one[:, n - s :], one[:, : n - s]], 1) for s, one in zip(shifts, phi, strict=True)]
        level = F.silu(self.level(self.time(t))).T.unsqueeze(1)
        a = _dense(self.crowd, sum(phi[1:], phi[0]) + sum(back[1:], back[0])) + level
        a = a + _dense(self.first, F.silu(a))
        for shells, seen, update in zip(self.shells, self.seen, self.update, strict=True):
            b = _dense(shells, F.silu(a))
            b, total = torch.cat([b, b], 1), torch.zeros_like(b)
            for s, there, here in zip(shifts, phi, back, strict=True):
                total = torch.addcmul(torch.addcmul(total, there, b[:, s : s + n]), here, b[:, n - s : 2 * n - s])
            a = a + _dense(update, F.silu(_dense(seen, total) + a + level))
        u, v = _dense(self.strength, F.silu(a)), torch.zeros_like(points)
        around = torch.cat([u, u], 1)
        for s, one, d, distance in zip(shifts, phi, between, r, strict=True):
            force = (one * (u + around[:, s : s + n])).sum(0) / (distance + SOFTENING) * d
            v = v + force - torch.cat([force[:, n - s :], force[:, : n - s]], 1)
        return v.permute(2, 1, 0) * size((4 * t).exp(), self.stiff).view(-1, 1, 1)

    def _features(self, r: Tensor) -> Tensor:
        """Gaussians of distances, ``[n, rows] -> [k, n, rows]``."""
        z = torch.addcmul(self.offset, r.clamp(*self.range), self.sharpness)
        return torch.addcmul(z.new_zeros(()), z, z, value=-1).exp()


def size(sigma: Tensor, stiff: float) -> Tensor:
    """Size of the network's output at a noise level, ``sigma / sqrt(sigma^2 + stiff^2)``."""
    return sigma * (sigma.square() + stiff**2).rsqrt()


def _dense(layer: nn.Module, a: Tensor) -> Tensor:
    """Apply a linear layer to the first dimension, ``[k, n, rows] -> [out, n, rows]``."""
    assert isinstance(layer, nn.Linear)
    return torch.addmm(layer.bias.unsqueeze(1), layer.weight, a.flatten(1)).view(-1, *a.shape[1:])
