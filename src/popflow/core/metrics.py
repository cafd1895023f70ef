"""Distances between weighted samples, and the diversity of one sample.

Samples are ``[n]`` (on the line) or ``[n, *event]`` (flattened); weights are ``[n]``, normalised here, or None for equal weights.
Computations run in float64 on the device of the samples, and results are 0-dimensional float64 tensors. Distances have the unit of ``x``,
squared distances its square; Kolmogorov-Smirnov, total variation and MMD have no unit.

Every function raises ValueError when shapes do not fit, a value or weight is NaN or infinite, a weight is negative, or all weights are zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def wasserstein_1d(x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None, *, order: int = 1) -> Tensor:
    """Exact Wasserstein distance of order 1 or 2 on the line, ``W_p^p = integral_0^1 |Q_x(u) - Q_y(u)|^p du`` with quantile functions ``Q``.

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
    """Kolmogorov-Smirnov distance between samples on the line, ``sup |F_x - F_y|``, in [0, 1].

    >>> kolmogorov_smirnov(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])).item()
    0.5
    """
    points, gap = _cdf_gap(*_line("x", x, x_weights), *_line("y", y, y_weights))
    last_of_ties = torch.cat([points.diff() > 0, points.new_ones(1, dtype=torch.bool)])
    return gap[last_of_ties].abs().max()


def kolmogorov_smirnov_to_cdf(x: Tensor, grid: Tensor, cdf: Tensor, weights: Tensor | None = None) -> Tensor:
    """Kolmogorov-Smirnov distance between a sample and a continuous distribution, ``sup |F_x - F|`` over both sides of every jump.

    Args:
        x: Sample ``[n]``; it may extend beyond the grid.
        grid: ``[m]``, strictly increasing, wide enough to hold all the mass.
        cdf: ``[m]``, the CDF on the grid, interpolated linearly; up to 1e-3 of missing mass at the ends is rescaled away.
        weights: ``[n]`` or None.

    >>> grid = torch.linspace(0, 1, 11)
    >>> round(kolmogorov_smirnov_to_cdf(torch.tensor([0.5]), grid, grid).item(), 6)
    0.5
    """
    x, weights = _line("x", x, weights)
    grid, cdf = _cdf_grid(grid, cdf)
    x, order = x.sort()
    right = torch.searchsorted(grid, x).clamp(1, len(grid) - 1)
    fraction = ((x - grid[right - 1]) / (grid[right] - grid[right - 1])).clamp(0, 1)
    truth = cdf[right - 1] + fraction * (cdf[right] - cdf[right - 1])
    cumulative = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
    below, upto = (cumulative[torch.searchsorted(x, x, right=side)] for side in (False, True))
    return torch.maximum((below - truth).abs(), (upto - truth).abs()).max()


def mmd2(
    x: Tensor,
    y: Tensor,
    widths: Sequence[float] | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    unbiased: bool = False,
) -> Tensor:
    """Squared maximum mean discrepancy, ``E k(x, x') + E k(y, y') - 2 E k(x, y)``, with ``k(a, b) = mean_w exp(-|a - b|^2 / (2 w^2))``.

    The default is the V-statistic, which counts pairs of a point with itself: never negative, zero for equal samples, and unchanged when
    equal points are merged by adding their weights. ``unbiased`` is the U-statistic, ``sum_{i != j} W_i W_j k_ij / (1 - sum W_i^2)``:
    correct on average for independent draws, but possibly negative.

    Args:
        x: Sample ``[n, *event]``.
        y: Sample ``[m, *event]``.
        widths: Kernel widths in the unit of ``x``; None takes 1/4, 1/2, 1, 2 and 4 times the median distance in the pooled sample.
        x_weights: ``[n]`` or None.
        y_weights: ``[m]`` or None.
        unbiased: Use the U-statistic, which needs two points with weight in each sample.

    Source: Gretton et al., *A kernel two-sample test* (2012), equations 3 and 5.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> mmd2(x, x).item(), mmd2(x, x + 1, widths=[1.0]).item() > 0.1
    (0.0, True)
    """
    (x, x_weights), (y, y_weights) = _pair(x, y, x_weights, y_weights)
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
    """Exact Wasserstein distance of order 1 or 2, ``W_p = (min_plan sum_ij plan_ij |x_i - y_j|^p)^(1/p)``, by optimal transport.

    Solved on the CPU by POT's network simplex, which takes seconds for a few thousand points.

    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> round(wasserstein(x, x + torch.tensor([3.0, 4.0]), order=2).item(), 9)
    5.0
    """
    import ot

    if order not in (1, 2):
        raise ValueError(f"order={order!r}, wanted 1 or 2.")
    (x, x_weights), (y, y_weights) = _pair(x, y, x_weights, y_weights)
    squared = _squared_distances(x, y)
    cost = (squared.sqrt() if order == 1 else squared).cpu().numpy()
    value = ot.emd2(x_weights.cpu().numpy(), y_weights.cpu().numpy(), cost, numItermax=10_000_000)
    return x.new_tensor(value).clamp_min(0.0) ** (1 / order)


def frechet(x: Tensor, y: Tensor) -> Tensor:
    """Frechet distance ``|m_x - m_y|^2 + tr C_x + tr C_y - 2 tr (C_x^1/2 C_y C_x^1/2)^1/2``, a squared distance.

    It is the squared Wasserstein-2 distance between Gaussians with the samples' means and (unbiased) covariances; on image features, the
    Frechet inception distance. It is biased upwards for finite samples: compare samples of equal size, with an exact sample beside them.

    Args:
        x: Sample ``[n, *event]``, n at least 2.
        y: Sample ``[m, *event]``, m at least 2.

    Source: Dowson and Landau, *The Frechet distance between multivariate normal distributions* (1982).

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> round(frechet(x, x + 3).item(), 6), round(frechet(x, 2 * x - 1).item(), 6)  # a shift; twice the standard deviation
    (9.0, 2.0)
    """
    (x, _), (y, _) = _pair(x, y)
    for name, rows in (("x", x), ("y", y)):
        if len(rows) < 2:
            raise ValueError(f"{name} holds one sample, wanted at least two: a single sample has no covariance.")
    (x_mean, x_root), (y_mean, y_root) = _moments(x), _moments(y)
    overlap = torch.linalg.matrix_norm(x_root @ y_root.T, ord="nuc")
    return ((x_mean - y_mean).square().sum() + x_root.square().sum() + y_root.square().sum() - 2 * overlap).clamp_min(0.0)


def precision_recall(x: Tensor, y: Tensor, *, neighbours: int = 3) -> tuple[Tensor, Tensor]:
    """Precision, the fraction of ``x`` on the manifold of ``y``, and recall, the fraction of ``y`` on the manifold of ``x``.

    The manifold of a sample is the union of balls around its points, each reaching to the point's k-th nearest neighbour in the sample.

    Args:
        x: The sample to judge, ``[n, *event]``, n above ``neighbours``.
        y: The reference, ``[m, *event]``, m above ``neighbours``.
        neighbours: ``k``.

    Source: Kynkaanniemi et al., *Improved precision and recall metric for assessing generative models* (2019), equations 1 and 2.

    >>> y = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    >>> [share.item() for share in precision_recall(y[:3] + 0.1, y, neighbours=1)]  # one of two modes
    [1.0, 0.5]
    """
    (x, _), (y, _) = _pair(x, y)
    for name, rows in (("x", x), ("y", y)):
        if not 1 <= neighbours < len(rows):
            raise ValueError(
                f"neighbours={neighbours} for {len(rows)} samples in {name}, wanted at least 1 and less than the number of samples."
            )
    x_radius, y_radius = (_squared_distances(rows, rows).kthvalue(neighbours + 1, dim=1).values for rows in (x, y))
    across = _squared_distances(x, y)
    return (across <= y_radius).any(1).double().mean(), (across <= x_radius[:, None]).any(0).double().mean()


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Total variation distance ``1/2 sum |p - q|`` between class masses ``[c]``, each normalised first; in [0, 1].

    >>> total_variation(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])).item()
    0.5
    """
    if p.shape != q.shape:
        raise ValueError(f"q has shape {tuple(q.shape)}, wanted that of p, {tuple(p.shape)}: give one mass per class in both.")
    return (_normalised("p", p, p.shape[0]) - _normalised("q", q, q.shape[0])).abs().sum() / 2


def effective_number(masses: Tensor) -> Tensor:
    """Effective number of classes, ``exp(-sum p log p)``: k for k equal masses, 1 if one class has all the mass (Hill number of order 1).

    >>> round(effective_number(torch.tensor([1.0, 1.0, 0.0])).item(), 6)
    2.0
    """
    p = _normalised("masses", masses, masses.shape[0])
    return torch.special.entr(p).sum().exp()


def vendi_score(kernel: Tensor, weights: Tensor | None = None) -> Tensor:
    """Effective number of distinct samples: ``exp`` of the entropy of the eigenvalues of ``diag(W)^1/2 K diag(W)^1/2``.

    Args:
        kernel: Similarities ``[n, n]``: symmetric, positive semi-definite, ones on the diagonal.
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
    """Number of initial particles that still have descendants, ``[*batch, n]`` -> ``[*batch]`` (int64).

    Start with ``aux["ancestor"] = arange(n)``; resampling gathers it with the particles.

    >>> distinct_ancestors(torch.tensor([[0, 0, 2], [1, 1, 1]])).tolist()
    [2, 1]
    """
    return (ancestors.sort(-1).values.diff(dim=-1) != 0).sum(-1) + 1


def _rows(name: str, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check a sample and its weights, and flatten the sample to rows of float64."""
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted [n, *event] with at least one sample.")
    rows = x.double().reshape(len(x), -1)
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name} holds {int((~rows.isfinite()).sum())} values that are NaN or infinite, wanted finite samples.")
    return rows, _weights(f"{name}_weights", weights, rows[:, 0])


def _pair(x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None) -> tuple[tuple[Tensor, Tensor], ...]:
    """Rows and weights of two samples of the same event shape."""
    first, second = _rows("x", x, x_weights), _rows("y", y, y_weights)
    if first[0].shape[1] != second[0].shape[1]:
        raise ValueError(f"y has {second[0].shape[1]} numbers per sample and x {first[0].shape[1]}, wanted the same event shape.")
    return first, second


def _line(name: str, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    if x.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted [n]: take one coordinate, or use a distance for more dimensions.")
    rows, weights = _rows(name, x, weights)
    return rows[:, 0], weights


def _weights(name: str, weights: Tensor | None, like: Tensor) -> Tensor:
    return torch.full_like(like, 1 / len(like)) if weights is None else _normalised(name, weights.to(like.device), len(like))


def _normalised(name: str, masses: Tensor, n: int) -> Tensor:
    masses = masses.double()
    if masses.shape != (n,):
        raise ValueError(f"{name} has shape {tuple(masses.shape)}, wanted [{n}]: give one per sample or class.")
    if not bool(masses.isfinite().all()) or bool((masses < 0).any()):
        raise ValueError(
            f"{name} holds NaN, infinite or negative values (minimum {masses.min().item()!r}), wanted finite values, 0 or more."
        )
    if not bool(masses.sum() > 0):
        raise ValueError(f"{name} sums to 0, wanted at least one positive value.")
    return masses / masses.sum()


def _cdf_gap(x: Tensor, x_weights: Tensor, y: Tensor, y_weights: Tensor) -> tuple[Tensor, Tensor]:
    """All points, sorted, and ``F_x - F_y`` from each to the next (valid only after the last of tied points)."""
    points, order = torch.cat([x, y]).sort()
    return points, torch.cat([x_weights, -y_weights])[order].cumsum(0)


def _cdf_grid(grid: Tensor, cdf: Tensor) -> tuple[Tensor, Tensor]:
    if grid.ndim != 1 or grid.shape != cdf.shape or len(grid) < 2:
        raise ValueError(f"grid has shape {tuple(grid.shape)} and cdf {tuple(cdf.shape)}, wanted the same [m], m at least 2.")
    grid, cdf = grid.double(), cdf.double()
    if not bool((grid.diff() > 0).all()):
        raise ValueError("grid is not strictly increasing: sort it and drop duplicates.")
    first, last = float(cdf[0]), float(cdf[-1])
    if not bool((cdf.diff() >= 0).all()) or not (abs(first) <= 1e-3 and abs(last - 1) <= 1e-3):
        raise ValueError(f"cdf goes from {first!r} to {last!r} or decreases, wanted 0 to 1 within 1e-3: widen the grid.")
    return grid, (cdf - first) / (last - first)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``m`` and a root ``R`` of the unbiased covariance ``R^T R``; for two of them ``|R_x R_y^T|_* = tr (C_x^1/2 C_y C_x^1/2)^1/2``."""
    mean = rows.mean(0)
    return mean, torch.linalg.qr((rows - mean) / (len(rows) - 1) ** 0.5, mode="r").R


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances ``[n, m]`` from differences, so that equal points are exactly 0 apart."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _mean_of_pairs(name: str, kernel: Tensor, weights: Tensor) -> Tensor:
    own = weights.square()
    if not bool(own.sum() < 1 - 1e-12):
        raise ValueError(f"{name} has one point with weight, wanted at least two for the unbiased estimate.")
    return (weights @ kernel @ weights - (own * kernel.diagonal()).sum()) / (1 - own.sum())
