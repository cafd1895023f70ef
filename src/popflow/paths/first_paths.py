"""First paths of a molecule between two states: by internal coordinates, either way round where a bond turns far, by distances (IDPP), and by pulling.

Even coordinates lead large molecules through themselves. Where none of the paths stays below the thermal energy ``3 N kT``, the molecule is pulled from A to B
by springs on all atoms in molecular dynamics (targeted dynamics; Schlitter et al., J. Mol. Graph. 12 (1994) 84): no atom passes through another, and hands are kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popflow.paths.coordinates import ZMatrix, idpp, kabsch
from popflow.paths.molecule import Molecule
from popflow.paths.process import BOLTZMANN, Potential

IMAGES, DISTANCES = 41, 21
"""Images of a first path; images that distances are interpolated at."""
PULLED, STRENGTH, SMOOTH = 20.0, 3000.0, 15
"""Duration of pulling in ps, last spring constant in kJ/mol/nm^2, frames of 20 fs on each side that are averaged."""
_STRAIGHT = 1e-2
"""Width over length of a molecule that counts as straight."""
FAR = 90.0
"""Turn in degrees about a bond beyond which the other way round is a candidate, too."""


def first_paths(molecule: Molecule, potential: Potential, count: int = 1, kt: float = 300 * BOLTZMANN) -> list[Tensor]:
    """Return the ``count`` first paths of the lowest highest energies, ``[IMAGES, 3 N]`` each; the first is pulled when none stays below ``3 N kt``.

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
        bound = float(potential(torch.stack([molecule.a, molecule.b]).flatten(1)).max()) + molecule.a.numel() * kt
    finite = [top if math.isfinite(top) else math.inf for top in tops]
    best = [candidates[k] for k in sorted(range(len(candidates)), key=finite.__getitem__)]
    if (
        molecule.system.getNumForces() == 0
    ):  # energies are not those of the system: a reaction is above any thermal bound, and nothing pulls it
        if sorted(finite)[count - 1] == math.inf:
            raise ValueError(
                f"the energies of {finite.count(math.inf)} of {len(tops)} first paths are not finite: atoms meet. Fix: nearer states."
            )
    elif not min(finite) < bound:
        best = [pulled_path(molecule), *best]
    return best[:count]


def internal_paths(molecule: Molecule) -> list[Tensor]:
    """Paths ``[IMAGES, 3 N]`` of even internal coordinates: the short way round, then each bond that turns far the other way; none without dihedrals.

    Where bonds break or form, those that stay need not join the molecule: none, too.
    """
    a, b = molecule.a, molecule.b
    if len(a) < 4 or not joined(len(a), molecule.bonds):
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
    even = torch.lerp(images[left], images[left + 1], (place - left)[:, None, None])
    if straight(molecule.a) and straight(molecule.b):
        return carried(even, molecule.b, molecule.masses[::3])
    return superposed(even, molecule.a, molecule.b)


def pulled_path(molecule: Molecule) -> Tensor:
    """Path ``[IMAGES, 3 N]`` of a molecule that is pulled from A to B in `PULLED` ps of Langevin dynamics, cooled at the end, smoothed, at equal lengths."""
    import openmm

    system, frames = copy.deepcopy(molecule.system), round(PULLED * 50)
    pull = openmm.CustomExternalForce("pull / 2 * ((x - x0)^2 + (y - y0)^2 + (z - z0)^2)")
    pull.addGlobalParameter("pull", 0.0)
    for name in ("x0", "y0", "z0"):
        pull.addPerParticleParameter(name)
    for atom, place in enumerate(molecule.b.tolist()):
        pull.addParticle(atom, place)
    system.addForce(pull)
    integrator = openmm.LangevinMiddleIntegrator(300, 20.0, 0.001)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(molecule.a.numpy())
    found = []
    for k in range(frames):
        context.setParameter("pull", STRENGTH * ((k + 1) / frames) ** 3)
        integrator.setTemperature(300 * min(1.0, (1 - k / frames) / 0.3))
        integrator.step(20)
        found.append(torch.tensor(context.getState(getPositions=True).getPositions(asNumpy=True)._value))
    a, b = molecule.a[None], molecule.b[None]
    padded = torch.cat([a.expand(SMOOTH, -1, -1), torch.stack(found), b.expand(SMOOTH, -1, -1)])
    smooth = torch.cat([a, padded.unfold(0, 2 * SMOOTH + 1, 1).mean(-1), b]).flatten(1)
    length = torch.cat([smooth.new_zeros(1), smooth.diff(dim=0).norm(dim=1).cumsum(0)])
    return smooth[torch.searchsorted(length, torch.linspace(0, float(length[-1]), IMAGES, dtype=length.dtype)).clamp(max=len(smooth) - 1)]


def joined(atoms: int, bonds: Sequence[tuple[int, int]]) -> bool:
    """Whether bonds join all atoms.

    >>> joined(3, [(0, 1)]), joined(3, [(0, 1), (2, 1)])
    (False, True)
    """
    met = {0}
    for _ in range(atoms):
        met |= {one for bond in bonds for one in bond if met.intersection(bond)}
    return len(met) == atoms


def straight(x: Tensor) -> bool:
    """Whether positions ``[N, 3]`` lie on a line."""
    _, spread, _ = torch.linalg.svd(x - x.mean(0))
    return bool(spread[1] < _STRAIGHT * spread[0])


def carried(images: Tensor, b: Tensor, masses: Tensor) -> Tensor:
    """Turn each image of a path onto the one before by masses, which is motion without angular momentum, and the last onto a straight b, evenly; ``[P, 3 N]``.

    Where both ends are straight, the line between them does not say how to turn about it.
    """
    path = [kabsch(images[0], images[0], masses)[0]]
    for image in images[1:]:
        path.append(kabsch(image, path[-1], masses)[0])
    turned = torch.stack(path)
    first, last = (torch.nn.functional.normalize(x[-1] - x[0], dim=0) for x in (turned[-1], b))
    across = torch.linalg.cross(first, last)
    angle = torch.atan2(across.norm(), first @ last)
    x, y, z = (across / across.norm().clamp_min(1e-12)).tolist()
    turn = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=b.dtype, device=b.device)
    s = torch.linspace(0, 1, len(images), dtype=b.dtype, device=b.device)[:, None, None]
    turned = turned @ torch.matrix_exp(s * angle * turn).mT
    turned[-1] = b
    return turned.flatten(1)


def superposed(images: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Turn images ``[P, N, 3]`` onto the straight line from a to b, so that they begin and end there; ``[P, 3 N]``."""
    s = torch.linspace(0, 1, len(images), dtype=a.dtype, device=a.device)[:, None, None]
    turned = kabsch(images, torch.lerp(a, b, s))[0].flatten(1)
    turned[0], turned[-1] = a.flatten(), b.flatten()
    return turned
