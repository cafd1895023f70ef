"""Small systems and networks of the electrons' tests, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from popflow.electrons import Molecule, PsiFormer, SlaterJastrow, System, WaveFunction, hookes_atom, oscillator, quantum_dot

SYSTEMS: dict[str, Callable[[], System]] = {
    "H": lambda: Molecule.of("H"),
    "Li": lambda: Molecule.of("Li"),
    "LiH": lambda: Molecule.of("Li 0 0 0; H 0 0 3.015", unit="bohr"),
    "triplet": lambda: Molecule.of("He", spin=2),
    "dot": quantum_dot,
    "hooke": hookes_atom,
    "line": lambda: oscillator(dim=1),
}


def _psiformer(system: System, **options) -> PsiFormer:
    """Make a tiny PsiFormer."""
    small = {"width": 8, "layers": 2, "heads": 2, "determinants": 2, "dtype": torch.float64} | options
    return PsiFormer(system, **small)


def _slater_jastrow(system: System) -> SlaterJastrow:
    """Make a tiny Slater-Jastrow."""
    return SlaterJastrow(system, width=6, dtype=torch.float64)


NETWORKS: dict[str, Callable[[System], WaveFunction]] = {"psiformer": _psiformer, "slater-jastrow": _slater_jastrow}


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> System:
    """Return each system in turn."""
    return SYSTEMS[request.param]()


@pytest.fixture(params=NETWORKS)
def psi(request: pytest.FixtureRequest, system: System) -> WaveFunction:
    """Return each network on the system."""
    return NETWORKS[request.param](system)


@pytest.fixture
def psiformer() -> Callable[..., PsiFormer]:
    """Return a function that makes a tiny PsiFormer."""
    return _psiformer


@pytest.fixture
def slater_jastrow() -> Callable[[System], SlaterJastrow]:
    """Return a function that makes a tiny Slater-Jastrow."""
    return _slater_jastrow


@pytest.fixture
def points() -> Callable[..., Tensor]:
    """Return a function that draws positions of the electrons from a Gaussian."""
    return _points


@pytest.fixture
def x(system: System) -> Tensor:
    """Return a few positions of the electrons."""
    return _points(system, 4)


def _points(system: System, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, system.electrons, system.dim, dtype=torch.float64, generator=generator)
