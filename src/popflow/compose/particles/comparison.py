"""Compare samples of a particle system with ground truth: interparticle distances, energies, overlaps.

Energies are compared in units of the energy; divide by the temperature for reduced ones (published tables of annealing compare ``E/T`` of the
temperature that is sampled, and some codes of that family print squared distances as "W2").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.particles.energies import Cluster
from popflow.core.metrics import wasserstein_1d

CLIPPED = 1000.0
"""Energies are clipped here in ``energy_w1`` and ``energy_w2``: otherwise a single overlap would dominate the distance."""
MARGIN = 20.0
"""Configurations this far above the highest true energy count as overlaps, and are left out of the trimmed distance."""


@dataclass(frozen=True)
class Comparison:
    """Distances found by `compare`.

    Attributes:
        distance_w2: Wasserstein-2 distance between pooled pair distances.
        energy_w1: Wasserstein-1 distance between energies, clipped at `CLIPPED`.
        energy_w2: Wasserstein-2, clipped as well.
        raw_w1: Wasserstein-1 distance between unclipped energies; infinite when particles coincide.
        trimmed_w1: Wasserstein-1 distance without overlaps.
        overlaps: Weight fraction of overlaps.
        median: Median energy minus the true one.
    """

    distance_w2: float
    energy_w1: float
    energy_w2: float
    raw_w1: float
    trimmed_w1: float
    overlaps: float
    median: float


def compare(system: Cluster, x: Tensor, weights: Tensor | None, energies: Tensor, distances: Tensor) -> Comparison:
    """Compare weighted configurations with ground truth.

    Args:
        system: Supplies the energy.
        x: Configurations ``[n, particles, d]``.
        weights: ``[n]`` or None.
        energies: True energies ``[m]``: samples or quantiles.
        distances: True pair distances, any shape.

    Raises:
        ValueError: for configurations of another system, or weights that do not fit.

    Example:
        >>> from popflow.compose.particles import lennard_jones
        >>> system, x = lennard_jones(2, trap=0.0), torch.tensor([[[0.0, 0, 0], [1.0, 0, 0]]])
        >>> found = compare(system, x, None, torch.tensor([-2.0]), torch.tensor([1.5]))
        >>> found.distance_w2, found.energy_w1
        (0.5, 0.0)
    """
    if weights is not None and (weights.shape != x.shape[:1] or not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < math.inf):
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} for x of shape {tuple(x.shape)}, wanted one for each, not negative, not all zero."
        )
    x, truth = x.double(), energies.double().flatten()
    energy = system.energy(x).nan_to_num(math.inf, math.inf)
    share = torch.full_like(energy, 1 / len(energy)) if weights is None else (weights.double() / weights.double().sum())
    pairs = system.distances(x)
    clipped, limit = energy.clamp_max(CLIPPED), truth.clamp_max(CLIPPED)
    high = energy > truth.max() + MARGIN
    kept = share * ~high
    order = energy.argsort()
    median = energy[order][int(torch.searchsorted(share[order].cumsum(0), 0.5).clamp_max(len(energy) - 1))]
    return Comparison(
        distance_w2=float(wasserstein_1d(pairs.flatten(), distances.double().flatten(), share.repeat_interleave(pairs.shape[1]), order=2)),
        energy_w1=float(wasserstein_1d(clipped, limit, share)),
        energy_w2=float(wasserstein_1d(clipped, limit, share, order=2)),
        raw_w1=float(wasserstein_1d(energy, truth, share)) if bool(energy.isfinite().all()) else math.inf,
        trimmed_w1=float(wasserstein_1d(clipped, limit, kept)) if bool(kept.sum() > 0) else math.inf,
        overlaps=float(share[high].sum()),
        median=float(median - truth.median()),
    )
