"""Energies and processor seconds beside pyqmc and QMCTorch on H2 and LiH, each with its usual Slater-Jastrow wave function, on one core.

python benchmarks/qmc_peers.py --json FILE

Peers begin with Hartree-Fock orbitals of PySCF in cc-pVTZ (pyqmc) and dzp (QMCTorch); all have 256 walkers. pyqmc makes 15 line minimisations and 40 blocks,
QMCTorch 100 steps of Adam and 100 sweeps, ours 800 steps: the seconds differ, and are shown. Where deepqmc and ferminet cannot be imported, their errors
stand in the rows.
"""

from __future__ import annotations

import importlib
import math
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Row, run
from qmc_energies import SYSTEMS

from popflow.core import Streams
from popflow.electrons import HartreeFock, Molecule, PsiFormer, equilibrate, evaluate, pretrain, search

GEOMETRIES = {"H2": "H 0 0 0; H 0 0 1.4", "LiH": "Li 0 0 0; H 0 0 3.015"}
Found = tuple[float, float]
"""Energy and its standard error, Hartree."""


def ours(name: str, quick: bool) -> Found:
    """PsiFormer of 13 000 parameters, MinSR."""
    molecule, rng = Molecule.of(GEOMETRIES[name], unit="bohr"), Streams(0)
    psi = PsiFormer(molecule, rng=rng)
    begun = pretrain(psi, molecule, HartreeFock(molecule), steps=5 if quick else 500, rng=rng).first(16 if quick else 256)
    found = search(psi, molecule, equilibrate(psi, begun, rng, sweeps=2 if quick else 30), steps=4 if quick else 800, rng=rng)
    energy = evaluate(psi, molecule, found.walkers, sweeps=4 if quick else 400, rng=rng).energy
    return energy.value, energy.error


def pyqmc(name: str, quick: bool) -> Found:
    """Slater-Jastrow by line minimisation, then variational Monte Carlo."""
    from pyqmc import recipes
    from pyscf import gto, scf

    with tempfile.TemporaryDirectory() as folder:
        field = scf.RHF(gto.M(atom=GEOMETRIES[name], unit="bohr", basis="cc-pvtz", verbose=0))
        start, fitted, seen = (str(Path(folder) / file) for file in ("hf.chk", "fitted.hdf5", "seen.hdf5"))
        field.chkfile = start
        field.kernel()
        recipes.OPTIMIZE(start, fitted, nconfig=16 if quick else 256, max_iterations=1 if quick else 15)
        recipes.VMC(start, seen, nconfig=16 if quick else 256, load_parameters=fitted, nblocks=4 if quick else 40)
        read = recipes.read_mc_output(seen)
    return float(read["energytotal"]), float(read["energytotal_err"])


def qmctorch(name: str, quick: bool) -> Found:
    """Slater-Jastrow by Adam, then sweeps with frozen parameters."""
    from qmctorch.sampler import Metropolis
    from qmctorch.scf import Molecule as Other
    from qmctorch.solver import Solver
    from qmctorch.utils import set_torch_double_precision
    from qmctorch.wavefunction import SlaterJastrow

    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            set_torch_double_precision()
            molecule = Other(atom=GEOMETRIES[name], calculator="pyscf", basis="dzp", unit="bohr", name=name)
            psi = SlaterJastrow(molecule)
            sampler = Metropolis(
                nwalkers=16 if quick else 256, nstep=200, step_size=0.3, nelec=psi.nelec, init=molecule.domain("atomic"),
            )  # fmt: skip
            solver = Solver(wf=psi, sampler=sampler, optimizer=torch.optim.Adam(psi.parameters(), lr=1e-2))
            every = {"mode": "update", "resample_every": 1, "nstep_update": 10}
            solver.configure(track=["local_energy"], loss="energy", grad="manual", resampling=every)
            solver.run(2 if quick else 100)
            x, means = sampler(psi.pdf), []
            sampler.nstep, sampler.ntherm = 20, 19
            for _ in range(4 if quick else 100):
                x = sampler(psi.pdf, pos=x, with_tqdm=False).detach().requires_grad_()
                means.append(psi.local_energy(x).detach().mean())
        finally:
            os.chdir(before)
            torch.set_default_dtype(torch.float32)
    series = torch.stack(means).double()
    return float(series.mean()), float(series.std() / math.sqrt(len(series)))


def timed(measure: Callable[[str, bool], Found], name: str, quick: bool) -> tuple[Found, float]:
    """What was found, and the processor seconds it took."""
    before = time.process_time()
    return measure(name, quick), time.process_time() - before


def main(options: Namespace) -> list[Row]:
    """Distances from the exact energy, and seconds."""
    rows = []
    for name in ("H2",) if options.quick else GEOMETRIES:
        exact = SYSTEMS[name][1]
        (energy, error), seconds = timed(ours, name, options.quick)
        peers: dict[str, float | str] = {}
        notes: dict[str, float | str] = {"popflow, s": seconds}
        for label, measure in (("pyqmc", pyqmc), ("QMCTorch", qmctorch)):
            try:
                (other, bar), took = timed(measure, name, options.quick)
                peers |= {f"{label}, mHa": 1e3 * (other - exact), f"{label}, s": took}
                notes[f"{label}, error, mHa"] = 1e3 * bar
            except ImportError as absent:
                peers[label] = f"absent: {absent}"
        for label in ("deepqmc", "ferminet"):
            try:
                importlib.import_module(label)
                peers[label] = "absent: installed, no comparison is written"
            except ImportError as absent:
                peers[label] = f"absent: {absent}"
        claim = f"{name}: above the exact energy"
        rows.append(Row(claim, 1e3 * (energy - exact), 1e3 * error, "mHa", peers=peers, seconds=seconds, notes=notes))
    return rows


if __name__ == "__main__":
    run("qmc_peers", main, seeds=1)
