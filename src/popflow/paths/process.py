r"""Reference dynamics: a potential, its forces (counted), and the two Langevin equations.

    overdamped    dx = mobility F(x) dt + noise dW,                  F = -grad U,   kT = noise^2 / (2 mobility)
    underdamped   dx = v dt,   dv = (F(x) / m - friction v) dt + sqrt(2 kT friction / m) dW

States are rows ``[*batch, dim]``; those of the underdamped process are ``[x, v]``. Any consistent units will do; for molecules they are nm, ps, Da,
kJ/mol and K, in which (kJ/mol) / (Da nm) = nm / ps^2, so that no factor appears.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.core.checks import function, shaped
from popflow.core.errors import NonFiniteError

Potential = Callable[[Tensor], Tensor]
"""A differentiable energy ``[*batch, D] -> [*batch]``. It may also have ``force(x) -> [*batch, D]``, itself differentiable once."""

BOLTZMANN = 8.314462618e-3
"""Boltzmann's constant in kJ/mol/K (exact since 2019: 1.380649e-23 J/K times 6.02214076e23)."""


def force(potential: Potential, x: Tensor) -> Tensor:
    """Return ``F = -grad U`` at rows ``[*batch, D]``: by ``potential.force`` where there is one, else by differentiation.

    The result is differentiable when ``x`` requires a gradient (the second derivative is a Hessian-vector product).

    >>> force(lambda x: x.square().sum(-1) / 2, torch.tensor([[3.0, -1.0]])).tolist()
    [[-3.0, 1.0]]
    """
    own = getattr(potential, "force", None)
    if own is not None:
        return shaped("force", own(x), x)
    again = x.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        y = x if again else x.detach().clone().requires_grad_()
        energy = shaped("the potential", potential(y), y[..., 0])
        return -torch.autograd.grad(energy.sum(), y, create_graph=again)[0]


class Counted:
    """A potential that counts its rows: ``forces`` evaluated, and ``hvps``, the Hessian-vector products of differentiating forces.

    Example:
        >>> potential = Counted(lambda x: x.square().sum(-1) / 2)
        >>> x = torch.ones(5, 2, requires_grad=True)
        >>> force(potential, x).square().sum().backward()
        >>> potential.forces, potential.hvps
        (5, 5)
    """

    def __init__(self, potential: Potential):
        function("potential", potential, "lambda x: x.square().sum(-1)")
        self.potential = potential
        self.forces = 0
        self.hvps = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Energy ``[*batch]``; energies alone are not counted."""
        return self.potential(x)

    def force(self, x: Tensor) -> Tensor:
        """Force ``[*batch, D]``, counted."""
        rows = x[..., 0].numel()
        self.forces += rows
        value = force(self.potential, x)
        if value.requires_grad:

            def count(gradient: Tensor) -> None:
                self.hvps += rows

            value = value * 1.0  # a node of its own: the hook must not outlive this call on a tensor that the potential keeps
            value.register_hook(count)
        return value


@dataclass(frozen=True, eq=False)
class Overdamped:
    """Overdamped Langevin dynamics ``dx = mobility F(x) dt + noise dW`` at temperature ``kT = noise^2 / (2 mobility)``.

    Attributes:
        potential: Energy ``[*batch, D] -> [*batch]``.
        noise: Standard deviation per square root of time: a number, or ``[D]``.
        mobility: Velocity per force: a number, or ``[D]``.

    Raises:
        ValueError: unless noise and mobility are positive and finite.

    Example:
        >>> process = Overdamped(lambda x: x.square().sum(-1) / 2, noise=1.0, mobility=2.0)
        >>> process.drift(torch.ones(1, 2)).tolist()
        [[-2.0, -2.0]]
    """

    potential: Potential
    noise: float | Tensor
    mobility: float | Tensor = 1.0

    def __post_init__(self) -> None:
        function("potential", self.potential, "lambda x: x.square().sum(-1)")
        _positive(noise=self.noise, mobility=self.mobility)

    @classmethod
    def at(cls, potential: Potential, temperature: float, friction: float, mass: float | Tensor) -> Overdamped:
        """Dynamics of molecules: mobility ``1 / (friction m)``, noise ``sqrt(2 kT / (friction m))``; K, 1/ps, Da (a number, or ``[D]``)."""
        _positive(temperature=temperature, friction=friction, mass=mass)
        mobility = 1 / (friction * mass)
        return cls(potential, (2 * BOLTZMANN * temperature * mobility) ** 0.5, mobility)

    def dim(self, x: Tensor) -> int:
        """Number of driven coordinates of a state."""
        return x.shape[-1]

    def drift(self, x: Tensor) -> Tensor:
        """Drift ``[*batch, D]`` of a state."""
        return _like(self.mobility, x) * force(self.potential, x)

    driven = drift
    """Drift of the coordinates that noise drives: all of them."""

    def share(self, residual: Tensor) -> Tensor:
        """``(1/2) |residual / noise|^2``, ``[*batch]``: what a drift that differs by ``residual [*batch, D]`` costs per time."""
        return 0.5 * (residual / _like(self.noise, residual)).square().sum(-1)


@dataclass(frozen=True, eq=False)
class Underdamped:
    """Underdamped Langevin dynamics of ``[x, v]``: ``dx = v dt``, ``dv = (F/m - friction v) dt + sqrt(2 kT friction / m) dW``.

    Attributes:
        potential: Energy of positions ``[*batch, D] -> [*batch]``, kJ/mol.
        mass: A number, or ``[D]`` (each atom's mass three times), Da.
        friction: Rate at which velocities are forgotten, 1/ps.
        temperature: K.

    Raises:
        ValueError: unless mass, friction and temperature are positive and finite, and for states of odd dimension.

    Example:
        >>> process = Underdamped(lambda x: x.square().sum(-1) / 2, mass=2.0, friction=1.0, temperature=300)
        >>> process.drift(torch.tensor([[1.0, 0.5]])).tolist(), round(float(process.noise), 3)
        ([[0.5, -1.0]], 1.579)
    """

    potential: Potential
    mass: float | Tensor
    friction: float
    temperature: float

    def __post_init__(self) -> None:
        function("potential", self.potential, "lambda x: x.square().sum(-1)")
        _positive(mass=self.mass, friction=self.friction, temperature=self.temperature)

    @property
    def kt(self) -> float:
        """``kT`` in kJ/mol."""
        return BOLTZMANN * self.temperature

    @property
    def noise(self) -> float | Tensor:
        """Noise of the velocities, ``sqrt(2 kT friction / m)``."""
        return (2 * self.kt * self.friction / self.mass) ** 0.5

    def dim(self, x: Tensor) -> int:
        """Number of driven coordinates of a state ``[x, v]``: half of its numbers."""
        if x.shape[-1] % 2:
            raise ValueError(f"a state of {x.shape[-1]} numbers, wanted an even number: positions, then as many velocities.")
        return x.shape[-1] // 2

    def driven(self, x: Tensor) -> Tensor:
        """Drift ``[*batch, D]`` of the coordinates that noise drives: the velocities of a state ``[*batch, 2 D]``."""
        position, velocity = x.split(self.dim(x), -1)
        return force(self.potential, position) / _like(self.mass, x) - self.friction * velocity

    def drift(self, x: Tensor) -> Tensor:
        """Drift ``[*batch, 2 D]`` of a state."""
        return torch.cat([x[..., self.dim(x) :], self.driven(x)], -1)

    def share(self, residual: Tensor) -> Tensor:
        """``(1/2) |residual / noise|^2``, ``[*batch]``, of a residual drift ``[*batch, D]`` of the velocities."""
        return 0.5 * (residual / _like(self.noise, residual)).square().sum(-1)


Process = Overdamped | Underdamped
"""The reference dynamics of this room."""


def match(process: Process, path: Any) -> None:
    """Refuse a path whose law is singular to that of the process: another noise, or states of another kind.

    Raises:
        ValueError: naming both, and the fix.
    """
    noise = torch.as_tensor(process.noise, dtype=path.noise.dtype, device=path.noise.device)
    if (noise.ndim and noise.shape != path.noise.shape) or not torch.allclose(noise, path.noise, rtol=1e-5, atol=0.0):
        raise ValueError(
            f"the path has noise {path.noise.unique().tolist()[:3]}, the process {noise.unique().tolist()[:3]}, wanted the same: "
            "their laws would be singular. Fix: make the path with noise=process.noise."
        )
    if isinstance(process, Underdamped) != (path.base_dim() > path.dim):
        wanted = "KinematicPath for Underdamped; DiagonalPath, FullPath or FlowPath for Overdamped"
        raise ValueError(f"path={type(path).__name__} for {type(process).__name__}, whose states are of another kind. Fix: {wanted}.")


def require_finite(name: str, value: Tensor) -> Tensor:
    """Return a tensor, or refuse one that holds values that are not finite."""
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise NonFiniteError(f"{name} has {bad} of {value.numel()} values that are not finite. Fix: look for atoms on top of one another.")
    return value


def _like(value: float | Tensor, x: Tensor) -> float | Tensor:
    return value.to(x) if isinstance(value, Tensor) else value


def _positive(**values: Any) -> None:
    for name, value in values.items():
        smallest = float(value.min()) if isinstance(value, Tensor) else value
        largest = float(value.max()) if isinstance(value, Tensor) else value
        if isinstance(value, bool) or not (smallest > 0 and math.isfinite(largest)):
            raise ValueError(f"{name}={value!r}, wanted positive and finite.")
