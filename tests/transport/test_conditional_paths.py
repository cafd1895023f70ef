"""Conditional paths meet the snapshots, move at their stated velocity, and spend the action of the closed forms; plans are optimal."""

import math

import pytest
import torch

from popflow.core import Streams
from popflow.transport import path_coupling
from popflow.transport.closed_forms import atom_growth, dirac_growth
from popflow.transport.conditional_paths import Bend, ConditionalPaths, bubbles, follow
from popflow.transport.coupling import entropic_plan
from popflow.transport.lagrangian import WFR, Harmonic, Lagrangian, Linear, MeanAcceleration
from popflow.transport.saddle import path_energy
from popflow.transport.snapshots import Snapshots

PULL = torch.tensor([1.0, -3.0], dtype=torch.float64)
KINDS = {
    "transport": Lagrangian(),
    "harmonic": Lagrangian(potential=Harmonic(2.0, centre=torch.tensor([0.5, 0.0], dtype=torch.float64))),
    "inverted": Lagrangian(potential=Harmonic(-2.0)),
    "linear": Lagrangian(potential=Linear(PULL)),
    "mean acceleration": Lagrangian(potential=MeanAcceleration(torch.tensor([1.0, 2.0]).double(), torch.stack([PULL, -2 * PULL]))),
    "noise": Lagrangian(noise=0.7),
    "noise in a parabola": Lagrangian(noise=0.7, potential=Harmonic(2.0)),
    "true growth": Lagrangian(WFR(0.5, normalized=False)),
    "normalised growth": Lagrangian(WFR(0.5)),
}
H = 1e-5


def snapshots(n=6):
    rng = Streams(0)
    x = [rng.normal("cells", torch.empty(n + k, 2, dtype=torch.float64)) + k for k in range(3)]
    return Snapshots.of(x, times=[0.0, 1.0, 2.5], masses=[1.0, 1.7, 0.6])


def at(batch, t):
    return {**batch, "t": batch["t"] * 0 + t}


def bend_for(lagrangian, cells):
    rng = Streams(1)
    with rng.layers():
        bend = Bend(lagrangian, cells, width=8, depth=1).double()
    for p in bend.parameters():
        p.data = p.data + 0.1 * rng.normal("bend", p.data)
    return bend


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("coupling", [path_coupling.least_action, path_coupling.random_pairs])
@pytest.mark.parametrize("name", KINDS)
def test_paths_meet_the_snapshots_and_move_at_their_velocity(name, coupling, bent):
    lagrangian, cells = KINDS[name], snapshots()
    paths = ConditionalPaths.of(lagrangian, cells, coupling, Streams(0))
    bend = bend_for(lagrangian, cells) if bent else None
    batch = paths.draw(Streams(2), 1, 50)
    start, length = float(batch["start"][0, 0]), float(batch["length"][0, 0])
    ends = [follow(lagrangian, at(batch, t), bend) for t in (start, start + length)]
    for point, place, mass in zip(ends, ("a", "b"), ("h0", "h1"), strict=True):
        there = batch[mass][0] > 0
        torch.testing.assert_close(point.x[there], batch[place][0][there], atol=1e-6, rtol=0)
        if lagrangian.lam and not (bent and lagrangian.normalized):  # there divided by the sample mean of the slice, not by its expectation
            torch.testing.assert_close(point.mass, batch[mass][0], atol=1e-6, rtol=1e-6)
    for u in (0.3, 0.8):
        t = start + u * length
        here, ahead, behind = (follow(lagrangian, at({**batch, "z": batch["a"] * 0}, t + s * H), bend) for s in (0, 1, -1))
        torch.testing.assert_close((ahead.x - behind.x) / (2 * H), here.velocity, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close((ahead.mass - behind.mass) / (2 * H), here.mass_rate, atol=1e-5, rtol=1e-5)
        if lagrangian.noise:
            ahead, behind = (follow(lagrangian, at({**batch, "z": batch["a"] * 0 + 1}, t + s * H), None) for s in (1, -1))
            plain = [follow(lagrangian, at({**batch, "z": batch["a"] * 0}, t + s * H), None) for s in (1, -1)]
            change = ((ahead.x - plain[0].x).square() - (behind.x - plain[1].x).square())[:, 0] / (2 * H)
            torch.testing.assert_close(change / 2, here.spread, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["transport", "harmonic", "inverted", "linear", "mean acceleration", "true growth"])
def test_a_bend_only_costs(name):
    """Conditional paths are of least action one by one, between ends that may both travel; a bend cannot lower their energy, to second order."""
    lagrangian, cells = KINDS[name], snapshots()
    paths = ConditionalPaths.of(lagrangian, cells, path_coupling.least_action, Streams(0))
    batch, draws = paths.draw(Streams(3), 400, 20), []
    pick = {key: value[:1].expand_as(value) if key in ("a", "b", "h0", "h1") else value for key, value in batch.items()}
    first = batch["start"] == batch["start"][0, 0]  # one interval, the same paths at all its times
    rows = first[:, 0]
    pick = {key: value[rows] for key, value in pick.items()}
    u = (torch.arange(int(rows.sum())).double() + 0.5) / int(rows.sum())
    pick["t"] = (pick["start"] + u[:, None] * pick["length"]).contiguous()
    shape = bend_for(lagrangian, cells)
    for size in (-1.0, 0.0, 1.0):
        point = follow(lagrangian, pick, lambda *ends: tuple(size * c for c in shape(*ends)))  # noqa: B023
        draws.append(float(path_energy(lagrangian, pick["t"].flatten(), point).mean().detach()))
    assert draws[1] < draws[0]
    assert draws[1] < draws[2]


def test_bubbles_vanish_at_both_ends_and_have_their_slopes():
    u = torch.linspace(0, 1, 7, dtype=torch.float64)
    value, slope = bubbles(u)
    assert not value[[0, -1]].any()
    torch.testing.assert_close((bubbles(u + H)[0] - bubbles(u - H)[0]) / (2 * H), slope, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("distance", "mass"), [(1.0, 2.0), (2.5, 0.5), (4.0, 2.0)])
def test_plans_of_growth_between_two_atoms_have_the_exact_action(distance, mass):
    lagrangian = Lagrangian(WFR(1.0, normalized=False))
    cells = Snapshots.of([torch.zeros(2, 1).double(), torch.full((2, 1), distance).double()], times=[0, 1], masses=[1.0, mass])
    paths = ConditionalPaths.of(lagrangian, cells, path_coupling.least_action, Streams(0))
    batch = paths.draw(Streams(1), 64, 256)
    energy = float(path_energy(lagrangian, batch["t"].flatten(), follow(lagrangian, batch, None)).mean())
    exact = dirac_growth(torch.zeros(1), torch.full((1,), distance), 1.0, mass, 1.0)
    assert energy == pytest.approx(exact.action, rel=2e-2 if distance == 4.0 else 1e-6)  # far: paths that die and grow are drawn apart
    assert paths.plans[0].born == (1.0 if distance == 4.0 else 0.0)


def test_plans_of_normalised_growth_between_far_atoms_have_the_exact_action():
    places = torch.tensor([[-3.0], [3.0]], dtype=torch.float64)
    p, q, lagrangian = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]), Lagrangian(WFR(1.0))
    cells = Snapshots.of([places.repeat_interleave((20 * w).long(), 0) for w in (p, q)], times=[0, 1])
    plan = ConditionalPaths.of(lagrangian, cells, path_coupling.least_action, Streams(0)).plans[0]
    assert 2 * plan.theta**2 == pytest.approx(atom_growth(places, p, q, 1.0).action, rel=1e-4)
    random = ConditionalPaths.of(lagrangian, cells, path_coupling.random_pairs, Streams(0)).plans[0]
    assert random.theta > plan.theta


@pytest.mark.parametrize("coupling", [path_coupling.least_action, path_coupling.random_pairs])
@pytest.mark.parametrize("lam", [0.3, 3.0])
def test_every_cell_of_a_plan_has_its_mass(coupling, lam):
    x, y = (3 * Streams(k).normal("cells", torch.empty(n, 2, dtype=torch.float64)) for k, n in enumerate((7, 9)))
    plan = coupling(Lagrangian(WFR(lam, normalized=False)), x, y, (1.0, 2.0), 1.0, Streams(0))
    for index, mass, n, whole in ((plan.i, plan.h0, 7, 1.0), (plan.j, plan.h1, 9, 2.0)):
        real = index >= 0
        each = torch.zeros(n, dtype=torch.float64).index_add(0, index[real], (plan.chance * mass)[real])
        torch.testing.assert_close(
            each, torch.full_like(each, whole / n), rtol=0.3 if coupling is path_coupling.random_pairs else 1e-9, atol=0
        )
        assert not mass[~real].any()


def test_the_plan_of_growth_is_optimal():
    """Duality of entropy transport: for cost c the optimum ``HK^2 = m0 + m1 - 2 |gamma|`` needs ``log sigma_0 + log sigma_1 + c >= 0``."""
    x, y = (2 * Streams(k).normal("cells", torch.empty(8, 2, dtype=torch.float64)) for k in (0, 1))
    alpha = torch.full((8,), 1 / 8, dtype=torch.float64)
    cost = path_coupling.growth_cost(x, y, 1.0)
    assert float(cost[cost.isfinite()].max()) > 1  # -log cos^2 of half the distance, infinite from pi on
    torch.testing.assert_close((-cost).exp(), (torch.cdist(x, y).clamp_max(math.pi) / 2).cos().square(), atol=1e-12, rtol=0)
    gamma = entropic_plan(cost, alpha, alpha, path_coupling.BLUR, 1.0)
    left, right = (gamma.sum(1) / alpha).log(), (gamma.sum(0) / alpha).log()
    near = cost.isfinite()
    assert float((left[:, None] + right + cost)[near].min()) > -0.05
    relative = sum((alpha * (torch.special.xlogy(r.exp(), r.exp()) - r.exp() + 1)).sum() for r in (left, right))
    value = float((cost * gamma)[near].sum() + relative)
    assert value == pytest.approx(2 - 2 * float(gamma.sum()), abs=2e-2)


def test_the_entropic_plan_agrees_with_pot():
    import ot

    rng = Streams(0)
    cost = rng.uniform("cost", (5, 6)) * 3
    alpha, beta = rng.uniform("a", (5,)) + 0.1, rng.uniform("b", (6,)) + 0.1
    mine = entropic_plan(cost, alpha, beta, 0.05, 0.7)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        alpha.numpy(), beta.numpy(), cost.numpy(), 0.05, 0.7, method="sinkhorn_stabilized", numItermax=20_000, stopThr=1e-12, reg_type="kl"
    )
    torch.testing.assert_close(mine, torch.from_numpy(theirs), atol=2e-4, rtol=2e-3)


def test_large_snapshots_get_several_plans(monkeypatch):
    monkeypatch.setattr(path_coupling, "CELLS", 128)
    x = torch.arange(2 * path_coupling.CELLS, dtype=torch.float64)[:, None] / path_coupling.CELLS
    plan = path_coupling.least_action(Lagrangian(), x, x + 3.0, (1.0, 1.0), 1.0, Streams(0))
    assert len(plan.i) >= 2 * path_coupling.CELLS
    assert float(plan.chance.sum()) == pytest.approx(1.0)
    assert float((plan.chance * (x[plan.j] + 3 - x[plan.i])[:, 0]).sum()) == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize("stiffness", [2.0, -2.0])
def test_a_parabola_changes_the_entropy_of_the_plan(stiffness):
    """The kernel of ``x'' = -k x`` couples by ``exp(x y w / (sigma^2 L sin w))``, ``w = sqrt(k) L`` (Mehler): as entropy ``e = sigma^2 L sin w / w``.

    Between unit normals the covariance of the entropic plan is ``(sqrt(4 + e^2) - e) / 2``.
    """
    sigma, length = 0.8, 1.5
    x = torch.special.ndtri((torch.arange(300, dtype=torch.float64) + 0.5) / 300)[:, None]
    lagrangian = Lagrangian(noise=sigma, potential=Harmonic(stiffness))
    plan = path_coupling.least_action(lagrangian, x, x, (1.0, 1.0), length, Streams(0))
    w = math.sqrt(2.0) * length
    e = sigma**2 * length * (math.sin(w) if stiffness > 0 else math.sinh(w)) / w
    covariance = float(plan.chance @ (x[plan.i] * x[plan.j])[:, 0]) / float(x.square().mean())
    assert covariance == pytest.approx((math.sqrt(4 + e * e) - e) / 2, abs=0.01)
