"""``popflow demo diffopt``: Branin's function in an ellipse that only the data know. Where the minima are, and which are feasible, is known."""

from __future__ import annotations

import torch
from torch import Tensor

from popflow.compose.constrained.candidates import Found
from popflow.compose.constrained.closed_forms import MINIMA, branin, branin_rows, ellipse
from popflow.compose.constrained.config import DemoConfig
from popflow.compose.constrained.estimator import DiffOPT
from popflow.compose.constrained.job import stages
from popflow.core import Streams
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, figures, training


def demo(config: DemoConfig, run: Run) -> Report:
    """Learn the ellipse from rows, minimise by values alone, and compare with the known minima."""
    steps, particles = (min(config.steps, 600), min(config.particles, 400)) if config.quick else (config.steps, config.particles)
    data = branin_rows()
    model = DiffOPT(
        config.beta, objective=branin, differentiable=True, maximize=False, steps=steps, width=64 if config.quick else 128, particles=particles,
        reverse_steps=20 if config.quick else 40, random_state=config.seed,
    )  # fmt: skip
    model._fit(data.numpy(), branin(data).numpy(), run.device, lambda name, total: training(run, name, total))
    found = model.explore(stages(run))
    drawn = torch.from_numpy(model.draw(particles // 2).rows)
    free = torch.from_numpy(model.schema_.decode(model.model_.prior.draw(particles // 2, Streams(config.seed, run.device), 40)))
    return _report(config, data, drawn, free, found)


def figures_of(rows: Tensor) -> tuple[float, float, float, float]:
    """Share inside the ellipse inflated by 5 %, median value, distance to the farther of the two feasible minima, share within 1 of the third."""
    away = torch.cdist(rows.double(), MINIMA)
    inside = float((ellipse(rows) <= 1.05**2).double().mean())
    return inside, float(branin(rows).median()), float(away[:, :2].amin(0).max()), float((away[:, 2] < 1).double().mean())


def _report(config: DemoConfig, data: Tensor, drawn: Tensor, free: Tensor, found: Found) -> Report:
    inside, median, farthest, third = figures_of(drawn)
    passed = inside >= 0.95 and median < 2 and farthest < 0.3 and third < 0.01
    rows = tuple((name, *figures_of(rows)) for name, rows in (("data", data), ("draws of the prior", free), ("candidates", drawn)))
    levels = tuple((k + 1, one.fraction * config.beta, one.ess, one.acceptance, one.sigma) for k, one in enumerate(found.levels))
    clouds = {"data": data[:1500], "candidates": drawn, "minima": MINIMA}
    return Report(
        title="Branin's function inside an ellipse of data",
        summary=(
            f"{len(data)} rows lie in a rotated ellipse. A diffusion model learns where they lie; {len(drawn)} candidates are drawn from its density times "
            f"exp(-beta h), beta {config.beta:g}, by sequential Monte Carlo, which asks for values of the function alone. Nothing else tells the ellipse.\n\n"
            "Two of the three minima are in the ellipse. The third is what an optimiser finds that does not know where the data lie."
        ),
        verdict=Verdict(
            passed,
            f"{inside:.1%} inside the inflated ellipse, median {median:.2f}, minima found within {farthest:.2f}, {third:.1%} near the third",
            "95 % inside the ellipse inflated by 5 %, median below 2, both feasible minima found within 0.3, less than 1 % near the third",
        ),
        figure=Figure(
            figures.scatter(clouds, x_label="x1", y_label="x2"), "The data, the candidates, and the three minima.", "Points in a plane."
        ),
        comparison=(
            Table(
                "Rows", ("rows", "inside, inflated 5 %", "median value", "farther feasible minimum", "near the third"), rows, emphasis=(2,)
            ),
        ),
        diagnostics=(Table("Temperatures", ("step", "beta", "ESS, share", "acceptance", "noise level"), levels),),
        results={
            "inside": Measured(inside),
            "median": Measured(median),
            "acceptance": Measured(found.acceptance),
            "ESS": Measured(found.ess),
        },
        next=("popflow optimize --help", "popflow methods"),
    )
