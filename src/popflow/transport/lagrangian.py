"""The action: kinetic energy of transport and growth, minus a potential, with or without noise.

Among all paths ``mu_t`` through the snapshots the flow is the one of least action,

    int dt int [ |v - u|^2 / 2 + g^2 / (2 lam) - V(t, x) ] dmu_t,       d_t mu = -div(mu v) + g mu + sigma^2 / 2 lap mu

Its velocity is ``v = u + grad s`` and its growth ``g = lam s`` with one potential ``s(t, x)`` that solves a Hamilton-Jacobi equation,
`residual`. Everything is in the units of the snapshots: positions as given to the fit, times in the user's unit. So ``lam`` is one
over a length squared, ``sigma`` a length per square root of time, ``V`` a length squared over a time squared, a stiffness one over a time
squared.

Source: Neklyudov et al., *A computational framework for solving Wasserstein Lagrangian flows*, ICML 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core.calculus import value_and_grad, value_grad_and_laplacian
from popflow.core.checks import shaped
from popflow.transport.coupling import exact
from popflow.transport.snapshots import Snapshots

Field = Callable[[Tensor, Tensor], Tensor]
"""A function of times ``[rows]`` (the user's) and positions ``[rows, d]``: a potential ``[rows]``, or a drift ``[rows, d]``."""

EXACT_LAPLACIAN = 10
"""Up to this many coordinates Laplacians are exact; above they are estimated along one random direction (Hutchinson)."""


@dataclass(frozen=True, slots=True)
class W2:
    """Kinetic energy of transport alone, ``E|v|^2 / 2``: the Wasserstein-2 geometry. Mass is conserved."""


@dataclass(frozen=True, slots=True)
class WFR:
    """Kinetic energy of transport and growth, ``E[|v|^2 + g^2 / lam] / 2``: Wasserstein-Fisher-Rao.

    Mass is not carried further than ``pi / sqrt(lam)``: it dies here and grows there.

    Attributes:
        lam: Price of transport relative to growth, one over a length squared.
        normalized: Whether every ``mu_t`` has mass one and growth is relative to the mean (the spherical geometry, which the published solver
            trains). Otherwise the masses of the snapshots are met.
    """

    lam: float
    normalized: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.lam < math.inf:
            raise ValueError(f"lam={self.lam!r}, wanted a finite number above 0: use W2() for no growth.")


@dataclass(frozen=True, slots=True)
class Harmonic:
    """``V = k |x - centre|^2 / 2``: particles obey ``x'' = -k (x - centre)``; inverted for ``k < 0``.

    A minimiser exists while ``sqrt(k)`` times the longest interval between two snapshots is below pi; a fit refuses longer ones.
    """

    stiffness: float
    centre: Tensor | float = 0.0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate ``V`` ``[rows]``."""
        return self.stiffness * (x - self.centre).square().sum(-1) / 2


@dataclass(frozen=True, slots=True)
class Linear:
    """``V = -<a, x>``: particles accelerate by ``a [d]``."""

    acceleration: Tensor

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate ``V`` ``[rows]``."""
        return -x @ self.acceleration.to(x)


@dataclass(frozen=True, slots=True)
class MeanAcceleration:
    """``V = -<a_k, x>`` with the acceleration of the mean at the inner snapshot ``k`` that is nearest in time.

    ``a_k = (v_k+ - v_k-) / ((t_{k+1} - t_{k-1}) / 2)`` with the mean velocities after and before ``t_k``. The published code divides by
    ``(t_{k+1} + t_{k-1}) / 2``, and takes the means of held-out snapshots too.

    Attributes:
        times: Inner times ``[M - 2]``.
        accelerations: ``[M - 2, d]``.
    """

    times: Tensor
    accelerations: Tensor

    @staticmethod
    def of(snapshots: Snapshots) -> MeanAcceleration:
        """Take the means of the training snapshots; held-out snapshots are not used.

        Raises:
            ValueError: with fewer than three training snapshots.

        Example:
            >>> x = [torch.full((2, 1), value) for value in (0.0, 1.0, 4.0)]
            >>> MeanAcceleration.of(Snapshots.of(x, times=[10, 11, 12])).accelerations.tolist()
            [[2.0]]
        """
        training = snapshots.training
        if len(training) < 3:
            raise ValueError(f"there are {len(training)} training snapshots, wanted at least three: an acceleration takes three means.")
        means, times = torch.stack([rows.double().mean(0) for rows in training.x]), training.times.to(training.x[0].device)
        velocity = means.diff(dim=0) / times.diff()[:, None]
        return MeanAcceleration(times[1:-1], velocity.diff(dim=0) / ((times[2:] - times[:-2]) / 2)[:, None])

    def at(self, t: Tensor) -> Tensor:
        """Acceleration ``[rows, d]`` at the times ``t [rows]``."""
        nearest = (t[..., None] - self.times.to(t)).abs().argmin(-1)
        return self.accelerations.to(t)[nearest]

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate ``V`` ``[rows]``."""
        return -(self.at(t) * x).sum(-1)


@dataclass(frozen=True, slots=True)
class VelocityPrior:
    """A reference drift ``u(t, x)``: the average velocity of the cells near ``x`` at the snapshots around ``t``, measured or implied.

    Nadaraya-Watson in space with Gaussian kernels, linear in time between snapshots. Only departures from it cost energy, so the prior
    decides where the snapshots leave a choice.

    Attributes:
        x: Cells of each snapshot, ``[M, n, d]`` (the same number of each, drawn once).
        velocity: ``[M, n, d]``, in units of ``x`` per unit of time.
        times: ``[M]``.
        bandwidth: Kernel width, in units of ``x``.
        strength: Factor on the velocities; RNA velocity knows the direction better than the speed.
    """

    x: Tensor
    velocity: Tensor
    times: Tensor
    bandwidth: float
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth={self.bandwidth!r}, wanted a length above 0: about the distance between neighbouring cells.")

    @staticmethod
    def of(snapshots: Snapshots, bandwidth: float, strength: float = 1.0, cells: int = 256) -> VelocityPrior:
        """Measured velocities, such as RNA velocity, at ``cells`` evenly spread rows of every training snapshot (fewer are repeated).

        Raises:
            ValueError: when the snapshots carry no velocities, or the bandwidth is not above 0.
        """
        training = snapshots.training
        if training.velocity is None:
            raise ValueError("the snapshots have no velocity, wanted one for each cell: Snapshots.of(..., velocity=...).")
        x, velocity = _evenly(training.x, cells), _evenly(training.velocity, cells)
        return VelocityPrior(x, velocity, training.times, bandwidth, strength)

    @staticmethod
    def between(snapshots: Snapshots, bandwidth: float, cells: int = 512) -> VelocityPrior:
        """Velocities that the training snapshots imply, where none were measured: smooth trajectories across snapshots.

        Every cell has a displacement along the exact plan to the snapshot after, and one from the snapshot before; its velocity is the slope of
        the parabola through both, ``(L_+ v_- + L_- v_+) / (L_- + L_+)`` with the intervals ``L``, as in a spline of optimal maps. At the ends
        there is only one displacement.

        Raises:
            ValueError: with fewer than three training snapshots, or when the bandwidth is not above 0.

        Example:
            >>> x = [torch.full((2, 1), value) for value in (0.0, 1.0, 5.0)]
            >>> VelocityPrior.between(Snapshots.of(x, times=[0, 1, 2]), bandwidth=1.0).velocity[:, 0, 0].tolist()
            [1.0, 2.5, 4.0]

        Source: Chewi et al., *Fast and smooth interpolation on Wasserstein space*, AISTATS 2021.
        """
        training = snapshots.training
        if len(training) < 3:
            raise ValueError(f"there are {len(training)} training snapshots, wanted at least three: a change of velocity takes three.")
        x = _evenly(training.x, min(cells, max(len(rows) for rows in training.x)))
        length = training.times.diff().to(x)
        came, goes = [], []
        for before, after, duration in zip(x[:-1], x[1:], length, strict=True):
            plan = exact(before, after).to(x) * len(before)
            goes.append((plan @ after - before) / duration)
            came.append((after - plan.mT @ before) / duration)
        inner = [
            (ahead * back + behind * on) / (behind + ahead)
            for back, on, behind, ahead in zip(came[:-1], goes[1:], length[:-1], length[1:], strict=True)
        ]
        return VelocityPrior(x, torch.stack([goes[0], *inner, came[-1]]), training.times, bandwidth)

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate ``u`` ``[rows, d]``."""
        times, cells = self.times.to(t), self.x.to(x)
        right = torch.searchsorted(times, t.detach().contiguous()).clamp(1, len(times) - 1)
        share = ((t - times[right - 1]) / (times[right] - times[right - 1])).clamp(0, 1)
        centre = cells.mean((0, 1))
        cells, x = cells - centre, x - centre
        # -|x - cell|^2 / 2 without |x|^2, which is the same for all cells
        kernel = ((x @ cells.mT - cells.square().sum(-1)[:, None] / 2) / self.bandwidth**2).softmax(-1)
        found, row = kernel @ self.velocity.to(x), torch.arange(len(x), device=x.device)
        return self.strength * ((1 - share)[:, None] * found[right - 1, row] + share[:, None] * found[right, row])


def _evenly(x: tuple[Tensor, ...], count: int) -> Tensor:
    """``count`` evenly spread rows of each, ``[M, count, d]``; of fewer some are repeated."""
    return torch.stack([rows[torch.arange(count, device=rows.device) * len(rows) // count] for rows in x])


@dataclass(frozen=True, slots=True)
class Lagrangian:
    """Kinetic energy, noise, potential and reference drift; see the module for the action and the units.

    Attributes:
        kinetic: `W2` or `WFR`.
        noise: ``sigma``: 0 for a deterministic flow; above it, with `W2`, the Schroedinger bridge of ``dx = u dt + sigma dW``.
        potential: ``V``: `Harmonic`, `Linear`, `MeanAcceleration` or any function of times and positions; None for none.
        drift: ``u``: `VelocityPrior` or any function of times and positions; None for none.

    Raises:
        ValueError: for ``sigma < 0``.

    Example:
        >>> unbalanced = Lagrangian(WFR(lam=1.0))
        >>> t, x = torch.zeros(3), torch.ones(3, 2)
        >>> residual(unbalanced, lambda t, x: x.sum(-1) - t, t, x).tolist()
        [2.0, 2.0, 2.0]
    """

    kinetic: W2 | WFR = W2()
    noise: float = 0.0
    potential: Field | None = None
    drift: Field | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise={self.noise!r}, wanted a finite sigma >= 0: 0 gives a deterministic flow.")

    @property
    def lam(self) -> float:
        """``lam`` of the growth, 0 where there is none."""
        return self.kinetic.lam if isinstance(self.kinetic, WFR) else 0.0

    @property
    def stiffness(self) -> float:
        """``k`` of a `Harmonic` potential, 0 for any other."""
        return self.potential.stiffness if isinstance(self.potential, Harmonic) else 0.0

    @property
    def is_static(self) -> bool:
        """Whether the path of least action between two points has a closed form, so that only an optimal plan has to be found."""
        if isinstance(self.kinetic, WFR):
            return self.potential is None and self.drift is None and not self.noise
        return self.drift is None and isinstance(self.potential, Harmonic | Linear | MeanAcceleration | None)

    @property
    def normalized(self) -> bool:
        """Whether every ``mu_t`` has mass one."""
        return not isinstance(self.kinetic, WFR) or self.kinetic.normalized


def residual(lagrangian: Lagrangian, s: Field, t: Tensor, x: Tensor, probe: Tensor | None = None) -> Tensor:
    """Hamilton-Jacobi residual ``d_t s + |grad s|^2 / 2 + <u, grad s> + lam s^2 / 2 + sigma^2 / 2 lap s + V``, ``[rows]``.

    At the optimum it does not depend on ``x`` where there is mass; without `W2` or normalisation it is zero there.

    Args:
        lagrangian: Its noise, growth, drift and potential say which terms there are.
        s: Potential ``s(t, x) [rows]`` of independent rows, with second derivatives where there is noise.
        t: ``[rows]``.
        x: ``[rows, d]``.
        probe: Rademacher directions like ``x`` for the Laplacian; None: the exact Laplacian.
    """
    if lagrangian.noise:
        (value, (by_t,)), (_, by_x, laplacian) = (
            value_and_grad(lambda t: s(t, x), t),
            value_grad_and_laplacian(lambda x: s(t, x), x, probe),
        )
    else:
        value, (by_t, by_x) = value_and_grad(s, t, x)
        laplacian = None
    total = by_t + by_x.square().sum(-1) / 2
    if laplacian is not None:
        total = total + lagrangian.noise**2 / 2 * laplacian
    if lagrangian.lam:
        total = total + lagrangian.lam / 2 * value.square()
    if lagrangian.drift is not None:
        total = total + (shaped("drift", lagrangian.drift(t, x), x) * by_x).sum(-1)
    return total if lagrangian.potential is None else total + shaped("potential", lagrangian.potential(t, x), value)
