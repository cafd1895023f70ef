"""Particle systems: energies, ground truth by parallel tempering, a network that respects their symmetries, models, and how to compare."""

from popflow.compose.particles.comparison import Comparison, compare
from popflow.compose.particles.energies import Cluster, apart, double_well, icosahedron, lennard_jones
from popflow.compose.particles.hmc import Reference, autocorrelation_time, tempered
from popflow.compose.particles.network import PairNetwork

__all__ = [
    "Cluster",
    "Comparison",
    "PairNetwork",
    "Reference",
    "apart",
    "autocorrelation_time",
    "compare",
    "double_well",
    "icosahedron",
    "lennard_jones",
    "tempered",
]
