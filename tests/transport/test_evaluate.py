"""Scores beside trivial answers, and fates, of flows that are known."""

import numpy as np
import pytest
import torch

from popflow.core import Population, Streams
from popflow.transport import WFR, Lagrangian, LagrangianFlow, Snapshots
from popflow.transport.anndata import read, write_flow
from popflow.transport.evaluate import FLOOR, FLOW, PATH, PREVIOUS, RANDOM, TRANSPORT, evaluate, sampling_floor, score
from popflow.transport.fate import fates, growth_by_type, growth_rates
from popflow.transport.predict import DRAWS, expected


class Shift:
    """Moves with speed 1; the weight of cells above 0 grows with rate ``lam``."""

    def __init__(self, lam=0.0):
        self.lam = lam

    def velocity(self, t, x):
        return torch.ones_like(x)

    def growth(self, t, x):
        return self.lam * (x[:, 0] > 0).to(x)

    def push(self, pop, t0, t1, rng):
        pop = pop if isinstance(pop, Population) else Population.of(pop)
        return pop.replace(x=pop.x + (t1 - t0)).reweight((t1 - t0) * self.growth(t0, pop.x))


class Brownian(Shift):
    """Noise alone, of variance ``noise^2`` per unit of time; weights grow by ``exp(lam dx)``."""

    noise = 1.0

    def push(self, pop, t0, t1, rng):
        pop = pop if isinstance(pop, Population) else Population.of(pop)
        dx = (t1 - t0) ** 0.5 * rng.normal("noise", pop.x)
        return pop.replace(x=pop.x + dx).reweight(self.lam * dx[:, 0])


def line(n=80):
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    return Snapshots.of([x, x + 1, x + 4], times=[0, 1, 4])


def test_a_right_flow_scores_zero_beside_what_is_known_without_it():
    found = evaluate(Shift(), line().hold_out(1), rng=Streams(0))
    assert list(found) == [1]
    row = found[1]
    assert row[FLOW].w1 == pytest.approx(0, abs=1e-6)
    assert (row[FLOW].mmd, row[FLOW].ess) == (pytest.approx(0, abs=1e-3), pytest.approx(80))
    assert row[PREVIOUS].w1 == pytest.approx(1, abs=1e-6)
    assert row[PREVIOUS].w2 == pytest.approx(1, abs=1e-6)
    # A quarter of the way from 0 to 4 by the optimal map is where the held-out cells are; by random pairs they are too narrow.
    assert row[TRANSPORT].w1 == pytest.approx(0, abs=1e-6)
    assert row[RANDOM].w1 > 0.1
    assert 0 < row[FLOOR].w1 < 0.5
    assert row.keys() == {FLOW, PREVIOUS, TRANSPORT, RANDOM, FLOOR}


def test_a_flow_with_a_path_is_asked_for_it_where_a_marginal_is_held_out():
    class Line(Shift):
        def interpolate(self, t, n, rng):
            return Population.of(line(n).x[0] + t)

    row = evaluate(Line(), line().hold_out(1), rng=Streams(0), cells=80)[1]
    assert 0 < row[PATH].w1 < row[FLOOR].w1  # 160 other cells of the same distribution
    assert row[PATH].ess == pytest.approx(160)
    assert PATH not in evaluate(Line(), line(), rng=Streams(0), marginals=(1,))[1]


@pytest.mark.parametrize(("count", "dim"), [(100, 1), (100, 3), (500, 2)])
def test_the_sampling_floor_is_the_distance_of_two_fresh_samples_of_the_sizes_compared(count, dim):
    """It is extrapolated from parts of 100 cells, split from them, and measured where there are enough; and it hardly depends on the seed."""
    n, m = 100, 60
    g = torch.Generator().manual_seed(0)
    fresh = [score(torch.randn(n, dim, generator=g), torch.randn(m, dim, generator=g)) for _ in range(40)]
    w1 = torch.tensor([one.w1 for one in fresh])
    found = [sampling_floor(torch.randn(count, dim, generator=g), n, m, rng=Streams(seed)) for seed in range(6)]
    mean = torch.tensor([one.w1 for one in found])
    torch.testing.assert_close(mean.mean(), w1.mean(), rtol=0.1, atol=0)
    assert sum(one.distinguishable(two) for one in fresh for two in found) <= 0.15 * 240
    wide = [score(2 * torch.randn(n, dim, generator=g), torch.randn(m, dim, generator=g)) for _ in range(10)]
    assert sum(one.distinguishable(two) for one in wide for two in found) >= 0.9 * 60
    same = torch.randn(count, dim, generator=g)
    again = torch.tensor([sampling_floor(same, n, m, rng=Streams(seed)).w1 for seed in range(8)])
    assert again.std() < 0.5 * w1.std()  # that of one draw


def test_the_last_marginal_has_no_midpoint_and_weights_count():
    found = evaluate(Shift(), line(), rng=Streams(0), marginals=(2,))
    assert TRANSPORT not in found[2]
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    assert score(x, y, torch.tensor([1.0, 3.0])).w1 == 0
    assert score(x, y).w1 == pytest.approx(0.25)
    assert score(x, y, torch.tensor([1.0, 3.0])).ess == pytest.approx(1.6)
    with pytest.raises(ValueError, match=r"marginals=\(\), wanted some of 1..2"):
        evaluate(Shift(), line(), rng=Streams(0))
    with pytest.raises(ValueError, match=r"marginals=\(0,\)"):
        evaluate(Shift(), line(), rng=Streams(0), marginals=(0,))


def islands():
    """Two types far apart that stay themselves; the upper grows."""
    g = torch.Generator().manual_seed(1)
    x = 0.1 * torch.randn(40, 1, generator=g) + torch.tensor([-5.0, 5.0]).repeat(20)[:, None]
    return Snapshots.of([x, x + 1], times=[0, 1]), [["low", "high"] * 20] * 2


def test_fates_follow_the_cells_and_count_their_descendants():
    snapshots, names = islands()
    found = fates(Shift(lam=1.0), snapshots, names, 0, 1, rng=Streams(0), neighbours=5)
    assert found.types == ("high", "low")
    assert torch.equal(found.table, torch.eye(2, dtype=torch.float64))
    assert torch.equal(found.probability[:2], torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
    e = torch.tensor(1.0).exp().item()
    assert found.descendants[:2].tolist() == pytest.approx([2 / (1 + e), 2 * e / (1 + e)], rel=1e-5)


def test_under_noise_fates_are_probabilities_and_twins_share_them():
    x = torch.full((60, 1), 0.5)  # 60 twins, between two types: P(0.5 + z > 0) = Phi(0.5)
    snapshots = Snapshots.of([x, torch.tensor([-1.0, 1.0]).repeat(30)[:, None]], times=[0, 1])
    names = [["start"] * 60, ["left", "right"] * 30]
    right = torch.special.ndtr(torch.tensor(0.5)).item()
    for lam, wanted in ((0.0, right), (0.5, torch.special.ndtr(torch.tensor(1.0)).item())):  # exp(z / 2) moves the mean of z to 1/2
        found = fates(Brownian(lam), snapshots, names, 0, 1, rng=Streams(0), draws=400)
        mine = found.probability[:, found.types.index("right")]
        assert found.draws == 400
        assert (mine - wanted).abs().max() < 5 * 0.6 / 400**0.5
        assert mine.mean().item() == pytest.approx(wanted, abs=0.01)
        torch.testing.assert_close(found.table[found.types.index("start"), found.types.index("right")].item(), wanted, atol=0.01, rtol=0)
        assert found.descendants.mean().item() == pytest.approx(1)
        later = expected(Brownian(lam), x, 0.0, 1.0, Streams(0), draws=400)[:, 0]
        assert (later - (0.5 + lam)).abs().max() < 5 * 1.2 / 400**0.5
        assert later.mean().item() == pytest.approx(0.5 + lam, abs=0.03)
    one = fates(Brownian(), snapshots, names, 0, 1, rng=Streams(0), draws=1)
    assert set(one.probability.flatten().tolist()) == {0.0, 1.0}
    assert fates(Brownian(), snapshots, names, 0, 1, rng=Streams(0)).draws == DRAWS
    assert fates(Shift(), snapshots, names, 0, 1, rng=Streams(0), draws=5).draws == 1  # nothing to average


def test_what_noise_makes_random_is_written_as_an_average_with_the_number_of_draws(h5ad, tmp_path):
    ad = pytest.importorskip("anndata")
    cells = read(h5ad, time="day", dims=2, types="type")
    for flow, draws in ((Brownian(), 100), (Shift(), 1)):
        fate = fates(flow, cells.snapshots, cells.annotation, 0, 2, rng=Streams(0), draws=100)
        written = ad.read_h5ad(write_flow(h5ad, tmp_path / "out.h5ad", cells, flow, fate=fate, about={}, rng=Streams(0), draws=100))
        assert (written.uns["popflow"]["draws"], fate.draws) == (draws, draws)
        moved = written.obsm["X_popflow"][cells.rows[1]] - written.obsm["X_pca"][cells.rows[1], :2]
        if draws == 1:
            np.testing.assert_allclose(moved, 8, rtol=1e-5)  # days 2 to 10
        else:
            assert moved.std() == pytest.approx((8 / 100) ** 0.5, rel=0.2)  # of one draw: 2.8
    assert len(np.unique(written.obsm["popflow_fate"][cells.rows[0]].round(6))) <= 16  # 15 votes


def test_growth_is_read_type_by_type():
    snapshots, names = islands()
    found = growth_by_type(Shift(lam=0.7), snapshots, [names[0], ["low"] * 40])
    assert found["high"] == ((pytest.approx(0.7), pytest.approx(0), 20), None)
    assert found["low"][0] == (0.0, 0.0, 20)
    assert found["low"][1] == (pytest.approx(0.35), pytest.approx(0.35), 40)


def test_relative_growth_is_centred_at_held_out_times_too():
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(30 + 10 * k, 1, generator=g) + 2 * (k == 1) for k in range(3)]  # the held-out cells lie elsewhere
    snapshots = Snapshots.of(x).hold_out(1)
    flow = LagrangianFlow(Lagrangian(WFR(1.0)), width=8).fit(snapshots, steps=30, rng=Streams(0), compile=False)
    assert flow.growth(1.0, x[1]).mean().abs() > 1e-3
    for k, rate in enumerate(growth_rates(flow, snapshots)):
        assert rate.mean().abs() < 1e-6
        torch.testing.assert_close(rate.diff(), flow.growth(float(k), x[k]).diff())
    names = [["a" if row > 0 else "b" for row in rows[:, 0].tolist()] for rows in x]
    table = growth_by_type(flow, snapshots, names)
    for k in range(3):
        assert sum(row[k][0] * row[k][2] for row in table.values() if row[k]) == pytest.approx(0, abs=1e-4)
    true = LagrangianFlow(Lagrangian(WFR(1.0, normalized=False)), width=8).fit(snapshots, steps=5, rng=Streams(0), compile=False)
    assert torch.equal(growth_rates(true, snapshots)[1], true.growth(1.0, x[1]))  # of the total mass: nothing is subtracted


def test_fates_name_bad_input():
    snapshots, names = islands()
    with pytest.raises(ValueError, match=r"annotation\[1\] holds 3 types for 40 cells"):
        fates(Shift(), snapshots, [names[0], ["low"] * 3], 0, 1, rng=Streams(0))
    with pytest.raises(ValueError, match="start=1, end=0"):
        fates(Shift(), snapshots, names, 1, 0, rng=Streams(0))
