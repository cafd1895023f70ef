"""Protein backbones as frames: cut fragments, make experts of real fragments, and turn samples back into atoms.

A residue is the frame ``(R, x)`` of its atoms N, CA and C: x is CA, the columns of R are the direction of C, that of N made orthogonal to it, and their
cross product (Gram-Schmidt). A fragment of L residues is its L - 1 *relative* frames ``R_i^T R_{i+1}`` and ``R_i^T (x_{i+1} - x_i)``: the
position and orientation of the whole fragment drop out exactly. So fragments live in ``SO(3)^{L-1} x R^{3(L-1)}``, and the kernel density of M of them is an expert
with exact score and density at every noise level.

Lengths are in angstroms, angles in radians. These experts are densities of known fragments. Whether a sequence folds into a sample (designability)
was not measured.

Source of the frames: Jumper et al., *Highly accurate protein structure prediction with AlphaFold*, Nature 596 (2021), supplement 1.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from popflow.compose.curved_experts import from_scores
from popflow.compose.experts import log_shares
from popflow.compose.spaces.igso3 import igso3_draws, igso3_kernels, igso3_score
from popflow.compose.spaces.products import ProductSpace, Proportional
from popflow.compose.spaces.rotations import Rotations
from popflow.compose.spaces.space import Clock, Euclidean
from popflow.compose.target import Expert
from popflow.core import Streams

RADIANS = Proportional(0.25)
"""The default clock of rotations: a quarter of a radian per angstrom."""
_IDEAL = ((-0.525, 1.363, 0.0), (0.0, 0.0, 0.0), (1.526, 0.0, 0.0))  # N, CA, C in the frame of their residue
_BONDS = ((1.329, 2.028), (1.458, 2.124), (1.526, 1.941))  # C-N, N-CA, CA-C: length, and the angle at the atom it starts from


def fragments(chains: Iterable[Tensor], length: int) -> Tensor:
    """Cut chains ``[residues, 3, 3]`` into all overlapping fragments ``[M, length, 3, 3]``; duplicates (to 0.001 angstrom) are dropped.

    >>> fragments([ideal_backbone(torch.full((5,), -1.1), torch.full((5,), -0.8))], 3).shape
    torch.Size([1, 3, 3, 3])

    All fragments of an ideal helix are equal.
    """
    if length < 2:
        raise ValueError(f"length={length}, wanted at least 2 residues: a fragment is described by relative frames.")
    windows = [chain.unfold(0, length, 1).movedim(-1, 1) for chain in chains if len(chain) >= length]
    if not windows:
        raise ValueError(f"no chain has {length} residues in a row: give other files or a smaller length.")
    every = torch.cat(windows)
    rotations, translations = relative(*residue_frames(every))
    key = torch.cat([rotations.flatten(1), translations.flatten(1)], 1).mul(1000).round()
    _, group = key.unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(every)).scatter_reduce(0, group, torch.arange(len(every)), "amin")
    return every[first.sort().values]


def residue_frames(backbone: Tensor) -> tuple[Tensor, Tensor]:
    """Frames of residues with atoms N, CA, C ``[..., 3, 3]``: rotations ``[..., 3, 3]`` (columns are the axes) and origins ``[..., 3]``."""
    n, ca, c = backbone.unbind(-2)
    first = c - ca
    first = first / first.norm(dim=-1, keepdim=True)
    second = n - ca
    second = second - (second * first).sum(-1, keepdim=True) * first
    size = second.norm(dim=-1, keepdim=True)
    bad = int((~(size > 1e-6)).sum())
    if bad:
        raise ValueError(f"{bad} residues have N, CA and C collinear, coincident or undefined (NaN), hence no frame. Fix: leave them out.")
    second = second / size
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1), ca


def relative(rotations: Tensor, origins: Tensor) -> tuple[Tensor, Tensor]:
    """Relative frames along a chain: ``R_i^T R_{i+1}`` ``[..., L-1, 3, 3]`` and ``R_i^T (x_{i+1} - x_i)`` ``[..., L-1, 3]``."""
    before = rotations[..., :-1, :, :].mT
    return before @ rotations[..., 1:, :, :], (before @ origins.diff(dim=-2).unsqueeze(-1)).squeeze(-1)


def atoms(rotations: Tensor, translations: Tensor) -> Tensor:
    """Atoms N, CA, C ``[..., L, 3, 3]`` of relative frames, with ideal residues, the first frame at the origin: the inverse of `relative`.

    >>> helix = ideal_backbone(torch.full((6,), -1.1), torch.full((6,), -0.8))
    >>> again = atoms(*relative(*residue_frames(helix)))
    >>> bool((torch.cdist(again.flatten(0, 1), again.flatten(0, 1)) - torch.cdist(helix.flatten(0, 1), helix.flatten(0, 1))).abs().max() < 0.05)
    True
    """
    rows = translations.shape[:-2]
    turn = torch.eye(3, dtype=rotations.dtype, device=rotations.device).expand(*rows, 3, 3)
    place = translations.new_zeros(*rows, 3)
    ideal = translations.new_tensor(_IDEAL)
    out = [ideal.expand(*rows, 3, 3)]
    for k in range(translations.shape[-2]):
        place = place + (turn @ translations[..., k, :].unsqueeze(-1)).squeeze(-1)
        turn = turn @ rotations[..., k, :, :]
        out.append(ideal @ turn.mT + place.unsqueeze(-2))
    return torch.stack(out, -3)


def torsions(backbone: Tensor) -> tuple[Tensor, Tensor]:
    """Angles ``psi_i`` and ``phi_{i+1}`` on both sides of every peptide bond of fragments ``[..., L, 3, 3]``: each ``[..., L-1]``, in radians."""
    n, ca, c = backbone.unbind(-2)
    psi = dihedral(n[..., :-1, :], ca[..., :-1, :], c[..., :-1, :], n[..., 1:, :])
    return psi, dihedral(c[..., :-1, :], n[..., 1:, :], ca[..., 1:, :], c[..., 1:, :])


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Signed dihedral angle of four points ``[..., 3]``, in (-pi, pi]."""
    axis = c - b
    left, right = torch.linalg.cross(b - a, axis), torch.linalg.cross(axis, d - c)
    length = axis.norm(dim=-1)
    return torch.atan2((torch.linalg.cross(left, right) * axis).sum(-1) / length, (left * right).sum(-1))


def helical(backbone: Tensor) -> Tensor:
    """Which fragments are alpha-helical at every peptide bond: psi in (-80, 0) and phi in (-100, -30) degrees."""
    psi, phi = (angle.rad2deg() for angle in torsions(backbone))
    return ((psi > -80) & (psi < 0) & (phi > -100) & (phi < -30)).all(-1)


def extended(backbone: Tensor) -> Tensor:
    """Which fragments are extended, as in strands, at every peptide bond: psi in (90, 180) and phi in (-180, -45) degrees."""
    psi, phi = (angle.rad2deg() for angle in torsions(backbone))
    return ((psi > 90) & (phi < -45)).all(-1)


def ideal_backbone(phi: Tensor, psi: Tensor) -> Tensor:
    """Backbone ``[L, 3, 3]`` with given torsions ``[L]``, ideal bonds and planar peptides; the first phi and the last psi have no effect.

    >>> helix = ideal_backbone(torch.full((5,), -1.0), torch.full((5,), -0.8))
    >>> [round(float(angle[0]), 3) for angle in torsions(helix)]
    [-0.8, -1.0]
    """
    points = [torch.tensor(place, dtype=torch.float64) for place in _IDEAL]
    for k in range(1, len(phi)):
        for (size, bend), turn in zip(_BONDS, (float(psi[k - 1]), math.pi, float(phi[k])), strict=True):
            a, b, c = points[-3:]
            axis = (c - b) / (c - b).norm()
            normal = torch.linalg.cross(b - a, axis)
            normal = normal / normal.norm()
            side = torch.linalg.cross(normal, axis)
            points.append(c + size * (-math.cos(bend) * axis + math.sin(bend) * (math.cos(turn) * side + math.sin(turn) * normal)))
    return torch.stack(points).reshape(len(phi), 3, 3)


def frame_space(count: int, clock: Clock = RADIANS) -> ProductSpace:
    """``count`` relative frames, ``SO(3)^count x R^{3 count}``; rotations run on ``clock`` of the translations' noise level in angstroms."""
    return ProductSpace((Rotations(count), Euclidean((count, 3), "angstroms")), (clock, Proportional()))


def frame_mixture(
    rotations: Tensor,
    translations: Tensor,
    rotation_std: float = 0.2,
    translation_std: float = 0.3,
    weights: Tensor | None = None,
    *,
    clock: Clock = RADIANS,
    name: str = "frames",
    chunk: int | None = None,
) -> Expert:
    """Kernel mixture of relative frames: ``q = sum_m w_m prod_i f(omega_mi; a^2 + sigma_r^2) N(x_i; x_mi, (b^2 + sigma^2) 1)``, ``sigma_r = clock(sigma)``.

    Points are vectors of `frame_space`: ``expert.home.split(x)`` gives relative rotations and translations, `atoms` the backbone. Densities are
    relative to uniform rotations and to the unit of length.

    Args:
        rotations: ``[M, count, 3, 3]``.
        translations: ``[M, count, 3]``, in angstroms for backbones.
        rotation_std: Kernel width ``a`` of the rotations, radians.
        translation_std: Kernel width ``b`` of the translations.
        weights: ``[M]``, non-negative, normalised here; None for equal ones.
        clock: Noise level of the rotations as a function of that of the translations.
        name: Name in errors and reports.
        chunk: Rows per call: memory is rows x M x count.

    Raises:
        ValueError: for shapes that do not fit, matrices that are not rotations, widths that are not positive.

    Example:
        >>> q = frame_mixture(torch.eye(3).expand(1, 2, 3, 3), torch.zeros(1, 2, 3))
        >>> q.home.dim, q.event
        (12, (24,))
    """
    if translations.ndim != 3 or not translations.numel() or rotations.shape != (*translations.shape, 3):
        raise ValueError(
            f"rotations and translations have shapes {tuple(rotations.shape)} and {tuple(translations.shape)}, wanted [M, count, 3, 3] and "
            "[M, count, 3]."
        )
    if not bool(translations.isfinite().all()):
        raise ValueError(
            f"translations holds {int((~translations.isfinite()).sum())} numbers that are not finite, wanted finite coordinates."
        )
    if not (0 < rotation_std < math.inf and 0 < translation_std < math.inf):
        raise ValueError(f"rotation_std={rotation_std}, translation_std={translation_std}, wanted kernel widths above 0.")
    space = frame_space(translations.shape[1], clock)
    centres = space.factors[0].check(rotations.double())
    log_prior = log_shares(weights, len(centres)).to(centres.device)
    origin = translations.double().mean(0)
    middle, dim = (translations.double() - origin).flatten(1), space.factors[1].dim

    def kernels(x: Sequence[Tensor], levels: Sequence[float]) -> tuple[Tensor, Tensor, Tensor, float]:
        variance = translation_std**2 + levels[1] ** 2
        log_f, slope = igso3_kernels(x[0], centres, rotation_std**2 + levels[0] ** 2)
        point, centre = (x[1] - origin.to(x[1])).flatten(1), middle.to(x[1])
        level = log_prior.to(point) - centre.square().sum(1) / (2 * variance) - dim / 2 * math.log(2 * math.pi * variance)
        log_n = point @ centre.T / variance - point.square().sum(1, keepdim=True) / (2 * variance) + level
        return log_f.sum(2) + log_n, slope, point, variance

    def score(x: Sequence[Tensor], levels: Sequence[float]) -> Sequence[Tensor]:
        log_parts, slope, point, variance = kernels(x, levels)
        share = log_parts.softmax(1)
        turn = igso3_score(x[0], centres, share.unsqueeze(2) * slope)
        return turn, ((share @ middle.to(share) - point) / variance).reshape(x[1].shape)

    def log_prob(x: Sequence[Tensor], levels: Sequence[float]) -> Tensor:
        return kernels(x, levels)[0].logsumexp(1)

    return from_scores(score, space, log_prob=log_prob, name=name, chunk=chunk)


def fragment_mixture(backbone: Tensor, rotation_std: float = 0.2, translation_std: float = 0.3, **options: Any) -> Expert:
    """Kernel density of fragments ``[M, L, 3, 3]`` (atoms N, CA, C; angstroms) in their relative frames; ``options`` as in `frame_mixture`.

    Example:
        >>> helix = ideal_backbone(torch.full((4,), -1.1), torch.full((4,), -0.8)).unsqueeze(0)
        >>> q = fragment_mixture(helix, name="helix")
        >>> at_centre = q.home.join(relative(*residue_frames(helix)))
        >>> bool(q.score(at_centre, sigma=0.1).abs().max() < 1e-5)
        True
    """
    if backbone.ndim != 4 or tuple(backbone.shape[2:]) != (3, 3) or backbone.shape[1] < 2:
        raise ValueError(f"backbone has shape {tuple(backbone.shape)}, wanted [M, L, 3, 3]: L >= 2 residues with atoms N, CA, C.")
    return frame_mixture(*relative(*residue_frames(backbone.double())), rotation_std, translation_std, **options)


def frame_draws(rotations: Tensor, translations: Tensor, rotation_std: float, translation_std: float, n: int, rng: Streams) -> Tensor:
    """Exact draws ``[n, count * 12]`` from `frame_mixture` with equal weights (at a noise level pass the widths ``sqrt(a^2 + sigma_r^2)`` and so on)."""
    which = torch.randint(len(rotations), (n,), generator=rng("exact"), device=rng.device)
    place = translations[which]
    turned = igso3_draws(rotations[which], rotation_std, rng, "exact")
    return frame_space(translations.shape[1]).join([turned, place + translation_std * rng.normal("exact", place)])
