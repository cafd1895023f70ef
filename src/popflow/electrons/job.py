"""The job of ``popflow ground``: a molecule, a wave function near Hartree-Fock, the search, the evaluation."""

from __future__ import annotations

import importlib.util
import math
import time

import torch

from popflow.core import Streams
from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.electrons.config import GroundConfig
from popflow.electrons.descent import Name
from popflow.electrons.energy import Energy, LocalEnergy
from popflow.electrons.ground_state import Evaluation, evaluate, search
from popflow.electrons.molecule import Molecule, MoleculeError
from popflow.electrons.objective import Objective, after
from popflow.electrons.pretrain import HartreeFock, pretrain
from popflow.electrons.report import GroundResult, report, spins
from popflow.electrons.traps import Trap, hookes_atom, oscillator, quantum_dot
from popflow.electrons.walkers import Walkers, equilibrate, place, sweep
from popflow.electrons.wavefunctions import PsiFormer, SlaterJastrow, WaveFunction
from popflow.runs import ConfigError, Report, Run, once, training


def run(config: GroundConfig, run: Run) -> Report:
    """Search for the ground state, and evaluate what was found."""
    try:
        system = system_of(config)
        rng = Streams(config.seed, run.device)
        psi = wave_function(config, system, rng).to(run.device)
        hartree_fock = hartree_fock_of(config, system, run) if isinstance(system, Molecule) else None
    except MoleculeError as error:
        raise ConfigError(str(error)) from error
    if config.start is not None:
        begin_from(psi, config)
    run.log(f"{system.formula}: {spins(system)}; {sum(p.numel() for p in psi.parameters())} parameters")
    if hartree_fock is not None and isinstance(psi, PsiFormer) and isinstance(system, Molecule):
        hartree_fock = hartree_fock.to(run.device)
        run.log(f"Hartree-Fock, {config.basis}: {hartree_fock.energy:.6f} Hartree")
        fitted = training(run, "pretrain", config.pretrain_steps)
        walkers = pretrain(psi, system, hartree_fock, steps=config.pretrain_steps, rng=rng, **fitted)
        walkers = walkers.first(config.walkers) if config.walkers <= len(walkers.x) else place(psi, system, config.walkers, rng)
    else:
        walkers = place(psi, system, config.walkers, rng)
    walkers = equilibrate(psi, walkers, rng, moves=config.moves)
    if not run.has("search"):
        run.log(f"the search will take about {seconds(config, psi, system, walkers):.0f} s on this machine")
    stage = training(run, "search", config.steps)
    found = search(
        psi, system, walkers, objective=objective(config), optimiser=optimiser(config), steps=config.steps, lr=config.lr, moves=config.moves,
        rng=rng, gradients=config.gradients, record=stage["record"], checkpoint=stage["checkpoint"],
    )  # fmt: skip
    save_tensors(run.path / "psi.safetensors", dict(psi.named_parameters()), {"system": system.formula})
    last = evaluated(config, psi, system, found.walkers, run)
    return report(GroundResult(config, system, found, last, hartree_fock and hartree_fock.energy), run)


def system_of(config: GroundConfig) -> Molecule | Trap:
    """Return the molecule or trap of a configuration."""
    traps = {"hooke": hookes_atom, "dot": quantum_dot, "oscillator": oscillator}
    if config.molecule in traps:
        return traps[config.molecule]()
    if config.file is not None:
        return Molecule.from_xyz(config.file, unit=config.unit, charge=config.charge, spin=config.spin)
    return Molecule.of(config.molecule, unit=config.unit, charge=config.charge, spin=config.spin)


def wave_function(config: GroundConfig, system: Molecule | Trap, rng: Streams) -> WaveFunction:
    """Return the wave function of a configuration."""
    dtype = dtype_of(config)
    if config.network == "slater-jastrow":
        return SlaterJastrow(system, width=config.width, rng=rng, dtype=dtype)
    heads = math.gcd(4, config.width)
    return PsiFormer(system, width=config.width, layers=config.layers, heads=heads, determinants=config.determinants, rng=rng, dtype=dtype)


def dtype_of(config: GroundConfig) -> torch.dtype:
    """Return the precision of a configuration."""
    return torch.float64 if config.double else torch.float32


def hartree_fock_of(config: GroundConfig, molecule: Molecule, run: Run) -> HartreeFock | None:
    """Calculate the orbitals to fit once per run, if orbitals are fitted: a run that began with them goes on with the same ones, without PySCF too."""
    if not (run.has("hartree-fock") or wants_hartree_fock(config, molecule)):
        return None
    kept = once(run, "hartree-fock", lambda: HartreeFock(molecule, config.basis).tensors())
    return HartreeFock(molecule, config.basis, kept=kept)


def wants_hartree_fock(config: GroundConfig, system: Molecule) -> bool:
    """Say whether orbitals are fitted to Hartree-Fock first."""
    if config.pretrain != "auto":
        return config.pretrain == "hartree-fock"
    possible = config.network == "psiformer" and config.start is None and system.electrons > 1
    return possible and importlib.util.find_spec("pyscf") is not None


def begin_from(psi: WaveFunction, config: GroundConfig) -> None:
    """Take the parameters of another run."""
    assert config.start is not None
    file = config.start / "psi.safetensors"
    if not file.exists():
        raise ConfigError(f"start={str(config.start)!r} has no {file.name}, wanted the folder of a run whose search has ended.")
    tensors, _ = load_tensors(file)
    mine = dict(psi.named_parameters())
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in mine.items()}:
        raise ConfigError(
            f"start={str(config.start)!r} holds a wave function of another shape. Fix: the same network, numbers of electrons and of atoms as there."
        )
    with torch.no_grad():
        for name, value in tensors.items():
            mine[name].copy_(value)


def objective(config: GroundConfig) -> Objective:
    """Return the geometry of a configuration: Fisher-Rao until ``warm``, then its own."""
    if config.metric == "fisher-rao":
        return Objective.fisher_rao()
    growth = config.growth if config.metric == "mixed" else 0.0
    return Objective(after(config.warm, 1.0), lambda progress: 1.0 if progress < config.warm else growth, config.cost)


def optimiser(config: GroundConfig) -> Name:
    """Return the optimiser of a configuration."""
    return config.optimiser or ("minsr" if config.metric == "fisher-rao" else "singd")


def seconds(config: GroundConfig, psi: WaveFunction, system: Molecule | Trap, walkers: Walkers) -> float:
    """Estimate the time of the search from one sweep and one local energy; a step of the parameters costs as much again."""
    start = time.perf_counter()
    sweep(psi, walkers, Streams(config.seed, walkers.x.device), config.moves)
    LocalEnergy(psi, system)(walkers.x, gradient=config.gradients or config.metric != "fisher-rao")
    return 2 * config.steps * (time.perf_counter() - start)


def evaluated(config: GroundConfig, psi: WaveFunction, system: Molecule | Trap, walkers: Walkers, run: Run) -> Evaluation:
    """Evaluate once per run."""

    def compute() -> dict[str, torch.Tensor]:
        rng = Streams(config.seed + 1, run.device)
        last = evaluate(
            psi, system, walkers, sweeps=config.sweeps, moves=config.moves, rng=rng, progress=lambda k, n: run.progress("evaluate", k, n)
        )
        numbers = [last.energy.value, last.energy.error, last.energy.variance, last.gradient]
        return {"numbers": torch.tensor(numbers, dtype=torch.float64), "series": last.series, **last.walkers.tensors()}

    saved = once(run, "evaluation", compute)
    value, error, variance, gradient = saved["numbers"].tolist()
    return Evaluation(Energy(value, error, variance), gradient, saved["series"], Walkers.of(saved))
