"""Backward kernels with curvature: exact for Gaussian experts of any covariance, of second order for others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from popflow.compose import Expert, from_density, gaussian_mixture, scores
from popflow.compose.curvature import Curved, curved, linear_and_bend, orthonormal

F64 = torch.float64
SIGMA, LOWER = 1.2, 0.5
H, FLOOR = SIGMA**2 - LOWER**2, (LOWER / SIGMA) ** 2


def gaussian(variances: list[float], centre: float) -> Expert:
    """Independent coordinates of unequal variances."""
    v = torch.tensor(variances, dtype=F64)

    def log_prob(y: Tensor, sigma: float) -> Tensor:
        return torch.distributions.Normal(centre, (v + sigma**2).sqrt(), validate_args=False).log_prob(y).sum(-1)

    return from_density(log_prob, (len(variances),))


def exact(experts: list[Expert], y: Tensor, after: Tensor) -> Tensor:
    return torch.stack([e.log_prob(after, LOWER) - e.log_prob(y, SIGMA) for e in experts if e.log_prob is not None], -1)


def found(experts: list[Expert], y: Tensor, frame: Tensor, towards: Tensor, others: list[Tensor]) -> tuple[Curved, Tensor]:
    def fields(x: Tensor) -> Tensor:
        return scores(experts, x, SIGMA)

    dim = y.shape[-1]
    return curved(fields, y, frame, towards, others, H, FLOOR, dim), fields(y).movedim(0, -2)


def points(dim: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(dim)
    return torch.randn(32, dim, generator=rng, dtype=F64), torch.randn(32, dim, generator=rng, dtype=F64)


def test_a_gaussian_of_any_covariance_is_tracked_exactly_in_one_giant_step():
    """In the whole space as the frame: mean and covariance of the backward kernel are those of the posterior."""
    experts = [gaussian([0.1, 0.5, 2.0], 0.0), gaussian([1.0, 0.3, 0.2], 1.0)]
    y, move = points(3)
    frame = orthonormal(list(torch.randn(3, 32, 3, generator=torch.Generator().manual_seed(0), dtype=F64)), [1e-6] * 3)
    here, s = found(experts, y, frame, move, [])
    assert torch.allclose(here.log_increments(frame, move, s, H)[0], exact(experts, y, y + move), atol=1e-9)


def test_the_changes_are_quadratic_in_a_further_move_in_the_frame():
    experts = [gaussian([0.1, 0.5, 2.0], 0.0), gaussian([1.0, 0.3, 0.2], 1.0)]
    y, move = points(3)
    frame = orthonormal([torch.ones(32, 3, dtype=F64), y], [1e-6] * 2)
    here, s = found(experts, y, frame, move, [])
    value, slope, bend = here.log_increments(frame, move, s, H)
    p = torch.randn(32, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    after = here.log_increments(frame, move + (p.unsqueeze(-2) @ frame).squeeze(-2), s, H)[0]
    quadratic = value + (slope @ p.unsqueeze(-1)).squeeze(-1) + (p[:, None, None, :] @ bend @ p[:, None, :, None])[..., 0, 0] / 2
    assert torch.allclose(after, quadratic, atol=1e-10)


def test_isotropic_gaussians_need_no_frame_and_agree_with_the_table():
    experts = [gaussian_mixture(torch.full((1, 4), m, dtype=F64), w) for m, w in ((0.0, 0.3), (1.0, 1.5))]
    y, move = points(4)
    here, s = found(experts, y, y.new_zeros(32, 0, 4), move, [])
    assert torch.allclose(here.log_increments(y.new_zeros(32, 0, 4), move, s, H)[0], exact(experts, y, y + move), atol=1e-9)
    frame = orthonormal([s[:, 0] - s[:, 1]], [1e-6])
    here, s = found(experts, y, frame, move, [])
    _, slope, bend = here.log_increments(frame, move, s, H)
    c = torch.tensor([[FLOOR + (1 - FLOOR) * w**2 / (w**2 + SIGMA**2)] for w in (0.3, 1.5)], dtype=F64)
    for one, other in zip((slope, bend), linear_and_bend(1 / c, frame, move, s, H), strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_random_directions_estimate_the_volume_and_all_of_them_give_it_exactly_along_axes():
    """The mean of ``log(1 + h r^T H r)`` over random directions has the error of one over the root of their number."""
    experts = [gaussian([0.2, 0.4, 0.6, 0.8, 1.0, 1.2], 0.0)]
    y, move = torch.zeros(4000, 6, dtype=F64), torch.eye(6, dtype=F64)[0].expand(4000, 6)
    none, rng = y.new_zeros(4000, 0, 6), torch.Generator().manual_seed(0)
    v = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 1.2], dtype=F64)
    volume = float((FLOOR + (1 - FLOOR) * v / (v + SIGMA**2)).log().sum())
    axes = [one.expand(4000, 6) for one in torch.eye(6, dtype=F64)[1:]]
    assert torch.allclose(found(experts, y, none, move, axes)[0].log_volume, torch.full((4000, 1), volume, dtype=F64), atol=1e-9)
    spreads = []
    for count in (0, 2):
        directions = [torch.randn(4000, 6, generator=rng, dtype=F64) for _ in range(count + 1)]
        spreads.append(float(found(experts, y, none, directions[0], directions[1:])[0].log_volume.std()))
    assert spreads[0] > 1.5 * spreads[1] > 0


def test_no_variance_is_smaller_than_that_of_a_point():
    """Between the modes of a mixture the curvature is positive, on a point-like one it goes below: the floor holds in the frame and across."""

    def steep(y: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        return 10 * y

    experts, (y, move) = [Expert(steep, (3,))], points(3)
    frame = orthonormal([torch.ones(32, 3, dtype=F64), y], [1e-6] * 2)
    here, _ = found(experts, y, frame, move, [])
    assert torch.allclose(torch.linalg.eigvalsh(here.along), torch.full((32, 1, 2), FLOOR, dtype=F64))
    assert torch.allclose(here.across, torch.full((32, 1), FLOOR, dtype=F64))


@pytest.mark.parametrize("least", [1e-6, 1e3])
def test_what_is_no_longer_than_rounding_is_no_direction(least: float):
    basis = orthonormal([torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[6.0, 8.0, 0.0]])], [least] * 3)
    gram = basis @ basis.mT
    assert torch.allclose(gram, torch.diag_embed(torch.tensor([[1.0, 1.0, 0.0]]) * (least < 1)), atol=1e-6)


def test_inverse_and_determinant_are_of_second_order_where_curvatures_differ():
    """A Gaussian of unequal widths, over many directions: ``e^T (I + h H)^-1 e`` and ``log det(I + h H)`` against the plain Rayleigh quotient."""
    n, h, dim = 4000, 0.15, 6
    H, rng = -torch.diag(torch.linspace(0.0, 2.0, dim, dtype=F64)), torch.Generator().manual_seed(0)
    one, other = torch.randn(2, n, dim, generator=rng, dtype=F64).unbind(0)
    point, frame = torch.zeros(n, dim, dtype=F64), torch.zeros(n, 0, dim, dtype=F64)
    found = curved(lambda y: (y @ H).unsqueeze(0), point, frame, one, [other], h, 0.01, dim)
    e = one / one.norm(dim=-1, keepdim=True)
    quotient = 1 + h * torch.einsum("ni,ij,nj->n", e, H, e)
    exact = torch.einsum("ni,ij,nj->n", e, torch.linalg.inv(torch.eye(dim, dtype=F64) + h * H), e)
    assert (1 / found.across[:, 0] - exact).abs().mean() < 0.2 * (1 / quotient - exact).abs().mean()
    volume = torch.logdet(torch.eye(dim, dtype=F64) + h * H)
    assert (found.log_volume.mean() - volume).abs() < 0.3 * (dim * quotient.log().mean() - volume).abs()
