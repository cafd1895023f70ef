"""The report of ``popflow sample`` for composed experts: samples, effective sample size, ancestors, and a check that suits the experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from popflow.compose.config import SampleConfig
from popflow.compose.discretisation import over_steps
from popflow.compose.sampler import Sample, Sampler
from popflow.compose.zoo.catalogue import Recipe
from popflow.core.metrics import distinct_ancestors
from popflow.runs import Figure, Measured, Report, Run, Table, figures

FEW = 10
"""Surviving ancestors of a run below which a report warns."""
MANY = 16
"""Dimensions above which log Z is printed with a warning."""
_SHOWN = 16


def report(config: SampleConfig, recipe: Recipe, sampler: Sampler, levels: Tensor, run: Run, out: Sample, picked: Tensor) -> Report:
    """Report samples of composed experts; ``picked`` holds one of each run."""
    pop, (runs, particles), steps = out.population, out.x.shape[:2], len(levels) - 1
    picture, results, shown, diagnostics = _picture(picked), {}, "The figure shows one sample per run, drawn by weight.", ()
    if recipe.judge is not None:
        temperature = recipe.temperature / sampler.precision(float(levels[0]))
        found = recipe.judge(temperature, pop)
        picture, results, diagnostics = found.figure, found.results, found.diagnostics
        shown = f"Temperature {temperature:g}; the model was trained at {recipe.temperature:g}."
        if config.op == "product":
            shown += f" Langevin steps per level: {sampler.evaluations // len(sampler.experts) - 1 - (config.variance == 'local')}."
    looks = [row["discretisation"] for row in run.metrics.rows("sample") if "discretisation" in row]
    if looks:
        spread = over_steps(torch.tensor(looks, dtype=torch.float64))
        results |= {"discretisation": Measured(spread)}
        shown += f" Discretisation over all steps, as if they were independent: {spread:.2g} nats."
    if sampler.resamples and particles > 1:
        diagnostics = (*diagnostics, survival(run.metrics.rows("sample")))
    return Report(
        title=f"{config.op} of {', '.join(config.experts)}",
        summary=f"{number(runs, 'independent run')} of {number(particles, 'particle')}, {number(steps, 'step')} from noise level {float(levels[0]):g} to {float(levels[-1]):g}. "
        f"{shown}",
        figure=picture,
        diagnostics=(*diagnostics, _table_of_runs(sampler, out, steps)),
        results={
            "effective_particles": Measured(float(pop.ess().mean())),
            "distinct_ancestors": Measured(float(distinct_ancestors(pop.aux["ancestor"]).double().mean())),
            **results,
        },
        files={"sample.safetensors": "all particles x, log weights log_w, companions", "picked.safetensors": "one sample of each run"},
    )


def number(count: int, what: str) -> str:
    """Return a count of things in words.

    >>> number(1, "particle"), number(2, "particle")
    ('1 particle', '2 particles')
    """
    return f"{count} {what}{'s' * (count != 1)}"


def survival(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Effective particles and surviving ancestors against the noise level, from the metrics of a sampling stage."""
    curve = figures.lines(
        [max(math.sqrt(row["t"]), 1e-3) for row in rows],
        {
            "effective particles": torch.tensor([row["ess"] for row in rows]).mean(1),
            "distinct ancestors": torch.tensor([row["ancestors"] for row in rows]).double().mean(1),
        },
        x_label="noise level sigma",
        y_label="particles (mean over runs)",
        log_x=True,
        downwards=True,
    )
    return Figure(curve, "Effective sample size and surviving ancestors as the noise falls.")


def _table_of_runs(sampler: Sampler, out: Sample, steps: int) -> Table:
    pop, (runs, particles) = out.population, out.x.shape[:2]
    ess, alive = pop.ess(), distinct_ancestors(pop.aux["ancestor"])
    columns = ("run", "effective particles", "distinct ancestors")
    cells = [(f"{r}", float(ess[r]), int(alive[r])) for r in range(runs)]
    if sampler.resamples:
        columns, cells = (*columns, "log Z"), [(*row, float(z)) for row, z in zip(cells, pop.log_normalizer(), strict=True)]
    note = f"{number(particles, 'particle')} per run, {sampler.evaluations * steps} expert evaluations per particle."
    if sampler.resamples and sampler.experts[0].home.dim > MANY:
        note += f" log Z in {sampler.experts[0].home.dim} dimensions: its error may be larger than its spread over runs, and grows with long steps."
    if "clipped" in pop.aux:
        note += f" Weight increments clipped: {int(pop.aux['clipped'].sum())}; clipped weights are biased."
    if sampler.resamples and int(alive.min()) < FEW <= particles:
        note += f" One run descends from only {int(alive.min())} of its initial particles; its effective sample size is overstated."
    return Table("Runs", columns, tuple(cells[:_SHOWN]), note=note)


def _picture(picked: Tensor) -> Figure:
    event = picked.shape[1:]
    if len(event) == 3 and event[0] in (1, 3):
        return Figure(figures.image_grid({"samples": picked}, limits=(-1.0, 1.0)), "One sample of each run.")
    flat = picked.flatten(1).double()
    if flat.shape[1] == 1:
        return Figure(figures.histogram({"samples": flat[:, 0]}, x_label="x"), "One sample of each run.")
    return Figure(figures.scatter({"samples": flat[:, :2]}, x_label="x 1", y_label="x 2"), "One sample of each run, first two coordinates.")
