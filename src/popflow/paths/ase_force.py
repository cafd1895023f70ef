r"""Any ASE calculator as a potential, each call made once and recorded: real reactions with GFN2-xTB, or with any program that ASE drives.

Energies and forces of a conformation are one costly call (`popflow.runs.CostlyFunction`): calls run in parallel processes, each is written into a ledger
before it is used, a killed job repeats none of them, and a calculator that fails (a self-consistent field that does not converge) is an outcome.
Units are converted: nm and kJ/mol here, angstrom and eV in ASE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popflow.core.errors import MissingExtraError
from popflow.paths.differences import Differenced
from popflow.runs.costly import CostlyFunction
from popflow.runs.ledger import Ledger, key_of
from popflow.runs.outcomes import Infeasible

EV = 96.48533212331
"""1 eV in kJ/mol."""
ANGSTROM = 0.1
"""1 angstrom in nm."""


def gfn2_xtb() -> Any:
    """Make tblite's ASE calculator of GFN2-xTB (Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15 (2019) 1652).

    Raises:
        MissingExtraError: without tblite.
    """
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise MissingExtraError("tblite is not installed; it computes GFN2-xTB. Fix: pip install 'popflow[md]'.") from error
    return TBLite(method="GFN2-xTB", verbosity=0)


class Call:
    """One conformation to its energy in kJ/mol and forces in kJ/mol/nm: ``call(positions of 3 N numbers in nm) -> 1 + 3 N numbers``.

    It travels to other processes; each makes its own calculator, once.

    Args:
        symbols: Chemical symbols of the atoms.
        calculator: Makes an ASE calculator, such as `gfn2_xtb`.

    Raises:
        Infeasible: when the calculator fails.
    """

    def __init__(self, symbols: Sequence[str], calculator: Callable[[], Any]):
        self.symbols, self.calculator = tuple(symbols), calculator
        self._made: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the calculator behind: it holds what cannot travel."""
        return self.__dict__ | {"_made": None}

    def __call__(self, x: Sequence[float]) -> list[float]:
        """Evaluate."""
        import ase
        from ase.calculators.calculator import CalculationFailed, CalculatorError, SCFError

        if self._made is None:
            self._made = self.calculator()
        atoms = ase.Atoms(self.symbols, [[one / ANGSTROM for one in x[3 * i : 3 * i + 3]] for i in range(len(self.symbols))])
        atoms.calc = self._made
        try:
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        except (CalculationFailed, CalculatorError, SCFError, RuntimeError, ValueError) as error:
            self._made = None  # it may hold the wave function of what failed
            raise Infeasible(f"{type(error).__name__}: {error}") from error
        return [EV * float(energy), *(EV / ANGSTROM * forces).reshape(-1).tolist()]


class ASEForce(Differenced):
    """Energy of an ASE calculator, ``potential(x [*batch, 3 N]) -> [*batch]``, and ``potential.force(x)``, differentiable once.

    A conformation that the calculator fails at has the energy and the forces NaN, or ``failed`` for both where it is given, so that training goes on:
    zero is no force there, and no Hessian-vector product where either side of its difference fails. Failures are counted in the ledger.
    Its keys name the calculator and the symbols: other calculators and molecules may share a file.

    Args:
        symbols: Chemical symbols of the atoms.
        calculator: Makes an ASE calculator; by default `gfn2_xtb`. Its settings belong into it: another setting is another function.
        ledger: File of the ledger; None keeps it in memory.
        workers: Processes; None for what ``joblib.parallel_config`` says, else 1.
        step: Displacement in nm for Hessian-vector products by central differences (two calls each).
        failed: Energy and forces at failures; None for NaN.
        name: Identifies the calculator in the ledger; its module and qualified name unless given. Say there what else energies depend on.

    Raises:
        ValueError: for a bad argument, or a ledger with a calculator that has no name of its own.

    Attributes:
        costly: The `popflow.runs.CostlyFunction`: ``.made`` counts calls, ``.ledger.counts()`` outcomes.

    Example:
        >>> from ase.calculators.lj import LennardJones
        >>> potential = ASEForce(["Ar", "Ar"], LennardJones, workers=1)
        >>> x = torch.tensor([[0, 0, 0, 0.1 * 2 ** (1 / 6), 0, 0]], dtype=torch.float64)
        >>> bool(potential.force(x).abs().max() < 1e-6), potential.costly.made
        (True, 1)
    """

    def __init__(
        self,
        symbols: Sequence[str],
        calculator: Callable[[], Any] = gfn2_xtb,
        ledger: Ledger | str | Path | None = None,
        *,
        workers: int | None = None,
        step: float = 1e-4,
        failed: float | None = None,
        name: str | None = None,
    ):
        if not symbols:
            raise ValueError("symbols is empty, wanted one for each atom.")
        super().__init__(len(symbols), step)
        own = f"{getattr(calculator, '__module__', '')}.{getattr(calculator, '__qualname__', '<lambda>')}"
        if name is None and ledger is not None and "<lambda>" in own:
            raise ValueError(f"calculator={calculator!r} has no name by which a ledger knows it. Fix: name='...', other for each setting.")
        head = "/".join([name or own, *symbols])
        self.failed = float("nan") if failed is None else failed
        self.costly = CostlyFunction(
            Call(symbols, calculator), ledger, key=lambda x: f"{head}/{key_of(torch.tensor(x, dtype=torch.float64))}", values=1 + 3 * len(symbols), workers=workers, on_error="skip",
            backend="sequential" if workers == 1 else None,
        )  # fmt: skip

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``[*batch]`` and forces ``[*batch, 3 N]``, without derivatives."""
        return tuple(value.nan_to_num(nan=self.failed) for value in self.recorded(x))  # pyright: ignore[reportReturnType]

    def recorded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `evaluate`, with NaN at failures."""
        self._check(x)
        rows = x.detach().cpu().double().reshape(-1, 3 * self.atoms).tolist()
        values = self.costly(rows).to(x)
        return values[:, 0].reshape(x.shape[:-1]), values[:, 1:].reshape(x.shape)

    def product(self, x: Tensor, c: Tensor) -> Tensor:
        """``-H c``; NaN, or zero with ``failed``, where either side of the difference failed."""
        found = self.difference(lambda y: self.recorded(y)[1], x, c)
        return torch.where(found.isnan() & c.isfinite(), 0.0, found) if math.isfinite(self.failed) else found
