"""Wasserstein Lagrangian flows against closed forms: transport, bridges, potentials, growth.

Every problem is given as two snapshots of samples, with sample moments that are exact where the answer depends on them; the value of a row is the
worst over seeds. ``transport``, ``bridge`` and ``growth`` learn as shipped; ``saddle`` pairs cells at random, as published, so that learned
bends have to undo the crossings; ``schemes`` compares ways to take the steps of that saddle.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Row, run
from torch import Tensor
from torch.func import functional_call

from popflow.core import DivergenceError, Streams
from popflow.learn import MLP, cosine, fit
from popflow.transport import path_coupling
from popflow.transport.closed_forms import GaussianFlow, atom_growth, dirac_growth, gaussian_bridge, gaussian_transport
from popflow.transport.conditional_paths import Bend, ConditionalPaths, follow, radius
from popflow.transport.lagrangian import WFR, Harmonic, Lagrangian, Linear, residual
from popflow.transport.lagrangian_flow import LagrangianFlow
from popflow.transport.saddle import Potential, saddle_loss
from popflow.transport.snapshots import Snapshots

torch.set_num_threads(1)
ACTION, SPREAD, DRIFT, WEIGHT = 0.03, 0.05, 0.1, 0.03


@dataclass(frozen=True)
class Gaussians:
    """Two normal distributions with diagonal covariances, the Lagrangian between them and its exact flow."""

    lagrangian: Lagrangian
    means: tuple[list[float], list[float]]
    sds: tuple[list[float], list[float]]
    exact: Callable[..., GaussianFlow]

    @property
    def truth(self) -> GaussianFlow:
        """The closed form."""
        (m0, m1), (s0, s1) = (tuple(map(torch.tensor, pair)) for pair in (self.means, self.sds))
        return self.exact(m0, torch.diag(s0**2), m1, torch.diag(s1**2))

    def cells(self, end: int, n: int, seed: int) -> Tensor:
        """Samples of one end."""
        return torch.tensor(self.means[end]) + normal(n, len(self.means[end]), seed) * torch.tensor(self.sds[end])


TOY = ([-1.0, 0.0], [1.0, 0.0])
WIDE, NARROW = ([0.3, 0.3], [0.3, 0.6]), ([0.1, 0.1], [0.1, 0.1])
PULL = torch.tensor([0.0, 4.0])
GAUSSIANS = {
    "Gaussian optimal transport": Gaussians(Lagrangian(), TOY, WIDE, gaussian_transport),
    "harmonic potential": Gaussians(
        Lagrangian(potential=Harmonic(2.0)), TOY, NARROW, lambda *ends: gaussian_transport(*ends, stiffness=2.0)
    ),
    "inverted harmonic potential": Gaussians(
        Lagrangian(potential=Harmonic(-2.0)), TOY, WIDE, lambda *ends: gaussian_transport(*ends, stiffness=-2.0)
    ),
    "linear potential": Gaussians(
        Lagrangian(potential=Linear(PULL)), TOY, WIDE, lambda *ends: gaussian_transport(*ends, acceleration=PULL)
    ),
    "harmonic potential, as a function": Gaussians(
        Lagrangian(potential=lambda t, x: x.square().sum(-1)), TOY, NARROW, lambda *ends: gaussian_transport(*ends, stiffness=2.0)
    ),
}
BRIDGE = Gaussians(Lagrangian(noise=1.0), ([0.0], [0.0]), ([1.0], [1.0]), lambda *ends: gaussian_bridge(*ends, 1.0))


def normal(n: int, dim: int, seed: int) -> Tensor:
    """Normal samples whose mean and covariance are exactly 0 and 1."""
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.mT @ z / n), z.mT, upper=False).mT.float()


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass
class Outcome:
    """One fit: errors by name, and what else is worth keeping."""

    errors: dict[str, float]
    notes: dict[str, float]


def gaussians(problem: Gaussians, seed: int, steps: int, cells: int, draws: int, **settings) -> Outcome:
    begin, truth = cpu(), problem.truth
    snapshots = Snapshots.of([problem.cells(end, cells, 100 * seed + end) for end in (0, 1)], times=[0, 1])
    flow = LagrangianFlow(problem.lagrangian, **settings).fit(snapshots, steps=steps, rng=Streams(seed), compile=False)
    found = flow.report(draws=draws)
    middle = flow.push(problem.cells(0, 16 * cells, 100 * seed + 7), 0.0, 0.5, Streams(seed))
    variance, exact = middle.x.var(0, correction=0).double(), truth.covariance(0.5).diagonal()
    errors = {
        "action": abs(found.action / truth.action - 1),
        "variance at 1/2": float((variance / exact - 1).abs().max()),
        "standard deviations at 1/2": float(((variance / exact).sqrt() - 1).abs().max()),
        "drift RMSE": drift_error(flow, truth),
    }
    return Outcome(errors, {"dual": found.dual, "path energy": found.path_energy or math.nan, "action": found.action, "exact": truth.action,
                            "residual": found.residual_relative, "rollbacks": flow.learned.rollbacks, "cpu_seconds": cpu() - begin})  # fmt: skip


def drift_error(flow: LagrangianFlow, truth: GaussianFlow) -> float:
    """Root mean square error of the drift at t = 1/4, 1/2, 3/4 on a grid over two standard deviations (first coordinate, others at the mean)."""
    worst = 0.0
    for t in (0.25, 0.5, 0.75):
        mean, sd = truth.mean(t), truth.covariance(t).diagonal().sqrt()
        x = mean.repeat(81, 1)
        x[:, 0] += torch.linspace(-2, 2, 81, dtype=torch.float64) * sd[0]
        off = flow.velocity(t, x.float()) - truth.drift(t, x.float())
        worst = max(worst, float(off.square().sum(1).mean().sqrt()))
    return worst


def far_atoms(seed: int, steps: int, draws: int, **settings) -> Outcome:
    """Weights (.5, .5) -> (.9, .1) at +-3 under normalised growth with lam = 1: nothing may travel."""
    begin, p, q = cpu(), torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    places = torch.tensor([[-3.0], [3.0]])
    truth = atom_growth(places, p, q, 1.0)
    x = [places.repeat_interleave((200 * w).long(), 0) for w in (p, q)]
    flow = LagrangianFlow(Lagrangian(WFR(1.0)), **settings)
    flow.fit(Snapshots.of(x, times=[0, 1]), steps=steps, rng=Streams(seed), compile=False)
    found, worst = flow.report(draws=draws), 0.0
    for t in (0.5, 1.0):
        end = flow.push(x[0], 0.0, t, Streams(seed))
        share = float(end.weights()[end.x[:, 0] < 0].sum())
        worst = max(worst, abs(share - float(truth.mass(t)[0])))
    errors = {"weights": worst, "action": abs(found.action / truth.action - 1), "weight that moved": float((end.x - x[0]).abs().max())}
    return Outcome(errors, {"dual": found.dual, "path energy": found.path_energy or math.nan, "action": found.action, "exact": truth.action,
                            "rollbacks": flow.learned.rollbacks, "cpu_seconds": cpu() - begin})  # fmt: skip


def diracs(seed: int, steps: int, draws: int, distance: float = 1.0, mass: float = 2.0, **settings) -> Outcome:
    """Mass 1 at the origin to mass 2 at distance 1 under true growth, lam = 1: path, mass and action in closed form."""
    begin = cpu()
    a, b = torch.zeros(2), torch.tensor([distance, 0.0])
    truth = dirac_growth(a, b, 1.0, mass, 1.0)
    snapshots = Snapshots.of([a.repeat(8, 1), b.repeat(8, 1)], times=[0, 1], masses=[1.0, mass])
    flow = LagrangianFlow(Lagrangian(WFR(1.0, normalized=False)), **settings)
    flow.fit(snapshots, steps=steps, rng=Streams(seed), compile=False)
    found = flow.report(draws=draws)
    middle, end = (flow.push(snapshots.x[0], 0.0, t, Streams(seed)) for t in (0.5, 1.0))
    errors = {
        "action": abs(found.action / truth.action - 1),
        "mass at 1/2 and 1": max(
            abs(float(pop.log_normalizer().exp()) / float(truth.mass(t)[0]) - 1) for pop, t in ((middle, 0.5), (end, 1.0))
        ),
        "position at 1/2 and 1": max(float((pop.x[0] - truth.position(t)[0]).norm()) for pop, t in ((middle, 0.5), (end, 1.0))),
    }
    return Outcome(errors, {"dual": found.dual, "path energy": found.path_energy or math.nan, "action": found.action, "exact": truth.action,
                            "rollbacks": flow.learned.rollbacks, "cpu_seconds": cpu() - begin})  # fmt: skip


def rows_of(name: str, make: Callable[[int], Outcome], bars: dict[str, float | None], seeds: int) -> list[Row]:
    begin, outcomes = time.perf_counter(), [make(seed) for seed in range(seeds)]
    rows = []
    for what, bar in bars.items():
        each = [o.errors[what] for o in outcomes]
        rows.append(Row(f"{name}: {what}, error", max(each), None, "", bar, "<=", {}, 0.0, {"each": each}))
    rows[0].seconds, rows[0].notes["fits"] = time.perf_counter() - begin, [o.notes for o in outcomes]
    for row in rows:
        print(f"  {row.claim}: {row.value:.4g} (bar {row.target})", flush=True)
    return rows


def checked(rows: list[Row], part: str) -> list[Row]:
    """The rows and one more: fits that the guard had to roll back, and errors that are not finite."""
    lost = sum(fit["rollbacks"] for row in rows for fit in row.notes.get("fits", [])) + sum(not math.isfinite(row.value) for row in rows)
    return [*rows, Row(f"{part}: fits that diverged", lost, None, "", 0, "<=")]


def transport(options: argparse.Namespace) -> list[Row]:
    """Optimal transport and potentials."""
    steps, cells, draws, seeds = (20, 64, 8, 1) if options.quick else (600, 1024, 64, options.seeds)
    bars: dict[str, float | None] = {"action": ACTION, "standard deviations at 1/2": SPREAD, "drift RMSE": None}
    rows = []
    for name, problem in GAUSSIANS.items():
        rows += rows_of(name, lambda seed, problem=problem: gaussians(problem, seed, steps, cells, draws), bars, seeds)
    return checked(rows, "transport")


def bridge(options: argparse.Namespace) -> list[Row]:
    steps, cells, draws, seeds = (20, 64, 8, 1) if options.quick else (1000, 1024, 64, options.seeds)
    bars: dict[str, float | None] = {"variance at 1/2": SPREAD, "drift RMSE": DRIFT, "action": None}
    return checked(
        rows_of("Schroedinger bridge", lambda seed: gaussians(BRIDGE, seed, steps, cells, draws, paths=32), bars, seeds), "bridge"
    )


def growth(options: argparse.Namespace) -> list[Row]:
    steps, draws, seeds = (20, 8, 1) if options.quick else (600, 64, options.seeds)
    rows = rows_of(
        "far atoms, normalised growth",
        lambda seed: far_atoms(seed, steps, draws),
        {"weights": WEIGHT, "action": None, "weight that moved": None},
        seeds,
    )
    bars: dict[str, float | None] = {"action": ACTION, "mass at 1/2 and 1": None, "position at 1/2 and 1": None}
    rows += rows_of("true growth between Diracs", lambda seed: diracs(seed, steps, draws), bars, seeds)
    return checked(rows, "growth")


def saddle(options: argparse.Namespace) -> list[Row]:
    """Cells paired at random, as published: the potential alone tells the path where to go."""
    steps, cells, draws, seeds = (20, 64, 8, 1) if options.quick else (1000, 1024, 64, options.seeds)
    pair: dict = {"coupling": path_coupling.random_pairs}
    names = ("Gaussian optimal transport", "harmonic potential")
    rows = []
    for name in names:
        rows += rows_of(f"{name}, random pairs", lambda seed, name=name: gaussians(GAUSSIANS[name], seed, steps, cells, draws, **pair),
                        {"action": None, "standard deviations at 1/2": None}, seeds)  # fmt: skip
    rows += rows_of("far atoms, random pairs", lambda seed: far_atoms(seed, steps, draws, **pair), {"weights": None, "action": None}, seeds)
    return checked(rows, "saddle")


class Optimistic(torch.optim.AdamW):
    """AdamW on ``2 g - g_before``: the step of optimistic mirror descent."""

    def step(self, closure=None):
        """Replace the gradients, then step."""
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            state, g = self.before.setdefault(p, p.grad.clone()), p.grad.clone()
            p.grad.mul_(2).sub_(state)
            state.copy_(g)
        return super().step(closure)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.before: dict[Tensor, Tensor] = {}


class Extragradient(torch.optim.AdamW):
    """AdamW that looks ahead at odd steps and at even ones takes the step from where it stood, with the gradient found ahead."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.here: list[Tensor] | None = None

    def step(self, closure=None):
        """Step from here, or from where the look ahead began."""
        params = [p for group in self.param_groups for p in group["params"]]
        if self.here is None:
            self.here = [p.detach().clone() for p in params]
        else:
            for p, here in zip(params, self.here, strict=True):
                p.data.copy_(here)
            self.here = None
        return super().step(closure)


def boundary_form(path_loss: Callable, lagrangian: Lagrangian, potential: Potential, bend: Bend, unit: float) -> Callable:
    """The published loss of the potential: boundary values at both ends and the Hamilton-Jacobi residual along the path."""

    def loss(params, batch):
        mine, theirs = ({name[2:]: p for name, p in params.items() if name[0] == player} for player in "sb")
        path, _ = path_loss({**{f"s.{n}": p.detach() for n, p in mine.items()}, **{f"b.{n}": p for n, p in theirs.items()}}, batch)
        s = lambda t, x: functional_call(potential, mine, (t, x))  # noqa: E731
        still = {name: p.detach() for name, p in theirs.items()}
        t = batch["t"].flatten()
        point = follow(lagrangian, batch, lambda *ends: functional_call(bend, still, ends))
        rise = s(t * 0 + 1, batch["b"].flatten(0, 1)) - s(t * 0, batch["a"].flatten(0, 1))
        dual = (rise - residual(lagrangian, s, t, point.x)).mean()
        return path - dual / unit, {"dual": dual}

    return loss


def schemes(options: argparse.Namespace) -> list[Row]:
    """Ways to take the steps of the saddle, on the harmonic toy with cells paired at random; the figure is the error of the action."""
    steps = 10 if options.quick else 400
    problem = GAUSSIANS["harmonic potential"]
    truth, lagrangian = problem.truth, problem.lagrangian
    snapshots = Snapshots.of([problem.cells(end, 512, end) for end in (0, 1)], times=[0, 1])
    same, slow = (3e-3, 3e-3), (3e-3, 3e-4)
    ways = {
        "published loss, one rate": ("boundary", torch.optim.AdamW, same, 0.0),
        "published loss, path ten times slower": ("boundary", torch.optim.AdamW, slow, 0.0),
        "regression, one rate": ("regression", torch.optim.AdamW, same, 0.0),
        "regression, path ten times slower": ("regression", torch.optim.AdamW, slow, 0.0),
        "regression, one rate, optimistic": ("regression", Optimistic, same, 0.0),
        "regression, one rate, extragradient": ("regression", Extragradient, same, 0.0),
        "regression, one rate, anchored by a tenth": ("regression", torch.optim.AdamW, same, 0.1),
    }
    rows = []
    for name, (form, optimizer, rates, anchor) in ways.items():
        begin, rng = cpu(), Streams(0)
        with rng.layers():
            potential = Potential(lagrangian, snapshots, MLP(2, out=1, width=64, depth=3))
            bend = Bend(lagrangian, snapshots, width=64, depth=2)
        draws = ConditionalPaths.of(lagrangian, snapshots, path_coupling.random_pairs, rng)
        unit = float(radius(draws.x)) ** 2
        loss = saddle_loss(lagrangian, potential, bend, unit, anchor)
        if form == "boundary":
            loss = boundary_form(loss, lagrangian, potential, bend, unit)
        params = {f"s.{n}": p for n, p in potential.named_parameters()} | {f"b.{n}": p for n, p in bend.named_parameters()}
        first, seen = len(list(potential.parameters())), []

        def groups(p, first=first, rates=rates, optimizer=optimizer):
            parts = [{"params": p[:first], "lr": rates[0]}, {"params": p[first:], "lr": rates[1]}]
            return optimizer(parts, betas=(0.5, 0.9), weight_decay=1e-4)

        try:
            fit(loss, params, lambda rng, draws=draws: draws.draw(rng, 16, 16), steps=steps, rng=rng, optimizer=groups, ema=0.99,
                schedule=cosine(steps, steps // 10), clip_norm=10.0, record=[seen.append], log_every=max(1, steps // 6), compile=False,
                spike=math.inf, max_rollbacks=0)  # fmt: skip
            value = abs(seen[-1].metrics["dual"] / truth.action - 1)
        except DivergenceError:
            value = math.inf
        duals = [p.metrics["dual"] for p in seen]
        rows.append(
            Row(f"harmonic potential, random pairs, {name}: dual, error", value, None, "", None, "<=", {}, cpu() - begin, {"duals": duals})
        )
        print(f"  {rows[-1].claim}: {value:.4g} {duals}", flush=True)
    return rows


def main(options: argparse.Namespace) -> list[Row]:
    return [row for part in options.only for row in PARTS[part](options)]


PARTS = {"transport": transport, "bridge": bridge, "growth": growth, "saddle": saddle, "schemes": schemes}

if __name__ == "__main__":
    run("lagrangian_exact", main, parts=tuple(PARTS))
