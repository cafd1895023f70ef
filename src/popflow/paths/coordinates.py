r"""Coordinates of molecules: superposition (Kabsch), internal coordinates (z-matrix) both ways, and initial paths.

    Kabsch      min_R |R (a - mean a) - (b - mean b)|,   R = V diag(1, 1, det V U^T) U^T,   U S V^T = svd(a^T b)
    z-matrix    atom = (bond, angle, dihedral) to three atoms before it
    IDPP        min over images of sum_{i<j} (|x_i - x_j| - d_ij(s))^2 / d_ij(s)^4,   d_ij(s) between the distances of both ends

Sources: Kabsch, Acta Cryst. A 32 (1976) 922; Parsons et al., J. Comput. Chem. 26 (2005) 1063; Smidstrup et al., J. Chem. Phys. 140 (2014) 214106.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NEAR = 0.35
"""Distances in nm beyond which the weight of a pair in an initial path no longer falls: all far pairs count the same little."""


def kabsch(a: Tensor, b: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Centre both ``[*batch, N, 3]``, and turn ``a`` onto ``b`` by a proper rotation; least squares with ``weights [N]``, such as masses, if given.

    >>> a = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    >>> turned, centred = kabsch(a @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + 5, a)
    >>> bool((turned - centred).abs().max() < 1e-5)
    True
    """
    if a.shape[-2:] != b.shape[-2:] or a.shape[-1] != 3:
        raise ValueError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}, wanted the same [*batch, N, 3].")
    if weights is None:
        p, q = a - a.mean(-2, keepdim=True), b - b.mean(-2, keepdim=True)
        table = p.transpose(-1, -2) @ q
    else:
        share = (weights / weights.sum())[:, None]
        p, q = a - (share * a).sum(-2, keepdim=True), b - (share * b).sum(-2, keepdim=True)
        table = p.transpose(-1, -2) @ (share * q)
    u, _, vt = torch.linalg.svd(table)
    proper = torch.ones_like(u[..., 0])
    proper[..., 2] = torch.linalg.det(u @ vt).sign()
    turned = p @ (u * proper[..., None, :] @ vt)
    return turned, q.expand_as(turned)


def rmsd(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square distance ``[*batch]`` of superposed positions ``[*batch, N, 3]``."""
    turned, centred = kabsch(a, b)
    return (turned - centred).square().sum(-1).mean(-1).sqrt()


def dihedrals(x: Tensor, quadruples: Tensor) -> Tensor:
    """Dihedrals ``[*batch, k]`` in rad of positions ``[*batch, N, 3]``, for rows of four atoms ``[k, 4]``."""
    a, b, c, d = (x[..., quadruples[:, k], :] for k in range(4))
    b1, b2, b3 = b - a, c - b, d - c
    n1, n2 = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
    return torch.atan2(_norm(b2) * (b1 * n2).sum(-1), (n1 * n2).sum(-1))


@dataclass(frozen=True, eq=False)
class ZMatrix:
    """Internal coordinates: three atoms stay Cartesian, each of the others has a bond, an angle and a dihedral to atoms placed before it.

    Attributes:
        rows: ``[N - 3, 4]``: an atom, and those of its bond, angle and dihedral; in an order in which atoms can be placed.
        base: The three atoms that stay Cartesian.

    Raises:
        ValueError: when a row refers to an atom that is not placed before it, or when an atom is missing or placed twice.

    Example:
        >>> x = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1]]])
        >>> internal = ZMatrix(torch.tensor([[3, 2, 1, 0]]), (0, 1, 2))
        >>> bool((internal.to_cartesian(internal.to_internal(x)) - x).abs().max() < 1e-6)
        True
    """

    rows: Tensor
    base: tuple[int, int, int]

    def __post_init__(self) -> None:
        placed = set(self.base)
        for atom, *others in self.rows.tolist():
            if atom in placed:
                raise ValueError(f"atom {atom} is placed twice.")
            if len(set(others)) < 3 or not placed.issuperset(others):
                raise ValueError(f"atom {atom} refers to {others}, wanted three different atoms placed before it.")
            placed.add(atom)
        if placed != set(range(len(self.rows) + 3)):
            raise ValueError(f"{len(placed)} atoms are placed, wanted the atoms 0 ... {len(self.rows) + 2}, each once.")

    @classmethod
    def of(cls, atoms: int, bonds: Sequence[tuple[int, int]]) -> ZMatrix:
        """Choose one for a connected molecule, outwards from an atom in its middle. Each bond, angle and dihedral follows bonds where there are any.

        >>> ZMatrix.of(4, [(0, 1), (1, 2), (2, 3)]).rows.tolist()
        [[0, 1, 2, 3]]
        """
        if atoms < 3:
            raise ValueError(f"atoms={atoms}, wanted at least 3.")
        near: list[list[int]] = [[] for _ in range(atoms)]
        for i, j in bonds:
            near[i].append(j)
            near[j].append(i)
        middle = min((i for i in range(atoms) if len(near[i]) > 1), key=lambda i: (abs(i - atoms // 2), i), default=None)
        if middle is None:
            raise ValueError(f"{len(bonds)} bonds of {atoms} atoms, wanted an atom with two neighbours.")
        first, last = sorted(near[middle], key=lambda i: (-len(near[i]), i))[:2]
        placed, rows = [middle, first, last], []
        for parent in placed:  # grows while it is walked
            for atom in sorted(near[parent]):
                if atom in placed:
                    continue
                grand = next(i for i in [*near[parent], *placed] if i in placed and i != parent)
                great = next(i for i in [*near[grand], *near[parent], *placed] if i in placed and i not in (parent, grand))
                rows.append([atom, parent, grand, great])
                placed.append(atom)
        if len(placed) != atoms:
            raise ValueError(f"the bonds join {len(placed)} of {atoms} atoms, wanted one molecule.")
        return cls(torch.tensor(rows, dtype=torch.long).reshape(-1, 4), (first, middle, last))

    def to_internal(self, x: Tensor) -> Tensor:
        """``[*batch, N, 3] -> [*batch, 3 N]``: the base in nm, then for each row the bond in nm, the angle and the dihedral in rad."""
        atom, bond, angle, _ = self.rows.T
        u, v = x[..., atom, :] - x[..., bond, :], x[..., angle, :] - x[..., bond, :]
        sine = _norm(torch.linalg.cross(u, v))
        values = torch.stack([_norm(u), torch.atan2(sine, (u * v).sum(-1)), dihedrals(x, self.rows)], -1)
        return torch.cat([x[..., list(self.base), :], values], -2).flatten(-2)

    def to_cartesian(self, internal: Tensor) -> Tensor:
        """``[*batch, 3 N] -> [*batch, N, 3]``, by placing one atom after the other; differentiable."""
        table = internal.unflatten(-1, (-1, 3))
        places: dict[int, Tensor] = {atom: table[..., k, :] for k, atom in enumerate(self.base)}
        for k, (atom, bond, angle, torsion) in enumerate(self.rows.tolist(), start=3):
            r, theta, phi = (value[..., None] for value in table[..., k, :].unbind(-1))
            along = _unit(places[bond] - places[angle])
            normal = _unit(torch.linalg.cross(places[angle] - places[torsion], along))
            across = torch.linalg.cross(normal, along)
            places[atom] = places[bond] + r * (-theta.cos() * along + theta.sin() * (phi.cos() * across + phi.sin() * normal))
        return torch.stack([places[atom] for atom in range(len(places))], -2)

    def between(self, a: Tensor, b: Tensor, s: Tensor, winding: Mapping[int, int] | None = None) -> Tensor:
        """Interpolate internal coordinates: ``[N, 3]``, ``[N, 3]`` and ``s [k]`` in [0, 1] to positions ``[k, N, 3]``.

        A dihedral takes the shorter way round, unless ``winding`` says for its atom how many full turns to add: -1 or 1 for the other way.

        Raises:
            ValueError: for an atom that no row places.
        """
        strange = sorted(set(winding or {}) - set(self.rows[:, 0].tolist()))
        if strange:
            raise ValueError(
                f"winding for atom {strange[0]}, which no row places by a dihedral, wanted one of {self.rows[:, 0].tolist()[:10]}."
            )
        start, end = self.to_internal(a), self.to_internal(b)
        change = end - start
        turns = change[11::3] if len(change) > 9 else change[:0]
        wrapped = torch.remainder(turns + torch.pi, 2 * torch.pi) - torch.pi
        for place, atom in enumerate(self.rows[:, 0].tolist()):
            wrapped[place] += 2 * torch.pi * (winding or {}).get(atom, 0)
        change = change.clone()
        change[11::3] = wrapped
        return self.to_cartesian(start + s[:, None] * change)


def idpp(a: Tensor, b: Tensor, images: int, start: Tensor | None = None, steps: int = 300) -> Tensor:
    """Initial path ``[images, N, 3]`` from ``a`` to ``b`` (both ``[N, 3]``, included): distances of all pairs go evenly from one end to the other.

    Distances are weighted by ``d^-4``, so that near pairs keep apart: atoms do not pass through one another as on a straight line.

    Args:
        a: First end, superposed on the second.
        b: Second end.
        images: Number of images, at least 3.
        start: A path to begin with; by default the straight line. Images of internal coordinates are a good one.
        steps: Steps of L-BFGS at the most.
    """
    if images < 3:
        raise ValueError(f"images={images}, wanted at least 3: two ends and something between.")
    s = torch.linspace(0, 1, images, dtype=a.dtype, device=a.device)[:, None]
    i, j = torch.triu_indices(len(a), len(a), 1, device=a.device)

    def distances(x: Tensor) -> Tensor:
        return (x[..., i, :] - x[..., j, :]).square().sum(-1).clamp_min(1e-12).sqrt()

    aim = (1 - s) * distances(a) + s * distances(b)
    weight = aim.clamp_max(_NEAR) ** -4
    path = (a + s[..., None] * (b - a) if start is None else start).detach().clone()
    wiggle = torch.sin(torch.arange(a.numel(), dtype=a.dtype, device=a.device) * 12.9898).reshape(a.shape)
    inner = (path[1:-1] + 1e-3 * wiggle).requires_grad_()  # symmetric straight lines have no way out of their plane

    def close() -> Tensor:
        optimiser.zero_grad()
        loss = (weight[1:-1] * (distances(inner) - aim[1:-1]).square()).mean() + 1e-4 * _jumps(a, inner, b)
        loss.backward()
        return loss

    optimiser = torch.optim.LBFGS([inner], max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
    optimiser.step(close)
    return torch.cat([a[None], inner.detach(), b[None]])


def _jumps(a: Tensor, inner: Tensor, b: Tensor) -> Tensor:
    """Mean square of steps between images: it keeps them from turning as a whole, which distances do not see."""
    path = torch.cat([a[None], inner, b[None]])
    return (path[1:] - path[:-1]).square().sum() * len(path)


def _unit(v: Tensor) -> Tensor:
    return v / _norm(v)[..., None]


def _norm(v: Tensor) -> Tensor:
    """Length along the last axis: torch's ``vector_norm`` cannot be differentiated in reverse after two derivatives in forward mode."""
    return (v * v).sum(-1).sqrt()
