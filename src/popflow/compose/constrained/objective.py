r"""What is optimised: values of rows, from a surrogate, a differentiable function, or a black box; and the potential that a sampler sees.

Inside, every objective is minimised in standard units, ``h = -+ (y - mean(y)) / std(y)``, so that ``beta`` is a number of the same size for every problem: at
``beta = 4`` a row that is one standard deviation better weighs ``e^4`` times as much. Without measured values, ``h`` is the objective itself, up to its sign.

    U(x) = beta h(x) + sum_j E_j(x),     infinite where a constraint fails or the objective gives no value
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popflow.compose.constrained.schema import Schema
from popflow.compose.constrained.surrogate import Surrogate

Ask = Callable[[Tensor], Tensor]
"""``ask(x [rows, dim]) -> values [rows, out]`` in the user's units; NaN for calls that failed."""


@dataclass(frozen=True, eq=False)
class Objective:
    """An objective in standard units.

    Attributes:
        values: ``h(x [rows, dim]) -> [rows, out]``, minimised; NaN where there is no value.
        gradient: Whether torch can differentiate ``values``.
        outputs: Number of objectives.
    """

    values: Callable[[Tensor], Tensor]
    gradient: bool
    outputs: int = 1


@dataclass(frozen=True, slots=True)
class Units:
    """Standard units: ``h = sign (y - shift) / scale``, with the sign ``-1`` of values that are maximised.

    >>> Units(torch.tensor([2.0]), torch.tensor([0.5]), -1.0).standard(torch.tensor([[3.0]])).tolist()
    [[-2.0]]
    """

    shift: Tensor
    scale: Tensor
    sign: float

    def standard(self, y: Tensor) -> Tensor:
        """Return ``h`` of values ``[rows, out]``."""
        return self.sign * (y - self.shift.to(y)) / self.scale.to(y)


def of_surrogate(surrogate: Surrogate, sign: float, kappa: float) -> Objective:
    """Use a surrogate: its mean, and ``kappa`` uncertainties on the optimistic side (negative: on the cautious side)."""

    def values(x: Tensor) -> Tensor:
        return sign * surrogate.standardised(x, -sign * kappa)

    return Objective(values, True, len(surrogate.mean))


def of_function(function: Callable[[Tensor], Tensor], schema: Schema, units: Units) -> Objective:
    """Use a torch function of rows in the user's units, ``[rows, columns] -> [rows]`` or ``[rows, out]``, with its gradient."""

    def values(x: Tensor) -> Tensor:
        found = function(schema.units(x.double()))
        if not isinstance(found, Tensor) or found.shape[:1] != x.shape[:1] or found.ndim > 2:
            seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the objective returned {seen} for {len(x)} rows, wanted a tensor [{len(x)}] or [{len(x)}, objectives].")
        return units.standard(found.reshape(len(x), -1))

    return Objective(values, True, len(units.shift))


def of_calls(ask: Ask, units: Units) -> Objective:
    """Use a black box: only its values."""
    return Objective(lambda x: units.standard(ask(x)), False, len(units.shift))


@dataclass(frozen=True, eq=False)
class Constraint:
    """A constraint that is known, of rows in the user's form.

    Attributes:
        energy: ``E(rows) -> [n]``, numbers of at least 0: a penalty in nats.
        is_feasible: ``is_feasible(rows) -> [n]`` booleans: rows that fail are ruled out. One of the two is given.

    Example:
        >>> Constraint(is_feasible=lambda rows: rows[:, 0] > 0).energies(np.array([[1.0], [-1.0]]), 2).tolist()
        [0.0, inf]
    """

    energy: Callable[[Any], Any] | None = None
    is_feasible: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if (self.energy is None) == (self.is_feasible is None):
            raise ValueError("a constraint has an energy and is_feasible, or neither, wanted one of the two: give one function.")

    def energies(self, rows: Any, n: int) -> Tensor:
        """Return the energy of ``n`` rows in the user's form, ``[n]`` in float64.

        Raises:
            ValueError: for another shape, or NaN.
        """
        name, function = ("is_feasible", self.is_feasible) if self.energy is None else ("energy", self.energy)
        found = function(rows)  # pyright: ignore[reportOptionalCall]
        values = torch.as_tensor(np.asarray(found.detach().cpu() if isinstance(found, Tensor) else found))
        if values.shape != (n,):
            raise ValueError(f"{name} returned shape {tuple(values.shape)} for {n} rows, wanted ({n},): one value per row.")
        if self.energy is None:
            if values.dtype != torch.bool:
                raise ValueError(f"is_feasible returned {values.dtype}, wanted booleans: for penalties give Constraint(energy=...).")
            return torch.where(values, 0.0, math.inf).double()
        if bool(values.isnan().any()):
            raise ValueError(f"energy is NaN for {int(values.isnan().sum())} of {n} rows, wanted numbers, or infinity to rule a row out.")
        return values.double()


@dataclass(frozen=True, eq=False)
class Potential:
    """``U(x)`` of the samplers.

    Attributes:
        objective: What is optimised.
        beta: Inverse temperature.
        schema: Turns coordinates into the rows that constraints read.
        constraints: Known constraints.
        weights: Weights of several objectives, ``[out]``.
    """

    objective: Objective
    beta: float
    schema: Schema
    constraints: Sequence[Constraint] = ()
    weights: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``U`` of rows ``[rows, dim]``, in float64. Rows that break a constraint cost no call of the objective."""
        with torch.no_grad():
            total = self.energies(x)
            alive = total.isfinite()
            if self.beta and bool(alive.any()):
                total[alive] += self.beta * self.scalar(self.objective.values(x[alive]).double())
        return total

    def scalar(self, h: Tensor) -> Tensor:
        """Return one value for each row of ``h [rows, out]``, the weighted sum; infinity for rows without a value."""
        value = h[:, 0] if self.weights is None else h @ self.weights.to(h)
        return torch.where(value.isfinite(), value, math.inf)

    def energies(self, x: Tensor) -> Tensor:
        """Return ``sum_j E_j`` of rows, in float64."""
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if self.constraints:
            rows = self.schema.decode(x)
            for constraint in self.constraints:
                total = total + constraint.energies(rows, len(x)).to(x.device)
        return total

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``beta grad h`` of rows ``[rows, dim]``; constraints have no part in it.

        Raises:
            ValueError: when the objective has no gradient.
        """
        if not self.objective.gradient:
            raise ValueError(
                "the objective is a black box without gradient. Fix: route='exact', which needs only values, or differentiable=True."
            )
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            h = self.objective.values(point)
            value = h[:, 0] if self.weights is None else h @ self.weights.to(h)
            (slope,) = torch.autograd.grad(value.sum(), point)
        return self.beta * slope.to(x)
