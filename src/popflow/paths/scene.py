"""What a configuration of ``popflow path`` stands for: dynamics, states, a path to fit, and the exact answer where there is one."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.core import Streams
from popflow.core.checks import function
from popflow.paths.config import PathConfig
from popflow.paths.exact import Grid
from popflow.paths.flow_path import FlowPath
from popflow.paths.gaussian_path import DiagonalPath, FullPath
from popflow.paths.potentials import POTENTIALS
from popflow.paths.process import Overdamped, Potential

FINEST = 300
"""Grid points along the longer side of a known potential's domain."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Two states of a process.

    Attributes:
        process: The dynamics.
        start: State A, ``[D]`` float64.
        end: State B.
        time: Duration.
        sigma0: Width of the laws around both.
    """

    process: Overdamped
    start: Tensor
    end: Tensor
    time: float
    sigma0: float

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.start)

    @property
    def reach(self) -> float:
        """Distance from a state within which a path counts as arrived: three standard deviations of each coordinate."""
        return 3 * self.sigma0 * self.dim**0.5

    def energy(self, x: Tensor) -> Tensor:
        """Energy of states ``[..., D]`` relative to A."""
        with torch.no_grad():
            return self.process.potential(x) - self.process.potential(self.start)

    def arrived(self, x: Tensor) -> Tensor:
        """Whether states ``[n, D]`` are within `reach` of B."""
        return (x - self.end).norm(dim=-1) < self.reach

    def grid(self, spacing: float) -> Grid | None:
        """The grid of a known potential in one or two coordinates; None for others."""
        domain = getattr(self.process.potential, "domain", None)
        return None if domain is None or self.dim > 2 else Grid(self.process, *domain, spacing)


def scene(config: PathConfig) -> Scene:
    """Make the dynamics and the states of a configuration.

    Raises:
        ValueError: when the potential cannot be loaded, or does not give one finite energy and force for each state.
    """
    potential = POTENTIALS[config.potential] if config.source() else load(config)
    known = getattr(potential, "minima", None)
    given = config.state("start") or known[0], config.state("end") or known[-1]  # pyright: ignore[reportOptionalSubscript]
    if known is not None and not len(given[0]) == len(given[1]) == len(known[0]):
        raise ValueError(
            f"start has {len(given[0])} coordinates, end {len(given[1])}, wanted {len(known[0])}: those of {config.potential}."
        )
    start, end = (torch.tensor(one, dtype=torch.float64) for one in given)
    process = Overdamped(potential, noise=config.setting("noise"))
    ends = torch.stack([start, end])
    try:
        energy, pull = process.potential(ends), process.drift(ends)
    except Exception as error:
        raise ValueError(f"potential={config.potential!r} fails at start and end: {type(error).__name__}: {error}") from error
    if energy.shape != (2,) or not bool(torch.isfinite(energy).all() and torch.isfinite(pull).all()):
        raise ValueError(
            f"potential={config.potential!r} gives energies {energy.tolist()} and forces {pull.tolist()} at start and end, wanted one finite "
            "energy and a finite force for each."
        )
    return Scene(process, start, end, config.setting("time"), config.setting("sigma0"))


def load(config: PathConfig) -> Potential:
    """Read the potential FILE.py:FUNCTION.

    Raises:
        ValueError: when there is no such file or function.
    """
    file, name = config.file(), config.potential.rpartition(":")[2]
    assert file is not None
    spec = importlib.util.spec_from_file_location(f"popflow_potential_{file.stem}", file)
    try:
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, name)
    except Exception as error:
        raise ValueError(
            f"cannot load potential={config.potential!r}: {type(error).__name__}: {error}. Wanted FILE.py:FUNCTION."
        ) from error
    function("potential", found, "def energy(x): return x.square().sum(-1)")
    return found


def path(config: PathConfig, scene: Scene, rng: Streams) -> Any:
    """Make the path to fit, in float32: costs of training need no more."""
    family = {"diagonal": DiagonalPath, "full": FullPath, "flow": FlowPath}[config.family]
    mixed = {} if config.family == "flow" else {"components": config.components}
    ends = scene.start.float(), scene.end.float()
    return family(*ends, scene.time, noise=float(scene.process.noise), sigma0=scene.sigma0, rng=rng, **mixed)
