"""Distances between weighted samples, against closed forms and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from popflow.core import metrics


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def weights_of(n: int, seed: int = 7) -> Tensor:
    return torch.rand(n, generator=seeded(seed), dtype=torch.float64) + 0.01


def gaussian_cdf(mean: float = 0.0, std: float = 1.0) -> tuple[Tensor, Tensor]:
    grid = torch.linspace(mean - 8 * std, mean + 8 * std, 8001, dtype=torch.float64)
    return grid, torch.special.ndtr((grid - mean) / std)


# --- on the line ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 257])
def test_w1_of_a_shifted_sample_is_the_shift(n: int, dtype: torch.dtype) -> None:
    x = normal(n).to(dtype)
    weights = weights_of(n)
    assert metrics.wasserstein_1d(x, x + 2.5, weights, weights).item() == pytest.approx(2.5, abs=1e-6)
    assert metrics.wasserstein_1d(x, x - 2.5).item() == pytest.approx(2.5, abs=1e-6)


def test_w1_against_the_quantile_form_for_equal_sizes() -> None:
    x, y = normal(300), 2 * normal(300, seed=1) + 1
    assert metrics.wasserstein_1d(x, y).item() == pytest.approx((x.sort().values - y.sort().values).abs().mean().item(), rel=1e-12)


def test_ks_of_two_uniform_samples_apart_by_a_quarter() -> None:
    x = torch.arange(128, dtype=torch.float64) / 128
    assert metrics.kolmogorov_smirnov(x, x + 0.25).item() == pytest.approx(0.25, abs=1e-12)


def test_ks_sees_ties_as_one_point() -> None:
    x = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert metrics.kolmogorov_smirnov(x, x.flip(0)).item() == pytest.approx(0.0, abs=1e-15)
    assert metrics.kolmogorov_smirnov(x, torch.tensor([0.0, 1.0, 1.0, 1.0])).item() == pytest.approx(0.25)


def test_ks_between_two_gaussians_tends_to_the_closed_form() -> None:
    # sup |Phi(x) - Phi(x - d)| = 2 Phi(d / 2) - 1
    quantiles = torch.special.ndtri((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)
    wanted = 2 * float(torch.special.ndtr(torch.tensor(0.5, dtype=torch.float64))) - 1
    assert metrics.kolmogorov_smirnov(quantiles, quantiles + 1.0).item() == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize(("shift", "scale"), [(0.7, 1.0), (0.0, 1.5)])
def test_w1_of_gaussian_quantiles_from_a_gaussian_cdf(shift: float, scale: float) -> None:
    # W1 of N(m, 1) from N(0, 1) is |m|; of N(0, s^2) from N(0, 1) it is |s - 1| sqrt(2 / pi)
    quantiles = torch.special.ndtri((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)
    wanted = abs(shift) + abs(scale - 1) * math.sqrt(2 / math.pi)
    assert metrics.wasserstein_to_cdf(shift + scale * quantiles, *gaussian_cdf()).item() == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("point", [-1.0, 0.0, 0.3, 1.0, 2.5])
def test_one_point_from_the_uniform_distribution(point: float) -> None:
    # integral_0^1 |point - u| du, and KS = the larger side
    grid = torch.linspace(0, 1, 5, dtype=torch.float64)
    inside = min(max(point, 0.0), 1.0)
    wanted = abs(point - inside) + (inside**2 + (1 - inside) ** 2) / 2
    x = torch.tensor([point], dtype=torch.float64)
    assert metrics.wasserstein_to_cdf(x, grid, grid).item() == pytest.approx(wanted, abs=1e-12)
    assert metrics.kolmogorov_smirnov_to_cdf(x, grid, grid).item() == pytest.approx(max(inside, 1 - inside), abs=1e-12)


def test_importance_weights_turn_one_gaussian_into_another() -> None:
    x = normal(20000)
    weights = (0.8 * x - 0.32).exp()  # N(0.8, 1) / N(0, 1)
    assert metrics.kolmogorov_smirnov_to_cdf(x, *gaussian_cdf(0.8), weights).item() < 0.02
    assert metrics.wasserstein_to_cdf(x, *gaussian_cdf(0.8), weights).item() < 0.04
    assert metrics.kolmogorov_smirnov_to_cdf(x, *gaussian_cdf(0.8)).item() == pytest.approx(0.311, abs=0.02)  # 2 Phi(0.4) - 1


small = arrays("float64", st.integers(1, 12), elements=st.floats(-5, 5, width=32))


@settings(max_examples=50, deadline=None)
@given(small, small, small)
def test_w1_and_ks_are_metrics(a, b, c) -> None:
    x, y, z = (torch.from_numpy(value) for value in (a, b, c))
    for distance in (metrics.wasserstein_1d, metrics.kolmogorov_smirnov):
        assert distance(x, x).item() == pytest.approx(0.0, abs=1e-12)
        assert distance(x, y).item() == pytest.approx(distance(y, x).item(), abs=1e-12)
        assert distance(x, z).item() <= distance(x, y).item() + distance(y, z).item() + 1e-9


# --- weights are repetitions ---

DISTANCES: dict[str, Callable[..., Tensor]] = {
    "wasserstein_1d": lambda x, y, v, w: metrics.wasserstein_1d(x[:, 0], y[:, 0], v, w),
    "kolmogorov_smirnov": lambda x, y, v, w: metrics.kolmogorov_smirnov(x[:, 0], y[:, 0], v, w),
    "wasserstein_to_cdf": lambda x, y, v, w: metrics.wasserstein_to_cdf(x[:, 0], *gaussian_cdf(), v),
    "kolmogorov_smirnov_to_cdf": lambda x, y, v, w: metrics.kolmogorov_smirnov_to_cdf(x[:, 0], *gaussian_cdf(), v),
    "sliced_wasserstein": lambda x, y, v, w: metrics.sliced_wasserstein(x, y, torch.eye(2), v, w),
    "largest_kolmogorov_smirnov": lambda x, y, v, w: metrics.largest_kolmogorov_smirnov(x, y, torch.eye(2), v, w),
    "mmd2": lambda x, y, v, w: metrics.mmd2(x, y, [0.5, 2.0], v, w),
    "wasserstein": lambda x, y, v, w: metrics.wasserstein(x, y, v, w, order=2),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_integer_weights_equal_repetition_of_points(name: str) -> None:
    x, y = normal(9, 2), normal(7, 2, seed=1) + 0.5
    times_x, times_y = torch.tensor([1, 2, 3, 1, 0, 4, 1, 1, 2]), torch.tensor([2, 1, 1, 5, 1, 0, 1])
    weighted = DISTANCES[name](x, y, times_x, times_y)
    repeated = DISTANCES[name](x.repeat_interleave(times_x, 0), y.repeat_interleave(times_y, 0), None, None)
    assert weighted.item() == pytest.approx(repeated.item(), abs=1e-9)
    assert weighted.item() > 0.01


@pytest.mark.parametrize("name", DISTANCES)
def test_float32_input_gives_a_float64_result(name: str) -> None:
    x, y = normal(30, 2), normal(20, 2, seed=1)
    double = DISTANCES[name](x, y, None, None)
    single = DISTANCES[name](x.float(), y.float(), None, None)
    assert single.dtype == torch.float64
    assert single.shape == ()
    assert single.item() == pytest.approx(double.item(), abs=1e-5)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, v: (x, v[:-1]), r"x_weights has shape \(8,\), wanted \[9\]"),
        (lambda x, v: (x, -v), "negative"),
        (lambda x, v: (x, 0 * v), "sums to 0"),
        (lambda x, v: (x, v / 0.0), "NaN, infinite"),
        (lambda x, v: (x * math.nan, v), "x holds .* NaN or infinite"),
        (lambda x, v: (x[:0], None), "x has shape .* at least one sample"),
    ],
)
def test_bad_samples_and_weights_are_named(name: str, spoil: Callable, message: str) -> None:
    x, weights = spoil(normal(9, 2), weights_of(9))
    with pytest.raises(ValueError, match=message):
        DISTANCES[name](x, normal(4, 2), weights, None)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"x has shape \(9, 2\), wanted \[n\]"):
        metrics.wasserstein_1d(normal(9, 2), normal(4))
    for distance in (metrics.mmd2, metrics.wasserstein):
        with pytest.raises(ValueError, match="y holds 3 numbers a sample and x 2"):
            distance(normal(9, 2), normal(4, 3))
    with pytest.raises(ValueError, match=r"directions has shape \(3, 3\), wanted \[k, 2\]"):
        metrics.sliced_wasserstein(normal(9, 2), normal(4, 2), torch.eye(3))
    with pytest.raises(ValueError, match="order=3, wanted 1 or 2"):
        metrics.wasserstein(normal(3, 2), normal(3, 2), order=3)


@pytest.mark.parametrize(
    ("grid", "cdf", "message"),
    [
        ([0.0, 0.0, 1.0], [0.0, 0.5, 1.0], "grid is not strictly increasing"),
        ([0.0, 0.5, 1.0], [0.0, 0.6, 0.5], "cdf goes from 0.0 to 0.5"),
        ([0.0, 0.5, 1.0], [0.0, 1.2, 1.0], "decreases"),
        ([0.0, 0.5, 1.0], [0.0, math.nan, 1.0], "decreases"),
        ([0.0, 0.5], [0.0, 0.5, 1.0], "wanted the same"),
    ],
)
def test_bad_grids_are_named(grid: list[float], cdf: list[float], message: str) -> None:
    for distance in (metrics.wasserstein_to_cdf, metrics.kolmogorov_smirnov_to_cdf):
        with pytest.raises(ValueError, match=message):
            distance(normal(5), torch.tensor(grid), torch.tensor(cdf))


# --- in more dimensions ---


def test_optimal_transport_equals_the_exact_form_on_the_line() -> None:
    x, y, v, w = normal(60), normal(45, seed=1) + 0.3, weights_of(60), weights_of(45, seed=8)
    assert metrics.wasserstein(x, y, v, w).item() == pytest.approx(metrics.wasserstein_1d(x, y, v, w).item(), rel=1e-9)


def test_w2_of_gaussian_samples_tends_to_the_closed_form() -> None:
    # W2^2 = |m|^2 + (s_1 - s_0)^2 per axis for axis-aligned Gaussians; the plan of a shared sample is exact: x -> m + S x
    x = normal(400, 2)
    mean, scale = torch.tensor([1.0, -0.5], dtype=torch.float64), torch.tensor([1.5, 0.5], dtype=torch.float64)
    exact = metrics.wasserstein(x, mean + scale * x, order=2).item()
    shared = (mean + scale * x - x).square().sum(-1).mean().sqrt().item()
    assert exact == pytest.approx(shared, rel=1e-9)
    assert exact == pytest.approx(math.sqrt(1.25 + 0.25 + 0.25), rel=0.05)


def test_sliced_distances_of_a_shift_are_its_projections() -> None:
    x, shift = normal(50, 3), torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    towards = metrics.directions(64, 3, seeded(3))
    assert torch.allclose(towards.norm(dim=-1), torch.ones(64, dtype=torch.float64))
    wanted = (towards @ shift).abs().mean().item()
    assert metrics.sliced_wasserstein(x, x + shift, towards).item() == pytest.approx(wanted, rel=1e-9)


def test_events_are_flattened() -> None:
    x, y = normal(12, 2, 3), normal(12, 2, 3, seed=1)
    assert metrics.wasserstein(x, y).item() == metrics.wasserstein(x.flatten(1), y.flatten(1)).item()


def test_mmd_of_two_gaussians_tends_to_the_closed_form() -> None:
    # E k(x, y) = sqrt(w^2 / (w^2 + 2)) exp(-d^2 / (2 (w^2 + 2))) for unit Gaussians d apart
    n, width, apart = 1500, 1.0, 1.0
    x, y = normal(n, 1), normal(n, 1, seed=1) + apart
    scale = math.sqrt(width**2 / (width**2 + 2))
    wanted = 2 * scale * (1 - math.exp(-(apart**2) / (2 * (width**2 + 2))))
    assert metrics.mmd2(x, y, [width], unbiased=True).item() == pytest.approx(wanted, abs=0.012)


def test_mmd_is_zero_for_the_same_sample_and_positive_otherwise() -> None:
    x = normal(40, 2)
    assert metrics.mmd2(x, x.flip(0)).item() == pytest.approx(0.0, abs=1e-12)
    assert metrics.mmd2(x, x + 1).item() > 0.05


def test_unbiased_mmd_is_zero_on_average_where_the_v_statistic_is_not() -> None:
    pairs = [(normal(10, 1, seed=2 * s), normal(10, 1, seed=2 * s + 1)) for s in range(400)]
    unbiased = torch.stack([metrics.mmd2(x, y, [1.0], unbiased=True) for x, y in pairs])
    biased = torch.stack([metrics.mmd2(x, y, [1.0]) for x, y in pairs])
    assert abs(unbiased.mean()) < 3.5 * unbiased.std() / 20
    assert biased.mean() > 10 * biased.std() / 20


def test_bad_kernel_widths_and_single_points_are_named() -> None:
    with pytest.raises(ValueError, match="widths="):
        metrics.mmd2(normal(3, 1), normal(3, 1), [1.0, 0.0])
    with pytest.raises(ValueError, match="y has one point with weight"):
        metrics.mmd2(normal(3, 1), normal(1, 1), unbiased=True)


# --- as Gaussians, as manifolds ---


def frechet_by_eigenvalues(x: Tensor, y: Tensor) -> float:
    """The definition: the root of the product of covariances has the roots of its eigenvalues."""
    cov_x, cov_y = torch.cov(x.T), torch.cov(y.T)
    overlap = torch.linalg.eigvals(cov_x @ cov_y).real.clamp_min(0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + cov_x.trace() + cov_y.trace() - 2 * overlap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frechet_of_an_affine_image_has_a_closed_form(dtype: torch.dtype) -> None:
    # y = S x + b with S symmetric, positive definite: the optimal map is S itself, the distance |(S - 1) m + b|^2 + tr (S - 1) C (S - 1)
    x = normal(50, 4) @ normal(4, 4, seed=1)
    root = normal(4, 4, seed=2)
    stretch, shift = root @ root.T + 0.1 * torch.eye(4, dtype=torch.float64), normal(4, seed=3)
    moved = stretch - torch.eye(4, dtype=torch.float64)
    wanted = (x.mean(0) @ moved + shift).square().sum() + (moved @ torch.cov(x.T) @ moved).trace()
    assert metrics.frechet(x.to(dtype), (x @ stretch + shift).to(dtype)).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(40, 25), (3, 7), (2, 2)])
def test_frechet_agrees_with_the_definition_and_is_symmetric(n: int, m: int) -> None:
    x, y = normal(n, 5) * torch.arange(1, 6), normal(m, 5, seed=1) + 1
    # with few samples the covariances are singular and the eigenvalues of their product lose half of the digits
    assert metrics.frechet(x, y).item() == pytest.approx(frechet_by_eigenvalues(x, y), rel=1e-6)
    assert metrics.frechet(x, y).item() == pytest.approx(metrics.frechet(y, x).item(), rel=1e-12)
    assert metrics.frechet(x, x).item() == pytest.approx(0.0, abs=1e-12)


def test_frechet_of_two_gaussians_tends_to_the_closed_form() -> None:
    x, y = normal(20_000, 2), 2 * normal(20_000, 2, seed=1) + 3
    assert metrics.frechet(x, y).item() == pytest.approx(9 * 2 + 2 * (2 - 1) ** 2, rel=0.02)


def test_precision_and_recall_of_overlapping_intervals() -> None:
    # on the line with spacing 1 and one neighbour every ball reaches its neighbours: 0..9 against 4..13 share 3.1 to 10.9
    x, y = torch.arange(10.0), torch.arange(4.0, 14.0) + 0.1
    precision, recall = metrics.precision_recall(x, y, neighbours=1)
    assert (precision.item(), recall.item()) == (pytest.approx(0.6), pytest.approx(0.6))
    wide, narrow = torch.arange(100.0), torch.arange(25.0) + 0.1
    precision, recall = metrics.precision_recall(narrow, wide, neighbours=1)
    assert (precision.item(), recall.item()) == (1.0, pytest.approx(0.26))


def test_precision_and_recall_swap_with_their_samples_and_are_one_for_equal_ones() -> None:
    x, y = normal(60, 3), normal(45, 3, seed=1) * 2
    precision, recall = metrics.precision_recall(x, y)
    assert metrics.precision_recall(y, x) == (recall, precision)
    assert precision > 2 * recall  # x is the narrow one
    assert [value.item() for value in metrics.precision_recall(x, x)] == [1.0, 1.0]
    assert [value.item() for value in metrics.precision_recall(x, x + 100)] == [0.0, 0.0]


def test_precision_and_recall_against_the_definition() -> None:
    x, y, k = normal(30, 2), normal(40, 2, seed=1) + 0.5, 3
    radius = [sorted(float((a - b).norm()) for b in y)[k] for a in y]  # the nearest one is the point itself
    wanted = sum(any(float((a - b).norm()) <= r for b, r in zip(y, radius, strict=True)) for a in x) / len(x)
    assert metrics.precision_recall(x, y, neighbours=k)[0].item() == pytest.approx(wanted)


def test_too_few_samples_for_covariances_and_neighbours_are_named() -> None:
    with pytest.raises(ValueError, match="y holds one sample"):
        metrics.frechet(normal(3, 2), normal(1, 2))
    with pytest.raises(ValueError, match="neighbours=3 for 3 samples in x"):
        metrics.precision_recall(normal(3, 2), normal(9, 2))
    with pytest.raises(ValueError, match="neighbours=0 for 9 samples"):
        metrics.precision_recall(normal(9, 2), normal(9, 2), neighbours=0)
    with pytest.raises(ValueError, match="wanted the same event shape"):
        metrics.frechet(normal(3, 2), normal(3, 1))


# --- variety ---


def test_total_variation_of_class_masses() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.2, 0.3, 0.5])
    assert metrics.total_variation(p, 10 * q).item() == pytest.approx(0.5, abs=1e-7)
    assert metrics.total_variation(p, p).item() == 0.0
    with pytest.raises(ValueError, match="one mass per class"):
        metrics.total_variation(p, q[:2])


def test_effective_number_lies_between_one_and_the_number_of_classes() -> None:
    assert metrics.effective_number(torch.tensor([2.0, 2.0, 2.0, 2.0])).item() == pytest.approx(4.0)
    assert metrics.effective_number(torch.tensor([5.0])).item() == pytest.approx(1.0)
    assert metrics.effective_number(torch.tensor([0.75, 0.25])).item() == pytest.approx(
        math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    )


def test_vendi_score_counts_groups_of_equal_samples() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    kernel = (group[:, None] == group[None]).double()
    counts = torch.bincount(group)
    assert metrics.vendi_score(kernel).item() == pytest.approx(metrics.effective_number(counts).item(), rel=1e-9)
    equal_groups = metrics.vendi_score(kernel, torch.tensor([1.0, 1.0, 1.0, 1.5, 1.5, 3.0])).item()
    assert equal_groups == pytest.approx(3.0, rel=1e-9)
    with pytest.raises(ValueError, match="ones on its diagonal"):
        metrics.vendi_score(2 * kernel)


def test_distinct_ancestors_per_population() -> None:
    ancestors = torch.randint(0, 40, (2, 3, 25), generator=seeded(0))
    wanted = [[len(set(row)) for row in block] for block in ancestors.tolist()]
    assert metrics.distinct_ancestors(ancestors).tolist() == wanted
    assert metrics.distinct_ancestors(torch.tensor([4])).item() == 1
