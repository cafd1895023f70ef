"""`popflow demo wlf`: four least-action problems with known answers, each from two sets of samples."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from popflow.core import Population, Streams
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, training
from popflow.runs.figures import lines
from popflow.transport.closed_forms import atom_growth, dirac_growth, gaussian_transport
from popflow.transport.config import DemoConfig
from popflow.transport.lagrangian import WFR, Harmonic, Lagrangian
from popflow.transport.lagrangian_flow import Certificate, LagrangianFlow
from popflow.transport.snapshots import Snapshots

BAR = 0.03
GRID = tuple(k / 20 for k in range(21))


@dataclass(frozen=True)
class Problem:
    """Two snapshots, a Lagrangian, its least action, and one number to track in time beside its exact value."""

    snapshots: Snapshots
    lagrangian: Lagrangian
    action: float
    what: str
    measure: Callable[[Population], float]
    exact: Callable[[float], float]
    quick_steps: int = 120


@dataclass(frozen=True)
class Solved:
    """A problem, the quality of its fit, and the tracked number at the times of `GRID`."""

    problem: Problem
    fit: Certificate
    seen: list[float]

    @property
    def error(self) -> float:
        """Relative error of the action."""
        return abs(self.fit.action / self.problem.action - 1)


def demo(config: DemoConfig, run: Run) -> Report:
    """Learn the flow of least action for each problem and compare it with the closed form."""
    found = {}
    for name, problem in problems(min(128, config.cells) if config.quick else config.cells, Streams(config.seed)).items():
        steps = min(problem.quick_steps, config.steps) if config.quick else config.steps
        flow = LagrangianFlow(problem.lagrangian, width=config.width)
        flow.fit(problem.snapshots, steps=steps, rng=Streams(config.seed), compile=False, **training(run, name, steps))
        pop = Population.of(problem.snapshots.x[0])
        seen = [problem.measure(pop)]
        for a, b in pairwise(GRID):
            pop = flow.push(pop, a, b, Streams(config.seed))
            seen.append(problem.measure(pop))
        found[name] = Solved(problem, flow.report(), seen)
    return report(found, run)


def report(found: Mapping[str, Solved], run: Run) -> Report:
    """Learned actions and paths beside the exact ones."""
    worst = max(found, key=lambda name: found[name].error)
    return Report(
        title="Least action between two sets of samples",
        summary=(
            "Cells are measured once, at two times. Among all paths from the first sample to the second, the one of least action is learned: "
            "a single potential whose gradient moves particles and whose value makes them grow or die. Four problems have exact answers: "
            "transport of a Gaussian, the same in a parabola, growth of atoms too far apart to exchange mass, and an atom that moves and "
            "doubles.\n\nThe action of a learned flow is bracketed: the dual value of any potential lies below the action of the path, the "
            "energy of its conditional paths above."
        ),
        verdict=Verdict(
            all(one.error <= BAR for one in found.values()),
            f"The largest error of the action is {found[worst].error:.2%}, for {worst}.",
            f"every action within {BAR:.0%} of the closed form",
        ),
        figure=Figure(
            lines(
                GRID,
                {f"{name}: {one.problem.what}": one.seen for name, one in found.items()}
                | {f"{name}, exact": [one.problem.exact(t) for t in GRID] for name, one in found.items()},
                x_label="time",
                y_label="value",
            ),
            "One statistic of each population over time, learned and exact.",
            "Curves of a standard deviation, a weight and a mass against time, in pairs.",
        ),
        comparison=(
            Table(
                "Action",
                ("problem", "dual (below)", "learned flow", "exact", "path energy (above)", "error"),
                tuple(
                    (name, one.fit.dual, one.fit.action, one.problem.action, one.fit.path_energy, f"{one.error:.2%}")
                    for name, one in found.items()
                ),
                "Dual and path energy are averages over random paths and times: they bracket the action of the path up to sampling.",
            ),
        ),
        diagnostics=(
            Table(
                "Optimality",
                ("problem", "gap: path energy - dual", "Hamilton-Jacobi residual, relative"),
                tuple((name, one.fit.gap, one.fit.residual_relative) for name, one in found.items()),
                "The residual is the root mean square of its gradient times T^2 over the radius of the cells; 0 at the optimum.",
            ),
        ),
        results={
            f"{name}, {what}": Measured(value)
            for name, one in found.items()
            for what, value in (("action", one.fit.action), ("exact", one.problem.action))
        },
        next=("popflow flow --help", f"popflow cite {shlex.quote(str(run.path))}"),
    )


def problems(cells: int, rng: Streams) -> dict[str, Problem]:
    """The four problems; Gaussian samples have the exact mean and covariance."""
    left, right = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])
    wide, narrow = torch.tensor([0.3, 0.6]), torch.tensor([0.1, 0.1])

    def gaussian(first: Tensor, last: Tensor, stiffness: float) -> Problem:
        x = [mean + normal(cells, 2, rng) * sd for mean, sd in ((left, first), (right, last))]
        truth = gaussian_transport(left, torch.diag(first**2), right, torch.diag(last**2), stiffness=stiffness)
        lagrangian = Lagrangian(potential=Harmonic(stiffness) if stiffness else None)
        return Problem(
            Snapshots.of(x, times=[0, 1]),
            lagrangian,
            truth.action,
            "spread across",
            lambda pop: float(pop.x[:, 1].std()),
            lambda t: float(truth.covariance(t)[1, 1].sqrt()),
        )

    places, p, q = torch.tensor([[-3.0], [3.0]]), torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    far = atom_growth(places, p, q, 1.0)
    near = dirac_growth(torch.zeros(1), torch.ones(1), 1.0, 2.0, 1.0)
    return {
        "transport": gaussian(torch.tensor([0.3, 0.3]), wide, 0.0),
        "parabola": gaussian(narrow, narrow, 2.0),
        "far atoms": Problem(
            Snapshots.of([places.repeat_interleave((20 * w).long(), 0) for w in (p, q)], times=[0, 1]),
            Lagrangian(WFR(1.0)),
            far.action,
            "weight on the left",
            lambda pop: float(pop.weights()[pop.x[:, 0] < 0].sum()),
            lambda t: float(far.mass(t)[0]),
            quick_steps=400,
        ),
        "moving atom": Problem(
            Snapshots.of([torch.zeros(4, 1), torch.ones(4, 1)], times=[0, 1], masses=[1.0, 2.0]),
            Lagrangian(WFR(1.0, normalized=False)),
            near.action,
            "mass",
            lambda pop: math.exp(float(pop.log_normalizer())),
            lambda t: float(near.mass(t)[0]),
        ),
    }


def normal(n: int, dim: int, rng: Streams) -> Tensor:
    """Normal samples ``[n, dim]`` whose mean and covariance are exactly 0 and 1.

    >>> z = normal(10, 2, Streams(0))
    >>> bool(torch.allclose(z.mT @ z / 10, torch.eye(2), atol=1e-5))
    True
    """
    z = rng.normal("samples", torch.empty(n, dim, dtype=torch.float64, device=rng.device))
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.mT @ z / n), z.mT, upper=False).mT.float()
