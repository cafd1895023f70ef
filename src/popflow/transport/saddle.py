"""The max-min problem as one pure loss: the potential ascends the dual, the path descends the action."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from popflow.core.calculus import value_and_grad, value_grad_and_laplacian
from popflow.learn import MLP
from popflow.transport.lagrangian import EXACT_LAPLACIAN, Lagrangian, residual, shaped
from popflow.transport.strands import Batch, Bend, Point, follow


class Potential(nn.Module):
    """``s(t, x) = (r^2 / T) network((x - shift) / r, (t - start) / T)``, with a bias: growth depends on its value, not only its slope."""

    def __init__(self, dim: int, *, width: int, depth: int, shift: Tensor, scale: float, start: float, span: float):
        super().__init__()
        self.network = MLP(dim, out=1, width=width, depth=depth)
        self.register_buffer("shift", shift)
        self.scale, self.start, self.span = scale, start, span

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        out = self.network((x - self.shift) / self.scale, (t - self.start) / self.span)
        return self.scale**2 / self.span * out[:, 0]


def dual(lagrangian: Lagrangian, s: Callable[[Tensor, Tensor], Tensor], t: Tensor, point: Point, probe: Tensor | None) -> Tensor:
    """Lower bound on the action of the path, per strand and unit of time, without the potential energy."""
    noise = lagrangian.noise
    x, m = point.x, point.mass
    if noise:
        value, slope, laplacian = value_grad_and_laplacian(lambda x: s(t, x), x, probe)
    else:
        value, (slope,) = value_and_grad(lambda x: s(t, x), x)
    velocity = point.velocity
    if lagrangian.drift is not None:
        velocity = velocity - shaped("drift", lagrangian.drift(t, x), x)
    total = m * ((slope * velocity).sum(-1) - slope.square().sum(-1) / 2)
    if lagrangian.lam:
        total = total + point.mass_rate * value - lagrangian.lam / 2 * m * value.square()
    if noise:
        total = total + m * (point.spread - noise**2 / 2) * laplacian
    return total


def pair_energy(lagrangian: Lagrangian, t, point: Point) -> Tensor:
    v = point.velocity
    if lagrangian.drift is not None:
        v = v - lagrangian.drift(t, point.x)
    e = point.mass * v.square().sum(-1) / 2
    if lagrangian.lam:
        e = e + point.mass_rate.square() / (2 * lagrangian.lam * point.mass.clamp_min(1e-12))
    if lagrangian.potential is not None:
        e = e - point.mass * lagrangian.potential(t, point.x)
    return e


def saddle_loss(lagrangian: Lagrangian, potential: Potential, bend: Bend | None, rho: float = 0.0, saddle=1.0):
    unit = potential.scale**2 / potential.span**2

    def loss(params: Mapping[str, Tensor], batch: Batch):
        mine = {n[2:]: p for n, p in params.items() if n.startswith("s.")}
        path = {n[2:]: p for n, p in params.items() if n.startswith("q.")}
        fixed = {n: p.detach() for n, p in mine.items()}
        t, probe = batch["t"], batch.get("probe")
        bent = None if bend is None else lambda a, b, m: functional_call(bend, path, (a, b, m))
        point = follow(lagrangian, batch, bent)
        still = Point(*(getattr(point, f).detach() for f in ("x", "velocity", "mass", "mass_rate", "spread")))
        J = dual(lagrangian, lambda t, x: functional_call(potential, mine, (t, x)), t, still, probe).mean()
        metrics = {}
        V = 0.0 if lagrangian.potential is None else (still.mass * lagrangian.potential(t, still.x)).mean()
        metrics["dual"] = J - V
        total = -J / unit
        if bend is not None:
            if saddle:
                s = lambda t, x: functional_call(potential, fixed, (t, x))
                phi, (force,) = value_and_grad(lambda x: residual(lagrangian, s, t, x, probe), still.x)
                phi, force = phi.detach(), force.detach()
                if lagrangian.normalized and lagrangian.lam:
                    pass
                total = total - saddle * (point.mass * phi + still.mass * ((force * point.x).sum(-1))).mean() / unit
                metrics["force"] = (still.mass * force.square().sum(-1)).mean()
            energy = pair_energy(lagrangian, t, point).mean()
            metrics["upper"] = energy
            if rho:
                total = total + rho * energy / unit
        return total, metrics

    return loss
