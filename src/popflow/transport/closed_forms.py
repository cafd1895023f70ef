"""Exact answers to test solvers against: Gaussian transport (free, harmonic, linear), Schroedinger bridges, growth between atoms.

Time runs from 0 to 1. A flow of duration ``T`` with noise ``sigma`` and stiffness ``k`` is one of duration 1 with ``sigma sqrt(T)`` and
``k T^2``, whose action is ``T`` times as large. Everything is computed in float64; positions are in the user's unit of length, ``lam`` in its
inverse square.

Sources: Takatsu (2011) for Gaussian transport; Mallasto, Gerolin and Minh, Inf. Geom. 5 (2022), and Bunne et al., AISTATS 2023, for the
Gaussian bridge; Liero, Mielke and Savare, Invent. Math. 211 (2018), and Chizat et al., Found. Comput. Math. 18 (2018), for
Wasserstein-Fisher-Rao; Laschos and Mielke, J. Funct. Anal. 276 (2019), for its normalised (spherical) form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GaussianFlow:
    """A path of normal distributions: ``mean(t) [d]``, ``covariance(t) [d, d]``, ``drift(t, x) [n, d]`` and the action of the whole."""

    mean: Callable[[float], Tensor]
    covariance: Callable[[float], Tensor]
    drift: Callable[[float, Tensor], Tensor]
    action: float


@dataclass(frozen=True, slots=True)
class AtomFlow:
    """Atoms whose masses (and, for one atom, position) change: ``mass(t) [k]``, ``position(t) [k, d]`` and the action."""

    mass: Callable[[float], Tensor]
    position: Callable[[float], Tensor]
    action: float


def brenier_map(s0: Tensor, s1: Tensor) -> Tensor:
    """Return the symmetric ``T`` with ``T S0 T = S1``, ``T = S0^-1/2 (S0^1/2 S1 S0^1/2)^1/2 S0^-1/2``; ``x -> T x`` is optimal.

    >>> brenier_map(torch.eye(2), torch.diag(torch.tensor([4.0, 9.0]))).diagonal().tolist()
    [2.0, 3.0]
    """
    root, inverse = _root(s0), torch.linalg.inv(_root(s0))
    return inverse @ _root(root @ s1.double() @ root) @ inverse


def gaussian_transport(
    m0: Tensor, s0: Tensor, m1: Tensor, s1: Tensor, *, stiffness: float = 0.0, acceleration: Tensor | None = None
) -> GaussianFlow:
    """Least action ``int E[|v|^2 / 2 - V] dt`` from ``N(m0, S0)`` to ``N(m1, S1)``, ``V = k |x|^2 / 2 - <a, x>``.

    Particles obey ``x'' = -k x + a``; the coupling is the Brenier map for any ``k < pi^2``, because the cost of a pair depends on the
    coupling through ``-<x0, x1> w / sin w`` alone, ``w = sqrt(k)``. With ``k = 0``, ``a = 0`` this is optimal transport and the action
    ``W2^2 / 2``.

    Args:
        m0: ``[d]``.
        s0: ``[d, d]``, positive definite.
        m1: ``[d]``.
        s1: ``[d, d]``, positive definite.
        stiffness: ``k``; below 0 the potential is an inverted parabola.
        acceleration: ``a [d]``; only together with ``k = 0``.

    Raises:
        ValueError: for ``k >= pi^2``, where the action has no lower bound, and for both kinds of potential at once.

    Example:
        >>> toy = gaussian_transport(torch.tensor([-1.0]), torch.eye(1) * 0.01, torch.tensor([1.0]), torch.eye(1) * 0.01, stiffness=2.0)
        >>> round(float(toy.covariance(0.5).sqrt()), 4), round(toy.action, 4)
        (0.1315, 1.6429)
    """
    if stiffness >= math.pi**2:
        raise ValueError(
            f"stiffness={stiffness}, wanted below pi^2 = {math.pi**2:.4f}: after half a period of the oscillator the action has no lower bound."
        )
    if acceleration is not None and stiffness:
        raise ValueError(f"stiffness={stiffness} and an acceleration, wanted one of them: shift the origin by a / k instead.")
    m0, s0, m1, s1 = (value.double() for value in (m0, s0, m1, s1))
    a = torch.zeros_like(m0) if acceleration is None else acceleration.double()
    move, eye = brenier_map(s0, s1), torch.eye(len(m0), dtype=torch.float64)
    w = math.sqrt(abs(stiffness))
    sine, cosine = (math.sin, math.cos) if stiffness >= 0 else (math.sinh, math.cosh)

    def ramp(u: float) -> tuple[float, float]:
        """The solution of ``f'' = -k f`` from 0 at 0 to 1 at 1, and its slope."""
        return (u, 1.0) if w == 0 else (sine(w * u) / sine(w), w * cosine(w * u) / sine(w))

    def parts(t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (back, fall), (on, rise) = ramp(1 - t), ramp(t)
        mean = back * m0 + on * m1 - a * t * (1 - t) / 2
        speed = -fall * m0 + rise * m1 - a * (1 - 2 * t) / 2
        return mean, speed, back * eye + on * move, -fall * eye + rise * move

    def drift(t: float, x: Tensor) -> Tensor:
        mean, speed, shape, change = parts(t)
        return (speed + (x.double() - mean) @ torch.linalg.solve(shape, change, left=False).mT).to(x.dtype)

    def covariance(t: float) -> Tensor:
        shape = parts(t)[2]
        return shape @ s0 @ shape.mT

    if w == 0:
        distance2 = (m1 - m0).square().sum() + (s0 + s1 - 2 * move @ s0).trace()
        action = float(distance2 / 2 + (a @ (m0 + m1)) / 2 - a @ a / 24)
    else:
        squares, product = m0 @ m0 + m1 @ m1 + (s0 + s1).trace(), m0 @ m1 + (move @ s0).trace()
        action = float(w / (2 * sine(w)) * (squares * cosine(w) - 2 * product))
    return GaussianFlow(lambda t: parts(t)[0], covariance, drift, action)


def gaussian_bridge(m0: Tensor, s0: Tensor, m1: Tensor, s1: Tensor, sigma: float) -> GaussianFlow:
    """Schroedinger bridge between normal distributions: least ``int E|f|^2 / 2 dt`` for ``dx = f dt + sigma dW``.

    With ``D = (4 S0^1/2 S1 S0^1/2 + sigma^4)^1/2`` and the cross-covariance ``C = (S0^1/2 D S0^-1/2 - sigma^2) / 2``,

        S_t = (1-t)^2 S0 + t^2 S1 + t (1-t) (C + C^T + sigma^2),     f = m1 - m0 + G_t S_t^-1 (x - m_t)
        G_t = t S1 + (1-t) C^T - (1-t) S0 - t C - t sigma^2

    The action is ``sigma^2`` times the relative entropy to Brownian motion from the same start; its time integral is by Gauss-Legendre.

    >>> bridge = gaussian_bridge(torch.zeros(1), torch.eye(1), torch.zeros(1), torch.eye(1), 1.0)
    >>> round(float(bridge.covariance(0.5)), 4)
    1.059
    """
    if not sigma > 0:
        raise ValueError(f"sigma={sigma}, wanted a number above 0: without noise take gaussian_transport.")
    m0, s0, m1, s1 = (value.double() for value in (m0, s0, m1, s1))
    root, eye = _root(s0), torch.eye(len(m0), dtype=torch.float64)
    d = _root(4 * root @ s1 @ root + sigma**4 * eye)
    c = (root @ d @ torch.linalg.inv(root) - sigma**2 * eye) / 2

    def covariance(t: float) -> Tensor:
        return (1 - t) ** 2 * s0 + t**2 * s1 + t * (1 - t) * (c + c.mT + sigma**2 * eye)

    def slope(t: float) -> Tensor:
        g = t * s1 + (1 - t) * c.mT - (1 - t) * s0 - t * c - t * sigma**2 * eye
        return torch.linalg.solve(covariance(t), g, left=False)

    def mean(t: float) -> Tensor:
        return (1 - t) * m0 + t * m1

    def drift(t: float, x: Tensor) -> Tensor:
        return (m1 - m0 + (x.double() - mean(t)) @ slope(t).mT).to(x.dtype)

    nodes, weights = np.polynomial.legendre.leggauss(64)
    energy = 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        a = slope(float(node))
        energy += float(weight) * float((a @ covariance(float(node)) @ a.mT).trace())
    return GaussianFlow(mean, covariance, drift, float((m1 - m0).square().sum()) / 2 + energy / 2)


def dirac_growth(x0: Tensor, x1: Tensor, h0: float, h1: float, lam: float) -> AtomFlow:
    """Wasserstein-Fisher-Rao between two atoms: least ``int (|v|^2 / 2 + g^2 / (2 lam)) h dt`` from ``h0`` at ``x0`` to ``h1`` at ``x1``.

    With ``delta = 1 / sqrt(lam)`` and the angle ``tau = |x1 - x0| / (2 delta)`` below ``pi / 2``, a straight line in the plane
    ``z = sqrt(h) exp(i angle)``: ``z(t) = (1-t) sqrt(h0) + t sqrt(h1) exp(i tau)``, ``h = |z|^2``, position ``x0 + 2 delta arg z``. The action
    is ``2 delta^2 (h0 + h1 - 2 sqrt(h0 h1) cos tau)``. Atoms further apart do not travel: one dies, the other grows, and ``mass``
    and ``position`` then hold two atoms.

    >>> near = dirac_growth(torch.zeros(1), torch.ones(1), 1.0, 1.0, 1.0)
    >>> round(float(near.mass(0.5)), 4), round(near.action, 4)
    (0.9388, 0.4897)
    >>> dirac_growth(torch.zeros(1), torch.full((1,), 4.0), 1.0, 2.0, 1.0).action
    6.0
    """
    if not (lam > 0 and h0 > 0 and h1 > 0):
        raise ValueError(f"lam={lam}, h0={h0}, h1={h1}, wanted numbers above 0.")
    x0, x1, delta = x0.double(), x1.double(), 1 / math.sqrt(lam)
    distance = float((x1 - x0).norm())
    tau = distance / (2 * delta)
    if tau >= math.pi / 2:
        masses = torch.tensor([h0, h1], dtype=torch.float64)
        return AtomFlow(
            lambda t: masses * torch.tensor([(1 - t) ** 2, t**2], dtype=torch.float64),
            lambda t: torch.stack([x0, x1]),
            2 * delta**2 * (h0 + h1),
        )
    direction = (x1 - x0) / distance if distance else torch.zeros_like(x0)

    def z(t: float) -> complex:
        return complex((1 - t) * math.sqrt(h0) + t * math.sqrt(h1) * math.cos(tau), t * math.sqrt(h1) * math.sin(tau))

    def position(t: float) -> Tensor:
        return (x0 + 2 * delta * math.atan2(z(t).imag, z(t).real) * direction)[None]

    action = 2 * delta**2 * (h0 + h1 - 2 * math.sqrt(h0 * h1) * math.cos(tau))
    return AtomFlow(lambda t: torch.tensor([abs(z(t)) ** 2], dtype=torch.float64), position, action)


def atom_growth(x: Tensor, p: Tensor, q: Tensor, lam: float) -> AtomFlow:
    """Normalised growth of far atoms, weights ``p -> q`` (each sums to 1): a great circle of ``sqrt(weights)``, of length ``theta``.

    ``cos theta = sum sqrt(p q)``, ``sqrt(w_t) = (sin((1-t) theta) sqrt(p) + sin(t theta) sqrt(q)) / sin theta``, action ``2 theta^2 / lam``.
    It is the answer when transport does not pay: atoms at least ``pi / sqrt(lam)`` apart. Growth is ``d log w / dt``.

    >>> far = atom_growth(torch.tensor([[-3.0], [3.0]]), torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]), 1.0)
    >>> round(far.action, 4), [round(w, 3) for w in far.mass(0.5).tolist()]
    (0.4299, [0.724, 0.276])
    """
    p, q = p.double() / p.double().sum(), q.double() / q.double().sum()
    if not lam > 0:
        raise ValueError(f"lam={lam}, wanted a number above 0.")
    apart = float(torch.pdist(x.double()).min()) if len(x) > 1 else math.inf
    if apart < math.pi / math.sqrt(lam):
        raise ValueError(
            f"x: two atoms are {apart:.4g} apart, wanted at least pi / sqrt(lam) = {math.pi / math.sqrt(lam):.4g}: nearer ones exchange mass."
        )
    theta = math.acos(min(1.0, float((p * q).sqrt().sum())))

    def mass(t: float) -> Tensor:
        if theta == 0:
            return p
        return ((math.sin((1 - t) * theta) * p.sqrt() + math.sin(t * theta) * q.sqrt()) / math.sin(theta)).square()

    return AtomFlow(mass, lambda t: x.double(), 2 * theta**2 / lam)


def _root(s: Tensor) -> Tensor:
    """Symmetric square root of a positive definite matrix, in float64."""
    values, vectors = torch.linalg.eigh(s.double())
    if not bool((values > 0).all()):
        raise ValueError(f"a covariance has the eigenvalues {values.tolist()}, wanted all above 0.")
    return vectors @ torch.diag(values.sqrt()) @ vectors.mT
