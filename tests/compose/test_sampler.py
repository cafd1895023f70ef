"""Running samplers: shapes, reproducibility, what is recorded and drawn, and what is said of bad input."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from popflow.compose import (
    VP,
    Expert,
    average,
    both,
    diagnostics,
    either,
    feynman_kac,
    from_network,
    gaussian_mixture,
    karras,
    sample,
    tilt,
    v_output,
)
from popflow.core import CheckpointError, NonFiniteError, PopflowWarning, Population, State, Streams, StreamsOfRuns, ZeroWeightsError

A = gaussian_mixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.5, name="a")
B = gaussian_mixture(torch.tensor([[0.5, 1.0]]), 1.0, name="b")
GRID = karras(20, 0.1, 5.0)


def test_shapes_precision_and_the_trace():
    out = sample(feynman_kac(A * B), GRID, particles=16, runs=3, rng=Streams(0), dtype=torch.float64)
    assert out.x.shape == (3, 16, 2)
    assert out.x.dtype == out.population.log_w.dtype == torch.float64
    assert torch.allclose(out.trace["sigma"], GRID)
    assert out.trace["ess"].shape == out.trace["log_z"].shape == out.trace["ancestors"].shape == (21, 3)
    assert torch.allclose(out.trace["ess"][-1], out.population.ess())
    assert torch.allclose(out.trace["log_z"][-1], out.population.log_normalizer())
    assert (out.trace["ancestors"][0] == 16).all()
    for run in range(3):
        assert len(out.population.aux["ancestor"][run].unique()) == out.trace["ancestors"][-1, run]


def test_a_given_trace_is_kept_and_written_before_other_recorders_look():
    trace, rows = diagnostics(), []
    out = sample(feynman_kac(A * B), GRID, particles=16, rng=Streams(0), trace=trace, record=[lambda state: rows.append(len(trace.rows))])
    assert out.trace is trace
    assert rows == list(range(1, 22))


def test_the_initial_law_has_variance_sigma_squared_over_the_sum_of_exponents():
    seen: list[State] = []
    sample(feynman_kac(A**3.0 * B), GRID, particles=20000, rng=Streams(0), record=[seen.append])
    assert float(seen[0].pop.x.var()) == pytest.approx(25 / 4, rel=0.02)


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not():
    first, again, other = (sample(feynman_kac(A * B), GRID, particles=16, rng=Streams(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.population.log_w, again.population.log_w)
    assert torch.equal(first.draw(5, Streams(7)), again.draw(5, Streams(7)))
    assert not torch.equal(first.x, other.x)


def test_draws_follow_the_weights_of_each_run():
    out = sample(feynman_kac(A), GRID, particles=4, runs=2, rng=Streams(0))
    x = torch.arange(8.0).reshape(2, 4, 1)
    log_w = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.2, 0.0]]).log()
    weighted = replace(out, population=Population(x, log_w, torch.zeros(2)))
    drawn = weighted.draw(40000, Streams(0))
    assert drawn.shape == (2, 40000, 1)
    for run in range(2):
        share = torch.stack([(drawn[run] == x[run, k]).float().mean() for k in range(4)])
        assert torch.allclose(share, log_w[run].exp(), atol=0.01)
    assert weighted.draw(4, Streams(0)).shape == (2, 4, 1)
    assert weighted.pick(Streams(0)).shape == (2, 1)
    many = torch.stack([weighted.pick(rng) for rng in [Streams(3)] for _ in range(500)])
    assert torch.allclose((many[:, 1] == 4).float().mean(), torch.tensor(0.7), atol=0.08)


def test_single_particles_are_picked_as_they_are():
    out = sample(either([A, B]), GRID, particles=1, runs=5, rng=Streams(0))
    assert torch.equal(out.pick(Streams(0)), out.x[:, 0])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (A**0.5 / B, r"the exponents sum to -0.5 at sigma=5, wanted a positive sum"),
        (A * B**-1.0, r"the exponents sum to 0 at sigma=5"),
        (A ** (lambda sigma: 1 if sigma > 1 else -1), r"the exponents sum to -1 at sigma=0.9"),
    ],
)
def test_a_sum_of_exponents_that_is_not_positive_is_refused(target: Expert, message: str):
    with pytest.raises(ValueError, match=message):
        sample(feynman_kac(target), GRID, particles=8, rng=Streams(0))


@pytest.mark.parametrize("counts", [{"particles": 0}, {"particles": 8, "runs": 0}])
def test_no_particles_are_refused(counts: dict[str, int]):
    with pytest.raises(ValueError, match="=0, wanted at least 1"):
        sample(feynman_kac(A), GRID, rng=Streams(0), **counts)


@pytest.mark.parametrize("count", ["8", 2.5, True])
def test_particles_are_counted_in_whole_numbers(count: Any):
    with pytest.raises(TypeError, match=r"particles=.*, wanted a whole number"):
        inspect.unwrap(sample)(feynman_kac(A), GRID, rng=Streams(0), particles=count)  # without the type checks of the suite


def test_a_grid_that_is_not_decreasing_is_refused():
    with pytest.raises(ValueError, match="wanted strictly decreasing levels from noise to data"):
        sample(feynman_kac(A), GRID.flip(0), particles=8, rng=Streams(0))


def test_one_particle_with_resampling_is_warned_of_and_without_is_not():
    with pytest.warns(PopflowWarning, match="particles=1 with resampling: .*Use particles >= 4"):
        sample(feynman_kac(A * B), GRID, particles=1, rng=Streams(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(average([A, B]), GRID, particles=1, rng=Streams(0))
        sample(feynman_kac(A * B, correct=False), GRID, particles=1, rng=Streams(0))


def test_repeated_collapse_of_the_effective_sample_size_says_the_remedies():
    wide = gaussian_mixture(torch.randn(20, 64, generator=torch.Generator().manual_seed(0)), 0.3)
    with pytest.warns(
        PopflowWarning, match=r"fell below 2 of 32 .* \(1\) kernel_steps=5.* \(2\) more noise, zeta=2.* \(3\) more particles or levels"
    ):
        sample(feynman_kac(wide**4.0), karras(12, 0.05, 10.0), particles=32, rng=Streams(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(feynman_kac(A * B), GRID, particles=64, rng=Streams(0))


def test_a_run_without_weight_is_an_error():
    nothing = tilt(A, lambda y: torch.full_like(y[:, 0], -torch.inf), gradient=False)
    with pytest.raises(ZeroWeightsError, match=r"all log weights are -inf.*start closer to the target, soften it, or use more particles"):
        sample(feynman_kac(nothing), GRID, particles=8, runs=2, rng=Streams(0))


def test_an_expert_that_fails_midway_is_named_with_its_noise_level():
    def model(y: torch.Tensor, sigma: float, cond: torch.Tensor | None) -> torch.Tensor:
        return y / 0 if sigma < 1 else y / 2

    with pytest.raises(NonFiniteError, match=r"expert 'fragile' returned .* for 8 of 8 samples at sigma=0\.9"):
        sample(feynman_kac(A * Expert(model, (2,), name="fragile", loss=A.loss)), GRID, particles=8, rng=Streams(0))


@pytest.mark.usefixtures("unchecked")
def test_a_target_is_no_sampler_and_a_seed_is_no_stream():
    with pytest.raises(TypeError, match=r"sampler is a Target, wanted a Sampler: for example feynman_kac\(target\)"):
        sample(A * B, GRID, particles=8, rng=Streams(0))
    with pytest.raises(TypeError, match=r"rng is a int, wanted popflow.core.Streams"):
        sample(feynman_kac(A), GRID, particles=8, rng=Streams(0)).pick(0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"rng is a int, wanted popflow.core.Streams"):
        sample(feynman_kac(A), GRID, particles=8, rng=0)
    with pytest.raises(TypeError, match=r"sigmas is a function, wanted noise levels, e.g. karras\(200"):
        sample(feynman_kac(A), karras, particles=8, rng=Streams(0))


def test_no_sample_cannot_be_drawn():
    out = sample(feynman_kac(A), GRID, particles=8, rng=Streams(0))
    with pytest.raises(ValueError, match="n=0, wanted at least one sample"):
        out.draw(0, Streams(0))


def test_a_state_of_another_job_is_refused():
    seen: list[State] = []
    sampler = feynman_kac(A * B)
    sample(sampler, GRID, particles=8, rng=Streams(0), record=[seen.append])
    with pytest.raises(CheckpointError, match=r"resume holds x of shape \(1, 8, 2\), wanted \(1, 16, 2\)"):
        sample(sampler, GRID, particles=16, rng=Streams(0), resume=seen[3])
    for other in (karras(40, 0.1, 5.0), GRID[:3]):
        with pytest.raises(CheckpointError, match=r"resume stands at step 3 and sigma=.*, wanted a step of these \d+ levels"):
            sample(sampler, other, particles=8, rng=Streams(0), resume=seen[3])


@pytest.mark.parametrize("chunk", [None, 3])
def test_an_expert_that_works_in_place_is_named(chunk):
    """Silently it would have doubled the particles themselves; views and chunks of them count."""

    def rash(y, sigma, cond):
        y *= 2
        return y

    with pytest.raises(ValueError, match=r"expert 'rash' changed its input in place, wanted it left as it is"):
        sample(average([Expert(rash, (2,), name="rash", chunk=chunk), B]), GRID, particles=4, rng=Streams(0))
    liked = tilt(B, lambda y: y.clamp_(0)[:, 0], gradient=False, name="rash reward")
    with pytest.raises(ValueError, match=r"reward 'rash reward' changed its input in place"):
        sample(feynman_kac(liked), GRID, particles=4, rng=Streams(0))


def test_a_network_that_works_in_place_is_named():
    flow = from_network(lambda x, t: x.mul_(2), VP(), (2,), output=v_output, name="rash")
    with pytest.raises(ValueError, match=r"the network changed its input in place"):  # epsilon would be made with another x
        flow.score(torch.ones(1, 2), 1.0)


def test_copies_that_never_separate_are_told():
    """The effective sample size reads almost all particles, and there is one."""
    still = feynman_kac(A * B, ess_below=1.0)
    stiff = replace(still, step=lambda pop, t0, t1, rng: pop.take(torch.zeros(1, len(pop), dtype=torch.long)) if t1 > 0 else pop)
    with pytest.warns(PopflowWarning, match=r"only 1 of 16 particles of a run are distinct: copies made by resampling never separated"):
        out = sample(stiff, GRID, particles=16, rng=Streams(0))
    assert float(out.population.ess()) == pytest.approx(16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PopflowWarning)
        sample(still, GRID, particles=16, rng=Streams(0))


def test_a_first_level_too_low_for_the_data_is_told():
    """Modes 4 apart, start at 0.5: one of them would be lost without a word."""
    far = gaussian_mixture(torch.tensor([[-2.0], [2.0]]), 0.1, name="far")
    with pytest.warns(
        PopflowWarning, match=r"sigmas begin at 0.5, too low for the data of expert 'far'.* size 1\.7,.*begin at 5\.1 or more"
    ):
        sample(feynman_kac(far, correct=False), karras(20, 0.01, 0.5), particles=64, rng=Streams(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", PopflowWarning)
        sample(feynman_kac(far, correct=False), karras(20, 0.01, 20.0), particles=64, rng=Streams(0))
        sample(feynman_kac(far, correct=False), karras(20, 0.01, 0.5), particles=64, rng=Streams(0), around=torch.tensor([2.0]))


@pytest.mark.parametrize(
    "sampler",
    [feynman_kac(A * B, variance="local"), both([A, B], variance="local", probes=None), either([A, B], deterministic=True)],
    ids=["product", "and", "flow"],
)
def test_a_run_does_not_depend_on_others_where_scores_are_differentiated(sampler):
    """The random directions of each run are its own, too."""
    one, two = (sample(sampler, GRID, particles=4, runs=n, rng=StreamsOfRuns([5, 6][:n]), dtype=torch.float64) for n in (1, 2))
    assert torch.allclose(one.x[0], two.x[0], atol=1e-9)
