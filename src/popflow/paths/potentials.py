r"""Potentials of one and two coordinates whose transitions are known, with their closed-form forces, minima and units.

All energies and lengths are in the units of their sources (mobility 1, so that noise ``xi`` is a temperature ``kT = xi^2 / 2``). Any differentiable
callable ``[*batch, D] -> [*batch]`` is a potential; these also have ``force``, which saves a reverse pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Box = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class MuellerBrown:
    r"""The surface of Mueller and Brown: three minima along a bent valley.

    ``U(x, y) = sum_i A_i exp(a_i (x - X_i)^2 + b_i (x - X_i)(y - Y_i) + c_i (y - Y_i)^2)``.

    Attributes:
        minima: The three minima; the first and the last are the usual end states (U = -146.70, -80.77, -108.17).
        saddles: The two saddles between them (U = -40.66, -72.25).
        window: Lower and upper corner of what is worth drawing.
        domain: Lower and upper corner of what must be discretised at ``kT`` up to 15.

    Source: K. Mueller, L. D. Brown, *Location of saddle points and minimum energy paths*, Theor. Chim. Acta 53, 75 (1979).

    Example:
        >>> potential = MuellerBrown()
        >>> [round(float(potential(torch.tensor(x))), 2) for x in potential.minima]
        [-146.7, -80.77, -108.17]
    """

    minima: ClassVar[tuple[tuple[float, ...], ...]] = (
        (-0.558223638, 1.441725828),
        (-0.050010823, 0.466694104),
        (0.623499406, 0.028037758),
    )
    saddles: ClassVar[tuple[tuple[float, ...], ...]] = ((-0.822001558, 0.624312802), (0.212486582, 0.292988325))
    window: ClassVar[Box] = ((-1.5, -0.5), (0.9, 1.9))
    domain: ClassVar[Box] = ((-2.2, -1.2), (1.8, 2.6))

    def __call__(self, x: Tensor) -> Tensor:
        """Energy ``[*batch]`` at ``x [*batch, 2]``."""
        return self._terms(x)[0].sum(-1)

    def force(self, x: Tensor) -> Tensor:
        """``-grad U``, ``[*batch, 2]``."""
        terms, dx, dy = self._terms(x)
        a, b, c = x.new_tensor(_A), x.new_tensor(_B), x.new_tensor(_C)
        return -torch.stack([(terms * (2 * a * dx + b * dy)).sum(-1), (terms * (b * dx + 2 * c * dy)).sum(-1)], -1)

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dx, dy = x[..., :1] - x.new_tensor(_X), x[..., 1:] - x.new_tensor(_Y)
        exponent = x.new_tensor(_A) * dx * dx + x.new_tensor(_B) * dx * dy + x.new_tensor(_C) * dy * dy
        return x.new_tensor(_HEIGHT) * exponent.exp(), dx, dy


_HEIGHT, _A, _B, _C = (-200.0, -100.0, -170.0, 15.0), (-1.0, -1.0, -6.5, 0.7), (0.0, 0.0, 11.0, 0.6), (-10.0, -10.0, -6.5, 0.7)
_X, _Y = (1.0, 0.0, -0.5, -1.0), (0.0, 0.5, 1.5, 1.0)


@dataclass(frozen=True)
class DoubleWell:
    """``U(x) = x_1^4 - 4 x_1^2 + (x_2^2 + ... + x_D^2) / 2``: two wells at ``x_1 = -sqrt 2`` and ``sqrt 2``, a barrier of 4 at 0.

    Attributes:
        dim: Number of coordinates.

    Example:
        >>> potential = DoubleWell(dim=1)
        >>> potential.minima[0], round(float(potential(torch.tensor(potential.minima[0]))), 6)
        ((-1.4142135623730951,), -4.0)
    """

    dim: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 1:
            raise ValueError(f"dim={self.dim!r}, wanted a whole number, at least 1.")

    @property
    def minima(self) -> tuple[tuple[float, ...], ...]:
        """The two minima; U = -4 in both."""
        rest = (0.0,) * (self.dim - 1)
        return (-(2**0.5), *rest), (2**0.5, *rest)

    @property
    def saddles(self) -> tuple[tuple[float, ...], ...]:
        """The saddle at the origin; U = 0."""
        return ((0.0,) * self.dim,)

    @property
    def window(self) -> Box:
        """Lower and upper corner of what is worth drawing."""
        rest = (2.5,) * (self.dim - 1)
        return (-2.2, *(-value for value in rest)), (2.2, *rest)

    @property
    def domain(self) -> Box:
        """Lower and upper corner of what must be discretised at ``kT`` up to 1."""
        rest = (5.0,) * (self.dim - 1)
        return (-3.0, *(-value for value in rest)), (3.0, *rest)

    def __call__(self, x: Tensor) -> Tensor:
        """Energy ``[*batch]`` at ``x [*batch, D]``."""
        first = x[..., 0].square()
        return first * (first - 4) + x[..., 1:].square().sum(-1) / 2

    def force(self, x: Tensor) -> Tensor:
        """``-grad U``, ``[*batch, D]``."""
        first = x[..., :1]
        return torch.cat([first * (8 - 4 * first.square()), -x[..., 1:]], -1)


@dataclass(frozen=True)
class DualChannel:
    """Two wells joined by two mirror-symmetric channels, above and below a hill at the origin.

    ``U = x^6 + y^6 + 2 exp(-12 (x^2 + y^2)) - exp(-12 ((x + 1/2)^2 + y^2)) - exp(-12 ((x - 1/2)^2 + y^2))``.

    Attributes:
        minima: The two minima (U = -0.898); they lie a little outside the centres (-1/2, 0) and (1/2, 0) of the wells.
        window: Lower and upper corner of what is worth drawing.
        domain: Lower and upper corner of what must be discretised at ``kT`` up to 0.1.

    Example:
        >>> potential = DualChannel()
        >>> up, down = potential(torch.tensor([[0.0, 0.6], [0.0, -0.6]]))
        >>> bool(up == down), round(float(potential(torch.tensor(potential.minima[0]))), 3)
        (True, -0.898)
    """

    minima: ClassVar[tuple[tuple[float, ...], ...]] = ((-0.527469552, 0.0), (0.527469552, 0.0))
    window: ClassVar[Box] = ((-1.0, -1.0), (1.0, 1.0))
    domain: ClassVar[Box] = ((-1.3, -1.3), (1.3, 1.3))

    def __call__(self, x: Tensor) -> Tensor:
        """Energy ``[*batch]`` at ``x [*batch, 2]``."""
        return x.pow(6).sum(-1) + self._hills(x)[0].sum(-1)

    def force(self, x: Tensor) -> Tensor:
        """``-grad U``, ``[*batch, 2]``."""
        hills, away = self._hills(x)
        return -6 * x.pow(5) + 24 * (hills.unsqueeze(-1) * away).sum(-2)

    def _hills(self, x: Tensor) -> tuple[Tensor, Tensor]:
        away = x.unsqueeze(-2) - x.new_tensor([[0.0, 0.0], [-0.5, 0.0], [0.5, 0.0]])
        return x.new_tensor([2.0, -1.0, -1.0]) * (-12 * away.square().sum(-1)).exp(), away


POTENTIALS = {"mueller-brown": MuellerBrown(), "double-well": DoubleWell(), "dual-channel": DualChannel()}
"""The potentials that the command line knows by name."""
