r"""Potentials that give forces but no second derivatives: Hessian-vector products by central differences of forces.

H c = -(F(x + h c/|c|) - F(x - h c/|c|)) |c| / (2 h),        the direction c being the gradient that arrives

A failure of either side is that of the product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Differenced(ABC):
    """A potential ``[*batch, 3 N] -> [*batch]`` that evaluates energies and forces; ``force`` is differentiable once.

    Attributes:
        atoms: N.
        step: Length h of the displacement, in nm.

    Raises:
        ValueError: for a step that is no small displacement.
    """

    def __init__(self, atoms: int, step: float):
        if not 0 < step < 0.1:
            raise ValueError(f"step={step!r}, wanted a displacement in nm between 0 and 0.1.")
        self.atoms, self.step = atoms, step

    @abstractmethod
    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``[*batch]`` and forces ``[*batch, 3 N]``, without derivatives."""

    def __call__(self, x: Tensor) -> Tensor:
        """Energy ``[*batch]`` in kJ/mol of positions in nm, differentiable once."""
        return _Energy.apply(x, self)  # pyright: ignore[reportReturnType]

    def force(self, x: Tensor) -> Tensor:
        """Force ``[*batch, 3 N]`` in kJ/mol/nm."""
        return _Force.apply(x, self)  # pyright: ignore[reportReturnType]

    def product(self, x: Tensor, c: Tensor) -> Tensor:
        """``-H c`` for directions ``c`` like ``x``: two evaluations a row."""
        return self.difference(lambda y: self.evaluate(y)[1], x, c)

    def difference(self, force: Any, x: Tensor, c: Tensor) -> Tensor:
        """The central difference of a force ``[*batch, 3 N] -> [*batch, 3 N]``, in float64."""
        x, direction = x.double(), c.double()
        length = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        move = self.step * direction / length.clamp_min(1e-300)
        return ((force(x + move) - force(x - move)) * length / (2 * self.step)).to(c)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != 3 * self.atoms:
            raise ValueError(f"x has {x.shape[-1]} coordinates, wanted 3 for each of {self.atoms} atoms: {3 * self.atoms}.")


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, potential: Differenced) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        energy, force = potential.evaluate(x)
        ctx.save_for_backward(force)
        return energy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -gradient[..., None] * ctx.saved_tensors[0], None


class _Force(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, potential: Differenced) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        ctx.potential = potential
        return potential.evaluate(x)[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.potential.product(ctx.saved_tensors[0], gradient), None
