"""Walkers: moments of known densities, widths that adapt, proposals and walkers that are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from popflow.core import Streams
from popflow.electrons import Molecule, PsiFormer, SlaterJastrow, Walkers, equilibrate, exact_state, oscillator, place, quantum_dot, sweep
from popflow.electrons.walkers import STUCK, WalkerError


def test_moments_of_hydrogen_and_of_the_oscillator() -> None:
    hydrogen, rng = Molecule.of("H"), Streams(1)
    psi = exact_state(hydrogen)
    walkers = equilibrate(psi, place(psi, hydrogen, 4000, rng, dtype=torch.float64), rng)
    r = walkers.x.norm(dim=2)[:, 0]
    for moment, exact in ((r, 1.5), (r.square(), 3.0)):
        assert abs(moment.mean() - exact) < 3 * moment.std() / len(r) ** 0.5
    assert 0.45 < walkers.acceptance < 0.6
    line = oscillator(omega=2.0, dim=1)
    psi = exact_state(line)
    square = equilibrate(psi, place(psi, line, 4000, rng, dtype=torch.float64), rng).x.square()
    assert abs(square.mean() - 0.25) < 3 * square.std() / 4000**0.5


def test_a_proposal_that_is_not_finite_is_refused() -> None:
    line = oscillator(dim=1)

    def psi(x: Tensor) -> Tensor:
        log = -x.square().sum((1, 2)) / 2
        return torch.where(x[:, 0, 0] > 0, torch.where(x[:, 0, 0] > 1, float("nan"), float("inf")), log)

    rng = Streams(0)
    begun = place(psi, line, 64, rng, dtype=torch.float64)
    last = equilibrate(psi, begun, rng, sweeps=5)
    assert (last.x <= 0).all()
    assert last.log_psi.isfinite().all()


def test_a_vanishing_wave_function_is_told_at_the_start() -> None:
    with pytest.raises(WalkerError, match="all determinants are zero"):
        place(lambda x: x.new_full((len(x),), -torch.inf), Molecule.of("Li"), 8, Streams(0))


def test_walkers_have_the_precision_of_the_wave_function() -> None:
    line, rng = oscillator(dim=1), Streams(0)
    psi = exact_state(line)
    assert place(psi, line, 2, rng).x.dtype == torch.float64
    assert place(psi.float(), line, 2, rng).x.dtype == torch.float32
    assert place(psi.double(), line, 2, rng, dtype=torch.float32).x.dtype == torch.float32
    assert place(lambda x: -x.square().sum((1, 2)), line, 2, rng).x.dtype == torch.float32


def test_lost_and_stuck_walkers_are_told_before_widths_collapse() -> None:
    hydrogen, rng = Molecule.of("H"), Streams(0)
    psi = exact_state(hydrogen)
    walkers = place(psi, hydrogen, 8, rng, dtype=torch.float64)
    x = walkers.x.clone()
    x[3] = float("nan")
    lost = Walkers(x, walkers.log_psi, walkers.width, walkers.age, walkers.acceptance)
    with pytest.raises(WalkerError, match="1 of 8 walkers are not finite"):
        sweep(psi, lost, rng)
    age = walkers.age.clone()
    age[:2] = STUCK
    with pytest.raises(WalkerError, match="2 of 8 walkers have not moved"):
        sweep(psi, Walkers(walkers.x, walkers.log_psi, walkers.width, age, walkers.acceptance), rng)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_a_width_that_moves_nothing_is_refused(width: float) -> None:
    line = oscillator(dim=1)
    with pytest.raises(ValueError, match=r"width=.*wanted finite and above 0"):
        place(exact_state(line), line, 4, Streams(0), width=width)


def test_more_walkers_than_there_are_cannot_be_taken() -> None:
    line = oscillator(dim=1)
    walkers = place(exact_state(line), line, 4, Streams(0))
    assert torch.equal(walkers.first(3).x, walkers.x[:3])
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"count={count}, wanted at"):
            walkers.first(count)


def test_positions_of_other_electrons_are_refused_by_their_shape() -> None:
    with pytest.raises(ValueError, match=r"x has the shape \(2, 2, 3\), wanted \(walkers, 2, 2\)"):
        SlaterJastrow(quantum_dot())(torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match=r"wanted \(walkers, 3, 3\)"):
        PsiFormer(Molecule.of("Li")).forward_laplacian(torch.zeros(2, 2, 3))
