"""First paths of a molecule between two states: by internal coordinates, either way round where a bond turns far, and by distances (IDPP)."""

from __future__ import annotations

import torch
from torch import Tensor

from popflow.paths.coordinates import ZMatrix, idpp, kabsch
from popflow.paths.molecule import Molecule
from popflow.paths.process import Potential

IMAGES, DISTANCES = 41, 21
"""Images of a first path; images that distances are interpolated at."""
FAR = 90.0
"""Turn in degrees about a bond beyond which the other way round is a candidate, too."""


def first_paths(molecule: Molecule, potential: Potential, count: int = 1) -> list[Tensor]:
    """Return the ``count`` first paths of the lowest highest energies, ``[IMAGES, 3 N]`` each, from the states of the molecule.

    Raises:
        ValueError: when there are fewer candidates.

    Example:
        >>> from popflow.paths.forcefield import TorchForce
        >>> from popflow.paths.molecule import water
        >>> [path.shape for path in first_paths(water(), TorchForce(water().system))]
        [torch.Size([41, 9])]
    """
    candidates = [*internal_paths(molecule), distance_path(molecule)]
    if count > len(candidates):
        raise ValueError(f"components={count}, wanted at most {len(candidates)}: as many first paths are known for this molecule.")
    with torch.no_grad():
        tops = [float(potential(path).max()) for path in candidates]
    return [candidates[k] for k in sorted(range(len(candidates)), key=lambda k: (tops[k] != tops[k], tops[k]))[:count]]


def internal_paths(molecule: Molecule) -> list[Tensor]:
    """Paths ``[IMAGES, 3 N]`` of even internal coordinates: the short way round, then each bond that turns far the other way; none without dihedrals."""
    a, b = molecule.a, molecule.b
    if len(a) < 4:
        return []
    internal = ZMatrix.of(len(a), molecule.bonds)
    change = (internal.to_internal(b) - internal.to_internal(a))[11::3]
    turns = (torch.remainder(change + torch.pi, 2 * torch.pi) - torch.pi).rad2deg().tolist()
    axes: dict[tuple[int, int], dict[int, float]] = {}
    for (atom, parent, grand, _), turn in zip(internal.rows.tolist(), turns, strict=True):
        axes.setdefault((parent, grand), {})[atom] = turn
    far = [turning for turning in axes.values() if min(map(abs, turning.values())) > FAR]
    ways = [{}, *({atom: -1 if turn > 0 else 1 for atom, turn in turning.items()} for turning in far)]
    s = torch.linspace(0, 1, IMAGES, dtype=a.dtype)
    return [superposed(internal.between(a, b, s, way), a, b) for way in ways]


def distance_path(molecule: Molecule) -> Tensor:
    """Path ``[IMAGES, 3 N]`` along which all distances go evenly."""
    images = idpp(molecule.a, molecule.b, DISTANCES)
    place = torch.linspace(0, DISTANCES - 1, IMAGES, dtype=images.dtype)
    left = place.long().clamp(max=DISTANCES - 2)
    return superposed(torch.lerp(images[left], images[left + 1], (place - left)[:, None, None]), molecule.a, molecule.b)


def superposed(images: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Turn images ``[P, N, 3]`` onto the straight line from a to b, so that they begin and end there; ``[P, 3 N]``."""
    s = torch.linspace(0, 1, len(images), dtype=a.dtype, device=a.device)[:, None, None]
    turned = kabsch(images, torch.lerp(a, b, s))[0].flatten(1)
    turned[0], turned[-1] = a.flatten(), b.flatten()
    return turned
