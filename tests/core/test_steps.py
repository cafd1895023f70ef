"""Steps against closed forms: moments, orders of convergence, invariant laws, normalising constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from popflow.core import (
    Ito,
    Population,
    Process,
    Rates,
    Step,
    Streams,
    ZeroWeightsError,
    chain,
    euler,
    heun,
    multinomial,
    resample_if,
    simulate,
    systematic,
    temper,
)
from popflow.core.checks import put_off
from popflow.core.metrics import kolmogorov_smirnov_to_cdf


def grid(steps: int, end: float = 1.0) -> Tensor:
    return torch.linspace(0, end, steps + 1, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_ks(x: Tensor, std: float, mean: float = 0.0, weights: Tensor | None = None) -> float:
    points = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    return kolmogorov_smirnov_to_cdf(x, mean + std * points, torch.special.ndtr(points), weights).item()


# --- moving ---


@pytest.mark.parametrize(("method", "order"), [(euler, 1), (heun, 2)])
@pytest.mark.parametrize("backwards", [False, True])
def test_order_of_convergence_without_noise(method: Callable[[Process], Step], order: int, backwards: bool) -> None:
    # x' = -2 t x, growth x^2 t dt + x dx, both ways in time: x(1) = x(0) / e; int x dx = (x_1^2 - x_0^2) / 2
    def process(t: float, pop: Population) -> Rates:
        return Rates(-2 * t * pop.x, growth=Ito(dx=pop.x), track={"area": Ito(t * pop.x[..., 0])})

    errors = []
    start, end = (math.exp(-1), 1.0) if backwards else (1.0, math.exp(-1))
    for steps in (40, 80):
        pop = Population.of(torch.full((1, 1), start, dtype=torch.float64), area=torch.zeros(1, dtype=torch.float64))
        times = grid(steps).flip(0) if backwards else grid(steps)
        last = simulate(method(process), pop, times, rng=Streams(0))
        errors.append([last.x.item() - end, last.log_w.item() - (end**2 - start**2) / 2, last.aux["area"].item() + (end - start) / 2])
    for coarse, fine in zip(*errors, strict=True):
        assert abs(fine) < 0.02
        assert coarse / fine == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize(
    ("method", "decay", "spread"),
    [(euler, lambda a: 1 - a, lambda a: 1.0), (heun, lambda a: 1 - a + a * a / 2, lambda a: 1 - a / 2)],
)
def test_ornstein_uhlenbeck_moments(method: Callable[[Process], Step], decay: Callable, spread: Callable) -> None:
    # dx = -theta x dt + s dW. One step maps (m, v) to (d m, d^2 v + (s spread)^2 h): the scheme's own moments, within 4 standard errors;
    # at this step size they are within 2 % of the process's: m e^{-theta T}, s^2 / (2 theta) (1 - e^{-2 theta T}).
    theta, s, start, steps, n = 1.5, 0.8, 2.0, 100, 20000
    h = 1 / steps
    mean, variance = start, 0.0
    for _ in range(steps):
        mean, variance = decay(theta * h) * mean, decay(theta * h) ** 2 * variance + (s * spread(theta * h)) ** 2 * h
    pop = Population.of(torch.full((n, 1), start, dtype=torch.float64))
    x = simulate(method(lambda t, pop: Rates(-theta * pop.x, s)), pop, grid(steps), rng=Streams(1)).x[:, 0]
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    assert x.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n))
    assert mean == pytest.approx(start * math.exp(-theta), rel=0.02)
    assert variance == pytest.approx(s * s / (2 * theta) * (1 - math.exp(-2 * theta)), rel=0.02)


@pytest.mark.parametrize("method", [euler, heun])
def test_with_noise_the_integral_along_the_path_stays_at_the_left_end(method: Callable[[Process], Step]) -> None:
    # an Ito integral: int x dx along dx = dW takes x before the step, not the mean of both ends (which is Stratonovich's)
    before = Population.of(normal(50, 1), area=torch.zeros(50, dtype=torch.float64))

    def process(t: float, pop: Population) -> Rates:
        return Rates(torch.zeros_like(pop.x), 1.0, Ito(dx=pop.x), {"area": Ito(dx=pop.x)})

    after = method(process)(before, 0.0, 0.1, Streams(0))
    wanted = (before.x * (after.x - before.x))[:, 0]
    assert torch.allclose(after.log_w, wanted, atol=1e-12)
    assert torch.allclose(after.aux["area"], wanted, atol=1e-12)


@pytest.mark.parametrize("method", [euler, heun])
def test_without_diffusion_no_noise_is_drawn(method: Callable[[Process], Step]) -> None:
    rng = Streams(0)
    method(lambda t, pop: Rates(-pop.x))(Population.of(torch.ones(2, 1)), 0.0, 0.1, rng)
    assert rng.state() == {}


@pytest.mark.parametrize("method", [euler, heun])
def test_independent_populations_and_dtypes(method: Callable[[Process], Step]) -> None:
    x = normal(2, 3, 5, 2).float()
    step = method(lambda t, pop: Rates(-pop.x + pop.mean()[..., None, :], 0.3, Ito(pop.x[..., 0])))
    together = step(Population.of(x, batch=2), 0.0, 0.1, Streams(2))
    noise = Streams(2).normal("noise", x)
    for i in range(2):
        for j in range(3):
            own = Streams(0)
            own.normal = lambda name, like, i=i, j=j: noise[i, j]  # type: ignore[method-assign]
            alone = step(Population.of(x[i, j]), 0.0, 0.1, own)
            assert torch.allclose(together.x[i, j], alone.x, atol=1e-6)
            assert torch.allclose(together.log_w[i, j], alone.log_w, atol=1e-6)
    assert together.x.dtype == together.log_w.dtype == torch.float32


# --- resampling ---


def kalman_log_likelihood(observations: list[float], a: float, q: float, r: float) -> float:
    """Log-likelihood of y_k = x_k + N(0, r), x_{k+1} = a x_k + N(0, q), x_0 ~ N(0, 1)."""
    mean, variance, total = 0.0, 1.0, 0.0
    for y in observations:
        s = variance + r
        total += -0.5 * (math.log(2 * math.pi * s) + (y - mean) ** 2 / s)
        gain = variance / s
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
        mean, variance = a * mean, a * a * variance + q
    return total


@pytest.mark.parametrize("batch", [(1500,), (30, 50)])
@pytest.mark.parametrize(("ess_below", "scheme"), [(0.5, systematic), (1.0, systematic), (0.7, multinomial)])
def test_the_normaliser_is_unbiased_on_a_linear_gaussian_model(ess_below: float, scheme: Callable, batch: tuple[int, ...]) -> None:
    # E[exp(log Z_hat)] = Z for every number of particles and every resampling rule
    a, q, r, n = 0.9, 0.3, 0.2, 25
    observations = [0.6, -0.8, 1.9, 0.4, -1.2]

    def weigh(pop: Population, t0: float, t1: float) -> Tensor:
        y = observations[int(t1) - 1]
        return -0.5 * (math.log(2 * math.pi * r) + (y - pop.x[..., 0]) ** 2 / r)

    def move(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        return pop if t0 == 0 else pop.replace(x=a * pop.x + math.sqrt(q) * rng.normal("noise", pop.x))

    rng = Streams(8)
    pop = Population.of(rng.normal("start", torch.zeros(*batch, n, 1, dtype=torch.float64)), batch=len(batch))
    step = chain(resample_if(ess_below, scheme), move, temper(weigh))
    last = simulate(step, pop, list(range(len(observations) + 1)), rng=rng)
    ratio = (last.log_normalizer() - kalman_log_likelihood(observations, a, q, r)).exp().flatten()
    assert ratio.mean().item() == pytest.approx(1.0, abs=4 * ratio.std().item() / math.sqrt(len(ratio)))
    assert ratio.std().item() < 1.5
    assert bool((last.log_z != 0).all())


def test_only_the_populations_that_are_due_are_resampled() -> None:
    log_w = torch.tensor([[0.0, -0.1, 0.1, 0.0], [5.0, 0.0, 0.0, 0.0]])
    pop = Population.of(torch.arange(8.0).reshape(2, 4), batch=1, label=torch.arange(8).reshape(2, 4)).reweight(log_w)
    after = resample_if(0.5)(pop, 0.0, 0.0, Streams(0))
    assert torch.equal(after.log_w[0], log_w[0])
    assert after.log_w[1].tolist() == [0.0] * 4
    assert after.x[0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert after.aux["label"][1].tolist() == [4, 4, 4, 4]
    assert torch.equal(after.x.long(), after.aux["label"])
    assert after.log_z[0] == 0
    assert torch.allclose(after.log_normalizer(), pop.log_normalizer())


@pytest.mark.parametrize("log_w", [[[0.0, 0.1], [0.0, 0.2]], [[0.0, 0.1], [9.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]]])
def test_resampling_without_looking_at_values_gives_the_same_bits(log_w: list[list[float]]) -> None:
    """None, one and all of two populations due."""
    pop = Population.of(normal(2, 2, 1), batch=1).reweight(torch.tensor(log_w))
    now = resample_if(0.9)(pop, 0.0, 0.0, Streams(0))
    with put_off():
        later = resample_if(0.9)(pop, 0.0, 0.0, Streams(0))
    for name in ("x", "log_w", "log_z"):
        assert torch.equal(getattr(now, name), getattr(later, name)), name


def test_lost_weights_give_no_index_out_of_range_before_they_are_named() -> None:
    pop = Population.of(normal(2, 3, 1), batch=1).reweight(torch.tensor([[0.0, 1.0, 2.0], [math.nan] * 3]))
    after = []

    def block() -> None:
        with put_off():
            after.append(resample_if(1.0)(pop, 0.0, 0.0, Streams(0)))

    with pytest.raises(ZeroWeightsError):
        block()
    assert torch.equal(after[0].x[1], pop.x[1])


def test_random_numbers_are_drawn_whether_or_not_resampling_is_due() -> None:
    even, uneven = Streams(0), Streams(0)
    resample_if(0.5)(Population.of(torch.zeros(4, 1)), 0.0, 0.0, even)
    resample_if(0.5)(Population.of(torch.zeros(4, 1)).reweight(torch.tensor([9.0, 0, 0, 0])), 0.0, 0.0, uneven)
    assert torch.equal(even("resample").get_state(), uneven("resample").get_state())


def test_switching_resampling_off_leaves_the_noise_bit_for_bit_the_same() -> None:
    noise: dict[bool, list[Tensor]] = {True: [], False: []}
    for on in noise:

        def remember(t: float, pop: Population, on: bool = on) -> Rates:
            return Rates(torch.zeros_like(pop.x), 1.0, Ito(dx=3 * pop.x))

        def move(pop: Population, t0: float, t1: float, rng: Streams, on: bool = on) -> Population:
            moved = euler(remember)(pop, t0, t1, rng)
            noise[on].append(moved.x - pop.x)
            return moved

        step = chain(resample_if(0.9), move) if on else move
        last = simulate(step, Population.of(normal(20, 1)), grid(10), rng=Streams(4))
        assert bool(last.log_z != 0) is on
    for a, b in zip(noise[True], noise[False], strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_equal_weights_are_never_resampled() -> None:
    pop = Population.of(normal(7, 1)).reweight(torch.tensor(3.0))
    assert resample_if(1.0)(pop, 0.0, 0.0, Streams(0)) is pop
    single = Population.of(normal(1, 1)).reweight(torch.tensor([-4.0]))
    assert resample_if(1.0)(single, 0.0, 0.0, Streams(0)) is single


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_a_share_of_the_ess_outside_zero_to_one_is_named(share: float) -> None:
    with pytest.raises(ValueError, match="ess_below="):
        resample_if(share)


# --- weighing ---


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_temper_from_a_gaussian_to_its_power(beta: float) -> None:
    # int N(x; 0, 1) exp(-(beta - 1) x^2 / 2) = beta^{-1/2}; the tempered law is N(0, 1 / beta)
    n = 40000
    step = temper(lambda pop, t0, t1: -(t1 - t0) * pop.x[..., 0] ** 2 / 2)
    last = simulate(step, Population.of(normal(n, 1)), torch.linspace(1, beta, 5, dtype=torch.float64), rng=Streams(0))
    assert last.log_normalizer().item() == pytest.approx(-0.5 * math.log(beta), abs=0.02)
    assert gaussian_ks(last.x[:, 0], beta**-0.5, weights=last.weights()) < 0.015


def test_chain_does_one_after_another_over_the_same_interval() -> None:
    seen: list[tuple[str, float, float]] = []

    def named(name: str) -> Step:
        def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
            seen.append((name, t0, t1))
            return pop.replace(x=[*pop.x, name])

        return step

    last = chain(named("a"), named("b"))(Population.of(["start"]), 0.25, 0.5, Streams(0))
    assert seen == [("a", 0.25, 0.5), ("b", 0.25, 0.5)]
    assert last.x == ["start", "a", "b"]
