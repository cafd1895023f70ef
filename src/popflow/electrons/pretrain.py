r"""A start near Hartree-Fock: the orbitals of PySCF, evaluated in torch, and a fit of the network's orbitals to them.

    loss = mean_k | phi^k(x) - blockdiag(phi_up^HF, phi_down^HF)(x) |^2,      x ~ |psi_HF|^2

A contracted Gaussian of angular momentum 0, 1 or 2 at ``R`` is ``Y(a) sum_p c_p exp(-alpha_p |a|^2)``, ``a = r - R``, in real solid harmonics.

Hartree-Fock needs the extra ``qm`` (PySCF). Without it, or in a trap, begin with steps of Fisher-Rao descent, which need no pretraining on small systems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from popflow.core.errors import MissingExtraError
from popflow.core.streams import Streams
from popflow.electrons.molecule import BOHR, Molecule, MoleculeError
from popflow.electrons.walkers import Walkers, place, sweep
from popflow.electrons.wavefunctions import PsiFormer
from popflow.learn import Progress, cosine, fit

_S, _P = 0.282094791773878143, 0.488602511902919921
_D = (1.092548430592079070, 0.315391565252520002, 0.546274215296039535)
_POOL = 2048
_BASES = "Fix: cc-pvdz or 6-31g; sto-6g has every element that is known here; or pretrain='none'."


class HartreeFock(nn.Module):
    """Hartree-Fock orbitals of a molecule, and ``log|psi|`` of their Slater determinant.

    Args:
        molecule: The molecule.
        basis: A basis of PySCF with functions up to d.
        kept: `tensors` of the same molecule and basis, in place of a calculation: where orbitals are degenerate, another one may turn them.

    Attributes:
        energy: Hartree-Fock energy in this basis, Hartree.
        basis: Name of the basis.

    Raises:
        MissingExtraError: without PySCF.
        MoleculeError: for a basis that PySCF does not know, or one with functions beyond d.
    """

    def __init__(self, molecule: Molecule, basis: str = "cc-pvdz", *, kept: Mapping[str, Tensor] | None = None):
        super().__init__()
        kept = _calculate(molecule, basis) if kept is None else kept
        self.energy, self.basis = float(kept["energy"]), basis
        self.counts = (molecule.up, molecule.down)
        self.shells: list[tuple[int, int]] = [(angular, atom) for angular, atom in kept["shells"].tolist()]
        for name, value in kept.items():
            if name not in ("energy", "shells"):
                self.register_buffer(name, value)

    centres: Tensor
    up: Tensor
    down: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file holds, to be given as ``kept``."""
        return {"energy": torch.tensor(self.energy, dtype=torch.float64), "shells": torch.tensor(self.shells), **dict(self.named_buffers())}

    def atomic_orbitals(self, x: Tensor) -> Tensor:
        """Values of the basis functions, in PySCF's order: ``[..., 3] -> [..., functions]``."""
        columns = []
        for k, (angular, atom) in enumerate(self.shells):
            a = x - self.centres[atom].to(x)
            squared = a.square().sum(-1, keepdim=True)
            exponents, coefficients = (getattr(self, f"{name}_{k}").to(x) for name in ("exponents", "coefficients"))
            radial = torch.exp(-squared * exponents) @ coefficients
            columns.append((radial.unsqueeze(-1) * _harmonics(angular, a).unsqueeze(-2)).flatten(-2))
        return torch.cat(columns, -1)

    def orbitals(self, x: Tensor) -> Tensor:
        """``blockdiag(phi_up(r_i), phi_down(r_i))``: ``[B, N, 3] -> [B, N, N]``."""
        n_up, n_down = self.counts
        functions = self.atomic_orbitals(x)
        out = x.new_zeros(len(x), n_up + n_down, n_up + n_down)
        out[:, :n_up, :n_up] = functions[:, :n_up] @ self.up.to(x)
        out[:, n_up:, n_up:] = functions[:, n_up:] @ self.down.to(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """``log|psi_HF|``: ``[B, N, 3] -> [B]``."""
        return torch.linalg.slogdet(self.orbitals(x)).logabsdet


def pretrain(
    psi: PsiFormer,
    molecule: Molecule,
    hartree_fock: HartreeFock,
    *,
    steps: int = 500,
    batch: int = 256,
    lr: float = 3e-3,
    rng: Streams,
    record: Iterable[Callable[[Progress], None]] = (),
    checkpoint: str | Path | None = None,
    bar: bool = False,
) -> Walkers:
    """Fit the orbitals of ``psi``, in place, to those of Hartree-Fock; return walkers drawn from ``|psi_HF|^2``.

    Args:
        psi: The wave function.
        molecule: Its molecule.
        hartree_fock: The orbitals to fit.
        steps: Steps of Adam.
        batch: Walkers of a step, drawn from a pool.
        lr: First learning rate; cosine decay.
        rng: Streams.
        record: As in `popflow.learn.fit`, as are the others.
        checkpoint: File to resume from.
        bar: Show a progress bar.
    """
    dtype = next(psi.parameters()).dtype
    walkers = place(hartree_fock, molecule, _POOL, rng, dtype=dtype)
    for _ in range(30):
        walkers = sweep(hartree_fock, walkers, rng)
    wrapped = _Orbitals(psi)

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, target = batch
        return (functional_call(wrapped, params, (x,)) - target.unsqueeze(2)).square().mean(), {}

    def batches(rng: Streams) -> tuple[Tensor, Tensor]:
        chosen = (rng.uniform("rows", (batch,)) * _POOL).long()
        x = walkers.x[chosen]
        return x, hartree_fock.orbitals(x)

    params = {name: value for name, value in wrapped.named_parameters() if not name.startswith("psi.jastrow")}
    found = fit(
        loss, params, batches, steps=steps, rng=rng, optimizer=partial(torch.optim.Adam, lr=lr), schedule=cosine(steps), compile=False,
        record=record, checkpoint=checkpoint, bar=bar,
    )  # fmt: skip
    wrapped.load_state_dict(found.params, strict=False)
    return walkers


class _Orbitals(nn.Module):
    """The orbitals of a wave function as a module's forward pass."""

    def __init__(self, psi: PsiFormer):
        super().__init__()
        self.psi = psi

    def forward(self, x: Tensor) -> Tensor:
        return self.psi.orbitals(x)


def _harmonics(angular: int, a: Tensor) -> Tensor:
    """Real solid harmonics ``[..., 2 l + 1]``, in PySCF's order: ``x y z``, and ``xy yz z^2 xz x^2-y^2``."""
    if angular == 0:
        return torch.full_like(a[..., :1], _S)
    if angular == 1:
        return _P * a
    x, y, z = a.unbind(-1)
    return torch.stack([_D[0] * x * y, _D[0] * y * z, _D[1] * (2 * z * z - x * x - y * y), _D[0] * x * z, _D[2] * (x * x - y * y)], -1)


def _calculate(molecule: Molecule, basis: str) -> dict[str, Tensor]:
    """Solve Hartree-Fock: its energy, the shells ``[k, 2]`` (angular momentum, atom) with exponents and coefficients, the orbitals of each spin."""
    mol, field = _solve(molecule, basis)
    shells = [(int(mol.bas_angular(i)), int(mol.bas_atom(i))) for i in range(mol.nbas)]
    if any(angular > 2 for angular, _ in shells):
        raise MoleculeError(
            f"basis={basis!r} has functions beyond d for {molecule.formula}, wanted s, p and d. Fix: 6-31g or sto-6g, or pretrain='none'."
        )
    found = {"energy": _tensor(field.e_tot), "shells": torch.tensor(shells), "centres": molecule.centres}
    for k in range(len(shells)):
        found[f"exponents_{k}"], found[f"coefficients_{k}"] = _tensor(mol.bas_exp(k)), _tensor(mol._libcint_ctr_coeff(k))
    both = field.mo_coeff if field.mo_coeff.ndim == 3 else (field.mo_coeff, field.mo_coeff)
    return found | {"up": _tensor(both[0][:, : molecule.up]), "down": _tensor(both[1][:, : molecule.down])}


def _solve(molecule: Molecule, basis: str) -> tuple[Any, Any]:
    try:
        from pyscf import gto, scf
        from pyscf.lib.exceptions import BasisNotFoundError
    except ImportError as error:
        raise MissingExtraError(
            "Hartree-Fock orbitals need PySCF: pip install 'popflow[qm]'. Or start without: pretrain='none'."
        ) from error
    atoms = [(symbol, place) for symbol, place in zip(molecule.symbols, molecule.positions, strict=True)]
    try:
        mol = gto.M(atom=atoms, unit="Bohr", basis=basis, charge=molecule.charge, spin=molecule.up - molecule.down, verbose=0)
    except (BasisNotFoundError, KeyError, RuntimeError) as error:
        raise MoleculeError(f"PySCF has no basis {basis!r} for {molecule.formula}: {error}. {_BASES}") from error
    if not mol.nbas:
        raise MoleculeError(f"basis={basis!r} has no functions for {molecule.formula}. {_BASES}")
    field = (scf.RHF if molecule.up == molecule.down else scf.UHF)(mol)
    field.kernel()
    if not field.converged:
        raise MoleculeError(
            f"Hartree-Fock did not converge for {molecule.formula} in {basis}. Fix: check the geometry ({BOHR:.4f} Angstrom a bohr), or pretrain='none'."
        )
    return mol, field


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).clone()
