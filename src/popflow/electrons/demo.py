"""``popflow demo wqmc``: the same two electrons, and the same start, by three geometries of descent; the answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from popflow.core import Streams
from popflow.electrons.config import DemoConfig
from popflow.electrons.ground_state import evaluate, search
from popflow.electrons.objective import Objective
from popflow.electrons.report import smoothed
from popflow.electrons.traps import quantum_dot
from popflow.electrons.walkers import equilibrate, place
from popflow.electrons.wavefunctions import PsiFormer, SlaterJastrow
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, once, training
from popflow.runs.figures import lines

OBJECTIVES = {"Fisher-Rao": Objective.fisher_rao(), "Wasserstein": Objective.wasserstein(), "mixed": Objective.mixed()}
BAR = 5e-3


def demo(config: DemoConfig, run: Run) -> Report:
    """Descend to the ground state of the quantum dot, E = 3 Hartree, by each geometry."""
    system = quantum_dot()
    steps, walkers = (min(70, config.steps), min(64, config.walkers)) if config.quick else (config.steps, config.walkers)
    table, curves, results = [], {}, {}
    for name, objective in OBJECTIVES.items():
        rng = Streams(config.seed, run.device)
        psi = (SlaterJastrow(system, rng=rng) if config.quick else PsiFormer(system, rng=rng)).to(run.device)
        begun = equilibrate(psi, place(psi, system, walkers, rng), rng)
        stage = training(run, name, steps)
        found = search(
            psi, system, begun, objective=objective, optimiser="singd", steps=steps, rng=rng, gradients=True, moves=5, lr=0.05, record=stage["record"],
            checkpoint=stage["checkpoint"],
        )  # fmt: skip

        def numbers(psi=psi, found=found, rng=rng) -> dict[str, torch.Tensor]:
            last = evaluate(psi, system, found.walkers, sweeps=50 if config.quick else 200, rng=rng)
            return {"numbers": torch.tensor([last.energy.value, last.energy.error, last.energy.variance, last.gradient])}

        value, error, variance, gradient = once(run, f"{name} evaluation", numbers)["numbers"].tolist()
        table.append((name, Measured(value, error), variance, gradient))
        curves[name] = found.curve
        results[f"{name}, energy"] = Measured(value, error)
    step = curves["mixed"]["step"]
    return Report(
        title="Two electrons in a quantum dot, by three geometries of descent",
        summary=(
            "Two electrons repel one another in a two-dimensional harmonic trap. The exact ground state has the energy 3 Hartree. The wave function descends "
            "by re-weighting walkers (Fisher-Rao: imaginary time), by moving them along the gradient of the local energy (Wasserstein), or by both. At the "
            "ground state the local energy is constant: its variance and its gradient vanish."
        ),
        verdict=verdict([energy for _, energy, _, _ in table]),
        figure=Figure(
            lines(
                step,
                {name: smoothed((curve["energy"] - 3).abs()) for name, curve in curves.items()},
                x_label="step",
                y_label="|E - 3| (Hartree)",
                log_y=True,
            ),
            "Distance of the mean local energy from the exact one, averaged over fifty steps.",
            "Three falling curves.",
        ),
        comparison=(
            Table(
                "Evaluated with frozen parameters",
                ("geometry", "energy (Hartree)", "variance of E_loc (Hartree^2)", "median |grad E_loc| (Hartree/bohr)"),
                tuple(table),
                f"{steps} steps, {walkers} walkers, SINGD with the same settings for all. Exact: 3, 0, 0.",
            ),
        ),
        diagnostics=(
            Figure(
                lines(
                    step,
                    {name: smoothed(curve["gradient"]) for name, curve in curves.items()},
                    x_label="step",
                    y_label="median |grad E_loc|",
                    log_y=True,
                ),
                "The gradient of the local energy during the search.",
                "Three falling curves.",
            ),
        ),
        results=results,
        next=("popflow ground 'H 0 0 0; H 0 0 0.7408' --metric mixed",),
    )


def verdict(energies: Sequence[Measured]) -> Verdict:
    """Judge by the distance from 3 Hartree beyond three error bars; an energy or an error bar that is not finite is no success."""
    beyond = [abs(energy.value - 3) - 3 * (math.nan if energy.error is None else energy.error) for energy in energies]
    wanted = f"every energy within three error bars plus {BAR} Hartree of 3"
    if not all(math.isfinite(one) for one in beyond):
        return Verdict(False, "An energy or its error bar is not finite.", wanted)
    worst = max(0.0, *beyond)
    return Verdict(worst < BAR, f"The energies are within three error bars plus {worst:.4f} Hartree of 3.", wanted)
