"""Paths against closed forms: bridges with narrow ends, the underdamped bridge, samplers, weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.core import Streams
from popflow.core.errors import NonFiniteError
from popflow.paths import (
    Action,
    DiagonalPath,
    FlowPath,
    FullPath,
    KinematicPath,
    Overdamped,
    PathEnsemble,
    Underdamped,
    action,
    clock_grid,
    fit,
    grid,
    log_linear,
    probability,
    simulate,
    simulate_exactly,
)
from popflow.paths.curves import with_rates
from popflow.paths.doob import draw
from popflow.paths.moments import Kinematic

ENDS = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)


def _spring(theta: float) -> Overdamped:
    return Overdamped(lambda x: theta * x.square().sum(-1) / 2, noise=1.0)


def _least(theta: float, s0: float) -> float:
    """Least action between N(-1, s0^2) and N(1, s0^2) in time 1 for ``dx = -theta x dt + dW``."""
    phi, noise = math.exp(-theta), -math.expm1(-2 * theta) / (2 * theta)
    c, s2 = 0.5 * (-noise / phi + math.sqrt((noise / phi) ** 2 + 4 * s0**4)), s0**2
    reference = torch.tensor([[s2, phi * s2], [phi * s2, phi * phi * s2 + noise]], dtype=torch.float64)
    wanted = torch.tensor([[s2, c], [c, s2]], dtype=torch.float64)
    gap = torch.tensor([0.0, 1 + phi], dtype=torch.float64)
    inverse = reference.inverse()
    return 0.5 * float((inverse @ wanted).trace() + gap @ inverse @ gap - 2 + reference.logdet() - wanted.logdet())


@pytest.fixture(scope="module")
def contracted() -> DiagonalPath:
    """The fitted bridge of a stiff spring, narrower in the middle than at its ends."""
    path = DiagonalPath(*ENDS, 1.0, noise=1.0, sigma0=0.5, widths=log_linear, rng=Streams(0), width=32)
    return fit(_spring(4.0), path, steps=400, batch=64, rng=Streams(0), bar=False).path


def test_contracting_bridge_reaches_the_closed_form(contracted: DiagonalPath) -> None:
    got, least = action(_spring(4.0), contracted, 40_000, Streams(1)), _least(4.0, 0.5)
    assert got.value > least - 3 * got.error
    assert got.value < 1.02 * least
    middle = contracted.moments(torch.tensor([0.5], dtype=torch.float64))
    assert abs(float(middle.mean)) < 0.02
    assert float(middle.sd) < 0.4


def test_narrow_free_bridge_is_the_brownian_bridge() -> None:
    s0 = 0.01
    path = DiagonalPath(*ENDS, 1.0, noise=1.0, sigma0=s0, rng=Streams(0))
    with torch.no_grad():
        for value in path.network.parameters():
            value.zero_()
    free = Overdamped(lambda x: 0 * x.sum(-1), noise=1.0)
    c = 0.5 * (-1 + math.sqrt(1 + 4 * s0**4))
    least = 0.5 * (4 + 2 * (s0**2 - c) - 1 + math.log(s0**2 / c))
    got = action(free, path, 40_000, Streams(1))
    assert got.value == pytest.approx(least, rel=1e-3)
    assert isinstance(got, Action)
    assert got.force == 0


def test_kinematic_formulas_reproduce_the_bridge_of_a_damped_oscillator() -> None:
    k, friction, noise, end = 3.0, 0.7, 1.3, 2.0
    f = torch.tensor([[0.0, 1.0], [-k, -friction]], dtype=torch.float64)
    driven, zero = torch.diag(torch.tensor([0.0, noise**2], dtype=torch.float64)), torch.zeros(2, 2, dtype=torch.float64)

    def flow(t: Tensor) -> tuple[Tensor, Tensor]:
        block = torch.linalg.matrix_exp(torch.cat([torch.cat([-f, driven], 1), torch.cat([zero, f.mT], 1)]) * t)
        return block[2:, 2:].mT, block[2:, 2:].mT @ block[:2, 2:]

    whole, last = flow(torch.tensor(end, dtype=torch.float64))
    a, b = torch.tensor([-1.0, 0.3], dtype=torch.float64), torch.tensor([0.8, -0.2], dtype=torch.float64)

    def laws(t: Tensor) -> tuple[Tensor, Tensor]:
        (phi, q), (later, _) = flow(t), flow(end - t)
        gain = q @ later.mT @ last.inverse()
        return phi @ a + gain @ (b - whole @ a), q - gain @ later @ q

    t = torch.tensor(0.8, dtype=torch.float64)
    (mean, cov), (mean_rate, cov_rate) = with_rates(laws, t)
    numbers = (mean[0], mean[1], mean_rate[1], cov[0, 0], cov[0, 1], cov[1, 1], cov_rate[0, 1], cov_rate[1, 1])
    law = Kinematic(*(value.reshape(1, 1, 1) for value in numbers), noise=torch.tensor([noise], dtype=torch.float64))
    x = torch.tensor([[0.4, -0.9], [-0.2, 0.6]], dtype=torch.float64)
    later, left = flow(end - t)
    exact = (f @ x.mT)[1] + noise**2 * (later.mT @ left.inverse() @ (b[:, None] - later @ x.mT))[1]
    torch.testing.assert_close(law.drift(law.base(x[:, None, :]))[:, 0, 0], exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("make", [DiagonalPath, FullPath])
def test_exact_sampler_keeps_the_marginals_at_any_step(make: type, steps: int) -> None:
    ends = (torch.tensor([-0.5, 1.0], dtype=torch.float64), torch.tensor([0.5, 0.0], dtype=torch.float64))
    path = make(*ends, 1.0, noise=1.0, sigma0=0.05, rng=Streams(0)).requires_grad_(False)
    for value in path.parameters():
        value.add_(0.3 * Streams(1).normal("loud", value))
    paths = simulate_exactly(path, 10_000, grid(1.0, 1 / steps), Streams(steps))
    z = path.moments(torch.tensor([0.5], dtype=torch.float64)).base(paths.x[:, steps // 2, None, :])[:, 0]
    assert (z.mean(0).abs() < 3.5 / 100).all()
    assert ((z.mT @ z / 10_000 - torch.eye(2)).abs() < 3.5 * 0.0142).all()


def test_euler_paths_carry_weights_to_the_reference(contracted: DiagonalPath) -> None:
    """E_Q[w f] is E_P[f] for the chains: mean and second moment of the end of an Ornstein-Uhlenbeck chain."""
    steps, theta = 100, 4.0
    paths = simulate(_spring(theta), contracted, 20_000, grid(1.0, 1 / steps), Streams(2), keep=[0, steps])
    w, x = paths.log_w.exp(), paths.x[:, -1, 0]
    shrink = 1 - theta / steps
    mean = -(shrink**steps)
    variance = 0.25 * shrink ** (2 * steps) + (1 - shrink ** (2 * steps)) / (1 - shrink**2) / steps
    for f, wanted in ((torch.ones_like(x), 1.0), (x.clamp(0.5, 1.5), None)):
        value, error = float((w * f).mean()), float((w * f).std()) / 20_000**0.5
        normal = torch.randn(400_000, generator=Streams(3)("x"), dtype=torch.float64) * variance**0.5 + mean
        exact = wanted if wanted is not None else float(normal.clamp(0.5, 1.5).mean())
        assert abs(value - exact) < 4 * error + 0.01


def test_projection_finds_the_bridge_of_gaussians(contracted: DiagonalPath) -> None:
    rng = Streams(4)
    paths = simulate(_spring(4.0), contracted, 4000, clock_grid(1.0, 200), Streams(2), keep=[0, 100, 200])
    ends = [end + 0.5 * rng.normal("ends", torch.empty(100_000, 1, dtype=torch.float64)) for end in ENDS]
    bridge = paths.projected(*ends)
    assert bridge.ess > 0.5 * 4000
    assert "bridge" in bridge.law
    for k, end in ((0, -1.0), (2, 1.0)):
        mean, _ = bridge.mean(bridge.x[:, k])
        assert float(mean) == pytest.approx(end, abs=0.01)


def test_resampled_paths_keep_their_past_and_the_estimate() -> None:
    process, path = _spring(1.0), DiagonalPath(*ENDS, 1.0, noise=1.0, sigma0=0.3, rng=Streams(0)).requires_grad_(False)

    def near_end(x: Tensor) -> Tensor:
        return torch.distributions.Normal(1.0, 0.3).log_prob(x[:, 0])

    def ahead(t: float, x: Tensor) -> Tensor:
        return t * (1 - t) * x[:, 0]

    shrink = 0.98**50
    variance = 0.09 * shrink**2 + 0.02 * (1 - shrink**2) / (1 - 0.98**2) + 0.09
    exact = float(torch.distributions.Normal(-shrink, variance**0.5).log_prob(torch.tensor(1.0)))
    plain = simulate(process, path, 1000, grid(1.0, 0.02), Streams(5)).pinned(near_end)
    resampled = simulate(process, path, 1000, grid(1.0, 0.02), Streams(6), resample_below=0.5, twist=ahead)
    for paths in (plain, resampled.pinned(near_end)):
        bound, error = paths.log_bound()
        assert abs(bound - exact) < 4 * max(error, 0.02)
        assert error < 0.2
    steps = (resampled.x[:, 1:] - resampled.x[:, :-1]).abs().max()
    assert float(steps) < 1.5  # neighbouring frames belong to one path


def test_rare_event_against_the_normal_tail() -> None:
    """P(x_1 > 3) of Brownian motion from 0, and P(max > 3) within the discretisation of the reflection principle."""
    free = Overdamped(lambda x: 0 * x.sum(-1), noise=1.0)
    a = torch.zeros(1, dtype=torch.float64)
    path = DiagonalPath(a, a + 3.3, 1.0, noise=1.0, sigma0=(0.05, 0.3), rng=Streams(0)).requires_grad_(False)
    tail = 0.5 * math.erfc(3 / math.sqrt(2))
    at_end = probability(free, path, lambda x: x[:, 0] > 3, 4000, clock_grid(1.0, 200), Streams(1), start=a)
    assert abs(at_end.value - tail) < 4 * at_end.error
    assert at_end.error < 0.1 * tail
    assert at_end.low < at_end.value < at_end.high
    steps = 200
    hit = probability(free, path, lambda x: x[:, 0] > 3, 4000, grid(1.0, 1 / steps), Streams(2), start=a, first_hit=True)
    shifted = math.erfc(
        (3 + 0.5826 / steps**0.5) / math.sqrt(2)
    )  # a barrier watched at discrete times lies further out (Broadie et al. 1997)
    assert abs(hit.value - shifted) < 4 * hit.error


def test_underdamped_path_arrives_and_carries_weights() -> None:
    process = Underdamped(lambda x: x.square().sum(-1) / 2, mass=1.0, friction=1.0, temperature=100.0)
    thermal = math.sqrt(process.kt)
    path = KinematicPath(*ENDS, 3.0, noise=process.noise, thermal=thermal, sigma0=0.3, rng=Streams(0), width=16)
    fitted = fit(process, path, steps=40, batch=32, rng=Streams(0), bar=False)
    assert (fitted.forces, fitted.hvps) == (40 * 32, 40 * 32)
    before, after = (action(process, one, 4000, Streams(1)).value for one in (path, fitted.path))
    assert after < before
    paths = simulate(process, fitted.path, 200, grid(3.0, 0.02), Streams(2))
    assert paths.x.shape == (200, 151, 2)
    assert float((paths.x[:, -1, 0] - 1).mean().abs()) < 0.1
    torch.testing.assert_close(paths.x[:, 1:, 0] - paths.x[:, :-1, 0], 0.02 * paths.x[:, 1:, 1])


@pytest.mark.parametrize(("time", "dt"), [(1.0, 0.3), (1.0, 0.0), (1.0, 2.0)])
def test_step_must_divide_the_time(time: float, dt: float) -> None:
    with pytest.raises(ValueError, match="dt="):
        grid(time, dt)


def test_weights_of_an_underdamped_spring_lead_to_the_reference() -> None:
    """E_Q[w] = 1 and E_Q[w x_T] = E_P[x_T] for the semi-implicit chain, whose mean obeys the same linear recursion."""
    process = Underdamped(lambda x: x.square().sum(-1) / 2, mass=1.0, friction=1.0, temperature=100.0)
    thermal = math.sqrt(process.kt)  # also the width of equilibrium: only the mean is driven, and weights have light tails
    path = KinematicPath(
        ENDS[0] / 2, ENDS[1] / 2, 3.0, noise=process.noise, thermal=thermal, sigma0=thermal, rng=Streams(0)
    ).requires_grad_(False)
    steps, h = 150, 0.02
    paths = simulate(process, path, 20_000, grid(3.0, h), Streams(2), keep=[0, steps])
    position, velocity = -0.5, 0.0
    for _ in range(steps):
        velocity += h * (-position - velocity)
        position += h * velocity
    w = paths.log_w.exp()
    for value, wanted in ((w, 1.0), (w * paths.x[:, -1, 0], position)):
        error = float(value.std()) / 20_000**0.5
        assert abs(float(value.mean()) - wanted) < 4 * error
        assert error < 0.1


def test_paths_of_other_noise_or_kind_are_refused_by_weights_too() -> None:
    path = DiagonalPath(*ENDS, 1.0, noise=1.0, sigma0=0.3, rng=Streams(0)).requires_grad_(False)
    loud = Overdamped(lambda x: 0 * x.sum(-1), noise=2.0)
    with pytest.raises(ValueError, match=r"noise=process\.noise"):
        simulate(loud, path, 10, grid(1.0, 0.1), Streams(0))
    with pytest.raises(ValueError, match=r"noise=process\.noise"):
        probability(loud, path, lambda x: x[:, 0] > 0, 10, grid(1.0, 0.1), Streams(0))
    process = Underdamped(lambda x: x.square().sum(-1), mass=1.0, friction=1.0, temperature=100.0)
    flat = DiagonalPath(torch.zeros(2), torch.ones(2), 1.0, noise=process.noise, sigma0=0.3, rng=Streams(0))
    for call in (lambda: action(process, flat, 100, Streams(0)), lambda: simulate(process, flat, 10, grid(1.0, 0.1), Streams(0))):
        with pytest.raises(ValueError, match="KinematicPath for Underdamped"):
            call()
    with pytest.raises(ValueError, match="requires_grad_"):
        fit(_spring(1.0), path, steps=2, batch=4, rng=Streams(0))


def test_a_guide_that_is_too_narrow_is_told_of() -> None:
    """P(x_1 > 0) = 1/2 of Brownian motion by paths that end in N(1, 0.1^2): the weights of paths that end elsewhere have no mean square."""
    free = Overdamped(lambda x: 0 * x.sum(-1), noise=1.0)
    a = torch.zeros(1, dtype=torch.float64)
    narrow, wide = (DiagonalPath(a, a + 1, 1.0, noise=1.0, sigma0=(0.05, sd), rng=Streams(0)).requires_grad_(False) for sd in (0.1, 1.2))
    missed, found = (
        probability(free, one, lambda x: x[:, 0] > 0, 4000, clock_grid(1.0, 100), Streams(1), start=a) for one in (narrow, wide)
    )
    assert missed.value < 0.4
    assert missed.tail > 0.5
    assert "too small and too sure" in str(missed)
    assert found.tail < 0.5
    assert abs(found.value - 0.5) < 4 * found.error
    assert "too sure" not in str(found)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_times_of_learning_and_of_estimates_are_weighed_to_uniform_ones(share: float) -> None:
    """Means of 1, t and t^2 over weighted times are those of uniform times; a larger share sees the ends more often."""
    path = DiagonalPath(*ENDS, 2.0, noise=1.0, sigma0=0.01, rng=Streams(0))
    t, z, weight = draw(path, 4096, Streams(1), share)
    for power in (0, 1, 2):
        assert float((weight * t**power).mean()) == pytest.approx(2.0**power / (power + 1), rel=2e-3)
    assert (
        float((t < 0.002).double().mean()) == pytest.approx(0.001, abs=3e-4)
        if share == 0
        else float((t < 0.002).double().mean()) > 0.1 * share
    )
    assert torch.equal(z[0::2], -z[1::2])


def test_probability_tells_what_it_cannot_know() -> None:
    free, path = Overdamped(lambda x: 0 * x.sum(-1), noise=1.0), DiagonalPath(*ENDS, 1.0, noise=1.0, sigma0=0.1, rng=Streams(0))
    none = probability(free, path, lambda x: x[:, 0] > 50, 10, grid(1.0, 0.1), Streams(0))
    assert (none.value, none.low, none.high, none.error) == (0.0, 0.0, 1.0, math.inf)
    assert "no simulated path hits" in str(none)
    with pytest.raises(ValueError, match=r"duration 1\.0 of the path"):
        probability(free, path, lambda x: x[:, 0] > 0, 10, grid(2.0, 0.1), Streams(0))
    broken = Overdamped(lambda x: math.nan * x.sum(-1), noise=1.0)
    with pytest.raises(NonFiniteError, match="log-weights"):
        probability(broken, path, lambda x: x[:, 0] > 0, 10, grid(1.0, 0.1), Streams(0))


def test_a_twist_that_stays_in_the_weights_is_refused() -> None:
    path = DiagonalPath(*ENDS, 1.0, noise=1.0, sigma0=0.3, rng=Streams(0)).requires_grad_(False)
    with pytest.raises(ValueError, match="twist reaches"):
        simulate(_spring(1.0), path, 10, grid(1.0, 0.1), Streams(0), twist=lambda t, x: x[:, 0])


def test_copies_of_one_path_count_as_one() -> None:
    x = torch.zeros(4, 2, 1, dtype=torch.float64)
    values = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    one = PathEnsemble(x, torch.tensor([0.0, 1.0]), x[:, 0, 0], "", 0)
    two = replace(one, family=torch.tensor([0, 0, 3, 3]))
    assert float(two.mean(values)[1]) == pytest.approx(2**0.5 * float(one.mean(values)[1]))
    assert one.log_bound()[1] == 0
    assert two.log_bound()[1] == pytest.approx(0.5)


def test_only_gaussian_paths_are_sampled_exactly() -> None:
    path = FlowPath(torch.zeros(2), torch.ones(2), 1.0, noise=1.0, sigma0=0.1, rng=Streams(0))
    with pytest.raises(TypeError, match="path=FlowPath"):
        simulate_exactly(path, 3, grid(1.0, 0.5), Streams(0))
