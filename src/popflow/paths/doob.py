r"""The action: how far a path is from the reference dynamics conditioned on its ends, without simulating.

    action(q) = KL(Q || P) = int_0^T E_{q_t} [ |xi^-1 (u_t(x) - b(x))|^2 / 2 ] dt,     u_t = u°_t + (xi^2 / 2) grad log q_t

Q is the diffusion with drift u and marginals q_t; P is the reference from the same start law. Given both end laws the minimum is the
Schroedinger bridge; as they shrink to points it is Doob's transform, ``b + xi^2 grad log h``. For a set B of positive probability the minimum
over paths that end in B surely is ``-log P(B | A)``; paths that end in a Gaussian around B bound the action of the bridge, not this.

Variance: times are stratified, neighbouring strata take opposite base points, every component is drawn at every time (which makes the gradient
of the weights exact), and for one Gaussian the part of the integrand that needs no force is replaced by its known mean. Estimates draw half of
their times by the clock of the path, dense at both ends where narrow laws make the integrand large, and weigh them.

Source: Du et al., *Doob's Lagrangian*, NeurIPS 2024, theorem 1; Girsanov's theorem.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from popflow.core.checks import at_least_one, shaped
from popflow.core.streams import Streams
from popflow.learn import Fit, cosine
from popflow.learn.fit import fit as learn
from popflow.paths.curves import clock_grid
from popflow.paths.process import Counted, Process, match, require_finite


@dataclass(frozen=True)
class Action:
    """An estimate of the action, in nats.

    Attributes:
        value: The estimate.
        error: Its standard error.
        free: Share of the kinetic term, ``|u / xi|^2 / 2``, in nats.
        force: Share of the force term, ``|b / xi|^2 / 2``; the rest, ``value - free - force``, is the work of the path against the drift.
        forces: Force evaluations spent.
    """

    value: float
    error: float
    free: float
    force: float
    forces: int

    def __str__(self) -> str:
        return f"{self.value:.3f} +- {self.error:.3f} nats"


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted path with what it cost: ``forces`` and Hessian-vector products ``hvps``, counted apart; ``fit`` is the record of learning."""

    path: Any
    fit: Fit
    forces: int
    hvps: int


class _Cost(nn.Module):
    """Mean cost of a batch, T times the integrand of the action: the pure loss."""

    def __init__(self, process: Process, path: Any):
        super().__init__()
        match(process, path)
        self.process, self.path = process, path

    def rows(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Costs, kinetic and force shares, ``[rows]`` each."""
        x, drift, control, weights = self.path(t, z)
        pull = shaped("the drift of the process", self.process.driven(x), drift)
        parts = (self.process.share(drift - pull) - control, self.process.share(drift) - control, self.process.share(pull))
        return tuple(self.path.time * (weights[:, None] * part).sum(0) for part in parts)  # pyright: ignore[reportReturnType]

    def forward(self, t: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        return (weight * self.rows(t, z)[0]).mean()


CELLS = 256
"""Cells of the density of times of an estimate: uniform within a cell, so that its weights are exact."""
LEARNING = 0.1
"""Share of the times of learning that are dense at both ends: enough to see narrow ends, without taking draws from the middle."""


def draw(path: Any, rows: int, rng: Streams, share: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Draw stratified times ``[rows]``, base points ``[rows, .]``, opposite in neighbouring strata, and weights ``[rows]`` of mean one.

    A share of the times is dense at both ends by the clock of the path, the others are uniform.
    """
    delta = min(path.ends) ** 2 / float(path.noise.square().max() * path.time ** (3 if path.base_dim() > path.dim else 1))
    edges = clock_grid(1.0, CELLS, min(1.0, max(1e-6, delta))).to(rng.device)  # half uniform itself
    mass = torch.lerp(edges, torch.linspace(0, 1, CELLS + 1, dtype=edges.dtype, device=rng.device), 2 * share)
    u = _strata(path, rows, rng)
    cell = torch.searchsorted(mass, u, right=True).clamp(1, CELLS) - 1
    width, part = edges.diff()[cell], mass.diff()[cell]
    times = (edges[cell] + (u - mass[cell]) / part * width) * path.time
    return times.to(path.start), _base(path, rows, rng), (width / part).to(path.start)


def _strata(path: Any, rows: int, rng: Streams) -> Tensor:
    """Stratified numbers ``[rows]`` in [0, 1], each for as many rows as share a time."""
    together = getattr(path, "together", 1)
    groups = -(-rows // together)
    u = (torch.arange(groups, dtype=torch.float64, device=rng.device) + rng.uniform("times", (groups,))) / groups
    return u.repeat_interleave(together)[:rows]


def _base(path: Any, rows: int, rng: Streams) -> Tensor:
    like = path.start
    half = rng.normal("base", like.new_empty((rows + 1) // 2, path.base_dim()))
    return torch.stack([half, -half], 1).flatten(0, 1)[:rows]


def fit(
    process: Process,
    path: Any,
    *,
    steps: int,
    batch: int,
    rng: Streams,
    lr: float = 1e-2,
    warmup: int = 50,
    clip_norm: float | None = 50.0,
    **options: Any,
) -> Fitted:
    """Minimise the action of a path by Adam with warm-up and cosine, through `popflow.learn.fit`.

    Args:
        process: Reference dynamics.
        path: `DiagonalPath`, `FullPath`, `KinematicPath` or `FlowPath`; it is copied.
        steps: Steps.
        batch: Force evaluations in a step, all components together; as many Hessian-vector products follow.
        rng: Random streams.
        lr: Highest learning rate.
        warmup: Steps of linear warm-up.
        clip_norm: Longest gradient.
        **options: Handed to `popflow.learn.fit`: ``record``, ``checkpoint``, ``compile`` and so on; forces are counted in eager steps alone, so
            that ``compile=False`` unless given.

    Raises:
        ValueError: when the batch is smaller than two rows for each component, or the path does not match the process or is fixed.
        DivergenceError: see `popflow.learn.fit`.

    Example:
        >>> from popflow.paths import DiagonalPath, Overdamped
        >>> free = Overdamped(lambda x: 0 * x.sum(-1), noise=1.0)
        >>> path = DiagonalPath(torch.tensor([-1.0]), torch.tensor([1.0]), 1.0, noise=1.0, sigma0=0.1, rng=Streams(0), width=16)
        >>> fitted = fit(free, path, steps=100, batch=64, rng=Streams(0))
        >>> abs(action(free, fitted.path, 4000, Streams(1)).value - 3.81) < 0.1  # closed form 3.8125
        True
    """
    at_least_one(steps=steps, batch=batch)
    rows = batch // path.components
    if rows < 2:
        raise ValueError(f"batch={batch} for {path.components} components, wanted at least {2 * path.components} force evaluations a step.")
    counted = Counted(process.potential)
    path = copy.deepcopy(path)
    cost = _Cost(replace(process, potential=counted), path)

    def loss(params: Mapping[str, Tensor], given: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return functional_call(cost, {f"path.{name}": value for name, value in params.items()}, given), {}

    settings: dict[str, Any] = {"compile": False} | options
    learned = {name: value for name, value in path.named_parameters() if value.requires_grad}
    if not learned:
        raise ValueError(
            "path has no parameter to learn: a fitted path is fixed. Fix: path.requires_grad_(True), which frees its weights, too."
        )
    result = learn(
        loss,
        learned,
        lambda rng: draw(path, rows, rng, LEARNING),
        steps=steps,
        rng=rng,
        optimizer=partial(torch.optim.Adam, lr=lr, betas=(0.9, 0.99)),
        schedule=cosine(steps, warmup=min(warmup, steps - 1), last=0.02),
        clip_norm=clip_norm,
        **settings,
    )
    path.load_state_dict(result.params, strict=False)
    return Fitted(path.requires_grad_(False), result, counted.forces, counted.hvps)


def action(process: Process, path: Any, n: int, rng: Streams, chunk: int = 8192) -> Action:
    """Estimate the action of a path by ``n`` force evaluations, with its standard error.

    The error is that of independent blocks, each with stratified times of its own.

    Raises:
        ValueError: when there are too few rows for blocks.
        NonFiniteError: when forces are not finite.
    """
    at_least_one(n=n, chunk=chunk)
    chunk, total = min(chunk, getattr(path, "most", chunk)), n // path.components
    rows = min(chunk, max(2, total // 32)) // 2 * 2
    blocks = total // rows if rows else 0
    if blocks < 2:
        raise ValueError(f"n={n}, wanted at least {4 * path.components}: the standard error needs blocks.")
    cost = _Cost(process, path)
    means = []
    for _ in range(blocks):
        t, z, weight = draw(path, rows, rng)
        with torch.no_grad():
            means.append(torch.stack([(weight * part.double()).mean() for part in cost.rows(t, z)]))
    values = require_finite("the action", torch.stack(means))
    value, free, force = values.mean(0).tolist()
    return Action(value, float(values[:, 0].std()) / blocks**0.5, free, force, blocks * rows * path.components)
