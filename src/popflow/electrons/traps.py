"""Systems with exact ground states: electrons in a harmonic trap, with and without repulsion, in Hartree atomic units.

    V(x) = sum_i omega^2 |r_i|^2 / 2 + [interacting] sum_{i<j} 1 / |r_i - r_j|

| system | d, N | omega | ground state | E (Hartree) |
|---|---|---|---|---|
| oscillator | any, one electron | any | exp(-omega r^2 / 2) | omega d / 2 |
| Hooke's atom | 3, two | 1/2 (k = omega^2 = 1/4) | exp(-(r1^2 + r2^2) / 4) (1 + r12 / 2) | 2 |
| quantum dot | 2, two | 1 | exp(-(r1^2 + r2^2) / 2) (1 + r12) | 3 |

Source: Taut, *Two electrons in an external oscillator potential: particular analytic solutions*, Phys. Rev. A 48, 3561 (1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core.checks import at_least_one
from popflow.electrons.molecule import repulsion


@dataclass(frozen=True)
class Trap:
    """Electrons in a harmonic trap.

    Attributes:
        omega: Frequency; the force constant is ``omega^2``.
        dim: Dimension of space.
        up: Electrons with spin up.
        down: Electrons with spin down.
        interacting: Whether electrons repel one another by ``1 / r``.
        energy: Exact ground-state energy in Hartree, where it is known.
        formula: Its name.

    Raises:
        ValueError: for a frequency that is not positive, or no electron.

    Example:
        >>> hookes_atom().energy
        2.0
    """

    omega: float
    dim: int
    up: int
    down: int
    interacting: bool = True
    energy: float | None = None
    formula: str = "trap"

    def __post_init__(self) -> None:
        at_least_one(dim=self.dim, electrons=self.up + self.down)
        if not 0 < self.omega < float("inf"):
            raise ValueError(f"omega={self.omega!r}, wanted finite and above 0.")
        if self.up < 0 or self.down < 0:
            raise ValueError(f"up={self.up}, down={self.down}, wanted counts of electrons, 0 or more.")

    @property
    def electrons(self) -> int:
        """Number of electrons."""
        return self.up + self.down

    @property
    def centres(self) -> Tensor:
        """The middle of the trap ``[1, d]``."""
        return torch.zeros(1, self.dim, dtype=torch.float64)

    @property
    def charges(self) -> tuple[int, ...]:
        """The middle of the trap has no charge."""
        return (0,)

    @property
    def smooth(self) -> bool:
        """Whether the potential is finite at the centres."""
        return True

    def potential(self, x: Tensor) -> Tensor:
        """Potential energy ``[B]`` at ``x [B, N, d]``."""
        trap = self.omega**2 / 2 * x.square().sum((1, 2))
        return trap + repulsion(x) if self.interacting else trap

    def start(self, like: Tensor, noise: Tensor) -> Tensor:
        """Draw electrons from the Gaussian ground state without repulsion."""
        return noise.to(like) / (2 * self.omega) ** 0.5


def oscillator(omega: float = 1.0, dim: int = 3) -> Trap:
    """One particle in a harmonic trap: ``E = omega d / 2``."""
    return Trap(omega, dim, 1, 0, energy=omega * dim / 2, formula=f"{dim}-D oscillator")


def hookes_atom() -> Trap:
    """Two electrons of opposite spin in three dimensions, ``k = 1/4``: ``E = 2``."""
    return Trap(0.5, 3, 1, 1, energy=2.0, formula="Hooke's atom")


def quantum_dot() -> Trap:
    """Two electrons of opposite spin in two dimensions, ``omega = 1``: ``E = 3``."""
    return Trap(1.0, 2, 1, 1, energy=3.0, formula="quantum dot")
