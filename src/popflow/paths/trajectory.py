r"""Trajectories of molecules for other programs: mdtraj objects, files (PDB, DCD, XTC), and a film of one path.

Positions are in nm and times in ps, which mdtraj takes as they are; its writers convert (PDB and DCD hold angstroms). XTC keeps 0.001 nm.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popflow.core.checkpoint import whole
from popflow.core.errors import MissingExtraError, unknown

FORMATS = (".pdb", ".dcd", ".xtc")


def to_mdtraj(x: Tensor, topology: Any, times: Tensor | None = None) -> Any:
    """Make an ``mdtraj.Trajectory`` of one path.

    Args:
        x: Positions ``[frames, 3 N]`` or ``[frames, N, 3]`` in nm.
        topology: The ``openmm.app.Topology`` of the molecule.
        times: Times ``[frames]`` in ps; by default 0, 1, 2, ...

    Raises:
        ValueError: for another number of atoms or of times, or positions that are not finite.
        MissingExtraError: without mdtraj.

    Example:
        >>> from popflow.paths.molecule import water
        >>> molecule = water()
        >>> path = to_mdtraj(torch.stack([molecule.a, molecule.b]), molecule.topology, torch.tensor([0.0, 0.5]))
        >>> path.n_frames, path.time.tolist(), [atom.name for atom in path.topology.atoms]
        (2, [0.0, 0.5], ['O', 'H1', 'H2'])
    """
    mdtraj = _mdtraj()
    atoms = topology.getNumAtoms()
    if x.dim() < 2 or x[0].numel() != 3 * atoms:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted [frames, {3 * atoms}]: one path, 3 numbers for each of {atoms} atoms.")
    if not x.isfinite().all():
        raise ValueError(f"x has {int((~x.isfinite()).sum())} values that are not finite, wanted positions in nm.")
    if times is not None and times.shape != (len(x),):
        raise ValueError(f"times has shape {tuple(times.shape)}, wanted [{len(x)}]: one for each frame.")
    frames = x.detach().cpu().reshape(len(x), atoms, 3).numpy()
    return mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(topology), time=None if times is None else times.detach().cpu().numpy())


def write(path: str | Path, x: Tensor, topology: Any, times: Tensor | None = None) -> Path:
    """Write one path to a file whose ending says the format, and return where. The file is complete or not there.

    DCD and XTC hold no topology: write a PDB file beside them.

    Args:
        path: A name ending in ``.pdb``, ``.dcd`` or ``.xtc``.
        x: Positions ``[frames, 3 N]`` or ``[frames, N, 3]`` in nm.
        topology: The ``openmm.app.Topology`` of the molecule.
        times: Times ``[frames]`` in ps.

    Raises:
        ValueError: for another ending, and as `to_mdtraj`.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(unknown("format of a trajectory", path.suffix, FORMATS))
    trajectory = to_mdtraj(x, topology, times)
    # mdtraj chooses the format by the ending
    save = {".pdb": trajectory.save_pdb, ".dcd": trajectory.save_dcd, ".xtc": trajectory.save_xtc}[path.suffix.lower()]
    with whole(path) as part:
        save(str(part))
    return path


def film(x: Tensor, elements: Sequence[str], bonds: Sequence[tuple[int, int]], frames: int = 40, seconds: float = 5.0) -> str:
    """Draw one path as an animated PNG, which plays in a report without a script; returns its data URI.

    Atoms are discs, bonds lines. The view is the same throughout, along the axis in which the path is thinnest.

    Args:
        x: Positions ``[times, 3 N]`` or ``[times, N, 3]`` in nm.
        elements: Chemical symbols.
        bonds: Pairs of atoms to join.
        frames: Number of pictures.
        seconds: How long the film takes.
    """
    path = x.detach().cpu().double().reshape(len(x), -1, 3)
    if path.shape[1] != len(elements):
        raise ValueError(f"elements has {len(elements)} symbols for {path.shape[1]} atoms, wanted one each.")
    path = path[torch.linspace(0, len(path) - 1, frames).round().long()]
    path = path - path.mean((0, 1))
    _, _, axes = torch.linalg.svd(path.reshape(-1, 3), full_matrices=False)
    seen = path @ axes.T
    scale = (_SIZE / 2 - 24) / float(seen[..., :2].abs().max())
    pictures = [_picture(one, scale, elements, bonds) for one in seen]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "PNG", save_all=True, append_images=pictures[1:], duration=round(1000 * seconds / frames), loop=0)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _picture(x: Tensor, scale: float, elements: Sequence[str], bonds: Sequence[tuple[int, int]]) -> Any:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_SIZE, _SIZE), "white")
    draw = ImageDraw.Draw(image)
    flat = (x[:, :2] * scale + _SIZE / 2).tolist()
    for i, j in bonds:
        draw.line([*flat[i], *flat[j]], fill="#9a9a9a", width=3)
    for i in x[:, 2].argsort().tolist():
        radius, (u, v) = scale * _RADII.get(elements[i], 0.03), flat[i]
        draw.ellipse([u - radius, v - radius, u + radius, v + radius], fill=_COLOURS.get(elements[i], "#d06fc2"), outline="#444444")
    return image


_SIZE = 360
_COLOURS = {"H": "#f4f4f4", "C": "#606060", "N": "#3b62d8", "O": "#d83b3b", "S": "#e0c030"}
_RADII = {"H": 0.016, "C": 0.028, "N": 0.027, "O": 0.026, "S": 0.033}


def _mdtraj() -> Any:
    try:
        import mdtraj
    except ImportError as error:
        raise MissingExtraError("mdtraj is not installed; it writes trajectories. Fix: pip install 'popflow[md]'.") from error
    return mdtraj
