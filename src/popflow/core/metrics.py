"""How far two weighted samples are apart, and how much variety one holds.

Plain functions on tensors: samples ``[n]`` (one dimension) or ``[n, *event]`` (flattened), weights ``[n]`` or None for equal ones.
Weights are normalised here, computations are in float64 on the samples' device, results are 0-dimensional float64 tensors.
Distances carry the unit of ``x``; squared ones its square; Kolmogorov-Smirnov, total variation and MMD have none.

Raises (every function): ValueError where shapes do not fit, a value or weight is NaN or infinite, a weight is negative, or all are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def wasserstein_1d(x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None, *, order: int = 1) -> Tensor:
    """Exact Wasserstein distance of order 1 or 2 on the line: ``W_p^p = integral_0^1 |Q_x(u) - Q_y(u)|^p du``, ``Q`` the quantile functions.

    >>> x = torch.tensor([0.0, 1.0])
    >>> wasserstein_1d(x, torch.tensor([3.0, 4.0, 3.0, 4.0])).item(), wasserstein_1d(x, x + torch.tensor([0.0, 2.0]), order=2).item() ** 2
    (3.0, 2.0000000000000004)
    """
    if order not in (1, 2):
        raise ValueError(f"order={order!r}, wanted 1 or 2.")
    (x, x_weights), (y, y_weights) = _line("x", x, x_weights), _line("y", y, y_weights)
    if order == 1:
        points, gap = _cdf_gap(x, x_weights, y, y_weights)
        return (gap[:-1].abs() * points.diff()).sum()
    (x, x_order), (y, y_order) = x.sort(), y.sort()
    x_edge, y_edge = x_weights[x_order].cumsum(0), y_weights[y_order].cumsum(0)
    edge = torch.cat([x_edge.new_zeros(1), x_edge, y_edge]).sort().values
    middle, share = (edge[1:] + edge[:-1]) / 2, edge.diff()
    i, j = (torch.searchsorted(cumulative, middle).clamp_max(len(cumulative) - 1) for cumulative in (x_edge, y_edge))
    return (share * (x[i] - y[j]).square()).sum().sqrt()


def kolmogorov_smirnov(x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None) -> Tensor:
    """Kolmogorov-Smirnov distance on the line: ``sup |F_x - F_y|``, in [0, 1].

    >>> kolmogorov_smirnov(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])).item()
    0.5
    """
    points, gap = _cdf_gap(*_line("x", x, x_weights), *_line("y", y, y_weights))
    last_of_ties = torch.cat([points.diff() > 0, points.new_ones(1, dtype=torch.bool)])
    return gap[last_of_ties].abs().max()


def wasserstein_to_cdf(x: Tensor, grid: Tensor, cdf: Tensor, weights: Tensor | None = None) -> Tensor:
    """Wasserstein-1 distance of a sample from a distribution known by its CDF on a grid, ``integral |F_x - F|``.

    Exact for the piecewise linear reading of the CDF.

    Args:
        x: Sample ``[n]``; it may leave the grid.
        grid: ``[m]``, strictly increasing; it must hold the mass.
        cdf: ``[m]``, not decreasing, from 0 to 1; up to 1e-3 that is missing at the ends is rescaled away.
        weights: ``[n]`` or None.

    >>> grid = torch.linspace(0, 1, 11)
    >>> round(wasserstein_to_cdf(torch.tensor([0.5]), grid, grid).item(), 6)
    0.25
    """
    x, weights = _line("x", x, weights)
    grid, cdf = _cdf_grid(grid, cdf)
    points = torch.cat([x, grid]).unique()
    truth, empirical = _interpolate(points, grid, cdf), _step_cdf(x, weights, points)[:-1]
    left, right = truth[:-1] - empirical, truth[1:] - empirical
    trapezoid = (left + right).abs() / 2
    triangles = (left.square() + right.square()) / (2 * (left - right).abs()).clamp_min(torch.finfo(left.dtype).tiny)
    return (torch.where(left * right < 0, triangles, trapezoid) * points.diff()).sum()


def kolmogorov_smirnov_to_cdf(x: Tensor, grid: Tensor, cdf: Tensor, weights: Tensor | None = None) -> Tensor:
    """Kolmogorov-Smirnov distance of a sample from a continuous CDF on a grid (as in `wasserstein_to_cdf`), both sides of every jump.

    >>> grid = torch.linspace(0, 1, 11)
    >>> round(kolmogorov_smirnov_to_cdf(torch.tensor([0.5]), grid, grid).item(), 6)
    0.5
    """
    x, weights = _line("x", x, weights)
    points = x.unique()
    truth = _interpolate(points, *_cdf_grid(grid, cdf))
    after = _step_cdf(x, weights, points)
    before = torch.cat([after.new_zeros(1), after[:-1]])
    return torch.maximum((after - truth).abs(), (before - truth).abs()).max()


def directions(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    """Draw unit vectors ``[count, dimension]``, uniform on the sphere, for the projected distances."""
    drawn = torch.randn(count, dimension, generator=generator, dtype=torch.float64, device=generator.device)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def sliced_wasserstein(
    x: Tensor, y: Tensor, directions: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> Tensor:
    """Mean over the given directions ``[k, d]`` of the Wasserstein-1 distance of the projections.

    >>> x = torch.zeros(4, 2)
    >>> sliced_wasserstein(x, x + 1, torch.eye(2)).item()
    1.0
    """
    return _projected(wasserstein_1d, x, y, directions, x_weights, y_weights).mean()


def largest_kolmogorov_smirnov(
    x: Tensor, y: Tensor, directions: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> Tensor:
    """Largest Kolmogorov-Smirnov distance of the projections on the given directions ``[k, d]``.

    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> largest_kolmogorov_smirnov(x, x + torch.tensor([0.0, 1.0]), torch.eye(2)).item()
    1.0
    """
    return _projected(kolmogorov_smirnov, x, y, directions, x_weights, y_weights).max()


def mmd2(
    x: Tensor,
    y: Tensor,
    widths: Sequence[float] | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    unbiased: bool = False,
) -> Tensor:
    """Squared maximum mean discrepancy, ``E k(x, x') + E k(y, y') - 2 E k(x, y)``, ``k`` the mean of RBF kernels.

    ``k(a, b) = mean_w exp(-|a - b|^2 / (2 w^2))``. The default is the V-statistic (pairs of a point with itself count): never negative,
    zero for equal samples, equal points may be merged by adding their weights. ``unbiased`` leaves those pairs out (the U-statistic),
    ``sum_{i != j} W_i W_j k_ij / (1 - sum W_i^2)``: right on average for independent draws, may be negative.

    Args:
        x: Sample ``[n, *event]``.
        y: Sample ``[m, *event]``.
        widths: Kernel widths in units of x; None takes 1/4, 1/2, 1, 2 and 4 times the median distance within both samples together.
        x_weights: ``[n]`` or None.
        y_weights: ``[m]`` or None.
        unbiased: The U-statistic; needs two points with weight in each sample.

    Source: Gretton et al., *A kernel two-sample test* (2012), equations 3 and 5.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> mmd2(x, x).item(), mmd2(x, x + 1, widths=[1.0]).item() > 0.1
    (0.0, True)
    """
    (x, x_weights), (y, y_weights) = _rows("x", x, x_weights), _rows("y", y, y_weights)
    _same_dimension(x, y)
    points = torch.cat([x, y])
    squared = _squared_distances(points, points)
    if widths is None:
        off_diagonal = squared[~torch.eye(len(points), dtype=torch.bool, device=points.device)]
        median = float(off_diagonal.median().sqrt()) or float(off_diagonal.max().sqrt()) or 1.0
        widths = [median * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    if not widths or not all(0 < width < float("inf") for width in widths):
        raise ValueError(f"widths={list(widths)}, wanted at least one finite kernel width above 0.")
    kernel = torch.stack([(-squared / (2 * width * width)).exp() for width in widths]).mean(0)
    if not unbiased:
        signed = torch.cat([x_weights, -y_weights])
        return (signed @ kernel @ signed).clamp_min(0.0)
    n = len(x)
    return (
        _mean_of_pairs("x", kernel[:n, :n], x_weights)
        + _mean_of_pairs("y", kernel[n:, n:], y_weights)
        - 2 * (x_weights @ kernel[:n, n:] @ y_weights)
    )


def wasserstein(x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None, *, order: int = 1) -> Tensor:
    """Exact Wasserstein distance of order 1 or 2 between samples ``[n, *event]`` under the Euclidean distance, by optimal transport.

    ``W_p = (min_plan sum_ij plan_ij |x_i - y_j|^p)^(1/p)``. Solved on the CPU by POT's network simplex: seconds at a few thousand points.

    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> round(wasserstein(x, x + torch.tensor([3.0, 4.0]), order=2).item(), 9)
    5.0
    """
    import ot

    if order not in (1, 2):
        raise ValueError(f"order={order!r}, wanted 1 or 2.")
    (x, x_weights), (y, y_weights) = _rows("x", x, x_weights), _rows("y", y, y_weights)
    _same_dimension(x, y)
    squared = _squared_distances(x, y)
    cost = (squared.sqrt() if order == 1 else squared).cpu().numpy()
    value = ot.emd2(x_weights.cpu().numpy(), y_weights.cpu().numpy(), cost, numItermax=10_000_000)
    return x.new_tensor(value).clamp_min(0.0) ** (1 / order)


def frechet(x: Tensor, y: Tensor) -> Tensor:
    """Frechet distance of two samples as Gaussians, ``|m_x - m_y|^2 + tr C_x + tr C_y - 2 tr (C_x^1/2 C_y C_x^1/2)^1/2``; a squared distance.

    The squared Wasserstein-2 distance of the Gaussians with the samples' means and (unbiased) covariances. On features of images it is the
    Frechet inception distance. Finite samples raise it: compare samples of one size, and show what an exact sample of that size gives.

    Args:
        x: Sample ``[n, *event]``, n at least 2.
        y: Sample ``[m, *event]``, m at least 2.

    Source: Dowson and Landau, *The Frechet distance between multivariate normal distributions* (1982).

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> round(frechet(x, x + 3).item(), 6), round(frechet(x, 2 * x - 1).item(), 6)  # a shift; twice the standard deviation
    (9.0, 2.0)
    """
    (x, _), (y, _) = _rows("x", x, None), _rows("y", y, None)
    _same_dimension(x, y)
    for name, rows in (("x", x), ("y", y)):
        if len(rows) < 2:
            raise ValueError(f"{name} holds one sample, wanted at least two: one has no covariance.")
    (x_mean, x_root), (y_mean, y_root) = _moments(x), _moments(y)
    overlap = torch.linalg.matrix_norm(x_root @ y_root.T, ord="nuc")
    return ((x_mean - y_mean).square().sum() + x_root.square().sum() + y_root.square().sum() - 2 * overlap).clamp_min(0.0)


def precision_recall(x: Tensor, y: Tensor, *, neighbours: int = 3) -> tuple[Tensor, Tensor]:
    """Share of ``x`` on the manifold of ``y`` (precision of x), and of ``y`` on that of ``x`` (its recall), both in [0, 1].

    The manifold of a sample is the union of balls around its points, each as wide as the distance to the point's k-th nearest other one.

    Args:
        x: What is judged, ``[n, *event]``, n above ``neighbours``.
        y: The truth, ``[m, *event]``, m above ``neighbours``.
        neighbours: ``k``.

    Source: Kynkaanniemi et al., *Improved precision and recall metric for assessing generative models* (2019), equations 1 and 2.

    >>> y = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    >>> [share.item() for share in precision_recall(y[:3] + 0.1, y, neighbours=1)]  # one of two modes
    [1.0, 0.5]
    """
    (x, _), (y, _) = _rows("x", x, None), _rows("y", y, None)
    _same_dimension(x, y)
    for name, rows in (("x", x), ("y", y)):
        if not 1 <= neighbours < len(rows):
            raise ValueError(f"neighbours={neighbours} for {len(rows)} samples in {name}, wanted at least 1 and fewer than the samples.")
    x_radius, y_radius = (_squared_distances(rows, rows).kthvalue(neighbours + 1, dim=1).values for rows in (x, y))
    across = _squared_distances(x, y)
    return (across <= y_radius).any(1).double().mean(), (across <= x_radius[:, None]).any(0).double().mean()


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Total variation of two vectors of class masses ``[c]``: ``1/2 sum |p - q|``, each normalised first; in [0, 1].

    >>> total_variation(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])).item()
    0.5
    """
    if p.shape != q.shape:
        raise ValueError(f"q has shape {tuple(q.shape)}, wanted that of p, {tuple(p.shape)}: one mass per class in both.")
    return (_normalised("p", p, p.shape[0]) - _normalised("q", q, q.shape[0])).abs().sum() / 2


def effective_number(masses: Tensor) -> Tensor:
    """Effective number of classes, ``exp(-sum p log p)``: k for k equal masses, 1 when one has it all (Hill number of order 1).

    >>> round(effective_number(torch.tensor([1.0, 1.0, 0.0])).item(), 6)
    2.0
    """
    p = _normalised("masses", masses, masses.shape[0])
    return torch.special.entr(p).sum().exp()


def vendi_score(kernel: Tensor, weights: Tensor | None = None) -> Tensor:
    """Effective number of unlike samples: ``exp`` of the entropy of the eigenvalues of ``diag(W)^1/2 K diag(W)^1/2``.

    Args:
        kernel: ``[n, n]`` similarities, symmetric, positive semi-definite, ones on the diagonal.
        weights: ``[n]`` or None.

    Source: Friedman and Dieng, *The Vendi score* (2023), definition 3.1.

    >>> round(vendi_score(torch.eye(3)).item(), 6), round(vendi_score(torch.ones(3, 3)).item(), 6)
    (3.0, 1.0)
    """
    n = kernel.shape[0]
    if kernel.shape != (n, n):
        raise ValueError(f"kernel has shape {tuple(kernel.shape)}, wanted a square [n, n].")
    kernel = kernel.double()
    if not torch.allclose(kernel, kernel.T, atol=1e-6) or not torch.allclose(kernel.diagonal(), kernel.new_ones(n), atol=1e-6):
        raise ValueError("kernel is not symmetric with ones on its diagonal, wanted similarities with k(x, x) = 1.")
    root = _weights("weights", weights, kernel[0]).sqrt()
    return effective_number(torch.linalg.eigvalsh(root[:, None] * kernel * root).clamp_min(0.0))


def distinct_ancestors(ancestors: Tensor) -> Tensor:
    """How many different initial particles a population still descends from, ``[*batch, n]`` -> ``[*batch]`` (int64).

    Carry ``aux["ancestor"] = arange(n)``: resampling gathers it with the particles.

    >>> distinct_ancestors(torch.tensor([[0, 0, 2], [1, 1, 1]])).tolist()
    [2, 1]
    """
    return (ancestors.sort(-1).values.diff(dim=-1) != 0).sum(-1) + 1


def _rows(name: str, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check a sample and its weights; flatten each sample to a row of float64."""
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted [n, *event] with at least one sample.")
    rows = x.double().reshape(len(x), -1)
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name} holds {int((~rows.isfinite()).sum())} values that are NaN or infinite, wanted finite samples.")
    return rows, _weights(f"{name}_weights", weights, rows[:, 0])


def _line(name: str, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    if x.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted [n]: take one coordinate, or a projected distance.")
    rows, weights = _rows(name, x, weights)
    return rows[:, 0], weights


def _weights(name: str, weights: Tensor | None, like: Tensor) -> Tensor:
    return torch.full_like(like, 1 / len(like)) if weights is None else _normalised(name, weights.to(like.device), len(like))


def _normalised(name: str, masses: Tensor, n: int) -> Tensor:
    masses = masses.double()
    if masses.shape != (n,):
        raise ValueError(f"{name} has shape {tuple(masses.shape)}, wanted [{n}]: one for each.")
    if not bool(masses.isfinite().all()) or bool((masses < 0).any()):
        raise ValueError(f"{name} holds NaN, infinite or negative values (least {masses.min().item()!r}), wanted finite ones, 0 or more.")
    if not bool(masses.sum() > 0):
        raise ValueError(f"{name} sums to 0, wanted at least one above 0.")
    return masses / masses.sum()


def _same_dimension(x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"y holds {y.shape[1]} numbers a sample and x {x.shape[1]}, wanted the same event shape.")


def _cdf_gap(x: Tensor, x_weights: Tensor, y: Tensor, y_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return all points sorted, and ``F_x - F_y`` from each to the next (right only after the last of tied points)."""
    points, order = torch.cat([x, y]).sort()
    return points, torch.cat([x_weights, -y_weights])[order].cumsum(0)


def _step_cdf(x: Tensor, weights: Tensor, points: Tensor) -> Tensor:
    """Empirical CDF, continuous from the right, at sorted points."""
    ordered, order = x.sort()
    cumulative = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
    return cumulative[torch.searchsorted(ordered, points, right=True)]


def _cdf_grid(grid: Tensor, cdf: Tensor) -> tuple[Tensor, Tensor]:
    if grid.ndim != 1 or grid.shape != cdf.shape or len(grid) < 2:
        raise ValueError(f"grid has shape {tuple(grid.shape)} and cdf {tuple(cdf.shape)}, wanted the same [m], m at least 2.")
    grid, cdf = grid.double(), cdf.double()
    if not bool((grid.diff() > 0).all()):
        raise ValueError("grid is not strictly increasing, wanted sorted points without duplicates.")
    first, last = float(cdf[0]), float(cdf[-1])
    if not bool((cdf.diff() >= 0).all()) or not (abs(first) <= 1e-3 and abs(last - 1) <= 1e-3):
        raise ValueError(f"cdf goes from {first!r} to {last!r} or decreases, wanted 0 to 1 within 1e-3: widen the grid.")
    return grid, (cdf - first) / (last - first)


def _interpolate(points: Tensor, grid: Tensor, cdf: Tensor) -> Tensor:
    """Piecewise linear CDF at the points, 0 left of the grid and 1 right of it."""
    right = torch.searchsorted(grid, points).clamp(1, len(grid) - 1)
    share = ((points - grid[right - 1]) / (grid[right] - grid[right - 1])).clamp(0, 1)
    return cdf[right - 1] + share * (cdf[right] - cdf[right - 1])


def _projected(
    distance: Callable[..., Tensor], x: Tensor, y: Tensor, directions: Tensor, x_weights: Tensor | None, y_weights: Tensor | None
) -> Tensor:
    (x, x_weights), (y, y_weights) = _rows("x", x, x_weights), _rows("y", y, y_weights)
    _same_dimension(x, y)
    if directions.ndim != 2 or directions.shape[1] != x.shape[1]:
        raise ValueError(f"directions has shape {tuple(directions.shape)}, wanted [k, {x.shape[1]}].")
    toward = directions.to(x).T
    return torch.stack([distance(a, b, x_weights, y_weights) for a, b in zip((x @ toward).T, (y @ toward).T, strict=True)])


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``m`` and a root ``R`` of the unbiased covariance ``R^T R``; for two of them ``|R_x R_y^T|_* = tr (C_x^1/2 C_y C_x^1/2)^1/2``."""
    mean = rows.mean(0)
    return mean, torch.linalg.qr((rows - mean) / (len(rows) - 1) ** 0.5, mode="r").R


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances ``[n, m]``, by differences: exactly zero between equal points."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _mean_of_pairs(name: str, kernel: Tensor, weights: Tensor) -> Tensor:
    own = weights.square()
    if not bool(own.sum() < 1 - 1e-12):
        raise ValueError(f"{name} has one point with weight, wanted at least two for the unbiased estimate.")
    return (weights @ kernel @ weights - (own * kernel.diagonal()).sum()) / (1 - own.sum())
