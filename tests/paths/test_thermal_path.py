"""Thermal paths: exact kinematics, equilibrium without cost, first paths of molecules."""

from __future__ import annotations

import pytest
import torch

from popflow.core import Streams
from popflow.paths import Molecule, ThermalPath, TorchForce, Underdamped, action, first_paths, fit, grid, simulate, thermal_path, through
from popflow.paths.thermal_path import basis

STIFF = torch.tensor([[400.0, 30.0, 0.0], [30.0, 60.0, 5.0], [0.0, 5.0, 20.0]], dtype=torch.float64) * 50
MASS = torch.tensor([1.0, 2.0, 12.0], dtype=torch.float64)


def harmonic(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * ((x @ STIFF.to(x)) * x).sum(-1)


def process() -> Underdamped:
    return Underdamped(harmonic, MASS, friction=1.0, temperature=300.0)


def moving(seed: int = 0) -> ThermalPath:
    """A path whose mean and precision change."""
    rng, p = torch.Generator().manual_seed(seed), 8
    means = 0.1 * torch.randn(1, p, 3, generator=rng, dtype=torch.float64)
    root = torch.randn(1, p, 3, 3, generator=rng, dtype=torch.float64)
    lower = torch.linalg.cholesky(40 * (root @ root.mT + torch.eye(3)))
    for one in (means, lower):
        one[:, 1], one[:, -1] = one[:, 0], one[:, -2]
    return ThermalPath(process(), 1.0, means, lower).requires_grad_(False)


def covariance(path: ThermalPath, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of ``[x, v]`` at a time, from the affine map of base points."""
    moments = path.moments(torch.tensor([t], dtype=torch.float64))
    zero = moments.point(torch.zeros(1, 1, 6, dtype=torch.float64))[0, 0]
    factor = moments.point(torch.eye(6, dtype=torch.float64)[:, None, None, :])[:, 0, 0] - zero
    return zero, factor.T @ factor


@pytest.mark.parametrize("t", [0.13, 0.5, 0.81])
def test_marginals_obey_the_equation_of_the_drift(t: float) -> None:
    """Mean and covariance change as ``dx = v dt, dv = u dt + noise dW`` says."""
    path, h = moving(), 1e-5
    (mean, cov), (later, cov_later), (before, cov_before) = (covariance(path, s) for s in (t, t + h, t - h))
    drift = path.drift(t, mean[None])[0]
    slope = torch.stack([path.drift(t, (mean + row)[None])[0] - drift for row in torch.eye(6, dtype=torch.float64)], 1)
    jacobian = torch.cat([torch.cat([torch.zeros(3, 3), torch.eye(3)], 1).double(), slope])
    change = jacobian @ cov + cov @ jacobian.T + torch.diag(torch.cat([torch.zeros(3).double(), path.noise**2]))
    assert torch.allclose((later - before) / (2 * h), torch.cat([mean[3:], drift]), rtol=1e-6, atol=1e-6)
    assert torch.allclose((cov_later - cov_before) / (2 * h), change, rtol=1e-5, atol=1e-5)


def test_base_points_come_back_and_ends_are_met() -> None:
    path = moving()
    z = Streams(3).normal("z", torch.empty(5, 1, 6, dtype=torch.float64))
    moments = path.moments(torch.full((5,), 0.4, dtype=torch.float64))
    assert torch.allclose(moments.base(moments.point(z)), z, atol=1e-9)
    for t, state in ((0.0, path.start), (1.0, path.end)):
        mean, cov = covariance(path, t)
        assert torch.allclose(mean, torch.cat([state, torch.zeros(3).double()]), atol=1e-12)
        assert torch.allclose(cov[3:, 3:].diagonal(), process().kt / MASS, rtol=1e-9)  # Maxwell velocities


def test_equilibrium_costs_nothing() -> None:
    """A harmonic molecule that stays where it is: the self-consistent precision is its own, up to the least frequency."""
    curve = through(torch.zeros(3, 3, dtype=torch.float64))
    path = thermal_path(process(), [curve], 1.0, sigma0=10.0, rng=Streams(0), coefficients=6, rounds=12)
    cost = action(process(), path, 2000, Streams(1))
    assert cost.force > 300
    assert cost.value < 0.01 * cost.force


def test_stiff_modes_are_simulated_at_their_thermal_width() -> None:
    curve = through(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.3]], dtype=torch.float64))
    path = thermal_path(process(), [curve], 1.0, sigma0=10.0, rng=Streams(0), coefficients=6)
    paths = simulate(process(), path.requires_grad_(False), 2000, grid(1.0, 2e-3), Streams(2), weigh=False, keep=[0, 250, 500])
    wanted = (process().kt * torch.linalg.inv(STIFF)).diagonal().sqrt()
    assert torch.allclose(paths.x[:, 1, :3].std(0), wanted, rtol=0.1)
    assert torch.allclose(paths.x[:, -1, :3].mean(0), path.end, atol=0.01)


def test_learning_finds_the_mean_of_a_valley() -> None:
    """A valley 0.2 nm beside the straight line, that both ends lie out of: the mean moves into it."""

    def valley(x: torch.Tensor) -> torch.Tensor:
        return 100 * (x[..., 1] - 0.2).square() + 20 * x[..., 2].square()

    dynamics = Underdamped(valley, 1.0, friction=1.0, temperature=300.0)
    curve = through(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64))
    path = thermal_path(dynamics, [curve, curve], 1.0, sigma0=0.05, rng=Streams(0), coefficients=8)
    fitted = fit(dynamics, path, steps=120, batch=64, rng=Streams(0), bar=False)
    before, after = (action(dynamics, one, 20_000, Streams(1)) for one in (path, fitted.path))
    assert after.value < before.value - 3 * (after.error + before.error)
    middle = fitted.path.moments(torch.tensor([0.5], dtype=torch.float64)).mean[0, :, 1]
    assert bool((middle > 0.05).all())
    assert fitted.forces == fitted.hvps == 120 * 64


def test_coefficients_that_do_not_meet_one_law_are_refused() -> None:
    path = moving()
    with pytest.raises(ValueError, match="one law at each end"):
        ThermalPath(process(), 1.0, Streams(3).normal("means", torch.empty(1, 8, 3, dtype=torch.float64)), path.lower)
    with pytest.raises(ValueError, match="P >= 6"):
        ThermalPath(process(), 1.0, path.means[:, :5], path.lower[:, :5])


def test_splines_are_positive_and_their_derivatives_right() -> None:
    s, h = torch.linspace(0.013, 0.987, 22, dtype=torch.float64), 1e-5
    assert bool((basis(s, 9) >= 0).all())
    for order in (0, 1):
        slope = (basis(s + h, 9, order) - basis(s - h, 9, order)) / (2 * h)
        assert torch.allclose(slope, basis(s, 9, order + 1), rtol=1e-4, atol=1e-4)


def test_first_paths_of_alanine_dipeptide_stay_low(files) -> None:
    molecule = Molecule.from_pdb(*files, warn=False)
    potential = TorchForce(molecule.system)
    first, second = first_paths(molecule, potential, 2)
    for path in (first, second):
        assert torch.equal(path[0], molecule.a.flatten())
        assert torch.equal(path[-1], molecule.b.flatten())
    zero = float(potential(molecule.a.flatten()))
    assert float(potential(first).max()) - zero < 165  # 3 N kT, where a straight line reaches 1e12
    with pytest.raises(ValueError, match="components=50, wanted at most"):
        first_paths(molecule, potential, 50)
