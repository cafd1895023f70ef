r"""Gaussian paths of molecules: stiff bonds keep their thermal widths, in a frame that moves with the mean.

In mass-weighted displacements ``y = sqrt(m) (x - mu_t)`` with precision ``Lambda_t`` and thermal velocities relative to the frame,

    y' = N y + r,    dr = -(kT Lambda y + friction r) dt + sqrt(2 kT friction) dW,    Lambda N + N Lambda = -Lambda'

keeps ``y ~ N(0, Lambda^-1)`` and ``r ~ N(0, kT)`` at all times, and ``dx = v dt`` exactly: it is Langevin dynamics in the harmonic potential
``kT y Lambda y / 2``, carried along by the symmetric N, which moves the law with the least kinetic energy. Where Lambda is the thermal one, ``H / kT``, the force of
the frame cancels that of the molecule to first order, so that a stiff mode costs no action. The drift of the velocities is

    u = mu'' + ((N' + N^2 - kT Lambda) y + (N - friction) r) / sqrt(m)

Mean and precision are cubic B-splines of time with coefficients ``mu_j = mu0_j + G_j^-T d_j / sqrt(m)`` and ``Lambda_j = G_j (1 + e_j) (1 + e_j)^T G_j^T``: d and e are
learned, in units of thermal widths. The first two and the last two coefficients are those of the end laws, so that both are met at rest.

Source: the action of Du et al., *Doob's Lagrangian*, NeurIPS 2024; the family is ours. Initial precisions are those of the self-consistent harmonic approximation,
``kT Lambda = E_q[H]`` (Hooton, Phil. Mag. 3 (1958) 49).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from popflow.core.checks import at_least_one
from popflow.core.streams import Streams
from popflow.paths.curves import Curve
from popflow.paths.gaussian_path import Mixture
from popflow.paths.moments import Comoving
from popflow.paths.process import Counted, Underdamped, force

_ROUNDS, _STEP, _SPRING, _MOBILITY = 400, 0.002, 1000.0, 2e-6
"""Elastic band: rounds, longest step of an atom in nm, spring in kJ/mol/nm^2, nm per round and kJ/mol/nm."""
_NUMBERS = 1 << 23
"""Numbers of a matrix for each row that an estimate holds at once."""


class ThermalPath(Mixture):
    """Path of an underdamped process with all correlations, near thermal equilibrium about a moving mean; made by `thermal_path`.

    Args:
        process: The dynamics; masses, friction and temperature are those of the path.
        time: Duration T.
        means: Coefficients ``[K, P, D]`` of the means, P of at least 6; the first two are A, the last two B.
        lower: Lower-triangular factors ``[K, P, D, D]`` of the mass-weighted precisions; the first two equal, the last two equal, and the same for all components.
        learn_weights: Learn the weights of the components.
        prepared: Hessian-vector products spent before; the path remembers them.

    Raises:
        ValueError: for coefficients that do not meet one law at each end.

    Example:
        >>> process = Underdamped(lambda x: x.square().sum(-1) / 2, mass=2.0, friction=1.0, temperature=300)
        >>> path = ThermalPath(process, 1.0, torch.zeros(1, 6, 3), torch.eye(3).expand(1, 6, 3, 3))
        >>> path.sample(0.5, 5, Streams(0)).shape, path.drift(0.5, torch.zeros(4, 6)).shape
        (torch.Size([5, 6]), torch.Size([4, 3]))
    """

    together = 16

    def __init__(self, process: Underdamped, time: float, means: Tensor, lower: Tensor, learn_weights: bool = False, prepared: int = 0):
        super().__init__()
        k, p, d = means.shape
        ends = (
            (means[:1, :1], means[:, :2]),
            (means[:1, -1:], means[:, -2:]),
            (lower[:1, :1], lower[:, :2]),
            (lower[:1, -1:], lower[:, -2:]),
        )
        if p < 6 or lower.shape != (k, p, d, d) or not all(torch.allclose(one, many) for one, many in ends):
            raise ValueError(
                f"means {tuple(means.shape)} and lower {tuple(lower.shape)}, wanted [K, P >= 6, D], [K, P, D, D], one law at each end, twice."
            )
        self.time, self.components, self.dim = float(time), k, d
        self.friction, self.kt = process.friction, process.kt
        self.start, self.end = nn.Buffer(means[0, 0].clone()), nn.Buffer(means[0, -1].clone())
        mass = torch.as_tensor(process.mass, dtype=means.dtype).expand(d)
        self.root_mass, self.noise = nn.Buffer(mass.sqrt()), nn.Buffer((2 * self.kt * self.friction / mass).sqrt())
        self.means, self.lower = nn.Buffer(means.clone()), nn.Buffer(lower.clone())
        widths = torch.linalg.inv(lower[0, 0]).square().sum(0).sqrt() / mass.sqrt()
        self.ends = (float(widths.min()), float(widths.min()))
        self.most, self.prepared = max(2 * self.together, _NUMBERS // d**2), prepared
        self.logits = nn.Parameter(means.new_zeros(k), requires_grad=learn_weights)
        self.bend = nn.Parameter(means.new_zeros(k, p - 4, d))
        self.shape = nn.Parameter(means.new_zeros(k, p - 4, d, d))

    def base_dim(self) -> int:
        """Positions and velocities."""
        return 2 * self.dim

    def moments(self, t: Tensor) -> Comoving:
        """Moments at times ``[rows]``; rows that share a time share its matrices, which are computed once."""
        times, place = t.unique(return_inverse=True)
        values = [basis(times / self.time, self.means.shape[1], order) / self.time**order for order in range(3)]
        inner, d = slice(2, -2), self.dim
        bend = torch.linalg.solve_triangular(self.lower[:, inner].mT, self.bend[..., None], upper=True)[..., 0] / self.root_mass
        means = self.means + nn.functional.pad(bend, (0, 0, 2, 2))
        factors = self.lower @ (torch.eye(d).to(self.lower) + nn.functional.pad(self.shape.tril(), (0, 0, 0, 0, 2, 2)))
        precisions = factors @ factors.mT
        mean, speed, speed_rate = (torch.einsum("np,kpd->nkd", value, means) for value in values)
        precision, rate, second = (torch.einsum("np,kpde->nkde", value, precisions) for value in values)
        stretch, stretch_rate = _stretches(precision, rate, second)
        lower = torch.linalg.cholesky(precision)
        eye = torch.eye(d).to(lower).expand_as(lower)
        factor = torch.linalg.solve_triangular(lower, eye, upper=False).mT
        pull = (stretch_rate + stretch @ stretch) @ factor - self.kt * lower
        found = (mean, speed, speed_rate, lower, factor, stretch, pull)
        return Comoving(*(one[place] for one in found), root_mass=self.root_mass, friction=self.friction, kt=self.kt)


def thermal_path(
    process: Underdamped,
    curves: Sequence[Curve],
    time: float,
    *,
    sigma0: float,
    rng: Streams,
    coefficients: int = 16,
    rounds: int = 6,
    samples: int = 4,
    learn_weights: bool = False,
    floating: bool = False,
) -> ThermalPath:
    r"""Begin a `ThermalPath` on given curves, one component for each, with the precision of the self-consistent harmonic approximation.

    A mean that rises by more than ``3 N kT`` over its ends, where atoms are too close to one another, is first relaxed as an elastic band, at no more than ``400`` times ``2 P`` points.

    ``kT Lambda = E_q[H]_+ + (pi / T)^2``, the mean Hessian over the law itself, mass-weighted, without its negative part: a mode slower than the path
    does not reach its equilibrium, and negative ones have none. At both ends ``kT / (m sigma0^2)`` is added: thermal laws seen through ``N(A, sigma0^2)``.
    It takes ``coefficients * rounds * samples * D`` Hessian-vector products for each component.

    Args:
        process: The dynamics.
        curves: First means, ``s [rows] in [0, 1] -> [rows, D]``, from A to B.
        time: Duration T.
        sigma0: Width of the end laws in directions that nothing else holds.
        rng: Random streams.
        coefficients: Coefficients of the splines.
        rounds: Rounds of the approximation; the precision moves half of the way in each.
        samples: Pairs of opposite points for a mean Hessian.
        learn_weights: Learn the weights of the components.
        floating: Whether nothing holds the atoms in space, as in a molecule: an elastic band then neither shifts nor turns them as a whole.
    """
    at_least_one(coefficients=coefficients, rounds=rounds, samples=samples)
    counted = Counted(process.potential)
    process, knots = replace(process, potential=counted), _knots(coefficients)
    s = torch.stack([knots[j + 1 : j + 4].mean() for j in range(coefficients)])
    s[1], s[-2] = 0.0, 1.0
    means = torch.stack([_relaxed(process, curve(s).detach(), rng, floating) for curve in curves])
    mass = torch.as_tensor(process.mass, dtype=means.dtype).expand(means.shape[-1])
    found: list[Tensor] = []
    for k, one in enumerate(means):
        rows = []
        for j in range(coefficients):
            end = j < 2 or j > coefficients - 3
            same = rows[0] if j == 1 else rows[-1] if j == coefficients - 1 else found[0][j] if end and k else None
            rows.append(
                _self_consistent(process, one[j], mass, time, sigma0 if end else math.inf, rounds, samples, rng) if same is None else same
            )
        found.append(torch.stack(rows))
    return ThermalPath(process, time, means, torch.stack(found), learn_weights, counted.hvps)


def _relaxed(process: Underdamped, means: Tensor, rng: Streams, floating: bool) -> Tensor:
    """Coefficients ``[P, D]`` relaxed across the path, at random times, by damped dynamics with short steps; unless energies are thermal already."""
    p, d = means.shape
    rows, speed, means = 2 * p, torch.zeros_like(means[2:-2]), means.clone()
    with torch.no_grad():
        bound = float(process.potential(means[[0, -1]]).max()) + d * process.kt
        even = torch.linspace(0, 1, 4 * p + 1).to(means)
        if float(process.potential(basis(even, p) @ means).max()) < bound:
            return means
        for _ in range(_ROUNDS):
            s = (torch.arange(rows).to(means) + rng.uniform("band", (rows,)).to(means)) / rows
            spline = basis(s, p)
            line, place = torch.cat([means[:1], spline @ means, means[-1:]]), torch.cat([s.new_zeros(1), s, s.new_ones(1)])
            rate = line.diff(dim=0) / place.diff()[:, None]
            along = nn.functional.normalize(rate[1:] + rate[:-1], dim=1)
            pull = force(process.potential, line[1:-1])
            gap = (rate[1:].norm(dim=1) - rate[:-1].norm(dim=1))[:, None] / rows
            pull = pull + (_SPRING * gap - (pull * along).sum(1, keepdim=True)) * along
            if floating:
                pull = _unmoved(pull, line[1:-1])
            kick = torch.linalg.pinv(spline[:, 2:-2], rtol=0.05) @ _short(_MOBILITY * pull)
            speed = (0.9 * speed + 0.1 * kick * (speed.norm() / kick.norm()) if (kick * speed).sum() > 0 else 0.0) + kick
            speed = _short(speed)
            means[2:-2] += speed
    return means


def _unmoved(pull: Tensor, x: Tensor) -> Tensor:
    """Rows of forces ``[n, 3 N]`` without what shifts or turns positions as a whole."""
    place = x.unflatten(1, (-1, 3))
    away, axes = place - place.mean(1, keepdim=True), torch.eye(3).to(x)
    shifts = axes.expand(len(x), away.shape[1], 3, 3).flatten(1, 2)
    turns = torch.stack([torch.linalg.cross(axis.expand_as(away), away).flatten(1) for axis in axes], -1)
    rigid = torch.cat([shifts, turns], -1)
    return pull - (rigid @ (torch.linalg.pinv(rigid, rtol=1e-6) @ pull[..., None]))[..., 0]


def _short(step: Tensor) -> Tensor:
    """Rows of a step, shortened so that no atom moves farther than `_STEP`."""
    size = step.unflatten(1, (-1, 3)).norm(dim=-1).amax(1) if step.shape[1] % 3 == 0 else step.norm(dim=1)
    return step * (_STEP / size.clamp_min(1e-300)).clamp(max=1)[:, None]


def _self_consistent(
    process: Underdamped, mean: Tensor, mass: Tensor, time: float, sigma0: float, rounds: int, samples: int, rng: Streams
) -> Tensor:
    """Lower factor ``[D, D]`` of the precision about a mean, from narrow to wide."""
    root, d = mass.sqrt(), len(mean)
    least = torch.diag((math.pi / time) ** 2 + process.kt / (mass * sigma0**2)) / process.kt
    spread = torch.zeros(1, d).to(mean)
    lower = torch.empty(0)
    for k in range(rounds + 1):
        hessian = mean_hessian(process, mean + spread) / (root[:, None] * root) / process.kt
        values, vectors = torch.linalg.eigh(hessian)
        positive = values.abs() if k == 0 else values.clamp(min=0)
        wanted = (vectors * positive) @ vectors.mT + least
        lower = torch.linalg.cholesky(wanted if k == 0 else (wanted + lower @ lower.mT) / 2)
        z = rng.normal("hessian", torch.empty(samples, d).to(mean))
        y = torch.linalg.solve_triangular(lower.mT, torch.cat([z, -z]).mT, upper=True).mT
        spread = y / root
    return lower


def mean_hessian(process: Underdamped, x: Tensor) -> Tensor:
    """Mean ``[D, D]`` over states ``[n, D]`` of the Hessian of the energy, by one product for each state and coordinate."""
    d = x.shape[1]
    total = torch.zeros(d, d).to(x)
    for one in x:
        y = one.expand(d, -1).clone().requires_grad_()
        total += -torch.autograd.grad(force(process.potential, y), y, torch.eye(d).to(x))[0]
    return (total + total.mT) / (2 * len(x))


def basis(s: Tensor, coefficients: int, order: int = 0) -> Tensor:
    """Cubic B-splines ``[rows, P]`` on [0, 1] at ``s [rows]``, or their derivatives; they are positive and sum to one.

    >>> basis(torch.tensor([0.0, 0.5]), 6).sum(1).tolist()
    [1.0, 1.0]
    """
    from scipy.interpolate import BSpline

    spline = BSpline(_knots(coefficients).numpy(), torch.eye(coefficients, dtype=torch.float64).numpy(), 3)
    return torch.as_tensor(spline(s.detach().cpu().double().numpy(), nu=order)).to(s)


def _knots(coefficients: int) -> Tensor:
    inner = torch.linspace(0, 1, coefficients - 2, dtype=torch.float64)
    return torch.cat([inner.new_zeros(3), inner, inner.new_ones(3)])


class _Lyapunov(torch.autograd.Function):
    """The symmetric X of ``A X + X A = Q`` for positive A; its derivative is the same equation again, whatever eigenvalues coincide."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, vectors: Tensor, a: Tensor, q: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = _solved(values, vectors, q)
        ctx.save_for_backward(values, vectors, x)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors, x = ctx.saved_tensors
        y = _solved(values, vectors, (gradient + gradient.mT) / 2)
        return None, None, -(y @ x + x @ y), y


def _solved(values: Tensor, vectors: Tensor, q: Tensor) -> Tensor:
    inside = vectors.mT @ q @ vectors / (values[..., :, None] + values[..., None, :])
    return vectors @ inside @ vectors.mT


def _stretches(precision: Tensor, rate: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """N and its time derivative."""
    values, vectors = torch.linalg.eigh(precision.detach())
    first: Tensor = _Lyapunov.apply(values, vectors, precision, -rate)  # pyright: ignore[reportAssignmentType]
    mixed = rate @ first
    return first, _Lyapunov.apply(values, vectors, precision, -second - mixed - mixed.mT)  # pyright: ignore[reportReturnType]
