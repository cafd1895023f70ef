"""The max-min problem as one pure loss for `popflow.learn.fit`: a potential that rises on the dual, a path that descends on the action.

Along conditional paths with positions ``x``, velocities ``x'``, masses ``m`` (`popflow.transport.conditional_paths`) integration by parts turns the dual

    int s_1 dmu_1 - int s_0 dmu_0 - int dt E[m (d_t s + |grad s|^2 / 2 + <u, grad s> + lam s^2 / 2 + sigma^2 / 2 lap s + V)]

into an integral without boundary terms and without the time derivative,

    D(s) = int dt E[ m (<x' - u, grad s> - |grad s|^2 / 2 - lam s^2 / 2 + (nu nu' - sigma^2 / 2) lap s - V) + m' s ]

which is a regression of ``grad s`` on ``x' - u`` and of ``lam s`` on ``m' / m``: bounded for every batch, and at most the action of the path for
any ``s``. Above it stands the energy of the conditional paths, each on its own,

    P = int dt E[ m (|x' - u|^2 / 2 - V) + m'^2 / (2 lam m) ]

and where paths do not cross the two meet. The bend follows ``anchor * P + (1 - anchor) * D``: ``anchor = 1`` descends on an upper bound and
cannot diverge; ``anchor = 0`` is the published saddle, needed where cells are paired at random, because only the potential can tell crossing
paths to part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from popflow.core.calculus import value_and_grad, value_grad_and_laplacian
from popflow.core.checks import shaped
from popflow.transport.conditional_paths import Batch, Bend, Point, follow, moments, radius
from popflow.transport.lagrangian import Field, Lagrangian, residual
from popflow.transport.snapshots import Snapshots


class Potential(nn.Module):
    """The potential ``s(t, x)`` ``[rows]``: a network in coordinates that move and widen with the snapshots.

    Transport alone: ``s = <m' - v, x - m> + c network((x - m) / r, u)`` with mean ``m(t)`` and width ``r(t)`` linear between the snapshots, ``v(t)``
    the mean of the reference drift, ``u`` the time from 0 to 1. With growth, where means move without transport, ``m`` and ``r`` are those of
    all cells and ``m'`` is 0.
    The network has a bias: growth depends on the value of ``s``, not only on its slope.

    Args:
        lagrangian: Its kinetic energy sets the scale ``c`` of the values.
        snapshots: They set ``m``, ``r`` and ``u``; held-out snapshots are not used.
        network: ``network(x, u) -> [rows, 1]`` on standardised coordinates; twice differentiable where there is noise.
    """

    def __init__(self, lagrangian: Lagrangian, snapshots: Snapshots, network: nn.Module):
        super().__init__()
        times = snapshots.training.times
        means, radii = moments(lagrangian, snapshots)
        whole = float(radius(torch.cat(snapshots.training.x)))
        self.network, self.span, self.start = network, float(times[-1] - times[0]), float(times[0])
        area = min(whole**2, 1 / lagrangian.lam) if lagrangian.lam else float(radii.mean()) * whole
        self.unit = area / self.span
        self.times, self.means, self.radii = nn.Buffer(times.to(means)), nn.Buffer(means), nn.Buffer(radii)
        self.reference = nn.Buffer(mean_drift(lagrangian, snapshots))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate at times ``t [rows]`` of the user and positions ``x [rows, d]``."""
        right = torch.searchsorted(self.times, t.detach().contiguous()).clamp(1, len(self.times) - 1)
        length = self.times[right] - self.times[right - 1]
        share = ((t - self.times[right - 1]) / length)[:, None]
        gap = self.means[right] - self.means[right - 1]
        away = x - (self.means[right - 1] + share * gap)
        speed = gap / length[:, None] - torch.lerp(self.reference[right - 1], self.reference[right], share)
        wide = torch.lerp(self.radii[right - 1], self.radii[right], share[:, 0])
        out = self.network(away / wide[:, None], (t - self.start) / self.span)
        return (speed * away).sum(1) + self.unit * out[:, 0]


def mean_drift(lagrangian: Lagrangian, snapshots: Snapshots) -> Tensor:
    """Mean of the reference drift over the cells of each training snapshot, ``[M, d]``; zero without one."""
    training = snapshots.training
    if lagrangian.drift is None:
        return torch.stack([torch.zeros_like(rows[0]) for rows in training.x])
    rows = [rows[:1024] for rows in training.x]
    return torch.stack(
        [shaped("drift", lagrangian.drift(t.to(x).expand(len(x)), x), x).mean(0) for t, x in zip(training.times, rows, strict=True)]
    )


def dual(lagrangian: Lagrangian, s: Field, t: Tensor, point: Point, probe: Tensor | None = None) -> Tensor:
    """The integrand of ``D(s)`` above, ``[rows]``: its mean over paths and times, times the duration, is at most the action.

    Args:
        lagrangian: Its noise, growth and potential say which terms there are.
        s: Potential.
        t: ``[rows]``.
        point: Paths at these times.
        probe: Directions for the Laplacian, see `popflow.transport.lagrangian.residual`.
    """
    x, mass = point.x, point.mass
    if lagrangian.noise:
        value, slope, laplacian = value_grad_and_laplacian(lambda x: s(t, x), x, probe)
    else:
        value, (slope,) = value_and_grad(lambda x: s(t, x), x)
        laplacian = torch.zeros_like(value)
    total = (point.velocity * slope).sum(-1) - slope.square().sum(-1) / 2
    total = total - lagrangian.lam / 2 * value.square() + (point.spread - lagrangian.noise**2 / 2) * laplacian
    return mass * (total - _potential(lagrangian, t, x, value)) + point.mass_rate * value


def path_energy(lagrangian: Lagrangian, t: Tensor, point: Point) -> Tensor:
    """The integrand of ``P`` above, ``[rows]``; with noise up to the energy of the bridge's own fluctuations."""
    energy = point.velocity.square().sum(-1) / 2
    energy = point.mass * (energy - _potential(lagrangian, t, point.x, energy))
    if lagrangian.lam:
        energy = energy + point.mass_rate.square() / (2 * lagrangian.lam * point.mass.clamp_min(1e-12))
    return energy


def saddle_loss(
    lagrangian: Lagrangian, potential: nn.Module, bend: Bend | None, unit: float, anchor: float
) -> Callable[[Mapping[str, Tensor], Batch], tuple[Tensor, Mapping[str, Tensor]]]:
    """The loss of both players: parameters ``s.*`` of the potential and ``b.*`` of the bend, each with its own objective.

    Args:
        lagrangian: The problem.
        potential: A `Potential`.
        bend: A `Bend`, or None where the paths need none.
        unit: Unit of energy of the loss, length squared over time squared.
        anchor: Share of the upper bound in the objective of the bend.

    Returns:
        ``loss(params, batch) -> (scalar, metrics)``; the metrics ``dual`` and ``path energy`` are ``D`` and ``P`` per unit of time.
    """

    def loss(params: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        mine, theirs = ({name[2:]: p for name, p in params.items() if name[0] == player} for player in "sb")
        t = batch["t"].flatten()
        probe = batch["probe"].flatten(0, 1) if "probe" in batch else None
        point = follow(lagrangian, batch, None if bend is None else lambda *ends, module=bend: functional_call(module, theirs, ends))
        still = Point(*(value.detach() for value in point))
        lower = dual(lagrangian, lambda t, x: functional_call(potential, mine, (t, x)), t, still, probe).mean()
        upper = path_energy(lagrangian, t, point).mean()
        total, metrics = -lower / unit, {"dual": lower, "path energy": upper}
        if bend is None:
            return total, metrics
        total = total + anchor * upper / unit
        if anchor < 1:
            fixed = {name: p.detach() for name, p in mine.items()}

            def phi(x: Tensor) -> Tensor:
                return residual(lagrangian, lambda t, x: functional_call(potential, fixed, (t, x)), t, x, probe)

            value, (force,) = value_and_grad(phi, still.x)
            # d D / d path = -E[phi dm + m <grad phi, dx>]
            descent = -(point.mass * value.detach() + still.mass * (force.detach() * point.x).sum(-1)).mean()
            total = total + (1 - anchor) * descent / unit
        return total, metrics

    return loss


def two_rates(params: list[tuple[str, Tensor]], first: int, lr: float, path_lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW with one learning rate for the ``first`` tensors, the potential's, and another for the path's."""
    groups: list[dict[str, Any]] = [{"params": params[:first], "lr": lr}]
    if params[first:]:
        groups.append({"params": params[first:], "lr": path_lr})
    return torch.optim.AdamW(groups, betas=betas, weight_decay=1e-4)


def _potential(lagrangian: Lagrangian, t: Tensor, x: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if lagrangian.potential is None else shaped("potential", lagrangian.potential(t, x), like)
