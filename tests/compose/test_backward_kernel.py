"""Backward kernels: Bayes' rule for Gaussians, denoising losses against quadrature, from data, and on an expert's own samples."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.compose import (
    Euclidean,
    Expert,
    ProductSpace,
    Proportional,
    Rotations,
    both,
    feynman_kac,
    from_scores,
    gaussian_mixture,
    igso3_mixture,
    karras,
    sample,
    zoo,
)
from popflow.compose.backward_kernel import LossTable, denoising_loss, kernel_variances, measure, measure_alone, prepare, variance
from popflow.compose.spaces.space import CentredParticles
from popflow.compose.zoo import digits, networks
from popflow.core import Streams

F64 = torch.float64
LINE = gaussian_mixture(torch.tensor([[-1.0], [2.0]], dtype=F64), torch.tensor([1.0, 0.3], dtype=F64), torch.tensor([0.4, 0.6]))
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)


def draws(n: int) -> Tensor:
    """Samples of LINE."""
    rng = torch.Generator().manual_seed(5)
    left = torch.rand(n, 1, generator=rng, dtype=F64) < 0.4
    return torch.where(left, -1.0, 2.0) + torch.where(left, 1.0, 0.3) * torch.randn(n, 1, generator=rng, dtype=F64)


def exact(expert: Expert, sigma: float) -> float:
    """``1 - E eps_theta^2`` of a density on the line, by quadrature."""
    reach = 12 * math.sqrt(sigma**2 + 4)
    x = torch.linspace(-reach, reach, 200001, dtype=F64).unsqueeze(1)
    assert expert.log_prob is not None
    square = (sigma * expert.score(x, sigma)).square()[:, 0] * expert.log_prob(x, sigma).exp()
    return 1 - float(torch.trapezoid(square, x[:, 0]))


def log_normal(x: Tensor, mean: Tensor, v: float) -> Tensor:
    return (-(x - mean).square() / (2 * v) - math.log(2 * math.pi * v) / 2).sum(-1)


@pytest.mark.parametrize(("sigma", "lower"), [(2.0, 0.5), (999.0, 78.0), (0.3, 0.29)])
def test_bayes_rule_holds_pointwise_for_a_gaussian_at_any_step(sigma: float, lower: float):
    q = gaussian_mixture(torch.full((1, 3), 0.7, dtype=F64), 0.6)
    rng = torch.Generator().manual_seed(0)
    y, y1 = (s * torch.randn(50, 3, generator=rng, dtype=F64) for s in (sigma, lower))
    h, c = sigma**2 - lower**2, kernel_variances([q], sigma, lower)[0]
    assert isinstance(c, float)
    assert q.log_prob is not None
    left = q.log_prob(y1, lower) + log_normal(y, y1, h)
    right = q.log_prob(y, sigma) + log_normal(y1, y + h * q.score(y, sigma), c * h)
    assert torch.allclose(left, right, atol=1e-9)


def test_the_kernel_of_a_mixture_has_the_variance_of_the_joint_law():
    """Draw ``x_0``, ``y'`` and ``y``: the residual ``y' - y - h s(y)`` has variance ``c h``."""
    x, (sigma, lower) = draws(200_000), (1.5, 0.8)
    rng = torch.Generator().manual_seed(1)
    h = sigma**2 - lower**2
    y1 = x + lower * torch.randn(x.shape, generator=rng, dtype=F64)
    y = y1 + math.sqrt(h) * torch.randn(x.shape, generator=rng, dtype=F64)
    seen = float((y1 - y - h * LINE.score(y, sigma)).square().mean()) / h
    assert kernel_variances([LINE], sigma, lower)[0] == pytest.approx(seen, rel=0.01)
    assert seen < 0.9  # neither Euler-Maruyama (1) nor the posterior of a point
    assert seen > 1.5 * (lower / sigma) ** 2


def test_losses_of_mixtures_are_those_of_quadrature():
    assert LINE.loss is not None
    for sigma in LEVELS:
        assert LINE.loss(sigma) == pytest.approx(exact(LINE, sigma), abs=0.015)
    single = gaussian_mixture(torch.zeros(1, 2), 0.5)
    assert single.loss is not None
    assert single.loss(2.0) == pytest.approx(0.25 / 4.25)
    points = gaussian_mixture(torch.tensor([[0.0], [3.0]]), 0.0)
    assert denoising_loss(points, 0.1) < 1e-6


def test_a_loss_measured_from_data_is_that_of_quadrature():
    table = measure(LINE, draws(20_000), LEVELS, Streams(0))
    assert table.levels == LEVELS
    for sigma, loss in zip(LEVELS, table.losses, strict=True):
        assert loss == pytest.approx(exact(LINE, sigma), rel=0.03)


def test_without_data_a_loss_is_measured_on_samples_of_its_own():
    """A 64-dimensional data set whose exact loss is known, at one in a hundred of the evaluations of a usual run; once; in half precision too."""
    truth = digits.kernel_expert(digits.PRIME)
    assert truth.loss is not None
    count = [0]

    def counted(y: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        count[0] += len(y)
        return truth.model(y, sigma, cond)

    blind = Expert(counted, truth.event)
    prepare([blind], [15.0, 0.02], 300 * 512)
    assert count[0] <= 1536
    for sigma in (0.05, 0.2, 0.5, 1.0, 3.0, 15.0):
        assert denoising_loss(blind, sigma) == pytest.approx(truth.loss(sigma), abs=0.06)
    assert denoising_loss(blind, 999.0) < 1e-6  # at large noise it is bounded by that of the best linear denoiser
    prepare([blind], [15.0, 0.02], 300 * 512)
    assert count[0] <= 1536
    rounded = measure_alone(Expert(lambda y, sigma, cond: truth.model(y, sigma, cond).half().to(y), truth.event), 15.0, 0.02, particles=32)
    for sigma in (0.2, 1.0, 15.0):
        assert rounded(sigma) == pytest.approx(truth.loss(sigma), abs=0.06)


def test_particles_without_a_centre_of_mass_count_their_degrees_of_freedom():
    space = CentredParticles(4, 2)
    unit = Expert(lambda y, sigma, cond: sigma * y / (1 + sigma**2), space.event, space=space)
    table = measure_alone(unit, 8.0, 0.5)
    assert table(1.0) == pytest.approx(0.5, abs=0.01)
    data = space.project(torch.randn(4000, 4, 2, generator=torch.Generator().manual_seed(0)))
    assert measure(unit, data, [1.0], Streams(0))(1.0) == pytest.approx(0.5, abs=0.01)


def test_a_table_between_and_beyond_its_levels():
    table = LossTable((1.0, 4.0), (0.8, -0.1))
    assert table.losses == (0.8, 0.0)
    assert table(2.0) == pytest.approx(0.4)
    assert table(1e-3) == 0.8
    assert LossTable((1.0,), (0.5,))(10.0) == pytest.approx(0.005)


def test_kinds_of_variance():
    assert kernel_variances([LINE, LINE], 2.0, 1.0, "euler") == [1.0, 1.0]
    assert kernel_variances([LINE], 2.0, 1.0, "posterior") == [0.25]
    assert kernel_variances([LINE], 2.0, 1.0) == [variance(denoising_loss(LINE, 2.0), 2.0, 1.0)]


def test_factors_of_a_product_step_by_their_own_levels_and_rotations_as_before():
    turn, place = igso3_mixture(torch.eye(3).unsqueeze(0), 0.3), Euclidean((2,))
    assert kernel_variances([turn], 1.0, 0.9, "posterior") == kernel_variances([turn], 1.0, 0.9) == [1.0]
    space = ProductSpace((turn.home, place), (Proportional(0.5), Proportional(2.0)))
    assert isinstance(space.factors[0], Rotations)
    plain = from_scores(lambda parts, levels: [turn.score(parts[0], levels[0]), -parts[1] / (1 + levels[1] ** 2)], space)
    like = torch.zeros(3, *space.event)
    assert kernel_variances([plain], 1.0, 0.9, like=like) == [1.0]
    known = replace(plain, loss=lambda sigma: (1.0, 1 / (1 + (2 * sigma) ** 2)))
    c = kernel_variances([known], 1.0, 0.5, like=like)[0]
    assert isinstance(c, Tensor)
    assert c.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.4, 0.4])
    c = kernel_variances([plain], 1.0, 0.5, "posterior", like)[0]
    assert isinstance(c, Tensor)
    assert c.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.25, 0.25])
    with pytest.raises(ValueError, match=r"loss\(1\) is 0.5, wanted one number for each of 2 factors"):
        kernel_variances([replace(plain, loss=lambda sigma: 0.5)], 1.0, 0.9, like=like)


def test_networks_of_the_zoo_carry_their_losses_and_labels_their_own():
    even, exact_even = zoo.load("digits-even"), digits.kernel_expert(digits.EVEN)
    assert even.loss is not None
    assert exact_even.loss is not None
    for sigma in (0.05, 0.3, 1.0, 5.0):
        assert even.loss(sigma) == pytest.approx(exact_even.loss(sigma), abs=0.1)
    conditional = zoo.load("digits-class")
    assert denoising_loss(conditional.given(torch.tensor(2)), 1.0) < denoising_loss(conditional, 1.0)
    again = networks.measured_losses("digits-even", [1.0])[networks.NO_CLASS]
    assert again == pytest.approx([even.loss(1.0)], abs=0.005)
    assert all(zoo.load(name).loss is not None for name in zoo.ENTRIES)
    assert LINE.given(torch.tensor(1.0)).loss is None  # under a condition a model is another one


@pytest.mark.parametrize("told", [math.nan, -0.1, 2.0, None, "high", torch.ones(2), (0.1, 0.2)], ids=str)
@pytest.mark.parametrize("sampler", [lambda a: feynman_kac(a * LINE), lambda a: both([a, LINE])], ids=["product", "and"])
def test_a_loss_that_is_none_is_named_before_anything_moves(told: object, sampler):
    wrong = replace(LINE, name="wrong", loss=lambda sigma: told)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"expert 'wrong': loss\(20\) is .*, wanted one number.* in \[0, 1\]"):
        sample(sampler(wrong), karras(4, 0.1, 20.0), particles=8, rng=Streams(0))
    scalar = replace(LINE, loss=lambda sigma: torch.tensor(0.5))  # pyright: ignore[reportArgumentType]
    assert denoising_loss(scalar, 1.0) == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossTable((1.0, 1.0), (0.5, 0.4)), r"levels=\(1.0, 1.0\), wanted increasing noise levels"),
        (lambda: LossTable((1.0,), (0.5, 0.4)), r"levels holds 1 and losses 2 numbers"),
        (lambda: LossTable((1.0,), (math.nan,)), r"losses=\(nan,\), wanted finite numbers"),
        (lambda: measure(LINE, torch.zeros(4, 2), [1.0], Streams(0)), r"data has shape \(4, 2\), wanted \[N, 1\]"),
        (
            lambda: measure(igso3_mixture(torch.eye(3).unsqueeze(0), 0.3), torch.eye(3).unsqueeze(0), [1.0], Streams(0)),
            "wanted a flat space",
        ),
        (lambda: measure_alone(LINE, 0.1, 10.0), r"first=0.1, last=10.0, particles=16, wanted 0 < last <= first"),
        (lambda: measure_alone(LINE, 10.0, 0.1, particles=0), "particles=0, wanted .* at least one particle"),
        (lambda: measure_alone(igso3_mixture(torch.eye(3).unsqueeze(0), 0.3), 2.0, 0.1), "wanted a flat space"),
        (lambda: kernel_variances([replace(LINE, loss=lambda sigma: (0.1, 0.2))], 1.0, 0.9), "wanted one number: its space is no product"),
    ],
)
def test_bad_input_is_named(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_width_is_answered_with_the_closest():
    with pytest.raises(ValueError, match="unknown variance 'optimum': did you mean 'optimal'"):
        kernel_variances([LINE], 2.0, 1.0, "optimum")  # pyright: ignore[reportArgumentType]
