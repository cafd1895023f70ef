"""The core contract on six unlike problems with closed forms: nothing here but the core."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from popflow.core import Ito, Population, Process, Rates, State, Streams, chain, euler, langevin, metropolis, resample_if, simulate, temper
from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.core.metrics import kolmogorov_smirnov_to_cdf, wasserstein_1d

POINTS = torch.linspace(-8, 8, 16001, dtype=torch.float64)


def gaussian_distances(x: Tensor, mean: float, std: float, weights: Tensor | None = None) -> tuple[float, float]:
    """KS and W1 / std from N(mean, std^2)."""
    cdf = torch.special.ndtr(POINTS)
    grid = mean + std * POINTS
    middle = (grid[1:] + grid[:-1]) / 2
    return kolmogorov_smirnov_to_cdf(x, grid, cdf, weights).item(), wasserstein_1d(x, middle, weights, cdf.diff()).item() / std


def variance_clock(steps: int, largest: float = 400.0, least: float = 1e-4) -> Tensor:
    """A grid of v = sigma^2 downwards, even in sigma^(1/7)."""
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return (largest ** (1 / 14) + ramp * (least ** (1 / 14) - largest ** (1 / 14))) ** 14


# --- 1. Feynman-Kac: powers of a noised Gaussian ---


@pytest.mark.parametrize("zeta", [1.0, 1.5])
@pytest.mark.parametrize("beta", [0.5, 2.0, 3.0])
def test_annealing_a_diffused_gaussian(beta: float, zeta: float) -> None:
    # q_v = N(m, c^2 + v) on the clock v = sigma^2 downwards; the weighted target at v = 0 is q_0^beta = N(m, c^2 / beta).
    # Thirty independent populations give the standard error of the weighted mean and variance; all pooled give the law.
    mean, c, batch, n = 0.7, 0.8, 30, 400

    def process(v: float, pop: Population) -> Rates:
        s = -(pop.x - mean) / (c * c + v)
        return Rates(-(1 + zeta**2) / 2 * beta * s, zeta, Ito(-beta * (beta - 1) / 2 * s.square().sum(-1)))

    rng, times = Streams(2), variance_clock(300)
    start = mean + math.sqrt((times[0].item() + c * c) / beta) * rng.normal("start", torch.zeros(batch, n, 1, dtype=torch.float64))
    pop = Population.of(start, batch=1)
    last = simulate(chain(resample_if(0.5), euler(process)), pop, times, rng=rng)
    for moment, truth in ((last.mean(), mean), (last.mean(lambda x: (x - mean).square()), c * c / beta)):
        assert moment.mean().item() == pytest.approx(truth, abs=4 * moment.std().item() / math.sqrt(batch))
    ks, w1 = gaussian_distances(last.x.flatten(), mean, c / math.sqrt(beta), last.weights().flatten())
    assert ks < 0.03
    assert w1 < 0.06
    # Without the weights the same drift ends at another variance, known too.
    plain = simulate(euler(process), pop, times, rng=Streams(3)).x.flatten()
    if (exponent := beta * (1 + zeta**2) - 1) > 1:
        assert plain.var().item() == pytest.approx(c * c * zeta**2 / exponent, rel=4 * math.sqrt(2 / len(plain)) + 0.02)


# --- 2. Log-densities tracked along another process's path ---


def tracked_errors(steps: int, batch: tuple[int, ...] = ()) -> Tensor:
    """Error of the Ito estimate of log q_i at the end, for two Gaussians, on a path driven by their mixture."""
    means, stds = torch.tensor([[1.5, 0.0], [-1.0, 0.5]], dtype=torch.float64), torch.tensor([0.7, 1.2], dtype=torch.float64)

    def scores(v: float, x: Tensor) -> Tensor:
        return -(x[..., None, :] - means) / (stds.square() + v)[:, None]

    def log_q(v: float, x: Tensor) -> Tensor:
        variance = stds.square() + v
        return -(x[..., None, :] - means).square().sum(-1) / (2 * variance) - (2 * math.pi * variance).log()

    def process(v: float, pop: Population) -> Rates:
        s = scores(v, pop.x)
        kappa = pop.aux["log_q"].softmax(-1)[..., None]
        return Rates(-(kappa * s).sum(-2), 1.0, track={"log_q": Ito(s.square().sum(-1) / 2, s)})

    rng, times = Streams(1), variance_clock(steps, least=1e-3)
    x = 20 * rng.normal("start", torch.zeros(*batch, 400, 2, dtype=torch.float64))
    pop = Population.of(x, batch=len(batch), log_q=log_q(times[0].item(), x))
    last = simulate(euler(process), pop, times, rng=rng)
    return last.aux["log_q"] - log_q(times[-1].item(), last.x)


def test_log_densities_tracked_by_ito_converge_at_order_one_half() -> None:
    coarse, fine = tracked_errors(200), tracked_errors(3200)
    assert fine.mean().abs() < 0.05
    assert 2.8 < (coarse.std() / fine.std()).item() < 5.5  # sqrt(16) = 4


def test_tracking_works_in_a_batch_of_populations() -> None:
    errors = tracked_errors(400, (2, 2))
    assert errors.shape == (2, 2, 400, 2)
    assert errors.mean().abs() < 0.1


# --- 3. A drift that reads the whole population ---


def test_mean_field_attraction_keeps_each_mean_and_shrinks_each_spread() -> None:
    # x' = E[x] - x: every population keeps its mean and its deviations decay as e^{-t}
    def process(t: float, pop: Population) -> Rates:
        return Rates(pop.mean()[..., None, :] - pop.x)

    x = torch.randn(2, 3, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pop = Population.of(x, batch=2).reweight(torch.linspace(0, 1, 6, dtype=torch.float64))
    last = simulate(euler(process), pop, torch.linspace(0, 1, 2001, dtype=torch.float64), rng=Streams(0))
    mean = pop.mean()[..., None, :]
    assert torch.allclose(last.mean(), pop.mean(), atol=1e-12)
    assert torch.allclose(last.x, mean + (x - mean) * math.exp(-1), atol=1e-3)


def test_mean_field_noise_obeys_the_closed_moment_equations() -> None:
    # dx = (E[x] - x) dt + dW: variance v' = -2 v + 1, so v(1) = 1/2 + (v(0) - 1/2) e^{-2}
    n = 20000
    pop = Population.of(3 + 2 * torch.randn(n, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    last = simulate(
        euler(lambda t, pop: Rates(pop.mean() - pop.x, 1.0)), pop, torch.linspace(0, 1, 401, dtype=torch.float64), rng=Streams(4)
    )
    wanted = 0.5 + 3.5 * math.exp(-2)
    assert last.x.var().item() == pytest.approx(wanted, rel=4 * math.sqrt(2 / n) + 0.005)
    assert last.mean().item() == pytest.approx(3.0, abs=4 * 2 / math.sqrt(n))


# --- 4. Girsanov weights equal a tilted drift ---


def test_girsanov_weights_turn_brownian_motion_into_an_ornstein_uhlenbeck_process() -> None:
    # dP_b / dP_0 = exp(int b dX - 1/2 int |b|^2 dt) along dX = dW: with b = -x + 0.5 the weighted end is the OU law.
    n, end = 20000, 1.0

    def process(t: float, pop: Population) -> Rates:
        b = 0.5 - pop.x
        return Rates(torch.zeros_like(pop.x), 1.0, Ito(-b.square().sum(-1) / 2, b))

    pop = Population.of(torch.zeros(n, 1, dtype=torch.float64))
    last = simulate(euler(process), pop, torch.linspace(0, end, 201, dtype=torch.float64), rng=Streams(6))
    mean, std = 0.5 * (1 - math.exp(-end)), math.sqrt((1 - math.exp(-2 * end)) / 2)
    weighted, _ = gaussian_distances(last.x[:, 0], mean, std, last.weights())
    unweighted, _ = gaussian_distances(last.x[:, 0], mean, std)
    assert weighted < 1.95 / math.sqrt(last.ess().item())
    assert unweighted > 0.1
    assert last.log_normalizer().item() == pytest.approx(0.0, abs=0.03)


def test_growth_reweights_to_the_feynman_kac_formula() -> None:
    # E exp(-int_0^1 x^2 / 2 dt) = cosh(1)^{-1/2} for Brownian motion (Cameron and Martin), with resampling on the way
    process: Process = lambda t, pop: Rates(torch.zeros_like(pop.x), 1.0, Ito(-pop.x.square().sum(-1) / 2))  # noqa: E731
    pop = Population.of(torch.zeros(40, 500, 1, dtype=torch.float64), batch=1)
    step = chain(resample_if(0.98), euler(process))
    last = simulate(step, pop, torch.linspace(0, 1, 201, dtype=torch.float64), rng=Streams(7))
    estimates = last.log_normalizer().exp()
    assert (last.log_z != 0).all()
    assert estimates.mean().item() == pytest.approx(math.cosh(1) ** -0.5, abs=4 * estimates.std().item() / math.sqrt(40) + 0.002)


# --- 5. Sequences: mutation and selection among strings ---


def test_strings_reach_the_mutation_selection_balance() -> None:
    # Two types with fitness 2 : 1, each mutates into the other with probability mu: thirty powers of a 2 x 2 matrix.
    mu, n = 0.1, 4000

    def mutate(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        flips = (rng.uniform("mutate", (n,)) < mu).tolist()
        return pop.replace(x=[_flip(word, flip) for word, flip in zip(pop.x, flips, strict=True)])

    fitness = temper(lambda pop, t0, t1: torch.tensor([math.log(2.0) if word == "a" else 0.0 for word in pop.x]))
    pop = Population.of(["b"] * n, ancestor=torch.arange(n))
    last = simulate(chain(resample_if(1.0), mutate, fitness), pop, range(31), rng=Streams(0))
    growth = torch.tensor([[2 * (1 - mu), 2 * mu], [mu, 1 - mu]], dtype=torch.float64)  # mutate, then weigh
    mass = torch.linalg.matrix_power(growth, 30) @ torch.tensor([0.0, 1.0], dtype=torch.float64)
    share = sum(w for w, word in zip(last.weights().tolist(), last.x, strict=True) if word == "a")
    assert share == pytest.approx((mass[0] / mass.sum()).item(), abs=0.02)
    assert last.log_normalizer().item() == pytest.approx(math.log(mass.sum().item()), abs=0.2)
    assert isinstance(last.x, list)
    assert len(set(last.aux["ancestor"].tolist())) < n / 4


def _flip(word: str, flip: bool) -> str:
    return {"a": "b", "b": "a"}[word] if flip else word


# --- 6. Kernels in a chain: annealed importance sampling with moves ---


@pytest.mark.parametrize("kernel", ["langevin", "metropolis"])
def test_annealing_between_gaussians_with_a_kernel_in_the_chain(kernel: str) -> None:
    # pi_t proportional to exp(-(1 - t) x^2 / 2 - t (x - 2)^2 / (2 s^2)): Z_1 / Z_0 = s, and the end is N(2, s^2)
    s, n = 0.5, 4000

    def log_density(t: float, pop: Population) -> Tensor:
        x = pop.x[..., 0]
        return -(1 - t) * x.square() / 2 - t * (x - 2).square() / (2 * s * s)

    def score(t: float, pop: Population) -> Tensor:
        return -(1 - t) * pop.x - t * (pop.x - 2) / (s * s)

    move = langevin(score, 0.02, 4) if kernel == "langevin" else metropolis(log_density, 0.1, 3, score=score)
    step = chain(resample_if(0.5), temper(lambda pop, t0, t1: log_density(t1, pop) - log_density(t0, pop)), move)
    pop = Population.of(torch.randn(2, n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64), batch=1)
    last = simulate(step, pop, torch.linspace(0, 1, 41, dtype=torch.float64), rng=Streams(1))
    for which in range(2):
        ks, w1 = gaussian_distances(last.x[which, :, 0], 2.0, s, last.weights()[which])
        assert ks < 0.04
        assert w1 < 0.06
    assert last.log_normalizer().tolist() == pytest.approx([math.log(s)] * 2, abs=0.08)


# --- Kill and resume, on the first problem ---


def test_the_correction_resumes_where_it_was_killed(tmp_path: Path) -> None:
    def process(v: float, pop: Population) -> Rates:
        s = -pop.x / (1 + v)
        return Rates(-2 * s, 1.0, Ito(-s.square().sum(-1)), {"log_q": Ito(s.square().sum(-1) / 2, s)})

    step, times = chain(resample_if(0.9), euler(process)), variance_clock(60)

    def start(rng: Streams) -> Population:
        return Population.of(20 * rng.normal("start", torch.zeros(3, 50, 2)), batch=1, log_q=torch.zeros(3, 50))

    rng = Streams(0)
    whole = simulate(step, start(rng), times, rng=rng)

    def keep(state: State) -> None:
        if state.k == 37:
            save_tensors(tmp_path / "state", state.tensors())

    rng = Streams(0)
    simulate(step, start(rng), times, rng=rng, record=[keep])
    rng = Streams(0)
    state = State.of(load_tensors(tmp_path / "state")[0], rng)
    resumed = simulate(step, state.pop, times, rng=rng, start=state.k)
    for a, b in (
        (whole.x, resumed.x),
        (whole.log_w, resumed.log_w),
        (whole.log_z, resumed.log_z),
        (whole.aux["log_q"], resumed.aux["log_q"]),
    ):
        assert a.numpy().tobytes() == b.numpy().tobytes()
