"""The theory of inverse-free factors, in float64: the constant of the theorem, fixed points, invariances, stability."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from popflow.optim import BlockDiagonal, Dense, Diagonal, Hierarchical, LowerToeplitz, LowerTriangular, UpperTriangular
from popflow.optim.kronecker import Pair, Side, measure, refresh, warm_start

F64 = torch.float64
DENSE = Dense()


def spd(n: int, rng: torch.Generator, low: float = 0.3, high: float = 3.0) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=F64))
    return q @ torch.diag(torch.linspace(low, high, n, dtype=F64)) @ q.mT


def side(value: torch.Tensor, structure=DENSE, momentum: bool = False) -> Side:
    made = Side.identity(structure, value.shape[-1], 1, torch.zeros((), dtype=F64), momentum)
    return made if structure != Dense() else Side(structure, value.shape[-1], (value[None].clone(),), made.momentum)


def seen(one: Side, curvature: torch.Tensor):
    """``P(K^T U K)`` of a dense curvature."""
    k = one.structure.dense(one.value, one.n)[0]
    return one.structure.project((k.mT @ curvature @ k)[None])


def move(k: Side, c: Side, u: torch.Tensor, g: torch.Tensor, **options) -> None:
    pair = Pair(k, c, seen(k, u), seen(c, g), [1.0], [1.0], [True])
    measure([pair])
    refresh([pair], **{"lr_cov": 0.1, "damping": 1e-2, "alpha1": 0.0, "adaptive": True} | options)


def metric(one: Side) -> torch.Tensor:
    k = one.structure.dense(one.value, one.n)[0]
    return k @ k.mT


def root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.sqrt()) @ vectors.mT


def test_theorem_with_its_constant():
    rng = torch.Generator().manual_seed(0)
    n, damping = 6, 1e-2
    s, u = spd(n, rng), spd(n, rng)
    eye_n = torch.eye(n, dtype=F64)
    k0 = root(torch.linalg.inv(s + damping * eye_n)) @ torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=F64))[0]
    m = (k0.mT @ (u + damping * eye_n) @ k0 - eye_n) / 2
    errors = {}
    for beta in (1e-2, 1e-3, 1e-4):
        k, c = side(k0), side(eye_n)
        move(k, c, u, eye_n, lr_cov=beta, damping=damping, adaptive=False)
        assert k.structure.bound((m[None],), n) * beta < 1
        scale = beta / float(k.structure.bound((m[None],), n).clamp(min=1))
        target = torch.linalg.inv((1 - scale) * s + scale * u + damping * eye_n)
        errors[beta] = (metric(k) - target) / (scale / beta) ** 2
        wanted = -3 * k0 @ m @ m @ k0.mT
        assert (errors[beta] / beta**2 - wanted).norm() / wanted.norm() < 20 * beta
    for beta in (1e-2, 1e-3):
        assert 90 < errors[beta].norm() / errors[beta / 10].norm() < 110
    assert 95 < errors[1e-3].norm() / errors[1e-4].norm() < 105


def test_many_steps_follow_kfac_to_first_order():
    rng = torch.Generator().manual_seed(1)
    n, damping, span = 5, 1e-1, 2.0
    us = [spd(n, rng, 0.5, 1.5) for _ in range(80)]
    eye_n = torch.eye(n, dtype=F64)
    gaps = []
    for beta in (0.1, 0.05, 0.025):
        s = eye_n.clone()
        k, c = side(root(torch.linalg.inv(s + damping * eye_n))), side(eye_n)
        for i in range(round(span / beta)):
            u = us[int(i * beta / span * 20)]
            s = (1 - beta) * s + beta * u
            move(k, c, u, eye_n, lr_cov=beta, damping=damping, adaptive=False)
        gaps.append((metric(k) - torch.linalg.inv(s + damping * eye_n)).norm().item())
    slopes = [torch.log2(torch.tensor(a / b)).item() for a, b in pairwise(gaps)]
    assert all(abs(slope - 1) < 0.15 for slope in slopes), slopes


def test_ikfac_fixed_point():
    rng = torch.Generator().manual_seed(2)
    u, g = spd(6, rng, 0.1, 3.0), spd(4, rng, 0.1, 3.0)
    k, c = side(torch.eye(6, dtype=F64)), side(torch.eye(4, dtype=F64))
    for _ in range(200):
        move(k, c, u, g, lr_cov=0.3, damping=1e-3, adaptive=False)
    for one, curvature in ((k, u), (c, g)):
        damped = curvature + 1e-3 * torch.eye(one.n, dtype=F64)
        assert (metric(one) @ damped - torch.eye(one.n, dtype=F64)).norm() < 1e-12


@pytest.mark.parametrize("damping", [1e-14, 0.05])
def test_singd_fixed_point(damping):
    rng = torch.Generator().manual_seed(3)
    p, d = 6, 4
    u, g = spd(p, rng), spd(d, rng)
    k, c = side(torch.eye(p, dtype=F64)), side(torch.eye(d, dtype=F64))
    for _ in range(300):
        move(k, c, u, g, lr_cov=0.2, damping=damping)
    product = torch.kron(metric(c), metric(k)) @ (torch.kron(g, u) + damping * torch.eye(p * d, dtype=F64))
    assert abs(product.trace().item() / (p * d) - 1) < 1e-10
    if damping < 1e-10:
        assert (product - torch.eye(p * d, dtype=F64)).norm() / (p * d) ** 0.5 < 1e-10


def test_only_the_product_of_the_factors_counts():
    rng = torch.Generator().manual_seed(4)
    u, g = spd(6, rng), spd(4, rng)

    def product(scale: float, adaptive: bool) -> torch.Tensor:
        k, c = side(scale * torch.eye(6, dtype=F64), momentum=True), side(torch.eye(4, dtype=F64) / scale, momentum=True)
        for _ in range(20):
            # The cap is by the size of m, which does not change with the scale.
            move(k, c, u, g, alpha1=0.5, adaptive=adaptive)
        return torch.kron(metric(c), metric(k))

    assert (product(3.0, True) - product(1.0, True)).norm() / product(1.0, True).norm() < 1e-12
    assert (product(3.0, False) - product(1.0, False)).norm() / product(1.0, False).norm() > 1e-2


def test_scale_of_the_loss():
    """Loss times s and damping times s^2 divide the whole preconditioner by s^2 for SINGD, not for IKFAC."""
    rng = torch.Generator().manual_seed(5)
    u, g, s = spd(5, rng), spd(3, rng), 4.0

    def product(scale: float, adaptive: bool) -> torch.Tensor:
        k, c = side(torch.eye(5, dtype=F64)), side(torch.eye(3, dtype=F64))
        for _ in range(150):
            move(k, c, u, scale**2 * g, lr_cov=0.3, damping=0.1 * scale**2, adaptive=adaptive)
        return torch.kron(metric(c), metric(k))

    assert (product(s, True) * s**2 - product(1.0, True)).norm() / product(1.0, True).norm() < 1e-9
    assert (product(s, False) * s**2 - product(1.0, False)).norm() / product(1.0, False).norm() > 1e-2


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_no_step_blows_up(adaptive, scale):
    """Without the cap the first IKFAC step from the identity diverges beyond an eigenvalue of 1 + 4 / lr_cov."""
    rng = torch.Generator().manual_seed(6)
    for structure in (Dense(), Diagonal(), BlockDiagonal(4), Hierarchical(2, 2), LowerTriangular(), UpperTriangular(), LowerToeplitz()):
        k, c = (Side.identity(structure, n, 1, torch.zeros((), dtype=F64), True) for n in (9, 6))
        for _ in range(25):
            a, b = (torch.randn(n, n, generator=rng, dtype=F64) * scale for n in (9, 6))
            move(k, c, a @ a.mT, b @ b.mT, lr_cov=0.9, damping=1e-8, alpha1=0.5, adaptive=adaptive)
            m = structure.dense(k.momentum, 9)[0]
            assert torch.linalg.matrix_norm(m, 2) * 0.9 / structure.bound(k.momentum, 9).clamp(min=1) <= 0.9 + 1e-12
        assert all(torch.isfinite(part).all() for _, part in k.stored("K"))
        assert torch.linalg.slogdet(structure.dense(k.value, 9)[0]).logabsdet.isfinite()


def test_one_block_is_dense_also_when_factors_are_not_symmetric():
    rng = torch.Generator().manual_seed(7)
    pairs = {
        s: [Side.identity(s, n, 1, torch.zeros((), dtype=F64), True) for n in (5, 3)]
        for s in (Dense(), BlockDiagonal(5), Hierarchical(5, 0))
    }
    for _ in range(20):
        u, g = spd(5, rng), spd(3, rng)
        for k, c in pairs.values():
            move(k, c, u, g, alpha1=0.5)
    dense = metric(pairs[Dense()][0])
    assert (pairs[Dense()][0].value[0] - pairs[Dense()][0].value[0].mT).norm() > 1e-3
    for k, _ in pairs.values():
        assert (metric(k) - dense).norm() / dense.norm() < 1e-12


@pytest.mark.parametrize("structure", [Dense(), BlockDiagonal(3), Hierarchical(2, 1), LowerToeplitz(), Diagonal()], ids=repr)
def test_many_pairs_at_once_are_one_by_one(structure):
    """Batches of several members, of which some stay, against each member alone."""
    rng = torch.Generator().manual_seed(11)
    shapes, options = [(1, 5, 3), (2, 4, 4)], {"lr_cov": 0.4, "damping": 0.01, "alpha1": 0.5, "adaptive": True}
    like = torch.zeros((), dtype=F64)
    joined = [[Side.identity(structure, n, b, like, True) for n in (p, d)] for b, p, d in shapes]
    alone = [[[Side.identity(structure, n, 1, like, True) for n in (p, d)] for _ in range(b)] for b, p, d in shapes]
    for step in range(5):
        pairs, moving = [], [[True], [step != 2, True]]
        for (b, p, d), one, members, moves in zip(shapes, joined, alone, moving, strict=True):
            rows = [3 * torch.randn(b, 7, n, generator=rng, dtype=F64) for n in (p, d)]
            scales = [torch.rand(b, generator=rng, dtype=F64).tolist() for _ in range(2)]
            pairs.append(Pair(*one, *(side.structure.gram(side.value, x) for side, x in zip(one, rows, strict=True)), *scales, moves))
            for i, member in enumerate(members):
                if moves[i]:
                    h = (side.structure.gram(side.value, x[i : i + 1]) for side, x in zip(member, rows, strict=True))
                    single = Pair(*member, *h, *([scale[i]] for scale in scales), [True])
                    measure([single])
                    refresh([single], **options)
        measure(pairs)
        refresh(pairs, **options)
    for one, members in zip(joined, alone, strict=True):
        for side, *sides in zip(one, *members, strict=True):
            for (_, part), *parts in zip(side.stored("K"), *(member.stored("K") for member in sides), strict=True):
                torch.testing.assert_close(part, torch.cat([one for _, one in parts]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structure", [Dense(), Diagonal(), BlockDiagonal(4), Hierarchical(1, 1)], ids=repr)
def test_warm_start_is_the_answer_for_diagonal_curvature(structure):
    rng = torch.Generator().manual_seed(9)
    u, g = torch.rand(6, generator=rng, dtype=F64) + 0.1, torch.rand(4, generator=rng, dtype=F64) + 0.1
    k, c = (Side.identity(structure, n, 1, torch.zeros((), dtype=F64), False) for n in (6, 4))
    pair = Pair(k, c, *(structure.project(torch.diag(10 * one)[None]) for one in (u, g)), [0.1], [0.1], [True])
    warm_start(pair, [3], damping=0.01, adaptive=False)
    torch.testing.assert_close(metric(k), torch.diag(1 / (u + 0.01)))
    warm_start(pair, [3], damping=1e-16, adaptive=True)
    torch.testing.assert_close(torch.kron(metric(c), metric(k)), torch.diag(1 / torch.kron(g, u)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("adaptive", [True, False])
def test_warm_start_takes_whole_matrices_as_far_as_the_rows_go(adaptive):
    rng = torch.Generator().manual_seed(10)
    x, y = torch.randn(2, 20, 6, generator=rng, dtype=F64), torch.randn(2, 20, 5, generator=rng, dtype=F64)
    k, c = (Side.identity(Dense(), n, 2, torch.zeros((), dtype=F64), False) for n in (6, 5))
    before = k.value[0][1].clone()
    grams = [(one.mT @ one,) for one in (x, y)]
    pair = Pair(k, c, *grams, [0.05, 0.05], [0.05, 0.05], [True, False])
    warm_start(pair, [20, 20], damping=0.01, adaptive=adaptive)
    u, g = (one[0][0] / 20 for one in grams)
    pi = (u.trace() / 6 / (g.trace() / 5)).sqrt()
    for one, curvature, damp in ((k, u, 0.1 * pi if adaptive else 0.01), (c, g, 0.1 / pi if adaptive else 0.01)):
        shrunk = curvature * 20 / (20 + one.n) + torch.diag(curvature.diagonal()) * one.n / (20 + one.n)
        kept = one.value[0][0]
        torch.testing.assert_close(kept @ kept.mT @ (shrunk + damp * torch.eye(one.n, dtype=F64)), torch.eye(one.n, dtype=F64))
    assert torch.equal(k.value[0][1], before)
    grams[0][0][0, 0, 1] = grams[0][0][0, 1, 0] = 1e6  # not a Gram matrix: the diagonal is taken
    warm_start(pair, [20, 20], damping=0.01, adaptive=adaptive)
    torch.testing.assert_close(
        metric(Side(Dense(), 6, (k.value[0][:1],), None)), torch.diag(1 / (u.diagonal() + (0.1 * pi if adaptive else 0.01)))
    )


def test_bfloat16_factors_stay_where_kfac_is_indefinite():
    """Rotated spectrum 1 .. 1e-6, damping 1e-4, everything in bfloat16: the averaged Gram matrix has a negative eigenvalue, K K^T cannot."""
    n, damping, rng = 48, 1e-4, torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=rng))
    mix = (q * torch.logspace(0, -3, n)) @ q.mT
    gram = torch.eye(n, dtype=torch.bfloat16)
    k, c = (Side.identity(Dense(), m, 1, torch.zeros((), dtype=torch.bfloat16), False) for m in (n, 1))
    for _ in range(500):
        x = torch.randn(128, n, generator=rng) @ mix
        low = x.bfloat16()
        gram = 0.95 * gram + 0.05 * (low.mT @ low) / 128
        h = Dense().gram((k.value[0],), low[None])[0].float() / 128
        one = torch.ones(1, 1, 1)
        pair = Pair(k, c, (h,), (one,), [1.0], [1.0], [True])
        measure([pair])
        refresh([pair], lr_cov=0.1, damping=damping, alpha1=0.0, adaptive=False, rounding=rng)
    damped = gram.float() + damping * torch.eye(n)
    assert torch.linalg.cholesky_ex(damped).info > 0
    assert k.value[0].dtype == torch.bfloat16
    kept = k.value[0][0].double()
    assert torch.isfinite(kept).all()
    assert torch.linalg.eigvalsh(kept @ kept.mT).min() > 0
