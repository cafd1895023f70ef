"""The grid and the quadratures against closed forms, against each other, and against published figures."""

import math

import pytest
import torch

from popflow.paths.exact import Grid, committor_by_quadrature, mean_first_passage_by_quadrature
from popflow.paths.potentials import DoubleWell, MuellerBrown
from popflow.paths.process import Overdamped

WELL = 2**0.5
TIME = 0.0275


@pytest.fixture(scope="module")
def line() -> Grid:
    """The one-dimensional double well at kT = 1/2."""
    return Grid(Overdamped(DoubleWell(dim=1), noise=1.0), (-3.0,), (3.0,), spacing=0.02)


@pytest.fixture(scope="module")
def surface() -> Grid:
    """The surface of Mueller and Brown at kT = 12.5."""
    return Grid(Overdamped(MuellerBrown(), noise=5.0), *MuellerBrown.domain, spacing=0.025)


def wells(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    return grid.where(lambda x: x[:, 0] < -WELL + 1e-9), grid.where(lambda x: x[:, 0] > WELL - 1e-9)


def test_committor_and_passage_by_quadrature_have_the_closed_figures() -> None:
    x = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.3])
    q = committor_by_quadrature(DoubleWell(dim=1), 0.5, -WELL, WELL, x)
    assert q.tolist() == pytest.approx([0.030534, 0.219583, 0.5, 0.651174, 0.875313], abs=1e-6)
    passage = mean_first_passage_by_quadrature(Overdamped(DoubleWell(dim=1), noise=1.0), -WELL, WELL, -4.0)
    assert passage == pytest.approx(1750.02, abs=0.01)


def test_mobility_sets_temperature_and_diffusion_apart() -> None:
    """With the same kT, twice the mobility is twice the clock."""
    slow, fast = (Overdamped(DoubleWell(dim=1), noise=math.sqrt(m), mobility=m) for m in (1.0, 2.0))
    times = [mean_first_passage_by_quadrature(one, -WELL, WELL, -4.0) for one in (slow, fast)]
    assert times[0] == pytest.approx(2 * times[1], rel=1e-9)
    grids = [Grid(one, (-3.0,), (3.0,), 0.02) for one in (slow, fast)]
    rates = [grid.rate(*wells(grid)) for grid in grids]
    assert 2 * rates[0] == pytest.approx(rates[1], rel=1e-9)


def test_the_chain_agrees_with_quadrature_and_converges_with_the_square_of_the_spacing(line: Grid) -> None:
    process = line.process
    exact = mean_first_passage_by_quadrature(process, -WELL, WELL, -3.0)
    errors = []
    for h in (WELL / 25, WELL / 50):  # both have the minima among their points
        grid = Grid(process, (-2 * WELL,), (2 * WELL,), h)
        a, b = wells(grid)
        errors.append(float(grid.at(grid.mean_first_passage(b), torch.tensor([[-WELL]]))) / exact - 1)
        assert 1 / grid.rate(a, b) == pytest.approx(exact, rel=1.5 * abs(errors[-1]) + 1e-6)
        x = torch.tensor([[-0.5], [0.3]])
        q = committor_by_quadrature(process.potential, 0.5, -WELL, WELL, x[:, 0])
        assert torch.allclose(grid.at(grid.committor(a, b), x), q, atol=2 * h * h)
    assert errors[0] / errors[1] == pytest.approx(4.0, abs=0.4)


def test_the_bridge_of_a_harmonic_well_is_the_gaussian_one() -> None:
    """Ornstein-Uhlenbeck between N(a, s0^2) and N(b, s0^2): covariance, moments and KL in closed form."""
    theta, xi, time, a, b, s0 = 2.0, 1.0, 1.0, -0.8, 0.6, 0.2
    phi = math.exp(-theta * time)
    s = xi**2 * (1 - phi**2) / (2 * theta)
    c = 0.5 * (-s / phi + math.sqrt((s / phi) ** 2 + 4 * s0**4))
    reference = torch.tensor([[s0**2, phi * s0**2], [phi * s0**2, phi**2 * s0**2 + s]], dtype=torch.float64)
    joint, d = torch.tensor([[s0**2, c], [c, s0**2]], dtype=torch.float64), torch.tensor([0.0, b - phi * a], dtype=torch.float64)
    inverse = torch.linalg.inv(reference)
    kl = 0.5 * float(torch.trace(inverse @ joint) + d @ inverse @ d - 2 + torch.logdet(reference) - torch.logdet(joint))
    grid = Grid(Overdamped(lambda x: theta * x[:, 0].square() / 2, noise=xi), (-3.0,), (3.0,), 0.01)
    bridge = grid.bridge(grid.gaussian([a], s0), grid.gaussian([b], s0), time, 200)
    assert bridge.action == pytest.approx(kl, rel=2e-3)
    for r in (0.0, 0.3, 0.5, 1.0):
        alpha, beta = math.sinh(theta * (time - r)) / math.sinh(theta * time), math.sinh(theta * r) / math.sinh(theta * time)
        own = xi**2 / theta * math.sinh(theta * r) * math.sinh(theta * (time - r)) / math.sinh(theta * time)
        mean, covariance, _ = bridge.moments(r)
        assert float(mean) == pytest.approx(alpha * a + beta * b, abs=1e-3)
        assert float(covariance) == pytest.approx(s0**2 * (alpha**2 + beta**2) + 2 * alpha * beta * c + own, rel=5e-3)


def test_the_bridge_of_mueller_and_brown_has_the_published_action_and_moments(surface: Grid) -> None:
    a, b = MuellerBrown.minima[0], MuellerBrown.minima[-1]
    bridge = surface.bridge(surface.gaussian(a, 0.025), surface.gaussian(b, 0.025), TIME, 110)
    assert bridge.action == pytest.approx(11.159, abs=2e-3)
    known = {
        0.1: ((-0.645, 1.308), (0.165, 0.214), 0.51, -122.7),
        0.5: ((-0.303, 0.541), (0.398, 0.306), -0.62, -69.0),
        0.9: ((0.473, 0.095), (0.213, 0.137), -0.52, -89.4),
    }
    for s, (mean, sd, correlation, energy) in known.items():
        found, covariance, u = bridge.moments(s * TIME)
        width = covariance.diagonal().sqrt()
        assert found.tolist() == pytest.approx(mean, abs=2e-3)
        assert width.tolist() == pytest.approx(sd, abs=2e-3)
        assert float(covariance[0, 1] / width.prod()) == pytest.approx(correlation, abs=6e-3)
        assert u == pytest.approx(energy, abs=0.1)


def test_the_probability_to_arrive_is_an_area_not_a_count_of_points(surface: Grid) -> None:
    b = torch.tensor(MuellerBrown.minima[-1], dtype=torch.float64)
    found = surface.probability(MuellerBrown.minima[0], lambda x: (x - b).square().sum(-1) < 0.01, TIME, 110)
    assert found == pytest.approx(3.38e-5, rel=5e-3)
    inside = surface.share(lambda x: (x - b).square().sum(-1) < 0.01)
    assert float(inside.sum()) * 0.025**2 == pytest.approx(math.pi * 0.01, rel=5e-3)


def test_a_first_hit_is_likelier_than_an_arrival_and_both_conserve_probability(line: Grid) -> None:
    end = lambda x: x[:, 0] > WELL - 1e-9  # noqa: E731
    arrival, hit = (line.probability([-WELL], end, 1.0, 200, hit=one) for one in (False, True))
    assert 0 < arrival < hit < 1
    ahead = line.propagate(line.gaussian([-WELL], 0.1), 1.0, 200, forward=True)
    assert torch.allclose(ahead.sum(1), torch.ones(201, dtype=torch.float64), atol=1e-9)
    equilibrium = line.propagate(line.equilibrium, 1.0, 10, forward=True)[-1]
    assert torch.allclose(equilibrium, line.equilibrium, atol=1e-12)


def test_bad_grids_and_sets_are_refused(line: Grid) -> None:
    process = line.process
    with pytest.raises(ValueError, match="wanted one or two coordinates"):
        Grid(process, (0.0,) * 3, (1.0,) * 3, 0.1)
    with pytest.raises(ValueError, match="at most 400000"):
        Grid(process, (0.0,), (1.0,), 1e-6)
    with pytest.raises(ValueError, match="spacing=-1"):
        Grid(process, (0.0,), (1.0,), -1)
    everything = torch.ones(len(line.points), dtype=torch.bool)
    with pytest.raises(ValueError, match="wanted two sets without common points"):
        line.committor(everything, everything)
    with pytest.raises(ValueError, match="first has shape"):
        line.bridge(line.equilibrium * 2, line.equilibrium, 1.0, 10)
    with pytest.raises(ValueError, match="wanted a time from 0 to 1"):
        line.bridge(line.equilibrium, line.equilibrium, 1.0, 10).marginal(2.0)
