"""Wasserstein and mixed descent beside Fisher-Rao: variance and gradient of the local energy after the same steps from the same pretrained start.

python benchmarks/qmc_geometries.py --json FILE [--only Li Be] [--seeds N]

Per seed one PsiFormer (2 layers of width 32, 4 determinants) is fitted to Hartree-Fock; every objective begins from that wave function and those 128
walkers, makes 800 steps, and is evaluated with frozen parameters. Two comparisons. *Same optimiser*: SINGD for all, as the paper has Kronecker factors for
all. *Best optimisers*: MinSR for Fisher-Rao, SINGD for Wasserstein, MinSR with a tenth of transport for mixed; they were chosen by the energies of lithium
on a seed that is not among those here. Rates are the usual ones of each optimiser. A ratio counts only where the row before it holds: the energy
is not above Fisher-Rao's by more than its error bar.
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
    "mixed 1:10, MinSR": (Objective(0.1, 1.0), "minsr"),
}
COMPARISONS = {
    "Wasserstein, SINGD": ("Fisher-Rao, SINGD", "Fisher-Rao, MinSR"),
    "mixed, SINGD": ("Fisher-Rao, SINGD",),
    "mixed 1:10, MinSR": ("Fisher-Rao, MinSR",),
}
"""Which run is compared with which of Fisher-Rao: the same optimiser, or the best one of each."""
EXACT = {"Li": -7.478060323, "Be": -14.667356}


@dataclass(frozen=True)
class Found:
    """What one search ended at; energies in Hartree."""

    energy: float
    error: float
    variance: float
    gradient: float
    seconds: float
    curve: list[float]
    """Mean energy of every hundred steps of the search: energy against iteration; ``seconds`` is the time of all of them."""


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
        found[label] = Found(
            seen.energy.value, seen.energy.error, seen.energy.variance, seen.gradient, seconds, every_hundred(last.curve["energy"])
        )
        print(
            f"{name}, seed {seed}, {label}: {seen.energy}, variance {seen.energy.variance:.4f}, |grad| {seen.gradient:.3f}, {seconds:.0f} s",
            flush=True,
        )
    return found


def every_hundred(energy: torch.Tensor) -> list[float]:
    """Return means of ten records of ten steps."""
    return [round(float(part.mean()), 5) for part in energy.split(10)]


def rows_of(name: str, found: list[dict[str, Found]]) -> list[Row]:
    """Ratios over seeds: Fisher-Rao's value over each other objective's, above 1 where that one is lower."""
    notes = {run: [vars(one[run]) for one in found] for run in RUNS} | {"torch threads": torch.get_num_threads()}
    return [row for mine, others in COMPARISONS.items() for other in others for row in compared(name, mine, other, found, notes)]


def compared(name: str, label: str, other: str, found: list[dict[str, Found]], notes: dict) -> list[Row]:
    """Return the rows of one comparison."""
    pairs = [(one[label], one[other]) for one in found]
    above = statistics.mean(1e3 * (a.energy - b.energy) for a, b in pairs)
    bar = math.hypot(*(1e3 * math.hypot(a.error, b.error) for a, b in pairs)) / len(pairs)
    against = f"{label} against {other}"
    rows = [
        Row(
            f"{name}: energy above, {against}", above / bar, None, "sigma", 1.0, seconds=sum(a.seconds for a, _ in pairs),
            notes=notes | {"mHa": above, "error": bar},
        )
    ]  # fmt: skip
    for what in ("variance", "gradient"):
        ratios = [getattr(b, what) / getattr(a, what) for a, b in pairs]
        spread = statistics.stdev(ratios) if len(ratios) > 1 else None
        claim = f"{name}: Fisher-Rao's {what} over its own, {against}"
        rows.append(Row(claim, statistics.mean(ratios), spread, "x", 1.0, ">=", notes={"ratios": ratios, "counts": above <= bar}))
    rows.append(Row(f"{name}: seconds, {against}", statistics.mean(a.seconds / b.seconds for a, b in pairs), None, "x"))
    return rows


def main(options: Namespace) -> list[Row]:
    """Variance and gradient of the local energy, by objective."""
    rows = []
    for name in ["Li"] if options.quick else options.only:
        rows += rows_of(name, [searches(name, seed, options.quick) for seed in range(options.seeds)])
    return rows


if __name__ == "__main__":
    run("qmc_geometries", main, seeds=3, parts=tuple(EXACT))
