"""The report of samples of a particle system: configurations, energies and distances, compared with ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.particles.comparison import CLIPPED, MARGIN, compare
from popflow.compose.particles.models import Model, find, tables
from popflow.compose.particles.monte_carlo import tempered
from popflow.core import Population, Streams, systematic
from popflow.runs import Figure, Measured, Table, figures

SHOWN = 6
"""Configurations in a row of the figure."""


@dataclass(frozen=True, eq=False)
class Findings:
    """Parts of the report of samples.

    Attributes:
        figure: The main figure.
        diagnostics: Further figures and tables.
        results: Numbers for the summary.
    """

    figure: Figure
    diagnostics: tuple[Figure | Table, ...]
    results: dict[str, Measured]


def against_truth(name: str, temperature: float, pop: Population) -> Findings:
    """Compare a weighted population ``x [runs, n, particles, d]``, all runs pooled, with the tables of a model, where it has them at this temperature."""
    model = find(name)
    x, weights = pop.x.flatten(0, 1).double().cpu(), (pop.weights() / len(pop.log_w)).flatten().double().cpu()
    energy, distance = model.system.energy(x), model.system.distances(x)
    truth, count = tables(name, temperature), distance.shape[1]
    shown = {"samples": energy.clamp_max(torch.quantile(energy, 0.995) + MARGIN)}
    pairs = {"samples": distance.flatten()}
    share = {"samples": weights}
    each = {"samples": weights.repeat_interleave(count)}
    mean = float((weights * energy.clamp_max(CLIPPED)).sum())
    results = {"mean_energy": Measured(mean)}
    caption, rows = f"No ground truth is tabulated at T = {temperature:g}, only at {', '.join(f'{t:g}' for t in model.tables)}.", ()
    if truth is not None:
        shown["ground truth"], pairs["ground truth"] = truth["energy"], truth["distance"]
        seen = compare(model.system, x, weights, truth["energy"], truth["distance"])
        caption = "Ground truth: quantiles from two long runs of parallel-tempered Hamiltonian Monte Carlo."
        results |= {"distance_w2": Measured(seen.distance_w2), "energy_w1": Measured(seen.energy_w1)}
        rows = (
            ("distance W2", seen.distance_w2, seen.distance_w2),
            ("energy W1", seen.energy_w1, seen.energy_w1 / temperature),
            ("energy W1 without overlaps", seen.trimmed_w1, seen.trimmed_w1 / temperature),
            ("energy W2", seen.energy_w2, seen.energy_w2 / temperature),
            ("median energy minus the true one", seen.median, seen.median / temperature),
            ("share of overlaps", seen.overlaps, seen.overlaps),
        )
    note = (
        f"Energies are clipped at {CLIPPED:g}; overlaps are configurations more than {MARGIN:g} above the highest true energy. The last column "
        "gives energies in units of the temperature."
    )
    table = (
        (Table(f"Against ground truth at T = {temperature:g}", ("", "in units of the energy", "E / T"), rows, note=note),) if rows else ()
    )
    energies = figures.histogram(shown, x_label="energy", weights=share)
    lengths = figures.histogram(pairs, x_label="distance of two particles", bins=80, weights=each)
    return Findings(
        Figure(energies, f"Energies of {model.system.name} at T = {temperature:g}. {caption}"),
        (Figure(lengths, "All distances."), configurations(model, temperature, x, weights), *table),
        results,
    )


def configurations(model: Model, temperature: float, x: Tensor, weights: Tensor) -> Figure:
    """Some configurations drawn by their weights ``[n]``, and as many from a short Monte Carlo run at this temperature."""
    rng, system = Streams(0), model.system
    drawn = systematic(weights, rng("draw"))
    drawn = drawn[:: max(len(drawn) // SHOWN, 1)][:SHOWN]
    walk = {"sweeps": 1, "burn": 150, "chains": SHOWN, "keep_every": 1, "step_size": model.step_size}
    exact = tempered(system, (temperature,), model.start(), rng=rng, **walk).at(temperature)
    names = [
        f"{what}, energies {', '.join(f'{e:.1f}' for e in system.energy(one))}"
        for what, one in (("samples", x[drawn]), ("Monte Carlo", exact))
    ]
    picture = figures.clusters(dict(zip(names, (x[drawn], exact), strict=True)), reach=1.3 * system.distance)
    return Figure(picture, "Samples drawn by weight, and walkers of a short Monte Carlo run at the same temperature.")
