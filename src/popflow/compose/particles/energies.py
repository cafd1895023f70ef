"""Energies of particle systems, with analytic forces: Lennard-Jones clusters and the double-well cluster DW-4.

A configuration is ``x [..., n, d]``; all energies are invariant under permutations, rotations and translations. Energies and temperatures are
in the same reduced units, lengths in those of the potential, and Boltzmann densities are ``p(x) ~ exp(-E(x) / T)`` on **centred**
configurations, ``sum_i x_i = 0``: these have ``(n - 1) d`` degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from popflow.compose.spaces.space import CentredParticles

Pairs = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``pairs(r2) -> (u, du/d(r2))``: energy of a pair of particles and its derivative, as functions of the squared distance."""


@dataclass(frozen=True, eq=False)
class Cluster:
    """Identical particles with pair interactions in a harmonic trap: ``E(x) = sum_{i<j} u(|x_i - x_j|) + k/2 sum_i |x_i - xbar|^2``.

    The sum runs over **unordered** pairs; what a published convention counts twice stands in ``u`` (see `lennard_jones`).

    Attributes:
        name: Name in reports.
        particles: ``n``.
        dimensions: ``d``.
        pairs: ``u`` as a function of the squared distance, with its derivative.
        trap: Stiffness ``k`` towards the centre of mass.
        distance: Typical distance between neighbours, the length scale of samplers and checks.
    """

    name: str
    particles: int
    dimensions: int
    pairs: Pairs
    trap: float = 0.0
    distance: float = 1.0

    @property
    def event(self) -> tuple[int, int]:
        """Shape of a configuration."""
        return self.particles, self.dimensions

    @property
    def space(self) -> CentredParticles:
        """Where its configurations live; ``space.check`` centres them, with a warning."""
        return CentredParticles(self.particles, self.dimensions)

    def energy(self, x: Tensor) -> Tensor:
        """Energy of configurations ``[..., n, d]``, ``[...]``; +inf where particles coincide."""
        return self.energy_and_force(x)[0]

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy ``[...]`` and force ``-grad E`` ``[..., n, d]``.

        Coordinates of the pairs are one product with the incidence matrix, so that everything else runs over contiguous pairs.

        Raises:
            ValueError: when ``x`` does not end in ``[n, d]``.
        """
        self._check(x)
        incidence = _incidence(self.particles).to(x)
        rows = x.reshape(-1, *self.event).transpose(1, 2).contiguous()
        between = rows @ incidence.T
        u, slope = self.pairs(between.square().sum(1))
        energy, force = u.sum(1), (-2 * slope.unsqueeze(1) * between) @ incidence
        if self.trap:
            centred = rows - rows.mean(2, keepdim=True)
            energy = energy + self.trap / 2 * centred.square().sum((1, 2))
            force = force - self.trap * centred
        return energy.reshape(x.shape[:-2]), force.transpose(1, 2).reshape(x.shape)

    def distances(self, x: Tensor) -> Tensor:
        """Distances of the unordered pairs, ``[..., n (n - 1) / 2]``."""
        self._check(x)
        return (_incidence(self.particles).to(x) @ x).norm(dim=-1)

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[-2:]) != self.event:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, wanted [..., {self.particles}, {self.dimensions}], a configuration of {self.name}."
            )


def lennard_jones(particles: int = 13, *, depth: float = 1.0, minimum: float = 1.0, trap: float = 1.0) -> Cluster:
    """Lennard-Jones cluster in three dimensions, in the convention of the diffusion samplers that are measured on LJ-13.

    ``E(x) = sum_{i != j} depth [(r_m/r_ij)^12 - 2 (r_m/r_ij)^6] + trap/2 sum_i |x_i - xbar|^2``

    over **ordered** pairs: every pair counts twice, and the well is ``2 depth`` deep. Other papers count each pair once (an energy factor of 1/2), which
    is a different physical system: at T = 1 its mean energy is 0.5 instead of -43. Check value: the relaxed
    icosahedron of 13 particles has ``E = -83.09``; each pair once gives -38.77 there (`icosahedron` makes one).

    Args:
        particles: Number of particles.
        depth: ``eps``, in units of energy.
        minimum: ``r_m``, the pair distance of minimal energy.
        trap: Stiffness of the harmonic trap; 0 lets clusters evaporate.

    Example:
        >>> lj2 = lennard_jones(2, trap=0.0)
        >>> x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
        >>> lj2.energy(x).item()
        -2.0

    Source: Wales and Doye, J. Phys. Chem. A 101 (1997); Koehler, Klein and Noe, *Equivariant flows* (2020); Akhound-Sadegh et al., *Iterated
    denoising energy matching* (2024).
    """
    if particles < 2:
        raise ValueError(f"particles={particles}, wanted at least 2.")
    if not (0 < depth < math.inf and 0 < minimum < math.inf):
        raise ValueError(f"depth={depth!r}, minimum={minimum!r}, wanted finite numbers above 0.")
    pairs = partial(_lennard_jones_pairs, 2 * depth, minimum**2)
    return Cluster(f"LJ-{particles}", particles, 3, pairs, trap, minimum)


def double_well(particles: int = 4, *, a: float = 0.9, b: float = -4.0, offset: float = 4.0) -> Cluster:
    """Planar cluster whose pairs have two preferred distances (DW-4 for four particles).

    ``E(x) = sum_{i<j} [a (r_ij - offset)^4 + b (r_ij - offset)^2]``, each pair **once**. With the default parameters the minima of a pair,
    -40/9, lie at ``offset -+ sqrt(20)/3``.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [4 + 20**0.5 / 3, 0.0]], dtype=torch.float64)
        >>> round(double_well(2).energy(x).item(), 6)
        -4.444444

    Source: Koehler, Klein and Noe, *Equivariant flows* (2020).
    """
    if particles < 2:
        raise ValueError(f"particles={particles}, wanted at least 2.")
    return Cluster(f"DW-{particles}", particles, 2, partial(_double_well_pairs, a, b, offset), 0.0, offset)


def icosahedron(steps: int = 500) -> Tensor:
    """Relaxed LJ-13 icosahedron ``[13, 3]`` in its trap, float64: the ground state, by gradient descent from the regular one.

    >>> round(lennard_jones(13).energy(icosahedron()).item(), 2)
    -83.09
    """
    golden, system = (1 + math.sqrt(5)) / 2, lennard_jones(13)
    corners = [(0.0, i, j * golden) for i in (-1.0, 1.0) for j in (-1.0, 1.0)]
    corners = torch.tensor([(0.0, 0.0, 0.0), *(corner[k:] + corner[:k] for k in range(3) for corner in corners)], dtype=torch.float64)
    x = corners * (system.distance / corners[1].norm())
    for _ in range(steps):
        x = x + 5e-4 * system.energy_and_force(x)[1]
    return x


def apart(system: Cluster, x: Tensor, *, what: str = "x") -> Tensor:
    """Return ``x``, or raise if two particles of a configuration coincide.

    Raises:
        ValueError: naming a configuration and a pair whose distance is below a millionth of the typical one: its energy is infinite.
    """
    distance = system.distances(x)
    closest = distance.reshape(-1, distance.shape[-1])
    bad = (closest < 1e-6 * system.distance).nonzero()
    if len(bad):
        row, pair = (int(value) for value in bad[0])
        i, j = (int(value) for value in torch.triu_indices(system.particles, system.particles, 1)[:, pair])
        raise ValueError(
            f"{what}: particles {i} and {j} of configuration {row} coincide (distance {float(closest[row, pair]):.3g}; {len(bad)} such "
            f"pairs in all), wanted distances around {system.distance:g}: the energy is infinite there. Fix: remove the copies, or move them apart."
        )
    return x


@cache
def _incidence(n: int) -> Tensor:
    """Incidence matrix ``[n (n - 1) / 2, n]``: +1 and -1 at the two particles of each unordered pair; float64."""
    i, j = torch.triu_indices(n, n, 1)
    matrix = torch.zeros(len(i), n, dtype=torch.float64)
    rows = torch.arange(len(i))
    matrix[rows, i], matrix[rows, j] = 1.0, -1.0
    return matrix


def _lennard_jones_pairs(well: float, square: float, r2: Tensor) -> tuple[Tensor, Tensor]:
    inverse = square / r2
    sixth = inverse * inverse * inverse
    return well * (sixth * (sixth - 2)), (6 * well / square) * inverse * (sixth * (1 - sixth))


def _double_well_pairs(a: float, b: float, offset: float, r2: Tensor) -> tuple[Tensor, Tensor]:
    r = r2.sqrt()
    beyond = r - offset
    square = beyond * beyond
    slope = beyond * (4 * a * square + 2 * b)
    return square * (a * square + b), slope / (2 * r).clamp_min(torch.finfo(r.dtype).tiny)
