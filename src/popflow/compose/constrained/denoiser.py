r"""The denoiser of table rows: ``D(y, sigma) = E[x | x + sigma eps = y]``, for standardised numbers and codes of categories.

Numbers are preconditioned as by Karras et al. (2022) with data of unit variance: ``D = y / (1 + sigma^2) + sigma / sqrt(1 + sigma^2) F``, where ``F`` is
the network, and the loss is the squared error of ``F``. For a column of categories the network gives logits: its prediction is the mean code under
their softmax, and the loss is the cross-entropy, whose minimiser is the same posterior (Dieleman et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from popflow.compose.constrained.schema import Schema, code_scale
from popflow.compose.target import Expert
from popflow.core import Streams
from popflow.core.checks import at_least_one
from popflow.learn import cosine, fit
from popflow.learn.networks import TimeEmbedding

SIGMA_MIN, SIGMA_MAX = 0.01, 10.0
"""Noise levels that the denoiser is trained for. At the largest, pure noise and noised data of unit variance differ by half a percent."""


class ResidualMLP(nn.Module):
    """Residual perceptron on noisy rows, ``network(x [rows, dim], t [rows]) -> [rows, out]``, which starts far from linear.

    The denoiser has its linear part beside the network. What is left to learn has no linear part, and a perceptron whose time features outweigh its rows, and
    whose weights start small, stays on a plateau there for thousands of steps (measured; see the log). Here rows and times enter through
    layers of their own with unit variance, and every block normalises what it reads.
    """

    def __init__(self, dim: int, out: int, width: int = 256, depth: int = 3):
        super().__init__()
        at_least_one(dim=dim, width=width, depth=depth)
        self.time = TimeEmbedding()
        self.rows, self.times = nn.Linear(dim, width), nn.Linear(self.time.size, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, out)
        nn.init.normal_(self.rows.weight, std=2 / math.sqrt(dim))
        nn.init.normal_(self.times.weight, std=1 / math.sqrt(self.time.size))
        for layer in self.hidden:
            nn.init.kaiming_normal_(layer.get_parameter("weight"))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate row by row."""
        h = self.rows(x) + self.times(self.time(t))
        for norm, layer in zip(self.norms, self.hidden, strict=True):
            h = h + layer(F.silu(norm(h)))
        return self.last(F.silu(h))


class Denoiser(nn.Module):
    """``D(y, sigma)`` for rows of a schema, by one perceptron.

    Args:
        schema: The columns.
        width: Hidden width.
        depth: Hidden layers.

    Shapes:
        y ``[rows, dim]``; sigma ``[rows]``, or one for all.
    """

    def __init__(self, schema: Schema, width: int = 256, depth: int = 3):
        super().__init__()
        self.numbers, self.groups = len(schema.numeric), schema.groups
        self.net = ResidualMLP(schema.dim, schema.dim, width, depth)

    def forward(self, y: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the mean of the clean rows given noisy ones."""
        sigma = torch.as_tensor(sigma, dtype=y.dtype, device=y.device).expand(len(y))
        return self.clean(self.raw(y, sigma), y, sigma)

    def raw(self, y: Tensor, sigma: Tensor) -> Tensor:
        """Return the network's output: ``F`` of the numbers, logits of the categories."""
        return self.net(y / (1 + sigma.square()).sqrt()[:, None], sigma.log())

    def clean(self, raw: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
        """Turn the network's output into clean rows."""
        total, n = 1 + sigma.square()[:, None], self.numbers
        parts = [y[:, :n] / total + sigma[:, None] / total.sqrt() * raw[:, :n]]
        for start, count, size in self.groups:
            share = raw[:, start : start + count * size].unflatten(1, (count, size)).softmax(2)
            parts.append(((share - 1 / size) * code_scale(size)).flatten(1))
        return torch.cat(parts, 1)

    def loss(self, x: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
        """Return the loss of every row: squared errors of ``F`` and cross-entropies, summed over columns."""
        raw, n = self.raw(y, sigma), self.numbers
        total = 1 + sigma.square()[:, None]
        wanted = (x[:, :n] - y[:, :n] / total) * total.sqrt() / sigma[:, None]
        loss = (raw[:, :n] - wanted).square().sum(1)
        for start, count, size in self.groups:
            logits = raw[:, start : start + count * size].unflatten(1, (count, size))
            label = x[:, start : start + count * size].unflatten(1, (count, size)).argmax(2)
            loss = loss + F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").unflatten(0, (-1, count)).sum(1)
        return loss

    def expert(self, name: str = "prior") -> Expert:
        """Return the denoiser as an expert of the algebra: ``eps = (y - D) / sigma``."""
        return Expert(partial(_epsilon, self), (self.net.last.out_features,), None, name)


def _epsilon(denoiser: Denoiser, y: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
    own = next(denoiser.parameters()).dtype
    return (y - denoiser(y.to(own), sigma).to(y.dtype)) / sigma


def learn(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int,
    rng: Streams,
    batch: int = 256,
    lr: float = 3e-3,
    record: Iterable[Callable[[Any], None]] = (),
    checkpoint: str | Path | None = None,
    bar: bool = False,
) -> Mapping[str, Tensor]:
    """Train a denoiser on rows ``x [n, dim]`` and return the averaged parameters, which it then holds.

    ``log sigma`` is uniform, one stratum for each row of a batch.

    Args:
        denoiser: What is trained.
        x: Coordinates of the rows.
        steps: Training steps.
        rng: Random streams.
        batch: Rows of a batch.
        lr: Highest learning rate.
        record: As in `popflow.learn.fit`.
        checkpoint: As in `popflow.learn.fit`.
        bar: As in `popflow.learn.fit`.
    """
    strata = torch.arange(batch, device=x.device)

    def batches(rng: Streams) -> tuple[Tensor, Tensor, Tensor]:
        rows = x[torch.randint(len(x), (batch,), generator=rng("batch"), device=x.device)]
        share = (strata + rng.uniform("sigma", (batch,), x.dtype)) / batch
        sigma = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** share
        return rows, rows + sigma[:, None] * rng.normal("noise", rows), sigma

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.denoiser = denoiser

        def forward(self, *batch: Tensor) -> Tensor:
            return self.denoiser.loss(*batch).mean()

    whole = Loss()

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        return functional_call(whole, params, batch), {}

    found = fit(
        loss,
        dict(whole.named_parameters()),
        batches,
        steps=steps,
        rng=rng,
        optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=0.0),
        schedule=cosine(steps, warmup=min(100, steps // 10)),
        clip_norm=10.0 * math.sqrt(x.shape[1]),
        ema=min(0.999, 1 - 10 / max(steps, 20)),
        record=record,
        checkpoint=checkpoint,
        checkpoint_every=500,
        compile=False,
        bar=bar,
    )
    whole.load_state_dict(found.ema, strict=False)
    denoiser.requires_grad_(False).eval()
    return found.ema
