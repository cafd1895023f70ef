"""Known potentials: forces are gradients, minima are minima, saddles have one way down."""

import pytest
import torch

from popflow.paths.potentials import POTENTIALS, DoubleWell, DualChannel, MuellerBrown
from popflow.paths.process import Counted, force

EVERY = pytest.mark.parametrize("potential", [*POTENTIALS.values(), DoubleWell(dim=1), DoubleWell(dim=4)], ids=str)


def random_points(potential) -> torch.Tensor:
    low, high = (torch.tensor(corner, dtype=torch.float64) for corner in potential.window)
    return low + (high - low) * torch.rand(7, 3, len(low), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@EVERY
def test_the_closed_force_is_minus_the_gradient_and_differentiable(potential) -> None:
    x = random_points(potential)
    assert torch.allclose(force(potential, x), force(potential.__call__, x), rtol=1e-11, atol=1e-11)
    y = x[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(potential.force, y)


@EVERY
def test_minima_and_saddles_are_stationary_of_the_right_index(potential) -> None:
    for places, downhill in ((potential.minima, 0), (getattr(potential, "saddles", ()), 1)):
        for place in places:
            x = torch.tensor(place, dtype=torch.float64)
            hessian = torch.autograd.functional.hessian(potential, x)
            assert (
                float(torch.linalg.solve(hessian, potential.force(x)).norm()) < 1e-7
            )  # the Newton step: a distance to the stationary point
            assert int((torch.linalg.eigvalsh(hessian) < 0).sum()) == downhill


def test_the_surface_of_mueller_and_brown_has_the_published_energies() -> None:
    potential = MuellerBrown()
    energies = [float(potential(torch.tensor(x, dtype=torch.float64))) for x in (*potential.minima, *potential.saddles)]
    assert energies == pytest.approx([-146.700, -80.768, -108.167, -40.665, -72.249], abs=1e-3)


def test_the_two_channels_are_mirror_images() -> None:
    x = random_points(DualChannel())
    mirrored = x * torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert torch.allclose(DualChannel()(x), DualChannel()(mirrored), rtol=1e-13)


def test_a_dimension_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="dim=0, wanted a whole number, at least 1"):
        DoubleWell(dim=0)


def test_forces_in_closed_form_are_counted() -> None:
    counted = Counted(MuellerBrown())
    force(counted, random_points(counted.potential))
    assert (counted.forces, counted.hvps) == (21, 0)
