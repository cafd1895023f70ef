r"""Any OpenMM ``System`` as a potential, with Hessian-vector products by finite differences of forces.

    H c = -(F(x + h c/|c|) - F(x - h c/|c|)) |c| / (2 h),        the direction c being the gradient that arrives

OpenMM has no batches: rows are evaluated one after the other. Use `popflow.paths.forcefield.TorchForce` where it reads the system; this one is for the
forces that it does not know, and is a check of the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from popflow.core.errors import MissingExtraError
from popflow.paths.forcefield import simple


class OpenMMForce:
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
        if not 0 < step < 0.1:
            raise ValueError(f"step={step!r}, wanted a displacement in nm between 0 and 0.1.")
        self.atoms, self.step, self.calls = system.getNumParticles(), step, 0
        self._context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform(platform))

    def __call__(self, x: Tensor) -> Tensor:
        """Energy ``[*batch]`` in kJ/mol of positions in nm, differentiable once."""
        return _Energy.apply(x, self)  # pyright: ignore[reportReturnType]

    def force(self, x: Tensor) -> Tensor:
        """Force ``[*batch, 3 N]`` in kJ/mol/nm."""
        return _Force.apply(x, self)  # pyright: ignore[reportReturnType]

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``[*batch]`` and forces ``[*batch, 3 N]``, without derivatives."""
        if x.shape[-1] != 3 * self.atoms:
            raise ValueError(f"x has {x.shape[-1]} coordinates, wanted 3 for each of {self.atoms} atoms: {3 * self.atoms}.")
        energies, forces = [], []
        for row in x.detach().cpu().double().reshape(-1, self.atoms, 3).numpy():
            self._context.setPositions(row)
            state = self._context.getState(getEnergy=True, getForces=True)
            energies.append(state.getPotentialEnergy()._value)
            forces.append(torch.as_tensor(state.getForces(asNumpy=True)._value))
        self.calls += len(energies)
        energy = torch.tensor(energies, dtype=x.dtype, device=x.device).reshape(x.shape[:-1])
        return energy, (torch.stack(forces).to(x) if forces else x.new_zeros(0)).reshape(x.shape)


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, potential: OpenMMForce) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        energy, force = potential.evaluate(x)
        ctx.save_for_backward(force)
        return energy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -gradient[..., None] * ctx.saved_tensors[0], None


class _Force(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, potential: OpenMMForce) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        ctx.potential = potential
        return potential.evaluate(x)[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,), potential = ctx.saved_tensors, ctx.potential
        return along(lambda y: potential.evaluate(y)[1], x, gradient, potential.step), None


def along(force: Any, x: Tensor, gradient: Tensor, step: float) -> Tensor:
    """Derivative of ``force [*batch, D]`` along a gradient, by central differences: for forces of a potential, its product with their Jacobian."""
    x, gradient = x.double(), gradient.double()
    length = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    move = step * gradient / length.clamp_min(1e-300)
    return ((force(x + move) - force(x - move)) * length / (2 * step)).to(gradient)
