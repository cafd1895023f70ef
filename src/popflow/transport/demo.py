"""`popflow demo wlf`: four problems of least action whose answers are known, each from two sets of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core import Population, Streams
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, training
from popflow.runs.figures import lines
from popflow.transport.closed_forms import atom_growth, dirac_growth, gaussian_transport
from popflow.transport.lagrangian import WFR, Harmonic, Lagrangian
from popflow.transport.lagrangian_flow import Certificate, LagrangianFlow
from popflow.transport.snapshots import Snapshots

BAR = 0.03
GRID = tuple(k / 20 for k in range(21))


@dataclass(frozen=True)
class DemoConfig:
    """Settings of ``popflow demo wlf``.

    Attributes:
        seed: Of every random stream.
        quick: Smaller, within seconds: at most 128 cells, and 120 steps, 400 for far atoms, whose potential is slow to change with time.
        steps: Training steps of each problem.
        cells: Samples in each snapshot of the Gaussian problems.
        width: Hidden width of the networks.
    """

    seed: int = 0
    quick: bool = False
    steps: int = 600
    cells: int = 1024
    width: int = 64

    def __post_init__(self) -> None:
        if self.steps < 20 or self.cells < 16 or self.width < 4:
            raise ValueError(f"steps={self.steps}, cells={self.cells}, width={self.width}, wanted at least 20, 16 and 4.")


@dataclass(frozen=True)
class Problem:
    """Two snapshots, what is minimised, its least action, and one number to follow in time with its exact value."""

    snapshots: Snapshots
    lagrangian: Lagrangian
    action: float
    what: str
    measure: Callable[[Population], float]
    exact: Callable[[float], float]
    quick_steps: int = 120


def demo(config: DemoConfig, run: Run) -> Report:
    """Learn the flow of least action for each problem and hold it against the closed form."""
    cells = min(128, config.cells) if config.quick else config.cells
    found: dict[str, tuple[Problem, Certificate, list[float]]] = {}
    for name, problem in problems(cells, Streams(config.seed)).items():
        steps = min(problem.quick_steps, config.steps) if config.quick else config.steps
        flow = LagrangianFlow(problem.lagrangian, width=config.width)
        flow.fit(
            problem.snapshots,
            steps=steps,
            rng=Streams(config.seed),
            compile=False,
            **training(run, name, steps),
        )
        pop, seen = Population.of(problem.snapshots.x[0]), []
        for k, t in enumerate(GRID):
            pop = flow.push(pop, GRID[k - 1], t, Streams(config.seed)) if k else pop
            seen.append(problem.measure(pop))
        found[name] = problem, flow.report(), seen
    errors = {name: abs(c.action / p.action - 1) for name, (p, c, _) in found.items()}
    worst = max(errors, key=errors.__getitem__)
    return Report(
        title="Least action between two sets of samples",
        summary=(
            "Cells are measured once, at two times. Among all ways from the first sample to the second the one of least action is learned: "
            "a single potential whose gradient moves particles and whose value makes them grow or die. Four problems have exact answers: "
            "transport of a Gaussian, the same in a parabola, growth of atoms too far apart to exchange mass, and an atom that moves and "
            "doubles.\n\nThe action of a learned flow is enclosed: the dual value of any potential lies below the action of the path, the "
            "energy of its strands above."
        ),
        verdict=Verdict(
            all(error <= BAR for error in errors.values()),
            f"The largest error of the action is {errors[worst]:.2%}, for {worst}.",
            f"every action within {BAR:.0%} of the closed form",
        ),
        figure=Figure(
            lines(
                GRID,
                {f"{name}: {p.what}": seen for name, (p, _, seen) in found.items()}
                | {f"{name}, exact": [p.exact(t) for t in GRID] for name, (p, _, _) in found.items()},
                x_label="time",
                y_label="value",
            ),
            "One number of each population on its way, learned and exact.",
            "Curves of a standard deviation, a weight and a mass against time, in pairs.",
        ),
        comparison=(
            Table(
                "Action",
                ("problem", "dual (below)", "learned flow", "exact", "strands (above)", "error"),
                tuple((name, c.dual, c.action, p.action, c.strands, f"{errors[name]:.2%}") for name, (p, c, _) in found.items()),
                "Dual and strands are averages over random strands and times: they enclose the action of the path up to sampling.",
            ),
        ),
        diagnostics=(
            Table(
                "Optimality",
                ("problem", "gap: flow - dual", "Hamilton-Jacobi residual, relative"),
                tuple((name, c.gap, c.residual_relative) for name, (_, c, _) in found.items()),
                "The residual is the root mean square of its gradient times T^2 over the radius of the cells; 0 at the optimum.",
            ),
        ),
        results={
            f"{name}, {what}": Measured(value)
            for name, (p, c, _) in found.items()
            for what, value in (("action", c.action), ("exact", p.action))
        },
        next=("popflow flow --help", f"popflow cite {run.path}"),
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
