"""Chignolin from an extended to its folded state in one picosecond at 300 K: an ensemble without clashes, folding, and its energies.

    python benchmarks/chignolin.py [--quick]

138 atoms, AMBER ff14SB without solvent, friction 1/ps, both states minimised. One thermal path is fitted, with the forces of OpenMM, from the pulled molecule; frames are drawn from
the fitted law at even times, and taken at the same times from trajectories that follow the learned drift in steps of 1 fs. Distances are those of pairs of
atoms at least three bonds apart, over the sum of van der Waals radii (Bondi); rows of pairs that are apart leave out those three bonds apart, and those that are nearer than the target in
an end state.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from harness import Row, dataset, run

from popflow.core import Streams
from popflow.paths import Molecule, OpenMMForce, Underdamped, action, fit, grid, simulate, thermal_path, through
from popflow.paths.config import MOLECULES
from popflow.paths.first_paths import IMAGES, distance_path, pulled_path

os.environ.setdefault("OPENMM_CPU_THREADS", "1")
RADII = {"H": 0.12, "C": 0.17, "N": 0.155, "O": 0.152, "S": 0.18}
PUBLISHED = {"published barrier": 3000.0}
SIZES = {"coefficients": 12, "rounds": 3, "samples": 1}
STEPS, BATCH, EVALUATIONS = 40, 32, 192
APART = 0.6
"""Least distance over the sum of radii that is asked for."""
TIMES, FRAMES = 21, 16


def main(options: argparse.Namespace) -> list[Row]:
    """Measure folding paths of chignolin: distances, handedness, contacts, energies, time of a step."""
    torch.manual_seed(0)
    folder = dataset("md")
    if folder is None:
        return [Row("least distance over van der Waals radii", float("nan"), peers={"all": "absent: no data, set POPFLOW_DATA"})]
    molecule = Molecule.from_pdb(*(folder / f"chignolin_{state}_relaxed.pdb" for state in ("unfolded", "folded")), warn=False).minimised()
    process = Underdamped(OpenMMForce(molecule.system, "CPU", step=1e-4), molecule.masses, friction=1.0, temperature=300.0)
    with torch.no_grad():
        a, b = (float(process.potential(x.flatten())) for x in (molecule.a, molecule.b))
        s = torch.linspace(0, 1, IMAGES, dtype=torch.float64)[:, None]
        line = torch.lerp(molecule.a.flatten(), molecule.b.flatten(), s)
        plain, even = (float(process.potential(path).max()) - max(a, b) for path in (line, distance_path(molecule)))
    begin = time.perf_counter()
    sizes = {"coefficients": 6, "rounds": 1, "samples": 1} if options.quick else SIZES
    curves = [through(pulled_path(molecule))]
    start = thermal_path(process, curves, 1.0, sigma0=MOLECULES.sigma0, rng=Streams(0), **sizes)
    begun = time.perf_counter()
    steps = 2 if options.quick else STEPS
    learned = fit(process, start, steps=steps, batch=BATCH, rng=Streams(0), bar=False)
    step = (time.perf_counter() - begun) / steps
    path = learned.path
    cost = action(process, path, 64 if options.quick else EVALUATIONS, Streams(1))
    times, rng = torch.linspace(0, 1, 3 if options.quick else TIMES).tolist(), Streams(2)
    x = torch.stack([path.sample(t, FRAMES, rng)[:, : path.dim] for t in times])
    with torch.no_grad():
        energy = process.potential(x) - max(a, b)
    mean_energy = energy.mean(1)
    highest = int(mean_energy.argmax())
    places = x.unflatten(-1, (-1, 3))
    contacts = native(molecule, places).mean(1)
    closest, apolar = (nearest(molecule, places.flatten(0, 1), polar) for polar in (True, False))
    states = nearest(molecule, torch.stack([molecule.a, molecule.b])).tolist()
    apart = nearest(molecule, places.flatten(0, 1), free=True)
    walking, count = time.perf_counter(), 20 if options.quick else 1000
    kept = [round(t * count) for t in times]
    walks = simulate(process, path, FRAMES, grid(1.0, 1 / count), Streams(3), keep=kept, weigh=False)
    walked = walks.x[..., : path.dim].unflatten(-1, (-1, 3))
    walking = time.perf_counter() - walking
    arrived = (walks.x[:, -1, : path.dim] - molecule.b.flatten()).norm(dim=1) < 3 * MOLECULES.sigma0 * path.dim**0.5
    stepped, loose = (nearest(molecule, walked.flatten(0, 1), free=one) for one in (False, True))
    handed = hands(molecule, places.flatten(0, 1))
    mean = path.moments(s[:, 0]).mean[:, 0]
    notes = {
        "sd over frames": float(energy[highest].std()),
        "share of the time": times[highest],
        "of the mean path": float(process.potential(mean).max()) - max(a, b),
        "of the first path": float(process.potential(curves[0](s[:, 0])).max()) - max(a, b),
        "mean by even times": mean_energy.tolist(),
        "highest of a frame": float(energy.max()),
        "U(B) - U(A)": b - a,
        "action, nats": [cost.value, cost.error],
        "forces": learned.forces + start.prepared,
        "Hessian-vector products": learned.hvps + start.prepared,
        "frames at each time": FRAMES,
        "seconds": time.perf_counter() - begin,
    }
    peak, spread = float(mean_energy[highest]), float(energy[highest].std()) / FRAMES**0.5
    peers = {**PUBLISHED, "straight line": plain, "even distances": even}
    return [
        Row(
            "least distance over van der Waals radii",
            float(closest.min()),
            target=APART,
            direction=">=",
            peers=dict(zip(("state A", "state B"), states, strict=True)),
            notes={"mean over frames": float(closest.mean())},
        ),
        Row(
            "the same of simulated frames",
            float(stepped.min()),
            target=APART,
            direction=">=",
            notes={"mean over frames": float(stepped.mean())},
        ),
        Row("the same of pairs that are apart in both states", float(apart.min()), notes={"mean over frames": float(apart.mean())}),
        Row(
            "the same of pairs that are apart in both states, simulated",
            float(loose.min()),
            notes={"mean over frames": float(loose.mean())},
        ),
        Row("share of simulated trajectories that arrive", float(arrived.double().mean()), notes={"trajectories": FRAMES, "steps": count}),
        Row("time of a simulated step of all trajectories", walking / count, unit="s", notes={"trajectories": FRAMES}),
        Row(
            "the same without hydrogens of N and O, which bond",
            float(apolar.min()),
            target=APART,
            direction=">=",
            notes={"mean over frames": float(apolar.mean())},
        ),
        Row("share of frames with all alpha carbons left-handed", float(handed.double().mean()), target=1.0, direction=">="),
        Row(
            "native contacts, rise from start to end",
            float(contacts[-1] - contacts[0]),
            target=0.2,
            direction=">=",
            notes={"by even times": contacts.tolist()},
        ),
        Row("highest mean energy over both states", peak, spread, "kJ/mol", min(plain, even), peers=peers, notes=notes),
        Row("action", cost.value, cost.error, "nats"),
        Row("time of a training step", step, unit="s", notes={"batch": BATCH, "first widths, s": begun - begin}),
    ]


def nearest(molecule: Molecule, x: torch.Tensor, polar: bool = True, free: bool = False) -> torch.Tensor:
    """Least distance over the sum of radii, ``[frames]`` of positions ``[frames, N, 3]``; without hydrogens of N and O unless ``polar``.

    With ``free`` pairs three bonds apart and those nearer than `APART` in an end state are left out.
    """
    n = len(molecule.elements)
    joined = torch.zeros(n, n)
    i, j = torch.tensor(molecule.bonds).T
    joined[i, j] = joined[j, i] = 1
    left_out = torch.linalg.matrix_power(joined + torch.eye(n), 3 if free else 2) > 0
    hetero = torch.tensor([one in "NO" for one in molecule.elements])
    bonding = torch.tensor([one == "H" for one in molecule.elements]) & ((joined @ hetero.float()) > 0)
    if not polar:
        left_out = left_out | bonding | bonding[:, None]
    radii = torch.tensor([RADII[one] for one in molecule.elements], dtype=x.dtype)
    sums = radii[:, None] + radii
    if free:
        left_out = (
            left_out | ((torch.cdist(molecule.a, molecule.a) / sums) < APART) | ((torch.cdist(molecule.b, molecule.b) / sums) < APART)
        )
    share = torch.stack([torch.cdist(one, one) for one in x]) / sums
    return share.masked_fill(left_out, torch.inf).amin((1, 2))


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
    run("chignolin", main, seeds=1)
