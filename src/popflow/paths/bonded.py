r"""Bonded AMBER terms and their forces by hand, for many conformations at once.

    bond      k/2 (r - r0)^2
    angle     k/2 (theta - theta0)^2
    torsion   k (1 + cos(n phi - phase))

Positions are ``[N, 3, batch]``, the batch last: taking atoms then copies whole rows, and every operation runs along the batch. A term has an energy
``[batch]`` and its gradients on its atoms ``[terms, 3, batch]``; `popflow.paths.forcefield` adds the latter up. All of it is plain differentiable torch.

Source: the gradient of a torsion is that of Blondel and Karplus, J. Comput. Chem. 17 (1996) 1132.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_TINY = 1e-12
"""Added to sines of angles: the direction of a collinear angle's force is not defined, and comes out as zero."""


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Dot product of ``[rows, 3, batch]`` along the middle."""
    return u[:, 0] * v[:, 0] + u[:, 1] * v[:, 1] + u[:, 2] * v[:, 2]


def cross(u: Tensor, v: Tensor) -> Tensor:
    """Cross product of ``[rows, 3, batch]`` along the middle."""
    return torch.stack(
        [u[:, 1] * v[:, 2] - u[:, 2] * v[:, 1], u[:, 2] * v[:, 0] - u[:, 0] * v[:, 2], u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]], 1
    )


class _Term(nn.Module):
    """Atoms ``[terms, k]`` and parameters ``[terms, 1]`` of one kind of term."""

    atoms: Tensor

    def __init__(self, atoms: Tensor, **parameters: Tensor):
        super().__init__()
        self.register_buffer("atoms", atoms)
        for name, value in parameters.items():
            self.register_buffer(name, value[:, None])

    def at(self, x: Tensor) -> list[Tensor]:
        """Positions of the first, second, ... atom of each term."""
        return [x.index_select(0, self.atoms[:, k]) for k in range(self.atoms.shape[1])]


class Bonds(_Term):
    """Harmonic bonds: atoms ``[terms, 2]``, lengths in nm, constants in kJ/mol/nm^2."""

    length: Tensor
    constant: Tensor

    def energy(self, x: Tensor) -> Tensor:
        """Energy ``[batch]`` in kJ/mol."""
        i, j = self.at(x)
        return (self.constant / 2 * (dot(i - j, i - j).sqrt() - self.length).square()).sum(0)

    def gradients(self, x: Tensor) -> list[Tensor]:
        """Gradient on each of the two atoms."""
        i, j = self.at(x)
        d = i - j
        r = dot(d, d).sqrt()
        g = (self.constant * (1 - self.length / r))[:, None] * d
        return [g, -g]


class Angles(_Term):
    """Harmonic angles: atoms ``[terms, 3]``, angles in rad, constants in kJ/mol/rad^2."""

    angle: Tensor
    constant: Tensor

    def energy(self, x: Tensor) -> Tensor:
        """Energy ``[batch]`` in kJ/mol."""
        i, j, k = self.at(x)
        w = cross(i - j, k - j)
        theta = torch.atan2((dot(w, w) + _TINY**2).sqrt(), dot(i - j, k - j))
        return (self.constant / 2 * (theta - self.angle).square()).sum(0)

    def gradients(self, x: Tensor) -> list[Tensor]:
        """Gradient on each of the three atoms: ``grad_u theta = u x w / (|u|^2 |w|)`` with ``w = u x v``."""
        i, j, k = self.at(x)
        u, v = i - j, k - j
        w = cross(u, v)
        sine = (dot(w, w) + _TINY**2).sqrt()
        slope = self.constant * (torch.atan2(sine, dot(u, v)) - self.angle) / sine
        first = (slope / dot(u, u))[:, None] * cross(u, w)
        last = (slope / dot(v, v))[:, None] * cross(w, v)
        return [first, -first - last, last]


class Torsions(_Term):
    """Periodic torsions: atoms ``[terms, 4]``, phases in rad, constants in kJ/mol. Proper and improper ones have the same form."""

    periodicity: Tensor
    phase: Tensor
    constant: Tensor

    def energy(self, x: Tensor) -> Tensor:
        """Energy ``[batch]`` in kJ/mol."""
        a, b, c, d = self.at(x)
        phi = dihedral(b - a, c - b, d - c)
        return (self.constant * (1 + (self.periodicity * phi - self.phase).cos())).sum(0)

    def gradients(self, x: Tensor) -> list[Tensor]:
        """Gradient on each of the four atoms."""
        a, b, c, d = self.at(x)
        b1, b2, b3 = b - a, c - b, d - c
        n1, n2 = cross(b1, b2), cross(b2, b3)
        square = dot(b2, b2)
        length = square.sqrt()
        phi = torch.atan2(length * dot(b1, n2), dot(n1, n2))
        slope = -self.constant * self.periodicity * (self.periodicity * phi - self.phase).sin() * length
        first = (-slope / (dot(n1, n1) + _TINY**2))[:, None] * n1
        last = (slope / (dot(n2, n2) + _TINY**2))[:, None] * n2
        towards = (dot(b1, b2) / square)[:, None] * first - (dot(b3, b2) / square)[:, None] * last
        return [first, -first - towards, towards - last, last]


def dihedral(b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    """Dihedral ``phi`` in rad of three consecutive bond vectors ``[rows, 3, batch]``, positive by the IUPAC rule.

    >>> east, north, up = torch.eye(3)[:, None, :, None]
    >>> round(float(dihedral(-north, east, up)) / torch.pi, 6)
    0.5
    """
    n1, n2 = cross(b1, b2), cross(b2, b3)
    return torch.atan2(dot(b2, b2).sqrt() * dot(b1, n2), dot(n1, n2))
