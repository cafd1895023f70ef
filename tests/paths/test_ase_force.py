"""ASE calculators as potentials: units, derivatives, failures as outcomes, and a ledger that repeats no call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ase.calculators.calculator import CalculationFailed, all_changes
from ase.calculators.lj import LennardJones

from popflow.paths.ase_force import ASEForce


class Fragile(LennardJones):
    """Fails when two atoms are further apart than 5 angstrom."""

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        if atoms.get_distance(0, 1) > 5:
            raise CalculationFailed("no convergence")
        super().calculate(atoms, properties, system_changes)


def pair(*distances: float) -> torch.Tensor:
    return torch.tensor([[0.0, 0, 0, one, 0, 0] for one in distances], dtype=torch.float64)


def lennard_jones() -> LennardJones:
    return LennardJones(sigma=3.0, epsilon=0.01, rc=50.0, smooth=False)


def test_energy_force_and_product_of_a_known_potential() -> None:
    potential = ASEForce(["Ar", "Ar"], lennard_jones, workers=1)
    x = pair(0.32, 0.4).requires_grad_()
    r = x[:, 3].detach()
    depth = 0.01 * 96.48533212331
    u = (0.3 / r) ** 6
    slope = 4 * depth * (-12 * u**2 + 6 * u) / r
    curve = 4 * depth * (156 * u**2 - 42 * u) / r**2
    difference = potential(x)[0] - potential(x)[1]
    assert float(difference.detach()) == pytest.approx(float((4 * depth * (u**2 - u)).diff()[0] * -1), rel=1e-6)
    force = potential.force(x)
    assert force[:, 3].tolist() == pytest.approx((-slope).tolist(), rel=1e-6)
    c = torch.zeros_like(x)
    c[:, 3] = 1.0
    (product,) = torch.autograd.grad(force, x, c)
    assert product[:, 3].tolist() == pytest.approx((-curve).tolist(), rel=1e-5)
    assert potential.costly.made == 6  # two conformations, and two more for each product


def test_failures_are_outcomes_and_no_call_is_repeated(tmp_path: Path) -> None:
    first = ASEForce(["Ar", "Ar"], Fragile, tmp_path / "calls.jsonl", workers=1, failed=0.0)
    energies = first(pair(0.35, 0.6, 0.4))
    assert energies[1] == 0
    assert first.costly.ledger.counts()["infeasible"] == 1
    first.costly.ledger.close()
    again = ASEForce(["Ar", "Ar"], Fragile, tmp_path / "calls.jsonl", workers=1)
    forces = again.force(pair(0.4, 0.6, 0.35))
    assert forces[1].isnan().all()
    assert forces[[0, 2]].isfinite().all()
    assert again.costly.made == 0


def test_gfn2_xtb_places_hcn_and_hnc() -> None:
    potential = ASEForce(["H", "C", "N"], workers=1)
    hcn = torch.tensor([-0.1064, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1140, 0.0, 0.0], dtype=torch.float64)
    hnc = torch.tensor([0.1170 + 0.1005, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1170, 0.0, 0.0], dtype=torch.float64)
    energies = potential(torch.stack([hcn, hnc]))
    assert float(energies[1] - energies[0]) == pytest.approx(84, abs=12)  # not relaxed
    step = torch.zeros(9, dtype=torch.float64)
    step[0] = 1e-4
    up, down = potential(torch.stack([hcn + step, hcn - step]))
    assert float(potential.force(hcn[None])[0, 0]) == pytest.approx(float(-(up - down) / 2e-4), rel=1e-2, abs=5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="symbols is empty"):
        ASEForce([])
    with pytest.raises(ValueError, match="step=0"):
        ASEForce(["Ar"], lennard_jones, step=0.0)
    with pytest.raises(ValueError, match="x has 6 coordinates, wanted 3 for each of 1 atoms: 3"):
        ASEForce(["Ar"], lennard_jones)(pair(0.3))


def other() -> LennardJones:
    return LennardJones(sigma=3.0, epsilon=0.02, rc=50.0, smooth=False)


def test_calculators_that_share_a_ledger_do_not_share_values(tmp_path: Path) -> None:
    values = []
    for symbols, calculator in ((["Ar", "Ar"], lennard_jones), (["Ar", "Ar"], other), (["Ne", "Ne"], other)):
        potential = ASEForce(symbols, calculator, tmp_path / "calls.jsonl", workers=1)
        values.append(float(potential(pair(0.35))[0]))
        assert potential.costly.made == 1
        potential.costly.ledger.close()
    assert values[1] == values[2] == pytest.approx(2 * values[0])
    with pytest.raises(ValueError, match="Fix: name="):
        ASEForce(["Ar"], lambda: LennardJones(sigma=3.0), tmp_path / "calls.jsonl")


def test_a_difference_with_a_failed_side_has_no_product() -> None:
    x = pair(0.49995, 0.25).requires_grad_()  # the first is 0.5 less half a step: one side fails
    c = torch.zeros_like(x)
    c[:, 3] = 1.0
    for failed in (0.0, None):
        (product,) = torch.autograd.grad(ASEForce(["Ar", "Ar"], Fragile, workers=1, failed=failed).force(x), x, c)
        assert product[1].isfinite().all()
        assert float(product[1, 3].abs()) > 0
        assert bool((product[0] == 0).all()) if failed == 0.0 else bool(product[0].isnan().all())
