"""What a report shows of samples of a particle system: energies and distances beside ground truth."""

from __future__ import annotations

from pathlib import Path

import torch

from popflow.compose.particles.comparison import CLIPPED, MARGIN, compare
from popflow.compose.particles.models import find, tables
from popflow.core import Population
from popflow.runs import Figure, Measured, Table, figures


def against_truth(
    name: str, temperature: float, pop: Population, folder: Path
) -> tuple[Figure, tuple[Figure | Table, ...], dict[str, Measured]]:
    """Histograms of energies and distances of a weighted population, with distances to the tables of the model where it has them.

    Args:
        name: Of the model.
        temperature: That was sampled.
        pop: ``x [runs, n, particles, d]``; all runs are pooled.
        folder: With the tables.

    Returns:
        The figure of energies; more figures and a table; results for the summary.
    """
    model = find(name)
    x, weights = pop.x.flatten(0, 1).double(), (pop.weights() / len(pop.log_w)).flatten().double()
    energy, distance = model.system.energy(x), model.system.distances(x)
    truth, count = tables(name, temperature, folder), distance.shape[1]
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
        caption = "Ground truth: quantiles of two long runs of parallel-tempered Hamiltonian Monte Carlo."
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
        f"Energies are clipped at {CLIPPED:g}; overlaps are configurations more than {MARGIN:g} above the highest energy of the truth. The last column "
        "has energies in units of the temperature; lengths and shares have none."
    )
    table = (
        (Table(f"Against ground truth at T = {temperature:g}", ("", "in units of the energy", "E / T"), rows, note=note),) if rows else ()
    )
    energies = figures.histogram(shown, x_label="energy", weights=share)
    lengths = figures.histogram(pairs, x_label="distance of two particles", bins=80, weights=each)
    return (
        Figure(energies, f"Energies of {model.system.name} at T = {temperature:g}. {caption}"),
        (Figure(lengths, "All distances."), *table),
        results,
    )
