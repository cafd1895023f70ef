"""The saddle and the flow: bounds hold pointwise, gradients are those of the dual, fits meet closed forms, units and held-out cells do not matter."""

import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from popflow.core import Population, Streams
from popflow.core.calculus import value_and_grad
from popflow.learn import MLP
from popflow.transport import path_coupling
from popflow.transport.closed_forms import atom_growth, dirac_growth, gaussian_bridge, gaussian_transport
from popflow.transport.conditional_paths import Bend, ConditionalPaths, follow
from popflow.transport.lagrangian import WFR, Harmonic, Lagrangian, Linear, residual
from popflow.transport.lagrangian_flow import LagrangianFlow
from popflow.transport.report import headline
from popflow.transport.saddle import Potential, dual, path_energy, saddle_loss
from popflow.transport.snapshots import Snapshots

SMALL = {"width": 32, "depth": 2}


def normal(n, dim, seed):
    """Samples whose mean and covariance are exactly 0 and 1."""
    z = Streams(seed).normal("z", torch.empty(n, dim, dtype=torch.float64))
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.mT @ z / n), z.mT, upper=False).mT


def cells(n=40, dim=2, masses=None, times=(0.0, 1.0, 2.5)):
    return Snapshots.of([normal(n + k, dim, k) + k for k in range(len(times))], times=times, masses=masses)


def players(lagrangian, snapshots, seed=0):
    """A potential and a bend with random parameters."""
    rng = Streams(seed)
    with rng.layers():
        potential = Potential(lagrangian, snapshots, MLP(snapshots.dim, out=1, width=16, depth=2)).double()
        bend = Bend(lagrangian, snapshots, width=8, depth=1).double()
    for p in bend.parameters():
        p.data = p.data + 0.2 * rng.normal("bend", p.data)
    return potential, bend


CASES = {
    "transport": Lagrangian(),
    "potential": Lagrangian(potential=Harmonic(1.0)),
    "drift": Lagrangian(drift=lambda t, x: torch.stack([-x[:, 1], x[:, 0]], 1) * t[:, None]),
    "true growth": Lagrangian(WFR(0.5, normalized=False)),
    "normalised growth, potential": Lagrangian(WFR(0.5), potential=lambda t, x: (x[:, 0] * t).sin()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_dual_of_any_potential_is_below_the_energy_of_the_paths(name):
    lagrangian, snapshots = CASES[name], cells(masses=[1.0, 2.0, 0.5])
    potential, bend = players(lagrangian, snapshots)
    batch = ConditionalPaths.of(lagrangian, snapshots, path_coupling.random_pairs, Streams(0)).draw(Streams(1), 8, 30)
    point, t = follow(lagrangian, batch, bend), batch["t"].flatten()
    lower, upper = dual(lagrangian, potential, t, point), path_energy(lagrangian, t, point)
    alive = point.mass > 1e-6
    assert bool((lower <= upper + 1e-9)[alive].all())
    # and they meet where grad s = x' - u and lam s = m' / m, by completing the squares
    value, (slope,) = value_and_grad(lambda x: potential(t, x), point.x)
    squares = point.mass * (slope - point.velocity).square().sum(-1) / 2
    if lagrangian.lam:
        squares = squares + (lagrangian.lam * point.mass * value - point.mass_rate).square() / (2 * lagrangian.lam * point.mass)
    torch.testing.assert_close((upper - lower)[alive], squares[alive], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_path_descends_on_the_dual(name):
    """The gradient by the Hamilton-Jacobi residual is that of the dual along the path, after integration by parts in time."""
    lagrangian, snapshots = CASES[name], cells(times=(0.0, 2.0))
    potential, bend = players(lagrangian, snapshots)
    paths = ConditionalPaths.of(lagrangian, snapshots, path_coupling.random_pairs, Streams(0))
    batch = paths.draw(Streams(1), 2000, 10)
    batch |= {key: batch[key][:1].expand_as(batch[key]).contiguous() for key in ("a", "b", "h0", "h1")}
    batch["t"] = ((torch.arange(2000, dtype=torch.float64) + 0.5) / 1000)[:, None].expand(2000, 10).contiguous()
    params = {f"b.{n}": p.detach().requires_grad_() for n, p in bend.named_parameters()}
    fixed = {f"s.{n}": p.detach() for n, p in potential.named_parameters()}
    loss = saddle_loss(lagrangian, potential, bend, 1.0, 0.0)(params | fixed, batch)[0]
    found = torch.autograd.grad(loss, list(params.values()))
    t = batch["t"].flatten()
    direct = dual(lagrangian, potential, t, follow(lagrangian, batch, bend)).mean()
    wanted = torch.autograd.grad(direct, list(bend.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3 * float(b.abs().max()) + 1e-6, rtol=2e-3)


@pytest.mark.parametrize("kind", ["network", "steepening"])
def test_noise_the_dual_is_the_boundary_form(kind):
    """``E s_1 - E s_0 - int E[residual]``, the published form, up to sampling: bridges need both the Laplacian and its correction.

    The correction is odd about the middle of the interval, so only a Laplacian that changes in time, as that of ``t |x|^2``, shows its sign.
    """
    lagrangian, snapshots = Lagrangian(noise=0.8), cells(n=200, times=(0.0, 1.0))
    potential, _ = players(lagrangian, snapshots)
    with torch.no_grad():
        potential.network.last.weight.mul_(5.0)
    if kind == "steepening":
        potential = lambda t, x: t * x.square().sum(1)  # noqa: E731
    paths, rng = ConditionalPaths.of(lagrangian, snapshots, path_coupling.least_action, Streams(0)), Streams(1)
    lower, other = [], []
    for _ in range(4):
        batch = paths.draw(rng, 500, 40)
        t, point = batch["t"].flatten(), follow(lagrangian, batch, None)
        lower.append(dual(lagrangian, potential, t, point).detach())
        rise = potential(t * 0 + 1, batch["b"].flatten(0, 1)) - potential(t * 0, batch["a"].flatten(0, 1))
        other.append((rise - residual(lagrangian, potential, t, point.x)).detach())
    lower, other = torch.cat(lower), torch.cat(other)
    error = float((lower.var() / len(lower) + other.var() / len(other)).sqrt())
    assert abs(float(lower.mean() - other.mean())) < 4 * error
    assert lower.var() < other.var()


ENDS = torch.tensor([-1.0, 0.0]), torch.eye(2) * 0.09, torch.tensor([1.0, 0.0]), torch.diag(torch.tensor([0.09, 0.36]))


def gaussian_snapshots(n=256, times=(0.0, 1.0)):
    root = [s.double().sqrt() for s in (ENDS[1], ENDS[3])]
    return Snapshots.of([(m + normal(n, 2, k) @ r).float() for k, (m, r) in enumerate(zip(ENDS[::2], root, strict=True))], times=times)


@pytest.mark.parametrize("kind", ["transport", "inverted", "linear"])
def test_gaussians_are_carried_at_the_exact_action(kind):
    pull = torch.tensor([0.0, 4.0])
    lagrangian, exact = {
        "transport": (Lagrangian(), gaussian_transport(*ENDS)),
        "inverted": (Lagrangian(potential=Harmonic(-2.0)), gaussian_transport(*ENDS, stiffness=-2.0)),
        "linear": (Lagrangian(potential=Linear(pull)), gaussian_transport(*ENDS, acceleration=pull)),
    }[kind]
    flow = LagrangianFlow(lagrangian, **SMALL).fit(gaussian_snapshots(), steps=250, rng=Streams(0), compile=False)
    found = flow.report()
    assert found.action == pytest.approx(exact.action, rel=0.03)
    assert found.dual <= found.path_energy
    assert found.path_energy == pytest.approx(exact.action, rel=0.03)
    assert 0 <= found.gap == pytest.approx(found.path_energy - found.dual)
    assert found.explained == (pytest.approx(found.dual / found.path_energy) if kind == "transport" else None)
    assert found.warnings == ()
    assert found.born == 0.0
    middle = flow.push(gaussian_snapshots(4000).x[0], 0.0, 0.5, Streams(0)).x
    torch.testing.assert_close(middle.std(0).double(), exact.covariance(0.5).diagonal().sqrt(), rtol=0.05, atol=0)


def test_random_pairs_are_parted_by_the_saddle():
    """Straight lines between random pairs lose a factor sqrt 2 of the spread half way (an error of .29); the learned bends give it back."""
    flow = LagrangianFlow(Lagrangian(), coupling=path_coupling.random_pairs, path_lr=1e-3, **SMALL)
    flow.fit(gaussian_snapshots(), steps=800, rng=Streams(0), compile=False)
    exact = gaussian_transport(*ENDS)
    middle = flow.push(gaussian_snapshots(4000).x[0], 0.0, 0.5, Streams(0)).x
    torch.testing.assert_close(middle.std(0).double(), exact.covariance(0.5).diagonal().sqrt(), rtol=0.1, atol=0)
    assert flow.report().action == pytest.approx(exact.action, rel=0.05)
    assert flow.learned.rollbacks == 0


def test_a_bridge_has_the_exact_variance_half_way():
    snapshots = Snapshots.of([normal(256, 1, k).float() for k in (0, 1)], times=[0, 1])
    flow = LagrangianFlow(Lagrangian(noise=1.0), **SMALL).fit(snapshots, steps=200, rng=Streams(0), compile=False)
    exact = gaussian_bridge(torch.zeros(1), torch.eye(1), torch.zeros(1), torch.eye(1), 1.0)
    middle = flow.push(normal(8000, 1, 2).float(), 0.0, 0.5, Streams(0), steps=100).x
    assert float(middle.var()) == pytest.approx(float(exact.covariance(0.5)), rel=0.15)
    told = flow.report()
    assert (told.path_energy, told.gap, told.explained) == (None, None, None)


def test_growth_meets_masses_and_weights():
    a, b = torch.zeros(1), torch.ones(1)
    truth = dirac_growth(a, b, 1.0, 2.0, 1.0)
    snapshots = Snapshots.of([a.repeat(4, 1), b.repeat(4, 1)], times=[0, 1], masses=[1.0, 2.0])
    flow = LagrangianFlow(Lagrangian(WFR(1.0, normalized=False)), **SMALL).fit(snapshots, steps=200, rng=Streams(0), compile=False)
    assert flow.report().action == pytest.approx(truth.action, rel=0.03)
    end = flow.push(snapshots.x[0], 0.0, 1.0, Streams(0))
    assert float(end.log_normalizer().exp()) == pytest.approx(2.0, rel=0.05)
    assert float(end.x.mean()) == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(flow.growth(0.5, snapshots.x[0]), flow.potential(0.5, snapshots.x[0]))

    places, p, q = torch.tensor([[-3.0], [3.0]]), torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    atoms = Snapshots.of([places.repeat_interleave((20 * w).long(), 0) for w in (p, q)], times=[0, 1])
    flow = LagrangianFlow(Lagrangian(WFR(1.0)), width=32).fit(atoms, steps=600, rng=Streams(0), compile=False)
    truth = atom_growth(places, p, q, 1.0)
    assert flow.report().action == pytest.approx(
        truth.action, rel=0.03
    )  # two layers stop at 0.38, a potential that does not change in time
    for t in (0.5, 1.0):
        end = flow.push(atoms.x[0], 0.0, t, Streams(0))
        assert float(end.weights()[:10].sum()) == pytest.approx(float(truth.mass(t)[0]), abs=0.03)


def test_mass_that_nothing_reaches_is_reported():
    snapshots = Snapshots.of([torch.zeros(2, 1), torch.full((2, 1), 9.0)], times=[0, 1], masses=[1.0, 3.0])
    flow = LagrangianFlow(Lagrangian(WFR(1.0, normalized=False)), width=8, depth=1).fit(snapshots, steps=10, rng=Streams(0), compile=False)
    found = flow.report(draws=2)
    assert found.born == 1.0
    assert found.gap >= 0
    assert found.warnings[0].startswith("100% of the mass of a snapshot is born there, not moved there")
    assert headline(found)["mass born, not moved"].value == 1.0


def test_an_unscaled_unbalanced_fit_does_not_look_perfect():
    """Lengths a million times too large: nothing moves, and the action is tiny."""
    x = [1e6 * (normal(40, 2, k) + 2 * k).float() for k in range(3)]
    found = LagrangianFlow(Lagrangian(WFR(1.0)), width=8).fit(Snapshots.of(x), steps=20, rng=Streams(0), compile=False).report(draws=4)
    told = headline(found)
    assert found.born == 1.0
    assert any("born there, not moved there" in text for text in found.warnings)
    assert {"action, lower bound", "action, upper bound", "mass born, not moved"} <= told.keys()
    assert told["action, lower bound"].value <= told["action, upper bound"].value
    assert found.gap >= 0


def test_the_certificate_tells_what_one_potential_explains_of_crossing_paths():
    """Random pairs of N(0, 1) and N(m, 1) on straight lines: of m^2 / 2 + 1 the best potential explains m^2 / 2 + 1 - pi / 4."""
    m = 2.0
    snapshots = Snapshots.of([normal(256, 1, 0).float(), normal(256, 1, 1).float() + m])
    flow = LagrangianFlow(Lagrangian(), coupling=path_coupling.random_pairs, path_lr=0.0, **SMALL)  # no bends: the paths go on crossing
    found = flow.fit(snapshots, steps=200, rng=Streams(0), compile=False).report()
    assert found.path_energy == pytest.approx(m**2 / 2 + 1, rel=0.03)
    assert found.explained == pytest.approx((m**2 / 2 + 1 - math.pi / 4) / (m**2 / 2 + 1), rel=0.03)
    assert found.gap == pytest.approx(math.pi / 4, rel=0.1)


def test_units_of_time_do_not_matter():
    """Times 0..1 with ``k, sigma`` against 10..14 with ``k / 16, sigma / 2``: the same flow, four times slower, a quarter of the action."""
    fast, slow = (
        LagrangianFlow(Lagrangian(noise=noise, potential=Harmonic(k)), width=8, depth=1).fit(
            gaussian_snapshots(64, times), steps=20, rng=Streams(0), compile=False
        )
        for times, k, noise in (((0.0, 1.0), 2.0, 0.4), ((10.0, 14.0), 2.0 / 16, 0.2))
    )
    x = gaussian_snapshots(8).x[0]
    torch.testing.assert_close(fast.velocity(0.3, x), 4 * slow.velocity(11.2, x), rtol=1e-2, atol=1e-3)
    assert fast.report(draws=4).dual == pytest.approx(4 * slow.report(draws=4).dual, rel=1e-2)


COMPILED = """
import sys, torch
compile = torch.compile
torch.compile = lambda f, options=None, **rest: compile(f, backend="aot_eager", **rest)  # the whole graph, without generating code
from popflow.core import Streams
from popflow.transport import WFR, Lagrangian, LagrangianFlow, Snapshots, path_coupling
from popflow.transport.lagrangian import Harmonic
from safetensors.torch import save_file

torch.set_num_threads(1)
x = [torch.randn(32, 2, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1)]
for compiled in (False, True):
    flow = LagrangianFlow(Lagrangian(WFR(1.0), potential=Harmonic(1.0)), width=8, depth=1, coupling=path_coupling.random_pairs)
    learned = flow.fit(Snapshots.of(x, times=[0, 1]), steps=5, rng=Streams(0), compile=compiled).learned
    assert learned.compiled == compiled
    save_file({name: p.contiguous() for name, p in learned.params.items()}, f"{sys.argv[1]}/{compiled}.safetensors")
"""


def test_compiled_and_eager_fits_agree(tmp_path):
    """In a process of its own: the checks of annotations stand in the way of the compiler."""
    subprocess.run([sys.executable, "-c", COMPILED, str(tmp_path)], check=True, timeout=900)
    eager, compiled = (load_file(tmp_path / f"{name}.safetensors") for name in ("False", "True"))
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(value, compiled[name], rtol=0, atol=1e-6)


def test_populations_go_back_where_they_came_from():
    flow = LagrangianFlow(Lagrangian(WFR(1.0)), width=8, depth=1).fit(cells(), steps=10, rng=Streams(0), compile=False)
    pop = Population.of(cells().x[0])
    there = flow.push(pop, 0.0, 2.5, Streams(0))
    back = flow.push(there, 2.5, 0.0, Streams(0))
    torch.testing.assert_close(back.x, pop.x, atol=2e-3, rtol=0)
    torch.testing.assert_close(back.log_w, pop.log_w, atol=2e-3, rtol=0)
    assert flow.push(pop, 1.0, 1.0, Streams(0)) is pop


def test_bad_input_is_named():
    rng = Streams(0)
    with pytest.raises(ValueError, match="longest interval is 4.243, wanted below pi".replace(".", r"\.")):
        LagrangianFlow(Lagrangian(potential=Harmonic(2.0))).fit(cells(times=(0.0, 3.0)), rng=rng)
    with pytest.raises(ValueError, match=r"with WFR\(normalized=True\), which gives every snapshot mass one"):
        LagrangianFlow(Lagrangian(WFR(1.0))).fit(cells(masses=[1.0, 2.0, 3.0]), rng=rng)
    with pytest.raises(ValueError, match="all cells of all snapshots coincide"):
        LagrangianFlow(Lagrangian()).fit(Snapshots.of([torch.ones(3, 1)] * 2, times=[0, 1]), rng=rng)
    late = Snapshots.of([torch.zeros(3, 1), torch.ones(3, 1)], times=[1.7e9, 1.7e9 + 60])
    with pytest.raises(ValueError, match="too near for torch.float32. Fix: subtract the first time".replace(".", r"\.")):
        LagrangianFlow(Lagrangian()).fit(late, rng=rng)
    with pytest.raises(ValueError, match="potential returned"):
        LagrangianFlow(Lagrangian(potential=lambda t, x: x)).fit(cells(), rng=rng)
    with pytest.raises(ValueError, match="not been fitted"):
        LagrangianFlow(Lagrangian()).velocity(0.0, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"anchor=1\.5"):
        LagrangianFlow(Lagrangian(), anchor=1.5)
    with pytest.raises(ValueError, match="width=0, wanted at least 1"):
        LagrangianFlow(Lagrangian(), width=0)


def test_networks_without_second_derivatives_and_noise_backwards_are_refused():
    class Rectified(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(dim + 1, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, x, u):
            return self.layers(torch.cat([x, u[:, None]], 1))

    snapshots = gaussian_snapshots(16)
    with pytest.raises(ValueError, match="second derivatives in x are zero everywhere"):
        LagrangianFlow(Lagrangian(noise=0.5), network=Rectified).fit(snapshots, rng=Streams(0))
    LagrangianFlow(Lagrangian(), network=Rectified).fit(snapshots, steps=2, rng=Streams(0), compile=False)  # fine without noise
    flow = LagrangianFlow(Lagrangian(noise=0.5), width=8, depth=1).fit(snapshots, steps=2, rng=Streams(0), compile=False)
    with pytest.raises(ValueError, match="runs forwards"):
        flow.push(snapshots.x[0], 1.0, 0.0, Streams(0))
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\), wanted \[n, 2\]"):
        flow.velocity(0.0, torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"x has shape \(4, 1\), wanted \[n, 2\]"):
        flow.push(torch.zeros(4, 1), 0.0, 1.0, Streams(0))


def test_the_path_answers_for_times_between_with_its_mass():
    """Normal clouds half way by optimal transport, and the mass of atoms that grow: both known, neither integrated nor trained."""
    cells = gaussian_snapshots(400)
    flow = LagrangianFlow(Lagrangian(), **SMALL).fit(cells, steps=1, rng=Streams(0), compile=False)
    exact = gaussian_transport(*ENDS)
    middle = flow.interpolate(0.5, 4000, Streams(0)).x
    torch.testing.assert_close(middle.std(0).double(), exact.covariance(0.5).diagonal().sqrt(), rtol=0.03, atol=0)
    torch.testing.assert_close(middle.mean(0).double(), exact.mean(0.5), rtol=0, atol=0.02)
    torch.testing.assert_close(flow.interpolate(0.0, 400, Streams(0)).x.sort(0).values, cells.x[0].sort(0).values)
    with pytest.raises(ValueError, match=r"t=1\.5, wanted a time from 0\.0 to 1\.0"):
        flow.interpolate(1.5, 4, Streams(0))
    with pytest.raises(ValueError, match="n=0, wanted at least 1"):
        flow.interpolate(0.5, 0, Streams(0))
    a, b = torch.zeros(4, 1), torch.ones(4, 1)
    atoms = Snapshots.of([a, b], times=[0, 1], masses=[1.0, 2.0])
    grown = LagrangianFlow(Lagrangian(WFR(1.0, normalized=False)), **SMALL).fit(atoms, steps=1, rng=Streams(0), compile=False)
    truth = dirac_growth(a[0], b[0], 1.0, 2.0, 1.0)
    for t in (0.25, 0.5, 1.0):
        pop = grown.interpolate(t, 8, Streams(0))
        assert float(pop.log_normalizer().exp()) == pytest.approx(float(truth.mass(t)), rel=1e-5)
        torch.testing.assert_close(pop.x.double(), truth.position(t).expand(8, 1), atol=1e-5, rtol=0)


def test_a_potential_begins_at_the_mean_velocity_whatever_the_reference_is():
    cells = gaussian_snapshots(64)
    for drift in (None, lambda t, x: torch.ones_like(x) * (1 + t[:, None])):
        lagrangian = Lagrangian(drift=drift)
        with Streams(0).layers():
            potential = Potential(lagrangian, cells, MLP(2, out=1, width=8, depth=1))
        torch.nn.init.zeros_(potential.network.last.weight)
        t, x = torch.tensor([0.25, 0.75]), torch.zeros(2, 2)
        _, (velocity,) = value_and_grad(lambda x: potential(t, x), x)  # noqa: B023
        velocity = velocity + (0.0 if drift is None else drift(t, x))
        torch.testing.assert_close(velocity, (cells.x[1].mean(0) - cells.x[0].mean(0)).expand(2, 2), atol=1e-5, rtol=0)
