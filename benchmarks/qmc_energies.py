"""Ground-state energies against exact ones, on one core: atoms, small molecules and solvable traps, each by one search and one evaluation.

python benchmarks/qmc_energies.py --json FILE [--only H He ...]

Settings are the same for all systems: PsiFormer of 2 layers of width 32 with 4 determinants (13 000 parameters), 256 walkers, Fisher-Rao descent by MinSR,
orbitals fitted to Hartree-Fock first for molecules. Steps are 800 for two electrons, 3000 for lithium and its hydride, 8000 for beryllium: what half an hour
of one core allows with room to spare (3000 steps ended 2.2 millihartree above the exact energy). One seed (0; 1 for beryllium, whose steps were chosen on 0); the error bar is that of the evaluation.
"""

from __future__ import annotations

import math
import time
from argparse import Namespace

import torch
from harness import Row, run

from popflow.core import Streams
from popflow.electrons import Molecule, PsiFormer, evaluate, hookes_atom, quantum_dot, search
from popflow.electrons.pretrain import HartreeFock, pretrain
from popflow.electrons.walkers import equilibrate, place

SYSTEMS = {
    "H": (lambda: Molecule.of("H"), -0.5, 0.5),
    "He": (lambda: Molecule.of("He"), -2.903724377, 0.5),
    "H2": (lambda: Molecule.of("H 0 0 0; H 0 0 1.4", unit="bohr"), -1.174475714, 0.5),
    "hooke": (hookes_atom, 2.0, 0.2),
    "dot": (quantum_dot, 3.0, 0.2),
    "Li": (lambda: Molecule.of("Li"), -7.478060323, 1.0),
    "LiH": (lambda: Molecule.of("Li 0 0 0; H 0 0 3.015", unit="bohr"), -8.070548, 2.0),
    "Be": (lambda: Molecule.of("Be"), -14.667356, 2.0),
}
"""Name -> system, exact energy (Hartree), and how far from it is close enough (millihartree)."""


def measure(name: str, quick: bool, seed: int = 0) -> list[Row]:
    """Search for the ground state of one system, and evaluate it."""
    make, exact, wanted = SYSTEMS[name]
    system, rng, start = make(), Streams(seed), time.process_time()
    steps, sweeps, count = (4, 4, 16) if quick else ({"Li": 3000, "LiH": 3000, "Be": 8000}.get(name, 800), 800, 256)
    psi = PsiFormer(system, rng=rng)
    peers: dict[str, float | str] = {}
    if isinstance(system, Molecule) and system.electrons > 1:
        hartree_fock = HartreeFock(system)
        peers["Hartree-Fock, cc-pVDZ"] = 1e3 * (hartree_fock.energy - exact)
        walkers = pretrain(psi, system, hartree_fock, steps=5 if quick else 500, rng=rng).first(count)
    else:
        walkers = place(psi, system, count, rng)
    walkers = equilibrate(psi, walkers, rng, sweeps=2 if quick else 30)
    found = search(
        psi, system, walkers, steps=steps, rng=rng, record=[lambda p: print(name, p.step, p.metrics, flush=True)] if not quick else []
    )
    last = evaluate(psi, system, found.walkers, sweeps=sweeps, rng=rng)
    seconds = time.process_time() - start
    print(f"{name}: {last.energy}, variance {last.energy.variance:.4f}, {seconds:.0f} s of one core", flush=True)
    off, error = 1e3 * (last.energy.value - exact), 1e3 * last.energy.error
    notes = {
        "energy": last.energy.value, "variance": last.energy.variance, "gradient": last.gradient, "steps": steps, "walkers": count,
        "parameters": sum(p.numel() for p in psi.parameters()), "rollbacks": found.rollbacks, "threads": torch.get_num_threads(), "seed": seed,
    }  # fmt: skip
    below = -off / error if error > 0 else math.inf
    return [
        Row(
            f"{name}: distance from the exact energy",
            abs(off),
            error,
            "mHa",
            None if quick else wanted,
            peers=peers,
            seconds=seconds,
            notes=notes,
        ),
        Row(f"{name}: below the exact energy, in error bars", below, None, "sigma", None if quick else 3.0),
    ]


def main(options: Namespace) -> list[Row]:
    """Energies of small systems against exact ones."""
    names = ["H", "dot"] if options.quick else options.only
    return [row for name in names for row in measure(name, options.quick, seed=int(name == "Be"))]


if __name__ == "__main__":
    run("qmc_energies", main, seeds=1, parts=tuple(SYSTEMS))
