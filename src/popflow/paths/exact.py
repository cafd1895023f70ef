r"""Exact answers for overdamped dynamics in one and two coordinates: a Markov chain on a grid, and quadrature.

The chain jumps between neighbours ``i, j`` at distance ``h`` with rates

    L_ij = (D / h^2) exp(-(U_j - U_i) / (2 kT)),       D = noise^2 / 2,   kT = noise^2 / (2 mobility),

which is reversible for ``exp(-U / kT)`` at any ``h`` and converges to ``dx = mobility F dt + noise dW`` as ``h^2``. ``exp(t L)`` is applied by the
L-stable SDIRK method of order 2, whose two stages share one sparse factorisation. What follows from ``L``:

- committor            L q = 0 between A (q = 0) and B (q = 1)
- mean first passage   L tau = -1 outside of B (tau = 0)
- rate of A -> B       k = J / sum pi (1 - q),   J = -sum pi q (L q)
- Schroedinger bridge  f (K g) = m_0,  g (K' f) = m_T,  K = exp(T L):  the process of least ``KL(Q || P)`` that starts in ``m_0`` and ends in ``m_T``,
                       with  KL = sum m_0 log(f / m_0) + sum m_T log g  and marginals  q_t = (exp(t L') f) (exp((T - t) L) g)

Sources: Schroedinger bridges by Sinkhorn, C. Leonard, *A survey of the Schroedinger problem*, DCDS-A 34, 1533 (2014); rates by committors, W. E,
E. Vanden-Eijnden, *Towards a theory of transition paths*, J. Stat. Phys. 123, 503 (2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popflow.core.checks import at_least_one
from popflow.paths.process import Overdamped, Potential

_GAMMA = 1 - 1 / math.sqrt(2)
_LARGEST = 400_000


@dataclass(frozen=True, eq=False)
class Grid:
    """Overdamped dynamics as a reversible Markov chain on a grid of one or two coordinates.

    Attributes:
        process: The dynamics; noise and mobility are numbers.
        low: Lower corner of the grid.
        high: Upper corner; the process is reflected at the border.
        spacing: Distance ``h`` of neighbours; the corners are met to within a cell.
        cap: Energies are cut at this many ``kT`` above the lowest, so that rates stay finite in walls that no path reaches.

    Raises:
        ValueError: for more than two coordinates, a grid of fewer than 3 or more than 400 000 points, or energies that are not finite.

    Example:
        >>> from popflow.paths import DoubleWell
        >>> grid = Grid(Overdamped(DoubleWell(dim=1), noise=1.0), (-3.0,), (3.0,), spacing=0.02)
        >>> q = grid.committor(grid.where(lambda x: x[:, 0] < -2**0.5), grid.where(lambda x: x[:, 0] > 2**0.5))
        >>> round(float(grid.at(q, torch.tensor([[0.0]]))), 3)
        0.5
    """

    process: Overdamped
    low: Sequence[float]
    high: Sequence[float]
    spacing: float
    cap: float = 75.0
    shape: tuple[int, ...] = field(init=False)
    points: Tensor = field(init=False, repr=False)
    energy: Tensor = field(init=False, repr=False)
    generator: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.low) == len(self.high) <= 2:
            raise ValueError(
                f"low={tuple(self.low)}, high={tuple(self.high)}: wanted one or two coordinates each; grids of more are too large."
            )
        if not (self.spacing > 0 and all(b - a > 2 * self.spacing for a, b in zip(self.low, self.high, strict=True))):
            raise ValueError(
                f"spacing={self.spacing!r}, wanted positive and at most half of each side of low={self.low}, high={self.high}."
            )
        if isinstance(self.process.noise, Tensor) or isinstance(self.process.mobility, Tensor):
            raise ValueError("process has a tensor of noises or mobilities, wanted numbers: the grid knows isotropic dynamics alone.")
        axes = [
            a + self.spacing * torch.arange(round((b - a) / self.spacing) + 1, dtype=torch.float64)
            for a, b in zip(self.low, self.high, strict=True)
        ]
        shape = tuple(map(len, axes))
        if math.prod(shape) > _LARGEST:
            raise ValueError(f"spacing={self.spacing!r} makes {math.prod(shape)} points, wanted at most {_LARGEST}: take a larger spacing.")
        points = torch.cartesian_prod(*self._axes(shape)).reshape(-1, len(shape))
        with torch.no_grad():
            energy = self.process.potential(points)
        if not torch.isfinite(energy.min()):
            raise ValueError("the potential is not finite on the grid: choose low and high inside of its domain.")
        least = float(energy.min())
        energy = energy.nan_to_num(nan=math.inf).clamp_max(least + self.cap * self.kt)
        for name, value in {"shape": shape, "points": points, "energy": energy}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "generator", self._generator())

    @property
    def kt(self) -> float:
        """``kT = noise^2 / (2 mobility)``."""
        return float(self.process.noise) ** 2 / (2 * float(self.process.mobility))

    @property
    def equilibrium(self) -> Tensor:
        """Boltzmann probabilities ``[n]`` of the points."""
        return torch.softmax(-self.energy / self.kt, 0)

    def _axes(self, shape: tuple[int, ...]) -> list[Tensor]:
        return [a + self.spacing * torch.arange(size, dtype=torch.float64) for a, size in zip(self.low, shape, strict=True)]

    def _generator(self) -> Any:
        from scipy import sparse

        index = torch.arange(len(self.points)).reshape(self.shape)
        here, there = [], []
        for axis, size in enumerate(self.shape):
            a, b = index.narrow(axis, 0, size - 1).flatten(), index.narrow(axis, 1, size - 1).flatten()
            here += [a, b]
            there += [b, a]
        i, j = torch.cat(here), torch.cat(there)
        rate = float(self.process.noise) ** 2 / (2 * self.spacing**2) * torch.exp((self.energy[i] - self.energy[j]) / (2 * self.kt))
        jumps = sparse.coo_matrix((rate.numpy(), (i.numpy(), j.numpy())), shape=(len(self.points),) * 2).tocsr()
        return (jumps - sparse.diags(np.asarray(jumps.sum(1)).ravel())).tocsc()

    def where(self, indicator: Callable[[Tensor], Tensor]) -> Tensor:
        """Points inside of a set, ``[n]`` of bool: ``indicator(x [n, D]) -> [n]``."""
        return indicator(self.points).bool()

    def share(self, indicator: Callable[[Tensor], Tensor], finer: int = 16) -> Tensor:
        """Share ``[n]`` of each cell that lies inside of a set, from ``finer^D`` places in it: small sets need it, `where` is off by cells."""
        at_least_one(finer=finer)
        places = (torch.arange(finer, dtype=torch.float64) + 0.5) / finer - 0.5
        offsets = self.spacing * torch.cartesian_prod(*[places] * len(self.shape)).reshape(-1, len(self.shape))
        total = torch.zeros(len(self.points), dtype=torch.float64)
        for offset in offsets:
            total += indicator(self.points + offset)
        return total / len(offsets)

    def at(self, values: Tensor, x: Tensor) -> Tensor:
        """Interpolate values ``[n]`` linearly at ``x [m, D]`` inside of the grid."""
        from scipy.interpolate import RegularGridInterpolator

        found = RegularGridInterpolator([axis.numpy() for axis in self._axes(self.shape)], values.reshape(self.shape).numpy())(
            x.double().numpy()
        )
        return torch.from_numpy(found)

    def gaussian(self, centre: Sequence[float] | Tensor, sd: float) -> Tensor:
        """Probabilities ``[n]`` of ``N(centre, sd^2 I)`` on the points."""
        away = self.points - torch.as_tensor(centre, dtype=torch.float64)
        return torch.softmax(-away.square().sum(-1) / (2 * sd * sd), 0)

    def committor(self, a: Tensor, b: Tensor) -> Tensor:
        """Probability ``[n]`` to reach the points of ``b`` before those of ``a`` (both ``[n]`` of bool)."""
        if not a.any() or not b.any() or (a & b).any():
            raise ValueError(
                f"a has {int(a.sum())} points, b {int(b.sum())}, both {int((a & b).sum())}: wanted two sets without common points."
            )
        return self._solve(a | b, b.double(), torch.zeros(len(b), dtype=torch.float64))

    def mean_first_passage(self, b: Tensor) -> Tensor:
        """Mean time ``[n]`` until the points of ``b`` (``[n]`` of bool) are reached."""
        if not b.any():
            raise ValueError("b has no points: take a smaller spacing.")
        return self._solve(b, torch.zeros(len(b), dtype=torch.float64), -torch.ones(len(b), dtype=torch.float64))

    def rate(self, a: Tensor, b: Tensor) -> float:
        """The inverse of the mean time from an arrival in ``a`` to the next arrival in ``b``: transitions per time since a, not b, was visited last."""
        q, pi = self.committor(a, b), self.equilibrium
        flux = -float(pi @ (q * torch.from_numpy(self.generator @ q.numpy())))
        return flux / float(pi @ (1 - q))

    def _solve(self, fixed: Tensor, boundary: Tensor, right: Tensor) -> Tensor:
        """Solve ``L u = right`` off the fixed points, where ``u = boundary``."""
        from scipy.sparse.linalg import spsolve

        free = (~fixed).numpy()
        rows = self.generator.tocsr()[free]
        known = rows[:, ~free] @ boundary.numpy()[~free]
        u = boundary.clone()
        u[~fixed] = torch.from_numpy(spsolve(rows[:, free].tocsc(), right.numpy()[free] - known))
        return u

    def propagate(self, values: Tensor, time: float, steps: int, forward: bool = False, absorbing: Tensor | None = None) -> Tensor:
        """``exp(t L) values`` (expectations, backwards in time) or ``exp(t L') values`` (probabilities), at ``steps + 1`` times, ``[steps + 1, n]``.

        Args:
            values: Function ``[n]`` of the end point, or probabilities ``[n]`` of the start.
            time: Duration.
            steps: Time steps; the error falls with their square.
            forward: Move probabilities forwards instead of expectations backwards.
            absorbing: Points ``[n]`` of bool that are never left: with ``values`` 1 on them and 0 elsewhere, this gives the probability of a hit.
        """
        from scipy import sparse
        from scipy.sparse.linalg import splu

        at_least_one(steps=steps)
        h, generator = time / steps, self.generator
        if absorbing is not None:
            generator = sparse.diags((~absorbing).double().numpy()) @ generator
        solver, side = splu((sparse.identity(len(values), format="csc") - _GAMMA * h * generator).tocsc()), "T" if forward else "N"
        out = [values.double().numpy()]
        for _ in range(steps):
            first = solver.solve(out[-1], trans=side)
            out.append(solver.solve(out[-1] + (1 - _GAMMA) / _GAMMA * (first - out[-1]), trans=side))
        return torch.stack([torch.from_numpy(one) for one in out])

    def probability(
        self, start: Sequence[float] | Tensor, inside: Callable[[Tensor], Tensor], time: float, steps: int, hit: bool = False
    ) -> float:
        """``P(x_T in B | x_0 = start)``, or with ``hit`` the probability to touch B before the time is over.

        Args:
            start: ``[D]``.
            inside: Indicator of B, ``[n, D] -> [n]``.
            time: Duration T.
            steps: Time steps.
            hit: Count paths that were in B at any time. B is then its points on the grid, an error of order ``h``.
        """
        end = self.where(inside) if hit else None
        values = self.share(inside) if end is None else end.double()
        last = self.propagate(values, time, steps, absorbing=end)[-1]
        return float(self.at(last, torch.as_tensor(start, dtype=torch.float64).reshape(1, -1)))

    def bridge(self, first: Tensor, last: Tensor, time: float, steps: int, tolerance: float = 1e-10) -> Bridge:
        """The Schroedinger bridge between two laws ``[n]``.

        Raises:
            ValueError: when Sinkhorn's iterations have not converged after 100.
        """
        for name, law in {"first": first, "last": last}.items():
            if law.shape != self.energy.shape or abs(float(law.sum()) - 1) > 1e-8 or float(law.min()) < 0:
                raise ValueError(
                    f"{name} has shape {tuple(law.shape)} and sum {float(law.sum()):.6g}, wanted probabilities of the grid's points."
                )
        first, last = (law.where(law > 1e-16 * law.max(), torch.zeros_like(law)) for law in (first, last))  # rounding has no ratio
        g, before = torch.ones_like(last), math.inf
        for _ in range(100):
            back = self.propagate(g, time, steps)
            f = _ratio(first, back[-1])
            ahead = self.propagate(f, time, steps, forward=True)
            g = _ratio(last, ahead[-1])
            action = float(torch.xlogy(first, f / first.clamp_min(1e-300)).sum() + torch.xlogy(last, g).sum())
            if abs(action - before) < tolerance * max(1.0, abs(action)):
                return Bridge(self, time, action, ahead, self.propagate(g, time, steps).flip(0))
            before = action
        raise ValueError("Sinkhorn's iterations have not converged after 100: the laws are too narrow for this spacing.")


@dataclass(frozen=True, eq=False)
class Bridge:
    """The Schroedinger bridge on a grid.

    Attributes:
        grid: The chain.
        time: Duration.
        action: ``KL(Q || P)``, nats: the least that any process with these end laws can reach.
        ahead: ``exp(t L') f`` at equally spaced times, ``[steps + 1, n]``.
        back: ``exp((T - t) L) g`` at the same times; its logarithm's gradient times ``noise^2`` is what the bridge adds to the drift.
    """

    grid: Grid
    time: float
    action: float
    ahead: Tensor = field(repr=False)
    back: Tensor = field(repr=False)

    def marginal(self, t: float) -> Tensor:
        """Probabilities ``[n]`` at the stored time next to ``t``."""
        if not 0 <= t <= self.time:
            raise ValueError(f"t={t!r}, wanted a time from 0 to {self.time}.")
        k = round(t / self.time * (len(self.ahead) - 1))
        law = (self.ahead[k] * self.back[k]).clamp_min(0)
        return law / law.sum()

    def moments(self, t: float) -> tuple[Tensor, Tensor, float]:
        """Mean ``[D]``, covariance ``[D, D]`` and mean energy at the stored time next to ``t``."""
        law = self.marginal(t)
        mean = law @ self.grid.points
        away = self.grid.points - mean
        return mean, away.mT @ (law.unsqueeze(1) * away), float(law @ self.grid.energy)


def _ratio(law: Tensor, by: Tensor) -> Tensor:
    """``law / by`` where there is any law."""
    some = law > 0
    if bool((by[some] <= 0).any()):
        raise ValueError(
            "the end laws cannot be joined on this grid: a transition probability underflows. Fix: more time, or a smaller spacing."
        )
    return torch.where(some, law / by.where(some, torch.ones_like(by)), torch.zeros_like(law))


def committor_by_quadrature(potential: Potential, kt: float, a: float, b: float, x: Tensor, pieces: int = 20_000) -> Tensor:
    """``q(x) = int_a^x e^{U / kT} / int_a^b e^{U / kT}`` in one coordinate, at ``x [m]`` between a and b.

    >>> committor_by_quadrature(lambda x: 0 * x[:, 0], 1.0, 0.0, 2.0, torch.tensor([0.5, 1.0])).tolist()
    [0.25, 0.5]
    """
    y, energy = _line(potential, a, b, pieces)
    top = energy.max()
    integral = _cumulative(((energy - top) / kt).exp(), y)
    q = integral / integral[-1]
    place = ((x.double() - a) / (b - a) * (len(y) - 1)).clamp(0, len(y) - 1)
    left = place.floor().clamp_max(len(y) - 2)
    k = left.long()
    return q[k] + (place - left) * (q[k + 1] - q[k])


def mean_first_passage_by_quadrature(process: Overdamped, a: float, b: float, low: float, pieces: int = 20_000) -> float:
    """``tau(a -> b) = (1/D) int_a^b e^{U(y)/kT} int_low^y e^{-U(z)/kT} dz dy`` in one coordinate, with a reflecting wall at ``low`` (< a < b).

    >>> flat = Overdamped(lambda x: 0 * x[:, 0], noise=2**0.5)  # D = 1: tau = (b^2 - a^2) / 2 from a wall at 0
    >>> round(mean_first_passage_by_quadrature(flat, 1.0, 2.0, 0.0), 9)
    1.5
    """
    if not low <= a < b:
        raise ValueError(f"low={low!r}, a={a!r}, b={b!r}, wanted low <= a < b.")
    noise, mobility = float(process.noise), float(process.mobility)
    kt, share = noise**2 / (2 * mobility), (a - low) / (b - low)
    before = max(2, 2 * round(pieces * share / 2)) if share else 0
    parts = [_line(process.potential, low, a, before)] if before else []
    parts.append(_line(process.potential, a, b, max(2, 2 * round(pieces * (1 - share) / 2))))
    least = min(float(energy.min()) for _, energy in parts)
    inner = total = torch.zeros((), dtype=torch.float64)
    for y, energy in parts:
        weight = _cumulative(((least - energy) / kt).exp(), y) + inner
        inner, total = weight[-1], _cumulative(((energy - least) / kt).exp() * weight, y)[-1]
    return float(total) / (noise**2 / 2)


def _line(potential: Potential, a: float, b: float, pieces: int) -> tuple[Tensor, Tensor]:
    y = torch.linspace(a, b, pieces + 1, dtype=torch.float64)
    with torch.no_grad():
        return y, potential(y.unsqueeze(1))


def _cumulative(values: Tensor, x: Tensor) -> Tensor:
    from scipy.integrate import cumulative_simpson

    return torch.from_numpy(cumulative_simpson(values.numpy(), x=x.numpy(), initial=0.0))
