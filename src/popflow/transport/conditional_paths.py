"""Paths that meet every snapshot by construction: conditional paths of mass from ``a`` to ``b``, each of least action, and a learned bend.

A conditional path carries mass from ``h0`` at a cell ``a`` of one snapshot to ``h1`` at a cell ``b`` of the next. For every kinetic energy and
every quadratic potential the one of least action is known (``u`` runs from 0 to 1 over the interval of length ``L``):

    transport            q = A(1-u) a + A(u) b,   A(u) = u,  sin(w u) / sin w  or  sinh(w u) / sinh w,   w = sqrt|k| L
    acceleration a(t)    q gains the solution of q'' = a(t) that vanishes at both ends
    noise                x = q + nu z,   nu^2 = sigma^2 L A(u) A(1-u) / A'(0): the Brownian bridge, in a parabola that of its oscillator
    growth               sqrt(mass) and position are modulus and angle of z = A(1-u) sqrt(h0) + A(u) sqrt(h1) exp(i tau),
                         tau = sqrt(lam) |b - a| / 2; A(u) = u for true masses, sin(theta u) / sin(theta) for normalised ones

Paths with ``tau >= pi/2`` do not travel: they are drawn as one that dies at ``a`` and one that grows at ``b``. With the coupling of least
action (`popflow.transport.path_coupling`) the conditional paths together are the path of least action. With any other coupling, or any other
potential, a learned bend takes them there: ``q += sum_k phi_k(u) c_k(a, b)``, ``mass *= exp(sum_k phi_k(u) r_k(a, b))`` with
``phi_k(0) = phi_k(1) = 0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from popflow.core import Streams
from popflow.core.checks import shaped
from popflow.learn import MLP
from popflow.transport.lagrangian import EXACT_LAPLACIAN, WFR, Harmonic, Lagrangian, Linear, MeanAcceleration
from popflow.transport.path_coupling import PathCoupling, PathPlan
from popflow.transport.snapshots import Snapshots

BENDS = 3
"""Number of bubble functions ``phi_k(u) = 4 u (1-u) (2u-1)^k`` in a bend."""

Batch = dict[str, Tensor]
"""Drawn paths and the times at which they are evaluated: a, b and, with noise, z, probe ``[slices, n, d]``; t, h0, h1, and start, length,
theta, middle (from 0 to 1) of their interval ``[slices, n]``. All paths of a slice are at the same time."""


class Point(NamedTuple):
    """Positions, velocities and masses of paths at given times.

    Attributes:
        x: Positions ``[rows, d]``.
        velocity: Velocity of the position without noise, relative to the reference drift, ``[rows, d]``.
        mass: ``[rows]``, mean one over all paths at a time when normalised.
        mass_rate: Derivative of the mass in time ``[rows]``.
        spread: ``nu nu'``, half the derivative of the variance of the bridge, ``[rows]``.
    """

    x: Tensor
    velocity: Tensor
    mass: Tensor
    mass_rate: Tensor
    spread: Tensor


@dataclass(frozen=True, eq=False)
class ConditionalPaths:
    """The coupled paths between all consecutive training snapshots, and draws from them.

    Attributes:
        lagrangian: The Lagrangian that shapes the paths.
        x: Cells of all training snapshots, ``[N, d]``.
        times: ``[M]``, float64.
        plans: One for each interval.
        tables: Cells at both ends ``[k]`` (the same cell twice where mass dies or is born), masses, and cumulative chances of all
            intervals, one after another.
    """

    lagrangian: Lagrangian
    x: Tensor
    times: Tensor
    plans: tuple[PathPlan, ...]
    tables: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

    @staticmethod
    def of(lagrangian: Lagrangian, snapshots: Snapshots, coupling: PathCoupling, rng: Streams) -> ConditionalPaths:
        """Couple the training snapshots; held-out snapshots are not used."""
        training = snapshots.training
        masses = [1.0] * len(training) if lagrangian.normalized else training.mass.tolist()
        first = torch.tensor([0, *(len(rows) for rows in training.x)]).cumsum(0)
        plans, tables = [], []
        for k, length in enumerate(training.times.diff().tolist()):
            plan = coupling(lagrangian, training.x[k], training.x[k + 1], (masses[k], masses[k + 1]), length, rng)
            a, b = plan.i + first[k], plan.j + first[k + 1]
            ends = torch.where(plan.i < 0, b, a), torch.where(plan.j < 0, a, b)
            tables.append((*ends, plan.h0, plan.h1, plan.chance.cumsum(0) / plan.chance.sum() + k))
            plans.append(plan)
        x = torch.cat(training.x)
        a, b, h0, h1, cumulative = (torch.cat(column).to(x.device) for column in zip(*tables, strict=True))
        return ConditionalPaths(lagrangian, x, training.times, tuple(plans), (a, b, h0.to(x.dtype), h1.to(x.dtype), cumulative))

    def draw(self, rng: Streams, slices: int, n: int) -> Batch:
        """Draw ``n`` paths at each of ``slices`` times, one random time in each of that many equal intervals."""
        share = (torch.arange(slices) + rng.uniform("times", (slices,)).cpu()) / slices
        t = self.times[0] + share * (self.times[-1] - self.times[0])
        return self.at(t, rng.uniform("strands", (slices, n)), rng)  # another name of the stream would draw other numbers

    def at(self, t: Tensor, place: Tensor, rng: Streams) -> Batch:
        """Take the paths at the quantiles ``place [slices, n]`` in [0, 1) of the cumulative chances, at the times ``t [slices]``, float64."""
        x, times, device = self.x, self.times, self.x.device
        slices, n = place.shape
        k = (torch.searchsorted(times, t, right=True) - 1).clamp(0, len(times) - 2)
        a, b, h0, h1, cumulative = self.tables
        drawn = torch.searchsorted(cumulative, k.to(device)[:, None] + place.to(device), right=True).clamp_max(len(cumulative) - 1)
        theta = torch.tensor([plan.theta for plan in self.plans])
        span = times[-1] - times[0]
        of_slice = {
            "t": t,
            "start": times[k],
            "length": times[k + 1] - times[k],
            "middle": ((times[k] + times[k + 1]) / 2 - times[0]) / span,
            "theta": theta[k],
        }
        batch = {name: value.to(x)[:, None].expand(slices, n).contiguous() for name, value in of_slice.items()}
        batch |= {"a": x[a[drawn]], "b": x[b[drawn]], "h0": h0[drawn], "h1": h1[drawn]}
        if self.lagrangian.noise:
            batch["z"] = rng.normal("bridge", batch["a"])
            if x.shape[1] > EXACT_LAPLACIAN:
                batch["probe"] = rng.normal("probe", batch["a"]).sign()
        return batch


def moments(lagrangian: Lagrangian, snapshots: Snapshots) -> tuple[Tensor, Tensor]:
    """Mean ``[M, d]`` and width ``[M]`` of the training snapshots, for standardised inputs of the networks.

    With growth, where means move without transport, every snapshot gets those of all cells together. A width is at least a twentieth of that
    of all cells.
    """
    training = snapshots.training
    cells = torch.cat(training.x)
    if isinstance(lagrangian.kinetic, WFR):
        return cells.mean(0).repeat(len(training), 1), radius(cells).repeat(len(training))
    radii = torch.stack([radius(rows) for rows in training.x]).clamp_min(0.05 * radius(cells))
    return torch.stack([rows.mean(0) for rows in training.x]), radii


def radius(cells: Tensor) -> Tensor:
    """Root mean square distance from the mean, per coordinate.

    >>> round(radius(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).square().item(), 6)
    0.5
    """
    return (cells - cells.mean(0)).square().mean().sqrt()


class Bend(nn.Module):
    """Learned coefficients ``c_k [rows, BENDS, d]`` and ``r_k [rows, BENDS]`` of paths from ``a`` to ``b``; zero at first.

    Args:
        lagrangian: Says whether there is growth.
        snapshots: Sets the scale of the ends; held-out snapshots are not used.
        width: Hidden width.
        depth: Hidden layers.
    """

    def __init__(self, lagrangian: Lagrangian, snapshots: Snapshots, *, width: int, depth: int):
        super().__init__()
        means, radii = moments(lagrangian, snapshots)
        self.dim, self.growth = snapshots.dim, isinstance(lagrangian.kinetic, WFR)
        self.network = MLP(2 * self.dim, out=BENDS * (self.dim + self.growth), width=width, depth=depth)
        self.times, self.means, self.radii = nn.Buffer(snapshots.training.unit_times.to(means)), nn.Buffer(means), nn.Buffer(radii)
        nn.init.zeros_(self.network.last.weight)
        nn.init.zeros_(self.network.last.bias)

    def forward(self, a: Tensor, b: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients; ``middle [rows]`` is the middle of the interval, on a scale from 0 to 1."""
        right = torch.searchsorted(self.times, middle.contiguous()).clamp(1, len(self.times) - 1)
        scale = self.radii[right - 1, None], self.radii[right, None]
        ends = torch.cat([(a - self.means[right - 1]) / scale[0], (b - self.means[right]) / scale[1]], 1)
        out = self.network(ends, middle).reshape(len(a), BENDS, self.dim + self.growth)
        growth = out[..., self.dim] if self.growth else out.new_zeros(len(a), BENDS)
        return ((scale[0] + scale[1]) / 2)[..., None] * out[..., : self.dim], growth


def follow(lagrangian: Lagrangian, batch: Batch, bend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None) -> Point:
    """Evaluate paths at their times: each of least action by itself, then bent by ``bend(a, b, middle)``.

    Velocities are relative to the reference drift of the Lagrangian, at the positions with noise.

    Args:
        lagrangian: Its kinetic energy, noise and quadratic or linear potential shape the paths; all else is left to the bend.
        batch: See `Batch`.
        bend: A `Bend`, or None.
    """
    slices = batch["t"].shape
    batch = {name: value.flatten(0, 1) for name, value in batch.items()}
    a, b, length = batch["a"], batch["b"], batch["length"]
    u = (batch["t"] - batch["start"]) / length
    if isinstance(lagrangian.kinetic, WFR):
        x, velocity, mass, rate = _cone(lagrangian.kinetic, batch, u)
    else:
        (back, fall), (on, rise) = _ramps(lagrangian, u, length)
        centre = lagrangian.potential.centre if isinstance(lagrangian.potential, Harmonic) else 0.0
        x = back[:, None] * (a - centre) + on[:, None] * (b - centre) + centre
        velocity = (rise[:, None] * (b - centre) - fall[:, None] * (a - centre)) / length[:, None]
        mass, rate = torch.ones_like(u), torch.zeros_like(u)
        pull, change = _accelerated(lagrangian, batch, u)
        x, velocity = x + pull, velocity + change
    if bend is not None:
        c, r = bend(a, b, batch["middle"])
        value, slope = bubbles(u)
        slope = slope / length[:, None]
        x = x + (value[..., None] * c).sum(1)
        velocity = velocity + (slope[..., None] * c).sum(1)
        if isinstance(lagrangian.kinetic, WFR):
            factor = (value * r).sum(1).exp()
            rate = factor * (rate + mass * (slope * r).sum(1))
            mass = factor * mass
            if lagrangian.normalized:  # so that every slice keeps mass one
                mass, rate = _per_slice(mass, rate, slices)
    spread = torch.zeros_like(u)
    if lagrangian.noise:
        variance, spread = _bridge(lagrangian, u, length)
        x = x + variance.sqrt()[:, None] * batch["z"]
    if lagrangian.drift is not None:
        velocity = velocity - shaped("drift", lagrangian.drift(batch["t"], x), x)
    return Point(x, velocity, mass, rate, spread)


def _ramps(lagrangian: Lagrangian, u: Tensor, length: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Values and slopes in ``u`` of the two solutions of ``f'' = -k f`` that are 1 at one end and 0 at the other."""
    k = lagrangian.stiffness
    if k == 0:
        one = torch.ones_like(u)
        return (1 - u, one), (u, one)
    w = math.sqrt(abs(k)) * length
    sine, cosine = (torch.sin, torch.cos) if k > 0 else (torch.sinh, torch.cosh)

    def solution(u: Tensor) -> tuple[Tensor, Tensor]:
        return sine(w * u) / sine(w), w * cosine(w * u) / sine(w)

    return solution(1 - u), solution(u)


def _bridge(lagrangian: Lagrangian, u: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of the bridge, and half its derivative in time."""
    k, s2 = lagrangian.stiffness, lagrangian.noise**2
    if k == 0 or isinstance(lagrangian.kinetic, WFR):
        return s2 * length * u * (1 - u), s2 / 2 * (1 - 2 * u)
    w = math.sqrt(abs(k)) * length
    sine = torch.sin if k > 0 else torch.sinh
    return s2 * length * sine(w * u) * sine(w * (1 - u)) / (w * sine(w)), s2 / 2 * sine(w * (1 - 2 * u)) / sine(w)


def _accelerated(lagrangian: Lagrangian, batch: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
    """Displacement and velocity under an acceleration that is constant, or changes once in the middle of the interval."""
    potential, a, length = lagrangian.potential, batch["a"], batch["length"][:, None]
    if isinstance(potential, Linear):
        early = late = potential.acceleration.to(a)[None]
    elif isinstance(potential, MeanAcceleration):
        early, late = potential.at(batch["start"]).to(a), potential.at(batch["start"] + batch["length"]).to(a)
    else:
        return torch.zeros_like(a), torch.zeros_like(a)
    first, v = (u < 0.5)[:, None], u[:, None]
    p, q = -(3 * early + late) / 8, -(early + 3 * late) / 8
    place = torch.where(first, early * v.square() / 2 + p * v, late * (1 - v).square() / 2 + q * (1 - v))
    return length.square() * place, length * torch.where(first, early * v + p, -late * (1 - v) - q)


def _cone(kinetic: WFR, batch: Batch, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Position, velocity, mass and its rate under transport and growth: straight lines in the plane of ``z``."""
    a, b, length = batch["a"], batch["b"], batch["length"]
    left, right = batch["h0"].sqrt(), batch["h1"].sqrt()
    gap = b - a
    distance = gap.square().sum(1).clamp_min(1e-30).sqrt()
    tau = math.sqrt(kinetic.lam) * distance / 2
    if kinetic.normalized:
        theta = batch["theta"]
        (back, fall), (on, rise) = _slerp(1 - u, theta), _slerp(u, theta)
    else:
        back, fall, on, rise = 1 - u, 1.0, u, 1.0
    real, imaginary = back * left + on * right * tau.cos(), on * right * tau.sin()
    real_rate, imaginary_rate = rise * right * tau.cos() - fall * left, rise * right * tau.sin()
    mass = real.square() + imaginary.square()
    angle, turning = torch.atan2(imaginary, real), (real * imaginary_rate - imaginary * real_rate) / mass.clamp_min(1e-12)
    along = gap / distance[:, None]
    reach = 2 / math.sqrt(kinetic.lam)
    x = a + (reach * angle)[:, None] * along
    velocity = (reach * turning / length)[:, None] * along
    return x, velocity, mass, 2 * (real * real_rate + imaginary * imaginary_rate) / length


def _slerp(u: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """``sin(theta u) / sin(theta)`` and its slope in ``u``; ``u`` and 1 for ``theta = 0``."""
    angle = theta.clamp_min(1e-4)
    return (angle * u).sin() / angle.sin(), angle * (angle * u).cos() / angle.sin()


def _per_slice(mass: Tensor, rate: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Divide by the mean mass of the rows that share a time."""
    mass, rate = mass.reshape(shape), rate.reshape(shape)
    total, change = mass.mean(1, keepdim=True), rate.mean(1, keepdim=True)
    return (mass / total).flatten(), (rate / total - mass * change / total.square()).flatten()


def bubbles(u: Tensor) -> tuple[Tensor, Tensor]:
    """``phi_k(u)`` and their derivatives in ``u``, each ``[rows, BENDS]``.

    >>> value, slope = bubbles(torch.tensor([0.0, 0.5, 1.0]))
    >>> value[:, 0].tolist(), slope[:, 0].tolist()
    ([0.0, 1.0, 0.0], [4.0, 0.0, -4.0])
    """
    y = 2 * u - 1
    arch, fall = 1 - y.square(), -2 * y
    values = [arch * y**k for k in range(BENDS)]
    slopes = [2 * (fall * y**k + (arch * k * y ** (k - 1) if k else 0.0)) for k in range(BENDS)]
    return torch.stack(values, 1), torch.stack(slopes, 1)
