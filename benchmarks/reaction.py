"""A reaction with forces from quantum chemistry: HCN -> HNC with GFN2-xTB at 300 K, each force a recorded call.

    python benchmarks/reaction.py [--only path resume] [--quick] [--keep]

The path is one Gaussian of full covariance, overdamped. It begins on the arc along which H goes round the middle of CN while its distance changes evenly,
with the covariance ``kT H^-1`` of stiff modes (H by differences of forces along the arc) and a bounded width in soft ones. Nothing of the scan or
of the band enters it. Energies are over HCN. Calls are kept in ``benchmarks/parts/reaction``: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import torch
from harness import Row, run
from torch import Tensor

from popflow.core import Streams
from popflow.paths import ASEForce, FullPath, Overdamped, action, clock_grid, fit, gfn2_xtb, simulate, through
from popflow.paths.ase_force import ANGSTROM, EV
from popflow.paths.process import BOLTZMANN
from popflow.runs import Ledger

SYMBOLS, MASSES = ("H", "C", "N"), (1.008, 12.011, 14.007)
TEMPERATURE, FRICTION, TIME, SIGMA0 = 300.0, 10.0, 0.02, 0.002  # K, 1/ps, ps, nm
KT = BOLTZMANN * TEMPERATURE
IMAGES, WIDEST = 13, 0.01  # images with a Hessian; widest sd of a soft mode at first, nm
PARTS = Path(__file__).parent / "parts" / "reaction"
Shape = tuple[float, float, float]
"""Angle of H about the middle of CN, its distance from there, and the bond CN: radians and nm."""


def place(shape: Shape) -> Tensor:
    """Positions ``[9]`` in nm, C and N on the x axis; HCN has the angle pi, HNC 0."""
    angle, distance, bond = (torch.tensor(one, dtype=torch.float64) for one in shape)
    none = torch.zeros((), dtype=torch.float64)
    return torch.stack([distance * angle.cos(), distance * angle.sin(), none, -bond / 2, none, none, bond / 2, none, none])


def relaxed(potential: ASEForce, angle: float, first: tuple[float, float]) -> tuple[float, Shape]:
    """Least energy at an angle, and where it is."""
    from scipy.optimize import minimize

    def energy(scaled: Any) -> float:
        return float(potential(place((angle, scaled[0] / 10, scaled[1] / 10))[None])[0])

    found = minimize(energy, [10 * one for one in first], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-2, "maxiter": 120})
    return float(found.fun), (angle, float(found.x[0]) / 10, float(found.x[1]) / 10)


def band(images: Tensor, base: float, steps: int) -> tuple[float, int]:
    """Highest energy over HCN of ASE's climbing-image band that begins on images ``[P, 9]``, and its force calls."""
    from ase import Atoms
    from ase.mep import NEB
    from ase.optimize import FIRE

    chain = [Atoms(SYMBOLS, (x.reshape(-1, 3) / ANGSTROM).numpy()) for x in images]
    for one in chain:
        one.calc = gfn2_xtb()
    neb = NEB(chain, climb=True, method="improvedtangent")
    optimiser = FIRE(neb, logfile=None)
    optimiser.run(fmax=0.05, steps=steps)
    energies = [EV * float(one.get_potential_energy()) for one in chain]
    return max(energies) - base, optimiser.nsteps * (len(chain) - 2)


def hessians(potential: ASEForce, images: Tensor, h: float = 5e-4) -> Tensor:
    """Second derivatives ``[P, 9, 9]`` by central differences of forces."""
    shifts = h * torch.eye(images.shape[1], dtype=images.dtype)
    pull = potential.force(torch.cat([images[:, None] + shifts, images[:, None] - shifts], 1))
    up, down = pull.chunk(2, 1)
    matrix = (down - up) / (2 * h)
    return (matrix + matrix.mT) / 2


def thermal(curvature: Tensor, widest: Tensor) -> Tensor:
    """Covariances ``[P, 9, 9]``: ``kT / k`` in the eigenvectors where that is below ``widest^2 [P]``, else ``widest^2``."""
    values, vectors = torch.linalg.eigh(curvature)
    limit = widest.square()[:, None].expand_as(values)
    variance = torch.where(values > KT / limit, KT / values.clamp_min(1e-9), limit)
    return (vectors * variance[:, None]) @ vectors.mT


def begin(path: FullPath, means: Tensor, covariances: Tensor, steps: int) -> FullPath:
    """Fit a path to Gaussians at even times by their divergence from it; no force is evaluated."""
    times = torch.linspace(0, path.time, len(means), dtype=torch.float64)[1:-1]
    optimiser = torch.optim.Adam(path.network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        law = path.moments(times)
        away, factor = means[1:-1] - law.mean[:, 0], law.factor[:, 0]
        both = covariances[1:-1] + away[:, :, None] * away[:, None, :]
        ratio = torch.cholesky_solve(both, factor)
        loss = (ratio.diagonal(dim1=1, dim2=2).sum(-1) / 2 + factor.diagonal(dim1=1, dim2=2).log().sum(-1)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(path.network.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    return path


@cache
def states() -> tuple[Shape, Shape, float, float]:
    """HCN and HNC, relaxed, and their energies; the calls are not recorded."""
    potential = ASEForce(SYMBOLS, workers=1)
    (a, one), (b, two) = relaxed(potential, torch.pi, (0.164, 0.115)), relaxed(potential, 0.0, (0.158, 0.117))
    return one, two, a, b


def learned(file: Path, steps: int, batch: int, images: int, beginning: int) -> tuple[Overdamped, ASEForce, Any, Tensor]:
    """Process, potential, the fitted path, and its first images ``[P, 9]``; every force is in the ledger ``file``."""
    one, two, _, _ = states()
    potential = ASEForce(SYMBOLS, gfn2_xtb, file, workers=1, failed=0.0)
    masses = torch.tensor(MASSES, dtype=torch.float64).repeat_interleave(3)
    process = Overdamped.at(potential, TEMPERATURE, FRICTION, masses)
    s = torch.linspace(0, 1, images, dtype=torch.float64).tolist()
    first = torch.stack([place(tuple((1 - f) * a + f * b for a, b in zip(one, two, strict=True))) for f in s])  # pyright: ignore[reportArgumentType]
    path = FullPath(first[0], first[-1], TIME, noise=process.noise, sigma0=SIGMA0, rng=Streams(0), initial=through(first))
    envelope = torch.linspace(0, 1, images, dtype=torch.float64)
    widest = (SIGMA0**2 + (WIDEST**2 - SIGMA0**2) * 4 * envelope * (1 - envelope)).sqrt()
    begin(path, first, thermal(hessians(potential, first), widest), beginning)
    return (
        process,
        potential,
        fit(process, path, steps=steps, batch=batch, rng=Streams(0), lr=3e-3, warmup=min(20, steps - 1), bar=False).path,
        first,
    )


def path(options: argparse.Namespace) -> list[Row]:
    """The path's highest energy against the relaxed scan and ASE's band, and whether the ensemble arrives."""
    steps, batch, images, beginning, moves = (4, 4, 5, 30, 200) if options.quick else (200, 16, IMAGES, 1000, 2000)
    (_, *shape), _, base, other = states()
    process, potential, best, first = learned(PARTS / f"calls-{steps}.jsonl", steps, batch, images, beginning)
    t = torch.linspace(0, TIME, 61, dtype=torch.float64)
    with torch.no_grad():
        mean = best.moments(t).mean[:, 0]
    highest = float((potential(mean) - base).max())
    scan = ASEForce(SYMBOLS, workers=1)
    relaxing = []
    for degrees in range(170, 20, -30 if options.quick else -10):
        energy, (_, *shape) = relaxed(scan, degrees * torch.pi / 180, tuple(shape))  # pyright: ignore[reportArgumentType]
        relaxing.append((energy - base, degrees))
    top, at = max(relaxing)
    climbed, climbing = band(first, base, 20 if options.quick else 300)
    walks = simulate(process, best, 20 if options.quick else 200, clock_grid(TIME, moves), Streams(1), keep=[0, moves], weigh=False)
    last = walks.x[:, -1]
    near = (last - best.end).norm(dim=-1) < 3 * SIGMA0 * 3
    gap = last.reshape(-1, 3, 3)
    isomer = (gap[:, 0] - gap[:, 2]).norm(dim=-1) < (gap[:, 0] - gap[:, 1]).norm(dim=-1)
    failures = ASEForce(SYMBOLS, workers=1, failed=0.0)
    failures(torch.tensor([[5.0, 0, 0, 0, 0, 0, 3, 0, 0]], dtype=torch.float64))
    measured = action(process, best, 256, Streams(2))
    notes = {
        "relaxed scan, angles and energies": relaxing,
        "HNC over HCN": other - base,
        "calls of the band": climbing,
        "outcomes": dict(Counter(potential.costly.ledger.counts())),
        "action": [measured.value, measured.error],
        "highest energy of the first path": float((potential(first) - base).max()),
        "angle of the top of the scan, degrees": at,
        "atoms nanometres apart": dict(Counter(failures.costly.ledger.counts())),
    }
    peers = {"relaxed scan": top, "climbing band": climbed}
    return [
        Row("highest energy of the mean path off the relaxed scan", abs(highest - top), unit="kJ/mol", target=30.0, peers=peers, notes=notes | {"highest": highest}),
        Row("highest energy of the mean path off the climbing band", abs(highest - climbed), unit="kJ/mol", target=30.0),
        Row("share of simulated paths that arrive within three sd of HNC", float((near & isomer).double().mean()), target=0.95, direction=">="),
        Row("calls in the ledger, of learning and of judging the path", float(len(potential.costly.ledger))),
    ]  # fmt: skip


def short(file: str) -> None:
    """A small fit, for the part `resume`."""
    learned(Path(file), 6, 8, 5, 30)


def resume(options: argparse.Namespace) -> list[Row]:
    """Kill a fit by signal 9 in the midst of its calls, start it again, and count against one that was never stopped."""
    with tempfile.TemporaryDirectory() as folder:
        whole, torn = Path(folder, "whole.jsonl"), Path(folder, "torn.jsonl")
        short(str(whole))
        wanted = len(Ledger.read(whole))
        command = [sys.executable, "-c", f"import reaction; reaction.short({str(torn)!r})"]
        child = subprocess.Popen(command, cwd=Path(__file__).parent)
        while child.poll() is None and not (torn.exists() and len(torn.read_bytes().splitlines()) > wanted // 2):
            time.sleep(0.02)
        child.kill()
        child.wait()
        before = set(Ledger.read(torn))
        subprocess.run(command, cwd=Path(__file__).parent, check=True)
        keys = [line.split('"key": "')[1].split('"')[0] for line in torn.read_text().splitlines() if '"key"' in line]
    notes = {"calls before the kill": len(before), "calls in all": wanted}
    return [
        Row("calls made twice after a kill", float(len(keys) - len(set(keys))), target=0.0, notes=notes),
        Row("calls of a run that was killed, beyond those of one that was not", float(len(keys) - wanted), target=0.0),
    ]


PARTS_OF = {"path": path, "resume": resume}


def main(options: argparse.Namespace) -> list[Row]:
    """Measure HCN -> HNC."""
    torch.manual_seed(0)
    rows = []
    for name in options.only:
        found = PARTS_OF[name](options)
        for row in found:
            row.notes["part"] = name
        rows += found
    return rows


if __name__ == "__main__":
    run("reaction", main, parts=tuple(PARTS_OF))
