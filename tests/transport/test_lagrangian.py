"""Lagrangians: the Hamilton-Jacobi residual of exact potentials is zero, constants are checked, priors read training snapshots alone."""

import math

import pytest
import torch

from popflow.core import Streams
from popflow.transport.closed_forms import gaussian_bridge
from popflow.transport.lagrangian import WFR, Harmonic, Lagrangian, Linear, MeanAcceleration, VelocityPrior, residual
from popflow.transport.snapshots import Snapshots


def points(n=20, dim=2):
    rng = Streams(0)
    return rng.uniform("t", (n,)) * 0.8 + 0.1, rng.normal("x", torch.empty(n, dim, dtype=torch.float64))


def test_exact_potentials_solve_the_hamilton_jacobi_equation():
    t, x = points()
    a = torch.tensor([1.0, -2.0], dtype=torch.float64)
    cases = [
        # free fall out of one point: s = |x|^2 / (2 t)
        (Lagrangian(), lambda t, x: x.square().sum(-1) / (2 * t)),
        # x'' = -4 x: s = |x|^2 cot(2 t)
        (Lagrangian(potential=Harmonic(4.0)), lambda t, x: x.square().sum(-1) / (2 * t).tan()),
        # x'' = a
        (Lagrangian(potential=Linear(a)), lambda t, x: t * (x @ a) - a @ a * t**3 / 6),
        # growth alone: s = 2 / (lam t)
        (Lagrangian(WFR(3.0)), lambda t, x: 2 / (3.0 * t) + 0 * x[:, 0]),
        # heat kernel: s = -sigma^2 log p of a particle that must be at 0 at time 1
        (Lagrangian(noise=0.6), lambda t, x: -x.square().sum(-1) / (2 * (1 - t)) - 0.36 * (1 - t).log()),
        # a reference drift that is followed costs nothing
        (Lagrangian(drift=lambda t, x: -x), lambda t, x: 5.0 + 0 * t * x[:, 0]),
    ]
    for lagrangian, s in cases:
        found = residual(lagrangian, s, t, x)
        torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-10, rtol=0)


def test_the_bridge_of_gaussians_solves_it_up_to_a_function_of_time():
    bridge = gaussian_bridge(torch.tensor([0.5]), torch.eye(1), torch.tensor([-1.0]), 2 * torch.eye(1), 0.8)
    h, x = 1e-4, torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for t in (0.3, 0.6):
        f = bridge.drift(t, x)
        by_t = (bridge.drift(t + h, x) - bridge.drift(t - h, x)) / (2 * h)
        by_x = (bridge.drift(t, x + h) - bridge.drift(t, x - h)) / (2 * h)
        torch.testing.assert_close(by_t + f * by_x, torch.zeros_like(f), atol=1e-6, rtol=0)  # grad of the residual; f is affine in x


def test_hutchinson_probes_estimate_the_laplacian():
    t, x = points(4)
    lagrangian, rng = Lagrangian(noise=1.0), Streams(0)
    s = lambda t, x: (x[:, 0] * x[:, 1]) ** 2 + x[:, 0] ** 3  # noqa: E731
    many = x.repeat(2000, 1)
    found = residual(lagrangian, s, t.repeat(2000), many, rng.normal("probe", many).sign()).reshape(2000, -1).mean(0)
    # half of z'Hz, which varies by the off-diagonal of H alone, 4 x y
    error = 4 * x.prod(1).abs() / 2000**0.5
    assert bool(((found - residual(lagrangian, s, t, x)).abs() < 4 * error).all())


def test_mean_acceleration_uses_half_the_time_between_the_neighbours_and_no_held_out_snapshot():
    t = torch.tensor([2.0, 3.0, 5.0, 6.0], dtype=torch.float64)
    a = torch.tensor([0.5, -1.0], dtype=torch.float64)
    cells = [torch.stack([v, v + 1]) for v in (a / 2 * s**2 for s in t)]
    found = MeanAcceleration.of(Snapshots.of(cells, times=t.tolist()))
    torch.testing.assert_close(found.accelerations, a.expand(2, 2))  # exact for a parabola, wherever the times are
    poisoned = [rows.clone() for rows in cells]
    poisoned[1][:] = math.nan
    clean = MeanAcceleration.of(Snapshots(tuple(poisoned), t, torch.ones(4).double(), (0, 1, 2, 3), held_out=(1,)))
    torch.testing.assert_close(clean.accelerations, a[None])
    assert found(torch.tensor([2.1, 5.9]).double(), torch.ones(2, 2).double()).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="there are 2 training snapshots, wanted at least three"):
        MeanAcceleration.of(Snapshots.of(cells[:2], times=[0, 1]))


def test_the_velocity_prior_averages_neighbours_and_is_linear_in_time():
    rng = Streams(0)
    x = [rng.normal("x", torch.empty(300, 2, dtype=torch.float64)) for _ in range(3)]
    speed = [torch.tensor([1.0, 0.0]).double() * (k + 1) + 0 * rows for k, rows in enumerate(x)]
    prior = VelocityPrior.of(Snapshots.of(x, times=[0, 1, 3], velocity=speed), bandwidth=0.3, strength=0.5)
    u = prior(torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0]).double(), torch.zeros(5, 2).double())
    torch.testing.assert_close(u[:, 0], 0.5 * torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]).double())
    swirl = Snapshots.of(x, times=[0, 1, 3], velocity=[torch.stack([-r[:, 1], r[:, 0]], 1) for r in x])
    at = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert (
        torch.nn.functional.cosine_similarity(
            VelocityPrior.of(swirl, 0.2)(torch.ones(1).double(), at), torch.tensor([[-1.0, 1.0]]).double()
        )
        > 0.95
    )
    with pytest.raises(ValueError, match="no velocity"):
        VelocityPrior.of(Snapshots.of(x, times=[0, 1, 3]), 0.2)
    with pytest.raises(ValueError, match="bandwidth=0, wanted"):
        VelocityPrior.of(swirl, 0)


def test_the_kernel_of_the_prior_is_gaussian():
    rng = Streams(0)
    x, v, at = (rng.normal(name, torch.empty(2, 40, 3, dtype=torch.float64)) + 5 for name in ("x", "v", "at"))
    prior = VelocityPrior(x, v, torch.tensor([0.0, 2.0]).double(), 0.7)
    plain = (-torch.cdist(at[0], x).square() / (2 * 0.7**2)).softmax(-1) @ v
    torch.testing.assert_close(prior(torch.full((40,), 0.5).double(), at[0]), 0.75 * plain[0] + 0.25 * plain[1])


def test_snapshots_that_fall_freely_imply_the_velocity_of_the_fall():
    """Displacements of a cloud that moves along a parabola: exact at inner snapshots, wherever the times are; chords at the ends."""
    times, a = (2.0, 3.0, 5.0, 6.0), torch.tensor([0.5, -1.0], dtype=torch.float64)
    cloud = Streams(0).normal("x", torch.empty(30, 2, dtype=torch.float64))
    cells = [cloud[torch.randperm(30, generator=torch.Generator().manual_seed(k))] + a / 2 * t**2 for k, t in enumerate(times)]
    prior = VelocityPrior.between(Snapshots.of(cells, times=times), bandwidth=1.0)
    for k, t in enumerate((2.5, 3.0, 5.0, 5.5)):
        torch.testing.assert_close(prior.velocity[k], (a * t).expand(30, 2))
    uneven = VelocityPrior.between(Snapshots.of([cells[0][:7], *cells[1:]], times=times), 1.0)
    assert uneven.x.shape == (4, 30, 2)
    assert VelocityPrior.between(Snapshots.of(cells, times=times), 1.0, cells=20).x.shape == (4, 20, 2)
    with pytest.raises(ValueError, match="there are 2 training snapshots, wanted at least three"):
        VelocityPrior.between(Snapshots.of(cells[:3], times=times[:3]).hold_out(1), 1.0)
    with pytest.raises(ValueError, match=r"bandwidth=-1\.0, wanted"):
        VelocityPrior.between(Snapshots.of(cells, times=times), -1.0)


def test_constants_out_of_range_and_wrong_shapes_are_refused():
    for lam in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="lam="):
            WFR(lam)
    for sigma in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="noise="):
            Lagrangian(noise=sigma)
    t, x = points(3)
    with pytest.raises(ValueError, match=r"potential returned \(3, 1\), wanted a tensor of shape \(3,\)"):
        residual(Lagrangian(potential=lambda t, x: x[:, :1]), lambda t, x: x[:, 0], t, x)
    with pytest.raises(ValueError, match=r"drift returned \(3,\), wanted a tensor of shape \(3, 2\)"):
        residual(Lagrangian(drift=lambda t, x: x[:, 0]), lambda t, x: x[:, 0], t, x)
