"""Closed-form states: the exact ground states of the solvable systems, and one-parameter families whose gradients are known.

Zero variance and zero gradients of the exact states test everything from the forward Laplacian to the update of parameters.
"""

# Operations take tensors or jets and give back the same kind, which the checker cannot follow through isinstance.
# pyright: reportReturnType=false, reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

import torch
from torch import Tensor, nn

from popflow.electrons import forward_laplacian as fl
from popflow.electrons.forward_laplacian import Jet, Quantity
from popflow.electrons.molecule import Molecule
from popflow.electrons.traps import Trap, hookes_atom, quantum_dot
from popflow.electrons.wavefunctions import WaveFunction


class Decay(WaveFunction):
    r"""One or two electrons of opposite spin: ``exp(-a sum_i r_i^p / p) (1 + b r_12)``, with ``p = 1`` at a nucleus and 2 in a trap.

    For one electron and ``q = psi^2``, the energies and the gradients of both geometries are::

        p = 1, d = 3, Z = 1   E = a^2/2 - a      FR: a - 1              W2 (no bound): 4 a^2 (a - 1)     Fisher information 3 / a^2
        p = 2, d = 1          E = (a + 1/a)/4    FR: (1 - 1/a^2)/4      W2 (no bound): a - 1/a           Fisher information 1 / (2 a^2)

    Args:
        a: Rate of decay, the parameter.
        power: ``p``.
        electrons: One or two.
        pair: ``b``, a constant.
    """

    def __init__(self, a: float, power: int, electrons: int = 1, dim: int = 3, pair: float = 0.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.power, self.pair, self.electrons = power, pair, electrons
        self.register_buffer("centre", torch.zeros(1, dim, dtype=torch.float64))
        i, j = torch.triu_indices(electrons, electrons, 1)
        self.register_buffer("pairs", torch.stack([i, j]))

    centre: Tensor
    pairs: Tensor

    def extra_repr(self) -> str:
        """Say what the parameter does not."""
        return f"power={self.power}, pair={self.pair}"

    def evaluate(self, x: Quantity) -> tuple[Tensor, Quantity]:
        """Sign (+1) and ``log|psi|``, or its jet."""
        _, r = fl.displacements(x, self.centre)
        r = r * r if self.power == 2 else r
        alone = fl.scale(r, -self.rate / self.power)
        alone = fl.total(fl.total(fl.spread(alone) if isinstance(alone, Jet) else alone, -1), -1)
        log = alone + fl.pair_sum(x, self.pairs, lambda gap: fl.log1p(fl.scale(gap, self.pair)))
        value = log if isinstance(log, Tensor) else log.value
        return torch.ones_like(value), log


def exact_state(system: Trap | Molecule) -> WaveFunction:
    """Return the exact ground state of an oscillator, Hooke's atom, the quantum dot, or an atom or ion with one electron.

    Raises:
        ValueError: for a system without a closed form.

    Example:
        >>> from popflow.electrons.traps import oscillator
        >>> float(exact_state(oscillator(omega=2.0)).rate.detach())
        2.0
    """
    if isinstance(system, Molecule):
        if len(system.symbols) == 1 and system.electrons == 1 and system.positions[0] == (0.0, 0.0, 0.0):
            return Decay(float(system.charges[0]), 1)
    elif system.electrons == 1:
        return Decay(system.omega, 2, 1, system.dim)
    elif system == hookes_atom():
        return Decay(0.5, 2, 2, 3, 0.5)
    elif system == quantum_dot():
        return Decay(1.0, 2, 2, 2, 1.0)
    raise ValueError(f"the ground state of {system.formula} has no closed form here, wanted one electron, hookes_atom() or quantum_dot().")
