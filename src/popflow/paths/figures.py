"""Figures of transition paths: over the contours of a potential, over its energy in one coordinate, or in phi and psi of a molecule."""

from __future__ import annotations

import torch
from torch import Tensor

from popflow.paths.coordinates import dihedrals
from popflow.paths.molecule import Molecule
from popflow.paths.scene import Scene
from popflow.runs.canvas import COLOURS, INK, axes_of, data_uri, style

LABELS = {"x_label": "x", "y_label": "y"}


def plane(scene: Scene, x: Tensor) -> Tensor:
    """Two numbers ``[..., 2]`` to draw of states: phi and psi, distances from A and B, the first two coordinates, or the only one and its energy."""
    if scene.molecule is not None:
        angles = backbone(scene.molecule)
        place = scene.place(x)
        if angles is not None:
            return dihedrals(place.unflatten(-1, (-1, 3)), angles).rad2deg()
        return torch.stack([(place - one).square().mean(-1).mul(3).sqrt() for one in (scene.start, scene.end)], -1)
    return x[..., :2] if scene.dim > 1 else torch.cat([x, scene.energy(x).unsqueeze(-1)], -1)


def backbone(molecule: Molecule) -> Tensor | None:
    """Atoms ``[2, 4]`` of phi and psi of the one residue that has both; None for molecules with none or several."""
    atoms = {(atom.residue.index, atom.name): atom.index for atom in molecule.topology.atoms()}
    found = []
    for residue in range(molecule.topology.getNumResidues()):
        phi = [(residue - 1, "C"), (residue, "N"), (residue, "CA"), (residue, "C")]
        psi = [(residue, "N"), (residue, "CA"), (residue, "C"), (residue + 1, "N")]
        if all(one in atoms for one in phi + psi):
            found.append([[atoms[one] for one in angle] for angle in (phi, psi)])
    return torch.tensor(found[0]) if len(found) == 1 else None


def labels(scene: Scene) -> dict[str, str]:
    """Labels of the axes."""
    if scene.molecule is not None:
        if backbone(scene.molecule) is not None:
            return {"x_label": "phi, degrees", "y_label": "psi, degrees"}
        return {"x_label": "distance from A, nm", "y_label": "distance from B, nm"}
    return LABELS if scene.dim > 1 else {"x_label": "x", "y_label": "U - U(A)"}


def landscape(scene: Scene, paths: Tensor, mean: Tensor) -> str:
    """Paths ``[n, K + 1, D]`` and their mean ``[K + 1, D]``, over contours of a potential in two coordinates, kT apart up to 30 kT; as a PNG."""
    drawn = plane(scene, torch.cat([paths.flatten(0, 1), mean]))
    low, high = drawn.quantile(0.001, 0), drawn.quantile(0.999, 0)
    low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    if scene.molecule is not None and backbone(scene.molecule) is not None:
        low, high = torch.tensor([-180.0, -180.0]), torch.tensor([180.0, 180.0])
    with style():
        figure, axes = axes_of(*labels(scene).values(), width=6.0, height=4.6)
        if scene.dim == 2 and scene.molecule is None:
            xs, ys = (torch.linspace(float(a), float(b), 160, dtype=torch.float64) for a, b in zip(low, high, strict=True))
            energy = scene.energy(torch.cartesian_prod(xs, ys)).reshape(160, 160).T
            levels = (float(energy.min()) + scene.kt * torch.arange(31)).tolist()
            field = axes.contourf(xs.numpy(), ys.numpy(), energy.clamp_max(levels[-1]).numpy(), levels=levels, cmap="Greys_r", alpha=0.55)
            figure.colorbar(field, ax=axes, label="U - U(A)", shrink=0.85)
        for one in plane(scene, paths):
            axes.plot(*_unbroken(one).T.numpy(), color=COLOURS[0], linewidth=0.5, alpha=0.5)
        axes.plot(*_unbroken(plane(scene, mean)).T.numpy(), color=COLOURS[1], linewidth=1.8, label="mean")
        for name, state in (("A", scene.start), ("B", scene.end)):
            place = plane(scene, state[None])[0].tolist()
            axes.scatter(*[[one] for one in place], s=30, c=INK, zorder=4)
            axes.annotate(name, tuple(place), xytext=(5, 5), textcoords="offset points", fontsize=10)
        axes.set_xlim(float(low[0]), float(high[0]))
        axes.set_ylim(float(low[1]), float(high[1]))
        axes.legend(fontsize=8)
        return data_uri(figure, "png")


def _unbroken(line: Tensor) -> Tensor:
    """A line ``[T, 2]`` with gaps where angles jump from one side to the other."""
    jump = (line.diff(dim=0).abs() > 180).any(1)
    return torch.where(torch.cat([jump.new_zeros(1), jump]).unsqueeze(1), torch.nan, line)
