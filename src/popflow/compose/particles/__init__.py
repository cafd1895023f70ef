"""Particle systems: energies, ground truth by parallel-tempered Monte Carlo, networks that respect their symmetries, and how to compare."""

from popflow.compose.particles.energies import Cluster, apart, centred, double_well, icosahedron, lennard_jones
from popflow.compose.particles.hmc import Reference, autocorrelation_time, tempered

__all__ = ["Cluster", "Reference", "apart", "autocorrelation_time", "centred", "double_well", "icosahedron", "lennard_jones", "tempered"]
