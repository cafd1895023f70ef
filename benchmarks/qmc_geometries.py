"""Wasserstein and mixed descent beside Fisher-Rao: variance and gradient of the local energy after the same steps from the same pretrained start.

python benchmarks/qmc_geometries.py --json FILE [--only Li Be] [--seeds N]

Per seed one PsiFormer (2 layers of width 32, 4 determinants) is fitted to Hartree-Fock; every objective begins from that wave function and those 128
walkers, makes 800 steps, and is evaluated with frozen parameters. Fisher-Rao has two optimisers, and the better energy of the two counts as Fisher-Rao.
Rates are the usual ones of each optimiser. A ratio counts only where the row before it holds: the energy is not above Fisher-Rao's by more than its error bar.
"""

from __future__ import annotations

import math
import statistics
import time
from argparse import Namespace
from dataclasses import dataclass

import torch
from harness import Row, run

from popflow.core import Streams
from popflow.electrons import HartreeFock, Molecule, Objective, PsiFormer, equilibrate, evaluate, pretrain, search

RUNS = {
    "Fisher-Rao, MinSR": (Objective.fisher_rao(), "minsr"),
    "Fisher-Rao, SINGD": (Objective.fisher_rao(), "singd"),
    "Wasserstein, SINGD": (Objective.wasserstein(), "singd"),
    "mixed, SINGD": (Objective.mixed(), "singd"),
}
EXACT = {"Li": -7.478060323, "Be": -14.667356}


@dataclass(frozen=True)
class Found:
    """What one search ended at; energies in Hartree."""

    energy: float
    error: float
    variance: float
    gradient: float
    seconds: float


def searches(name: str, seed: int, quick: bool) -> dict[str, Found]:
    """Run every objective from one start."""
    atom, rng = Molecule.of(name), Streams(seed)
    steps, sweeps, walkers = (4, 4, 16) if quick else (800, 300, 128)
    psi = PsiFormer(atom, rng=rng)
    begun = pretrain(psi, atom, HartreeFock(atom), steps=5 if quick else 500, rng=rng).first(walkers)
    begun = equilibrate(psi, begun, rng)
    start, streams = {key: value.clone() for key, value in psi.state_dict().items()}, rng.state()
    found = {}
    for label, (objective, optimiser) in RUNS.items():
        psi.load_state_dict(start)
        rng.load(streams)
        before = time.process_time()
        last = search(psi, atom, begun, objective=objective, optimiser=optimiser, steps=steps, rng=rng)
        seconds = time.process_time() - before
        seen = evaluate(psi, atom, last.walkers, sweeps=sweeps, rng=rng)
        found[label] = Found(seen.energy.value, seen.energy.error, seen.energy.variance, seen.gradient, seconds)
        print(
            f"{name}, seed {seed}, {label}: {seen.energy}, variance {seen.energy.variance:.4f}, |grad| {seen.gradient:.3f}, {seconds:.0f} s",
            flush=True,
        )
    return found


def rows_of(name: str, found: list[dict[str, Found]]) -> list[Row]:
    """Ratios over seeds: Fisher-Rao's value over each other objective's, above 1 where that one is lower."""
    rows = []
    best = [min((one[label] for label in RUNS if label.startswith("Fisher")), key=lambda f: f.energy) for one in found]
    for label in (label for label in RUNS if not label.startswith("Fisher")):
        mine = [one[label] for one in found]
        excess = [1e3 * (a.energy - b.energy) for a, b in zip(mine, best, strict=True)]
        bars = [1e3 * math.hypot(a.error, b.error) for a, b in zip(mine, best, strict=True)]
        above, bar = statistics.mean(excess), math.hypot(*bars) / len(bars)
        notes = {run: [vars(one[run]) for one in found] for run in RUNS} | {"torch threads": torch.get_num_threads()}
        claim = f"{name}: energy of {label} above Fisher-Rao's, in error bars"
        rows.append(
            Row(claim, above / bar, None, "sigma", 1.0, notes=notes | {"mHa": above, "error": bar}, seconds=sum(f.seconds for f in mine))
        )
        for what in ("variance", "gradient"):
            ratios = [getattr(b, what) / getattr(a, what) for a, b in zip(mine, best, strict=True)]
            spread = statistics.stdev(ratios) if len(ratios) > 1 else None
            claim = f"{name}: {what} of Fisher-Rao over that of {label}"
            rows.append(Row(claim, statistics.mean(ratios), spread, "x", 1.0, ">=", notes={"ratios": ratios, "counts": above <= bar}))
        time_ratio = statistics.mean(a.seconds / b["Fisher-Rao, SINGD"].seconds for a, b in zip(mine, found, strict=True))
        rows.append(Row(f"{name}: seconds of {label} over Fisher-Rao by SINGD", time_ratio, None, "x"))
    return rows


def main(options: Namespace) -> list[Row]:
    """Variance and gradient of the local energy, by objective."""
    rows = []
    for name in ["Li"] if options.quick else options.only:
        rows += rows_of(name, [searches(name, seed, options.quick) for seed in range(options.seeds)])
    return rows


if __name__ == "__main__":
    run("qmc_geometries", main, seeds=3, parts=tuple(EXACT))
