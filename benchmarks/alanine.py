"""Alanine dipeptide from C5 to C7ax in one picosecond at 300 K: a physical ensemble, its energies, and what they are beside.

    python benchmarks/alanine.py [--only reference shooting internal-1 internal-2 distances-1 distances-2] [--quick] [--keep]

AMBER ff14SB without solvent, friction 1/ps, both states minimised. Thermal paths begin on internal coordinates or on even distances, with one and with two components, at the
sizes of ``popflow path``. Force evaluations are those of learning, Hessian-vector products for the first widths included. Paths are simulated at 1 fs.
Two-way shooting gets as many forces, and ten times as many: paths of 1 ps in the same dynamics that begin within 60 degrees of phi and psi of A and end
within 60 degrees of B. Its chains begin on the elastic band, whose forces count.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from harness import Row, dataset, run

from popflow.core import Streams
from popflow.paths import (
    Molecule,
    Paths,
    Shooter,
    TorchForce,
    Underdamped,
    action,
    dihedrals,
    first_paths,
    fit,
    grid,
    shoot,
    simulate,
    thermal_path,
    through,
    two_way,
)
from popflow.paths.config import MOLECULES
from popflow.paths.coordinates import idpp
from popflow.paths.figures import backbone
from popflow.paths.first_paths import DISTANCES, IMAGES, distance_path, superposed

FOLDER = dataset("md") or Path(__file__).parents[1] / "examples"
PUBLISHED = {
    "published, Cartesian": 726.4,
    "published, internal": 228.11,
    "published, internal, two": 217.48,
    "published, internal, two, least": 163.63,
}
"""Highest energies in kJ/mol of Du et al. (2024), of frozen bonds; another group could not reproduce them."""
BUDGET, SHOTS = 173_276, {"as many forces": (8, 1), "ten times the forces": (32, 10)}
"""Force evaluations of learning with one component; chains and multiples of it by row."""
RADIUS = 60.0
"""Radius of both basins of shooting, degrees."""
AWAY = (0.1, 0.9)
"""Shares of the time that are away from the barrier."""


def setting() -> tuple[Molecule, Underdamped]:
    """The molecule and its dynamics."""
    files = [FOLDER / f"alanine_dipeptide_{state}.pdb" for state in "AB"]
    molecule = Molecule.from_pdb(*files, warn=False).minimised()
    return molecule, Underdamped(TorchForce(molecule.system), molecule.masses, friction=1.0, temperature=300.0)


def beginnings(kind: str, molecule: Molecule, process: Underdamped) -> list[torch.Tensor]:
    """Two first paths: by internal coordinates, or by even distances, nearest to those."""
    internal = first_paths(molecule, process.potential, 2)
    if kind == "internal":
        return internal
    a, b, every = molecule.a, molecule.b, (IMAGES - 1) // (DISTANCES - 1)
    return [superposed(idpp(a, b, DISTANCES, start=one[::every].unflatten(1, (-1, 3))), a, b) for one in internal]


def family(kind: str, count: int, options: argparse.Namespace) -> list[Row]:
    """Rows of the thermal path that begins in one way."""
    molecule, process = setting()
    rows = fitted(kind, beginnings(kind, molecule, process)[:count], molecule, process, options.quick)
    # bars are for what ``popflow path`` begins on; the others are beside it
    return rows if kind == "internal" else [replace(row, target=None) for row in rows]


def fitted(kind: str, first: list[torch.Tensor], molecule: Molecule, process: Underdamped, quick: bool) -> list[Row]:
    """Fit, measure and simulate one path."""
    begin, count = time.perf_counter(), len(first)
    sizes = {"coefficients": 8, "rounds": 1, "samples": 1} if quick else {}
    start = thermal_path(process, [through(one) for one in first], 1.0, sigma0=MOLECULES.sigma0, rng=Streams(0), **sizes)
    learned = fit(process, start, steps=4 if quick else MOLECULES.steps, batch=MOLECULES.batch, rng=Streams(0), bar=False)
    seconds = time.perf_counter() - begin
    path = learned.path
    cost = action(process, path, 640 if quick else MOLECULES.evaluations, Streams(1))
    paths = simulate(process, path, 4 if quick else MOLECULES.paths, grid(1.0, 1e-3), Streams(2), weigh=False)
    x = paths.x[..., : path.dim]
    with torch.no_grad():
        energy = process.potential(x) - process.potential(molecule.a.flatten())
    top, mean = energy.max(1).values, energy.mean(0)
    middle, away = x.shape[1] // 2, [round(share * (x.shape[1] - 1)) for share in AWAY]
    ratios = bond_ratios(process, x[:, middle])
    reach = 3 * MOLECULES.sigma0 * path.dim**0.5
    arrived = float(((x[:, -1] - molecule.b.flatten()).norm(dim=1) < reach).double().mean())
    angles = angles_of(molecule, path.moments(torch.linspace(0, 1, 11, dtype=torch.float64)).mean)
    name = f"{'internal coordinates' if kind == 'internal' else 'even distances'}, K = {count}"
    spent = learned.forces + start.prepared
    notes = {
        "sd over paths": float(top.std()),
        "least": float(top.min()),
        "action, nats": [cost.value, cost.error],
        "mean energy by tenths of the time": mean[:: max(1, (x.shape[1] - 1) // 10)].tolist(),
        "phi and psi of the means by tenths": angles.round(decimals=1).movedim(1, 0).tolist(),
        "weights": path.weights.tolist(),
        "paths": len(x),
    }
    error = float(top.std()) / len(top) ** 0.5
    return [
        Row(f"highest energy over A, {name}", float(top.mean()), error, "kJ/mol", peers=dict(PUBLISHED), seconds=seconds, notes=notes),
        Row(f"action, {name}", cost.value, cost.error, "nats"),
        Row(f"arrival at 1 fs, {name}", arrived, target=0.99, direction=">="),
        Row(f"bond stretch at half time over sqrt(kT / k), farthest from 1, {name}", float((ratios - 1).abs().max()), target=0.3),
        Row(f"mean energy away from the barrier, lower, {name}", float(mean[away].min()), unit="kJ/mol", target=40.0, direction=">="),
        Row(f"mean energy away from the barrier, upper, {name}", float(mean[away].max()), unit="kJ/mol", target=150.0),
        Row(
            f"largest distance of phi and psi from the straight line, {name}", off_line(angles), unit="degrees", target=30.0, direction=">="
        ),
        Row(f"force evaluations, {name}", float(spent), target=5e6, notes={"Hessian-vector products": learned.hvps + start.prepared}),
    ]


def bond_ratios(process: Underdamped, x: torch.Tensor) -> torch.Tensor:
    """Standard deviations of bond lengths over ``sqrt(kT / k)``."""
    bonds = process.potential.bonded[0]
    place = x.unflatten(1, (-1, 3))
    length = (place[:, bonds.atoms[:, 0]] - place[:, bonds.atoms[:, 1]]).norm(dim=-1)
    return length.std(0) / (process.kt / bonds.constant.flatten()).sqrt()


def off_line(angles: torch.Tensor) -> float:
    """Largest distance of angles ``[times, K, 2]`` from the straight line that joins their ends in the plane of phi and psi; the least of all components."""
    line = torch.lerp(angles[:1], angles[-1:], torch.linspace(0, 1, 101, dtype=angles.dtype)[:, None, None])
    gap = torch.remainder(angles[:, None] - line + 180, 360) - 180
    return float(gap.norm(dim=-1).amin(1).amax(0).min())


def reference(options: argparse.Namespace) -> list[Row]:
    """What fluctuates at A in molecular dynamics, and the barrier of the nudged elastic band."""
    molecule, process = setting()
    zero = float(process.potential(molecule.a.flatten()))
    energies = dynamics(molecule, 2.0 if options.quick else 40.0) - zero
    top = energies.unflatten(0, (-1, 100)).max(1).values
    barriers = {
        name: float(process.potential(band(images, molecule, process, 3 if options.quick else 200)[0]).max()) - zero
        for name, images in starts(molecule, process).items()
    }
    notes = {"barriers from the first paths": barriers, "images": DISTANCES}
    return [
        Row("energy over A at 300 K, molecular dynamics", float(energies.mean()), unit="kJ/mol", notes={"sd": float(energies.std())}),
        Row(
            "highest energy of a picosecond at A, molecular dynamics",
            float(top.mean()),
            float(top.std()) / len(top) ** 0.5,
            "kJ/mol",
            notes={"sd": float(top.std())},
        ),
        Row("barrier over A, nudged elastic band of ASE", min(barriers.values()), unit="kJ/mol", notes=notes),
    ]


def starts(molecule: Molecule, process: Underdamped) -> dict[str, torch.Tensor]:
    """First paths of elastic bands."""
    internal = first_paths(molecule, process.potential, 2)
    return {"internal 1": internal[0], "internal 2": internal[1], "distances": distance_path(molecule)}


def dynamics(molecule: Molecule, picoseconds: float) -> torch.Tensor:
    """Energies every 10 fs of Langevin dynamics at 300 K from state A, after 5 ps."""
    import openmm

    integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(molecule.system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(molecule.a.numpy())
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(10_000)
    found = []
    for _ in range(round(picoseconds * 100)):
        integrator.step(20)
        found.append(context.getState(getEnergy=True).getPotentialEnergy()._value)
    return torch.tensor(found, dtype=torch.float64)


def band(images: torch.Tensor, molecule: Molecule, process: Underdamped, steps: int) -> tuple[torch.Tensor, int]:
    """Images ``[P, 3 N]`` of a climbing nudged elastic band that begins on images, and the forces it took."""
    from ase import Atoms, units
    from ase.calculators.calculator import Calculator, all_changes
    from ase.mep import NEB
    from ase.optimize import FIRE

    kj = units.kJ / units.mol

    class Amber(Calculator):
        """The force field in units of ASE."""

        implemented_properties = ("energy", "forces")

        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            with torch.no_grad():
                x = torch.tensor(atoms.positions / 10).flatten()[None]
                energy, pull = process.potential(x), process.potential.force(x)
            self.results = {"energy": float(energy) * kj, "forces": pull.reshape(-1, 3).numpy() * kj / 10}

    frames = [Atoms(molecule.elements, positions=10 * one.reshape(-1, 3).numpy()) for one in images[:: (IMAGES - 1) // (DISTANCES - 1)]]
    for frame in frames:
        frame.calc = Amber()
    chain = NEB(frames, climb=True, method="improvedtangent")
    optimiser = FIRE(chain, logfile=None)
    optimiser.run(fmax=0.05, steps=steps)
    return torch.stack([torch.tensor(frame.positions / 10).flatten() for frame in frames]), (optimiser.nsteps + 1) * (len(frames) - 2)


def shooting(options: argparse.Namespace) -> list[Row]:
    """Rows of two-way shooting, with as many forces as learning and with ten times as many."""
    molecule, process = setting()
    images, used = band(first_paths(molecule, process.potential)[0], molecule, process, 3 if options.quick else 200)
    found = []
    for name, (chains, share) in SHOTS.items():
        found += shot(
            name, images, used, 2 if options.quick else chains, 2 * 2 * 1002 if options.quick else share * BUDGET - used, molecule, process
        )
    return found


def shot(name: str, images: torch.Tensor, used: int, chains: int, forces: int, molecule: Molecule, process: Underdamped) -> list[Row]:
    """Acceptance, independent paths and highest energies of chains that begin on images ``[P, 3 N]``."""
    begin, frames, zero = time.perf_counter(), 1001, process.potential(molecule.a.flatten())
    at = [angles_of(molecule, x.flatten()) for x in (molecule.a, molecule.b)]

    def near(x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return (torch.remainder(angles_of(molecule, x) - state + 180, 360) - 180).norm(dim=-1) < RADIUS

    shooter = Shooter(process, 1e-3, partial(near, state=at[0]), partial(near, state=at[1]), frames=frames)
    x = through(images)(torch.linspace(0, 1, frames, dtype=torch.float64)).detach()
    first = torch.cat([x, torch.zeros_like(x)], 1).expand(chains, -1, -1)
    paths = Paths(first, torch.full((chains,), frames), torch.full((chains,), frames // 2))
    moves = max(1, forces // (chains * (frames + 1)))
    shots = shoot(
        shooter, two_way, paths, moves, Streams(3), lambda paths: (process.potential(paths.x[..., : x.shape[1]]) - zero).max(1).values
    )
    taken = shots.accepted.sum(0)
    later = shots.values[moves // 2 :, shots.accepted[: moves // 2 + 1].any(0)]  # second half of chains that had left the band by then
    spread = float(later.mean(0).std()) / later.shape[1] ** 0.5 if later.shape[1] > 1 else None
    notes = {
        "chains": chains,
        "moves": moves,
        "forces": shots.forces + used,
        "of the band": used,
        "chains that left the band": int((taken > 0).sum()),
        "basins, phi and psi": [one.tolist() for one in at],
        "chains in the mean": later.shape[1],
    }
    n = shots.accepted.numel()
    share = shots.acceptance
    return [
        Row(
            f"two-way shooting, {name}: accepted", share, (share * (1 - share) / n) ** 0.5, notes=notes, seconds=time.perf_counter() - begin
        ),
        Row(f"two-way shooting, {name}: paths without a common frame", float(((taken + 1) // 2).sum())),
        Row(f"two-way shooting, {name}: highest energy over A", float(later.mean()), spread, "kJ/mol"),
    ]


def angles_of(molecule: Molecule, x: torch.Tensor) -> torch.Tensor:
    """Phi and psi ``[..., 2]`` in degrees of positions ``[..., 3 N]``."""
    return dihedrals(x.unflatten(-1, (-1, 3)), backbone(molecule)).rad2deg()


PARTS = {
    "reference": reference,
    "shooting": shooting,
    **{f"{kind}-{count}": partial(family, kind, count) for kind in ("internal", "distances") for count in (1, 2)},
}


def main(options: argparse.Namespace) -> list[Row]:
    """Measure paths of alanine dipeptide: energies, arrival, bonds, and references."""
    torch.manual_seed(0)
    found = []
    for name in options.only:
        rows = PARTS[name](options)
        for row in rows:
            row.notes["part"] = name
        found += rows
    return found


if __name__ == "__main__":
    run("alanine", main, seeds=1, parts=tuple(PARTS))
