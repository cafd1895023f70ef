"""Chignolin from an extended to its folded state in one picosecond at 300 K: an ensemble without clashes, folding, and its energies.

    python benchmarks/chignolin.py [--quick]

138 atoms, AMBER ff14SB without solvent, friction 1/ps, both states minimised. One thermal path is fitted from the better of the first paths and simulated at 1 fs. Distances are those of pairs of
atoms at least three bonds apart, over the sum of van der Waals radii (Bondi).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from harness import Row, run

from popflow.core import Streams
from popflow.paths import Molecule, TorchForce, Underdamped, action, first_paths, fit, grid, simulate, thermal_path, through
from popflow.paths.config import MOLECULES
from popflow.paths.first_paths import IMAGES, distance_path

FOLDER = Path(os.environ.get("POPFLOW_DATA", "data")) / "md"
RADII = {"H": 0.12, "C": 0.17, "N": 0.155, "O": 0.152, "S": 0.18}
PUBLISHED = {"published barrier": 3000.0}
SIZES = {"coefficients": 12, "rounds": 3, "samples": 1}
STEPS, BATCH, PATHS, EVALUATIONS = 250, 32, 8, 640


def main(options: argparse.Namespace) -> list[Row]:
    """Measure folding paths of chignolin: distances, handedness, contacts, energies, time of a step."""
    torch.manual_seed(0)
    molecule = Molecule.from_pdb(*(FOLDER / f"chignolin_{state}_relaxed.pdb" for state in ("unfolded", "folded")), warn=False).minimised()
    process = Underdamped(TorchForce(molecule.system), molecule.masses, friction=1.0, temperature=300.0)
    with torch.no_grad():
        a, b = (float(process.potential(x.flatten())) for x in (molecule.a, molecule.b))
        s = torch.linspace(0, 1, IMAGES, dtype=torch.float64)[:, None]
        line = torch.lerp(molecule.a.flatten(), molecule.b.flatten(), s)
        plain, even = (float(process.potential(path).max()) - max(a, b) for path in (line, distance_path(molecule)))
    begin = time.perf_counter()
    sizes = {"coefficients": 6, "rounds": 1, "samples": 1} if options.quick else SIZES
    curves = [through(one) for one in first_paths(molecule, process.potential)]
    start = thermal_path(process, curves, 1.0, sigma0=MOLECULES.sigma0, rng=Streams(0), **sizes)
    begun = time.perf_counter()
    steps = 2 if options.quick else STEPS
    learned = fit(process, start, steps=steps, batch=BATCH, rng=Streams(0), bar=False)
    step = (time.perf_counter() - begun) / steps
    path = learned.path
    cost = action(process, path, 64 if options.quick else EVALUATIONS, Streams(1))
    paths = simulate(process, path, 2 if options.quick else PATHS, grid(1.0, 0.1 if options.quick else 1e-3), Streams(2), weigh=False)
    x = paths.x[..., : path.dim]
    with torch.no_grad():
        energy = torch.stack([process.potential(one) for one in x.unbind(1)], 1) - max(a, b)
    top = energy.max(1).values
    places = x.unflatten(-1, (-1, 3))
    contacts = native(molecule, places).mean(0)
    closest = torch.stack([nearest(molecule, one) for one in places])
    handed = torch.stack([hands(molecule, one) for one in places])
    mean = path.moments(s[:, 0]).mean[:, 0]
    reach = 3 * MOLECULES.sigma0 * path.dim**0.5
    notes = {
        "sd over paths": float(top.std()),
        "least": float(top.min()),
        "of the mean path": float(process.potential(mean).max()) - max(a, b),
        "of the first path": float(process.potential(curves[0](s[:, 0])).max()) - max(a, b),
        "mean by tenths of the time": energy.mean(0)[:: max(1, energy.shape[1] // 10)].tolist(),
        "U(B) - U(A)": b - a,
        "action, nats": [cost.value, cost.error],
        "forces": learned.forces + start.prepared,
        "Hessian-vector products": learned.hvps + start.prepared,
        "paths": len(x),
        "seconds": time.perf_counter() - begin,
    }
    peak = float(top.mean())
    folding = contacts[:: max(1, (len(contacts) - 1) // 10)]
    return [
        Row(
            "least distance over van der Waals radii",
            float(closest.min()),
            target=0.6,
            direction=">=",
            notes={"mean over time": float(closest.mean())},
        ),
        Row("share of frames with all alpha carbons left-handed", float(handed.double().mean()), target=1.0, direction=">="),
        Row(
            "native contacts, rise from start to end",
            float(contacts[-1] - contacts[0]),
            target=0.2,
            direction=">=",
            notes={"by tenths": folding.tolist()},
        ),
        Row("arrival at 1 fs", float(((x[:, -1] - molecule.b.flatten()).norm(dim=1) < reach).double().mean()), target=0.99, direction=">="),
        Row(
            "highest energy over both states",
            peak,
            float(top.std()) / len(top) ** 0.5,
            "kJ/mol",
            min(plain, even),
            peers={**PUBLISHED, "straight line": plain, "even distances": even},
            notes=notes,
        ),
        Row("action", cost.value, cost.error, "nats"),
        Row("time of a training step", step, unit="s", notes={"batch": BATCH, "first widths, s": begun - begin}),
    ]


def nearest(molecule: Molecule, x: torch.Tensor) -> torch.Tensor:
    """Least distance over the sum of radii, ``[frames]`` of positions ``[frames, N, 3]``."""
    n = len(molecule.elements)
    joined = torch.zeros(n, n)
    i, j = torch.tensor(molecule.bonds).T
    joined[i, j] = joined[j, i] = 1
    near = torch.linalg.matrix_power(joined + torch.eye(n), 2) > 0
    radii = torch.tensor([RADII[one] for one in molecule.elements], dtype=x.dtype)
    share = torch.stack([torch.cdist(one, one) for one in x]) / (radii[:, None] + radii)
    return share.masked_fill(near, torch.inf).amin((1, 2))


def hands(molecule: Molecule, x: torch.Tensor) -> torch.Tensor:
    """Whether all alpha carbons with a side chain have the hand of state A, ``[frames]``."""
    atoms = {(atom.residue.index, atom.name): atom.index for atom in molecule.topology.atoms()}
    rows = [[atoms[k, name] for name in ("CA", "N", "C", "CB")] for k, name in atoms if name == "CB"]
    centre, *around = torch.tensor(rows).T

    def volume(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(torch.stack([x[:, one] - x[:, centre] for one in around], -1))

    return (volume(x) * volume(molecule.a[None]) > 0).all(1)


def native(molecule: Molecule, x: torch.Tensor) -> torch.Tensor:
    """Share ``[...]`` of the pairs of heavy atoms, three residues or more apart and within 0.45 nm in state B, that are within 1.2 times their distance there."""
    atoms = list(molecule.topology.atoms())
    heavy = [atom.index for atom in atoms if atom.element.symbol != "H"]
    pairs = torch.tensor([(i, j) for i in heavy for j in heavy if atoms[j].residue.index - atoms[i].residue.index >= 3])
    first = (molecule.b[pairs[:, 0]] - molecule.b[pairs[:, 1]]).norm(dim=1)
    pairs, first = pairs[first < 0.45], first[first < 0.45]
    return ((x[..., pairs[:, 0], :] - x[..., pairs[:, 1], :]).norm(dim=-1) < 1.2 * first).double().mean(-1)


if __name__ == "__main__":
    run("chignolin", main)
