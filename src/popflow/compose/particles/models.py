"""Diffusion models of particle systems that come with the library: ``lj13`` at T = 2 and ``dw4`` at T = 2.

Each is a `PairNetwork` that has learned the score of ``exp(-E/T)`` at every noise level from Monte Carlo samples at one temperature, and at no
other. ``q^beta`` is then the Boltzmann distribution at ``T / beta``: annealing is a power of the expert. Each model comes with tables of quantiles
of the exact energies and distances at a few temperatures, from parallel tempering, to compare samples with.

``python benchmarks/train_zoo.py lj13 dw4`` regenerates samples, models and tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from popflow.compose.backward_kernel import LossTable, measure_alone
from popflow.compose.experts import from_edm
from popflow.compose.particles.energies import Cluster, double_well, icosahedron, lennard_jones
from popflow.compose.particles.network import PairNetwork
from popflow.compose.target import Expert
from popflow.core.checkpoint import load_tensors
from popflow.core.errors import unknown

DATA = Path(__file__).parent / "data"
CHUNK = 250
"""Configurations in one call of a network: more overflow the cache of a processor."""
QUANTILES = 400
"""Rows of a table: quantiles at ``(k + 1/2) / QUANTILES``."""


@dataclass(frozen=True, eq=False)
class Model:
    """A system, and how its diffusion model was made.

    Attributes:
        system: Supplies the energy.
        temperature: The temperature it was trained at.
        start: Makes a configuration to start Monte Carlo from.
        ladder: Temperatures of parallel tempering.
        tables: Temperatures with tables of quantiles.
        spread: Standard deviation of a coordinate, for the preconditioning.
        stiff: Inverse square root of the Fisher information of a coordinate.
        grid: Radial features of the network.
        levels: ``(lowest, knee, highest)`` noise levels in training; three quarters of each batch lie below the knee.
        sampled: Last and first noise level of samplers; below the lowest training level the score hardly changes.
        step_size: Initial step size of Hamiltonian Monte Carlo.
        steps: Training steps.
    """

    system: Cluster
    temperature: float
    start: Callable[[], Tensor]
    ladder: tuple[float, ...]
    tables: tuple[float, ...]
    spread: float
    stiff: float
    grid: tuple[tuple[float, float, int], ...]
    levels: tuple[float, float, float]
    sampled: tuple[float, float]
    step_size: float
    steps: int

    def network(self) -> PairNetwork:
        """Make the network; its parameters come from torch's global generator."""
        return PairNetwork(self.system.particles, self.system.dimensions, grid=self.grid, stiff=self.stiff)

    def langevin_step(self, sigma: float, beta: float) -> float:
        """Step size of a Langevin kernel that targets ``q^beta``: a tenth of the smallest variance, ``min(sigma^2, stiff^2 / 3) / (10 beta)``."""
        return 0.1 * min(sigma**2, self.stiff**2 / 3) / beta


def _square() -> Tensor:
    """Four particles with neighbours at the outer distance of DW-4."""
    return torch.tensor([[0.0, 0.0], [0.0, 5.5], [5.5, 0.0], [5.5, 5.5]], dtype=torch.float64) - 2.75


MODELS = {
    "lj13": Model(
        lennard_jones(13),
        2.0,
        icosahedron,
        (0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0),
        (0.8, 1.5, 2.0),
        1.25,
        0.18,
        ((0.1, 0.4, 3), (0.5, 1.5, 17), (1.65, 5.0, 12)),
        (0.01, 0.7, 10.0),
        (0.005, 8.0),
        0.025,
        10_000,
    ),
    "dw4": Model(
        double_well(4),
        2.0,
        _square,
        (0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
        (0.5, 1.0, 2.0),
        2.1,
        0.3,
        ((0.1, 4.0, 32),),
        (0.02, 1.0, 20.0),
        (0.01, 16.0),
        0.15,
        16_000,
    ),
}
"""The models by name."""


def load(name: str, device: torch.device | str = "cpu", chunk: int | None = None) -> Expert:
    """Load the model of a particle system; its samples live in `popflow.compose.CentredParticles`. At most ``chunk`` (250) rows per call."""
    model = find(name)
    with torch.random.fork_rng(devices=[]):  # layers draw their first parameters from the global generator
        network = model.network()
    tensors, about = load_tensors(DATA / f"{name}.safetensors")
    network.load_state_dict(tensors, strict=False)
    network.to(device).requires_grad_(False)
    expert = from_edm(network, model.system.event, sigma_data=model.spread, name=name, chunk=chunk or CHUNK)
    return replace(expert, space=model.system.space, loss=LossTable(tuple(about["levels"]), tuple(about["losses"])))


def measured_loss(name: str) -> LossTable:
    """Denoising loss of a model on samples that it makes itself, over the levels of samplers."""
    last, first = find(name).sampled
    return measure_alone(load(name), first, last, particles=1000)


def tables(name: str, temperature: float) -> dict[str, Tensor] | None:
    """Return `QUANTILES` quantiles of the exact ``energy`` and ``distance``; None at a temperature without a table."""
    known = [t for t in find(name).tables if math.isclose(t, temperature)]
    if not known:
        return None
    tensors, _ = load_tensors(DATA / f"{name}-reference.safetensors")
    return {what: tensors[f"{what}.{known[0]}"].double() for what in ("energy", "distance")}


def quantiles(values: Tensor) -> Tensor:
    """Return `QUANTILES` quantiles of a sample, at the midpoints of equal shares.

    >>> quantiles(torch.arange(4000.0))[:2].tolist()
    [4.5, 14.5]
    """
    ordered = values.double().flatten().sort().values
    position = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES * len(ordered) - 0.5
    low = position.floor().long().clamp(0, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[(low + 1).clamp_max(len(ordered) - 1)], position - low)


def find(name: str) -> Model:
    """Return a model by name.

    Raises:
        ValueError: for an unknown name, naming the closest.
    """
    if name not in MODELS:
        raise ValueError(unknown("model of particles", name, MODELS))
    return MODELS[name]
