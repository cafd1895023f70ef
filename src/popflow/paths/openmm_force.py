"""Any OpenMM ``System`` as a potential, with Hessian-vector products by finite differences of forces.

OpenMM has no batches: rows are evaluated one after the other. Use `popflow.paths.forcefield.TorchForce` where it reads the system; this one is for the
forces that it does not know, and is a check of the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from popflow.core.errors import MissingExtraError
from popflow.paths.differences import Differenced
from popflow.paths.forcefield import simple


class OpenMMForce(Differenced):
    """Energy of an OpenMM ``System``, ``potential(x [*batch, 3 N]) -> [*batch]``, and ``potential.force(x)``, differentiable once.

    Args:
        system: An ``openmm.System`` without constraints, virtual sites and box.
        platform: Name of an OpenMM platform: ``"Reference"`` computes in double precision; ``"CPU"`` is faster for large systems, in single precision.
        step: Largest displacement of an atom's coordinate vector in nm, for Hessian-vector products.

    Attributes:
        calls: Evaluations made, those for Hessian-vector products (two each) included.

    Raises:
        ValueError: for a system that noise cannot drive, or an unknown platform.
        MissingExtraError: without openmm.

    Example:
        >>> from popflow.paths.molecule import water
        >>> molecule = water()
        >>> potential = OpenMMForce(molecule.system)
        >>> x = molecule.minimised().a.reshape(1, 9)
        >>> bool(potential.force(x).norm() < 10)
        True
    """

    def __init__(self, system: Any, platform: str = "Reference", step: float = 1e-5):
        try:
            import openmm
        except ImportError as error:
            raise MissingExtraError("openmm is not installed; it evaluates force fields. Fix: pip install 'popflow[md]'.") from error
        simple(system)
        names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        if platform not in names:
            raise ValueError(f"platform={platform!r}, wanted one of {', '.join(names)}.")
        super().__init__(system.getNumParticles(), step)
        self.calls = 0
        self._context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform(platform))

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``[*batch]`` and forces ``[*batch, 3 N]``, without derivatives."""
        self._check(x)
        energies, forces = [], []
        for row in x.detach().cpu().double().reshape(-1, self.atoms, 3).numpy():
            self._context.setPositions(row)
            state = self._context.getState(getEnergy=True, getForces=True)
            energies.append(state.getPotentialEnergy()._value)
            forces.append(torch.as_tensor(state.getForces(asNumpy=True)._value))
        self.calls += len(energies)
        energy = torch.tensor(energies, dtype=x.dtype, device=x.device).reshape(x.shape[:-1])
        return energy, (torch.stack(forces).to(x) if forces else x.new_zeros(0)).reshape(x.shape)
