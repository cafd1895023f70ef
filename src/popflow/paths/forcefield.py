r"""AMBER force fields in torch, read from an OpenMM ``System``: energies and forces of a batch of conformations, differentiable.

    U = sum bonds + angles + torsions + Coulomb + Lennard-Jones (+ OBC2 implicit solvent)          nm, kJ/mol, Da, e

`TorchForce` is a `popflow.paths.Potential` over rows ``[*batch, 3 N]``. Forces are written out by hand (`bonded`, `nonbonded`), which is faster than
differentiating energies; they are plain torch, so that differentiating them once gives Hessian-vector products, and ``torch.compile`` fuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from popflow.paths.bonded import Angles, Bonds, Torsions
from popflow.paths.nonbonded import OBC2, Pairs, differences

COULOMB = 138.93545764438198
"""1/(4 pi eps0) in kJ/mol nm/e^2, as in OpenMM's NonbondedForce."""
_BLOCK = 1 << 16
"""Pairs of atoms evaluated at once, so that intermediate results stay in the cache of a processor core."""


class TorchForce(nn.Module):
    """Energy of an OpenMM ``System`` in torch, ``force_field(x [*batch, 3 N]) -> [*batch]``, and ``force_field.force(x)``.

    Buffers are float64 and follow ``.to(...)``; positions have their type.

    Args:
        system: An ``openmm.System`` of harmonic bonds and angles, periodic torsions, one ``NonbondedForce`` without cutoff, and OBC2 or no solvent.

    Raises:
        ValueError: for constraints, virtual sites, periodic boxes, cutoffs and forces of other kinds, which it names.

    Example:
        >>> import openmm
        >>> system = openmm.System()
        >>> for mass in (12.0, 16.0): _ = system.addParticle(mass)
        >>> bond = openmm.HarmonicBondForce()
        >>> _ = bond.addBond(0, 1, 0.12, 1000.0)
        >>> _ = system.addForce(bond)
        >>> stretched = torch.tensor([[0.0, 0, 0, 0.13, 0, 0]], dtype=torch.float64)
        >>> force_field = TorchForce(system)
        >>> round(float(force_field(stretched)), 9), [round(f, 6) for f in force_field.force(stretched)[0].tolist()[::3]]
        (0.05, [10.0, -10.0])
    """

    def __init__(self, system: Any):
        super().__init__()
        simple(system)
        self.atoms = system.getNumParticles()
        self.bonded = nn.ModuleList()
        self.pairwise = nn.ModuleList()
        for force in system.getForces():
            kind = type(force).__name__
            if kind == "CMMotionRemover":
                raise ValueError("the system removes the motion of its centre of mass. Fix: createSystem(..., removeCMMotion=False).")
            if kind not in _READERS:
                raise ValueError(
                    f"the system has a {kind}, wanted those of {', '.join(_READERS)}. Fix: use OpenMMForce, which evaluates any."
                )
            term = _READERS[kind](force)
            if term is not None:
                (self.pairwise if isinstance(term, Pairs | OBC2) else self.bonded).append(term)

    def forward(self, x: Tensor) -> Tensor:
        """Energy ``[*batch]`` in kJ/mol of positions ``[*batch, 3 N]`` in nm."""
        return self._by_block(self._energy, x).reshape(x.shape[:-1])

    def force(self, x: Tensor) -> Tensor:
        """Force ``[*batch, 3 N]`` in kJ/mol/nm, differentiable."""
        return self._by_block(self._force, x).reshape(x.shape)

    def _by_block(self, function: Any, x: Tensor) -> Tensor:
        if x.shape[-1] != 3 * self.atoms:
            raise ValueError(f"x has {x.shape[-1]} coordinates, wanted 3 for each of {self.atoms} atoms: {3 * self.atoms}.")
        rows = x.reshape(-1, self.atoms, 3)
        block = max(1, _BLOCK // self.atoms**2)
        if torch.compiler.is_compiling() or x.device.type != "cpu" or len(rows) <= block:
            return function(rows)
        return torch.cat([function(some) for some in rows.split(block)])

    def _energy(self, rows: Tensor) -> Tensor:
        x = rows.permute(1, 2, 0).contiguous()
        total = x.new_zeros(len(rows))
        for term in self.bonded:
            total = total + term.energy(x)  # pyright: ignore[reportCallIssue]
        if len(self.pairwise):
            d, square = differences(x)
            for term in self.pairwise:
                total = total + term.energy(d, square)  # pyright: ignore[reportCallIssue]
        return total

    def _force(self, rows: Tensor) -> Tensor:
        x = rows.permute(1, 2, 0).contiguous()
        total = torch.zeros_like(x)
        if len(self.pairwise):
            d, square = differences(x)
            strength = sum(term.strength(d, square) for term in self.pairwise)  # pyright: ignore[reportCallIssue]
            total = torch.stack([(strength * one).sum(1) for one in d], 1)
        for term in self.bonded:
            for place, gradient in enumerate(term.gradients(x)):  # pyright: ignore[reportCallIssue]
                total = total.index_add(0, term.atoms[:, place], gradient, alpha=-1)  # pyright: ignore[reportIndexIssue, reportArgumentType]
        return total.permute(2, 0, 1).reshape(len(rows), -1)


def simple(system: Any) -> None:
    """Refuse a system that noise in Cartesian coordinates cannot drive: constraints, virtual sites, massless particles, a periodic box."""
    if system.getNumConstraints():
        i, j, _ = system.getConstraintParameters(0)
        raise ValueError(
            f"the system has {system.getNumConstraints()} constraints (the first between atoms {i} and {j}), wanted none: every coordinate is driven "
            "by noise. Fix: createSystem(..., constraints=None, rigidWater=False)."
        )
    virtual = [i for i in range(system.getNumParticles()) if system.isVirtualSite(i)]
    if virtual:
        raise ValueError(f"particle {virtual[0]} is a virtual site, wanted atoms alone. Fix: choose a water model of three atoms.")
    fixed = [i for i in range(system.getNumParticles()) if not system.getParticleMass(i)._value > 0]
    if fixed:
        raise ValueError(f"particle {fixed[0]} has no mass, wanted a positive one: noise drives every atom. Fix: system.setParticleMass.")
    if system.usesPeriodicBoundaryConditions():
        raise ValueError("the system has a periodic box, wanted none. Fix: createSystem(..., nonbondedMethod=NoCutoff).")


def _table(rows: Sequence[Sequence[float]], atoms: int) -> tuple[Tensor, list[Tensor]]:
    """Split rows of atoms and parameters."""
    table = torch.tensor(rows, dtype=torch.float64)
    return table[:, :atoms].long(), list(table[:, atoms:].T)


def _plain(value: Any) -> float:
    """A number of OpenMM in its own units: nm, kJ/mol, rad, e."""
    from openmm import unit

    return float(value.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(value) else value)


def _bonds(force: Any) -> Bonds | None:
    rows = [list(map(_plain, force.getBondParameters(i))) for i in range(force.getNumBonds())]
    if not rows:
        return None
    atoms, (length, constant) = _table(rows, 2)
    return Bonds(atoms, length=length, constant=constant)


def _angles(force: Any) -> Angles | None:
    rows = [list(map(_plain, force.getAngleParameters(i))) for i in range(force.getNumAngles())]
    if not rows:
        return None
    atoms, (angle, constant) = _table(rows, 3)
    return Angles(atoms, angle=angle, constant=constant)


def _torsions(force: Any) -> Torsions | None:
    rows = [list(map(_plain, force.getTorsionParameters(i))) for i in range(force.getNumTorsions())]
    rows = [row for row in rows if row[-1] != 0]
    if not rows:
        return None
    atoms, (periodicity, phase, constant) = _table(rows, 4)
    return Torsions(atoms, periodicity=periodicity, phase=phase, constant=constant)


def _pairs(force: Any) -> Pairs:
    if force.getNonbondedMethod() != force.NoCutoff:
        raise ValueError("the NonbondedForce has a cutoff, wanted all pairs. Fix: createSystem(..., nonbondedMethod=NoCutoff).")
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise ValueError("the NonbondedForce has parameter offsets, wanted fixed parameters. Fix: use OpenMMForce.")
    n = force.getNumParticles()
    q, sigma, epsilon = torch.tensor([list(map(_plain, force.getParticleParameters(i))) for i in range(n)], dtype=torch.float64).T
    charge = q[:, None] * q[None, :]
    width = (sigma[:, None] + sigma[None, :]) / 2
    depth = (epsilon[:, None] * epsilon[None, :]).sqrt()
    for exception in range(force.getNumExceptions()):
        i, j, *parameters = force.getExceptionParameters(exception)
        for table, value in zip((charge, width, depth), map(_plain, parameters), strict=True):
            table[i, j] = table[j, i] = value
    sixth = 4 * depth * width**6
    tables = [table.fill_diagonal_(0) for table in (COULOMB * charge, sixth, sixth * width**6)]
    return Pairs(*tables)


def _solvent(force: Any) -> OBC2:
    """Read the CustomGBForce that ``implicit/obc2.xml`` makes."""
    values = [force.getComputedValueParameters(i)[1] for i in range(force.getNumComputedValues())]
    energies = [force.getEnergyTermParameters(i)[0] for i in range(force.getNumEnergyTerms())]
    names = [force.getPerParticleParameterName(i) for i in range(force.getNumPerParticleParameters())]
    settings = {key.strip(): value for part in energies[0].split(";")[1:] for key, value in [part.split("=")]} if energies else {}
    if (
        len(values) != 2
        or "psi-0.8*psi^2+4.85*psi^3" not in values[1]
        or len(energies) != 3
        or names != ["charge", "or", "sr"]
        or not energies[1].startswith("28.3919551*(radius+0.14)^2*(radius/B)^6")
        or float(settings.get("kappa", 1)) != 0
        or force.getNonbondedMethod() != force.NoCutoff
        or force.getNumExclusions()
    ):
        raise ValueError(
            "the system has a CustomGBForce that is not OBC2 without salt and cutoff. Fix: use implicit/obc2.xml, or OpenMMForce, which evaluates any."
        )
    q, inner, scaled = torch.tensor([force.getParticleParameters(i) for i in range(force.getNumParticles())], dtype=torch.float64).T
    dielectric = 1 / float(settings["soluteDielectric"]) - 1 / float(settings["solventDielectric"])
    return OBC2(q, inner, scaled, 138.935485 * dielectric, float(settings["offset"]))


_READERS: dict[str, Any] = {
    "HarmonicBondForce": _bonds,
    "HarmonicAngleForce": _angles,
    "PeriodicTorsionForce": _torsions,
    "NonbondedForce": _pairs,
    "CustomGBForce": _solvent,
}
