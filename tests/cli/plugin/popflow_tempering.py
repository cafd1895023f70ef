"""A package that adds a method: tempering from N(0, 1) to N(0, 1 / precision), whose normaliser is known."""

import math
import os
import time
from dataclasses import dataclass
from typing import Annotated

import torch

from popflow.core import Population, Streams, chain, metropolis, resample_if, temper
from popflow.registry import Method, Task
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, simulated
from popflow.runs.config import Flag, check
from popflow.runs.figures import histogram, lines

CITE = "@misc{neal1998annealed, title = {Annealed Importance Sampling}, author = {Neal, Radford M.}, year = {1998}}"


@dataclass(frozen=True)
class Tempering:
    """Temper from a standard normal distribution to a narrower one.

    Attributes:
        seed: Random seed.
        quick: Fewer particles.
        precision: Precision of the last distribution. Its normaliser is known.
        particles: Number of particles.
        steps: Temperatures minus one.
        label: What the last distribution is called in the report.
    """

    seed: int = 0
    quick: Annotated[bool, Flag("--quick")] = False
    precision: Annotated[float, Flag(gt=0)] = 4.0
    particles: Annotated[int, Flag(ge=2)] = 512
    steps: Annotated[int, Flag(ge=1)] = 40
    label: str = "a normal distribution"

    def __post_init__(self):
        check(self)


def demo(config: Tempering, run: Run) -> Report:
    """Temper, and compare log Z with -log(precision) / 2."""
    n = 64 if config.quick else config.particles
    rng = Streams(config.seed, run.device)
    times = torch.linspace(0, 1, config.steps + 1, dtype=torch.float64)
    pause = float(os.environ.get("TEMPERING_PAUSE", "0"))

    def energy(t, pop):
        if pause:
            time.sleep(pause)
        return -0.5 * (1 + t * (config.precision - 1)) * pop.x.square().sum(-1)

    if os.environ.get("TEMPERING_FAILS"):
        raise NotImplementedError("asked to fail")
    step = chain(
        resample_if(0.5),
        temper(lambda pop, t0, t1: -0.5 * (t1 - t0) * (config.precision - 1) * pop.x.square().sum(-1)),
        metropolis(energy, 0.3, steps=2),
    )
    start = Population.of(rng.normal("start", torch.empty(n, 1, dtype=torch.float64, device=run.device)))
    last = simulated(
        run,
        "temper",
        step,
        start,
        times,
        rng=rng,
        every=5,
        ess=lambda state: state.pop.ess() / len(state.pop),
        log_z=lambda state: state.pop.log_normalizer(),
    )
    run.save("samples", {"x": last.x, "log_w": last.log_w})
    rows = run.metrics.rows("temper")
    truth, found = -0.5 * math.log(config.precision), float(last.log_normalizer())
    along = [row["t"] for row in rows]
    grid = torch.linspace(-3, 3, 200)
    density = torch.exp(-0.5 * config.precision * grid**2) * math.sqrt(config.precision / (2 * math.pi))
    moments = (last.weights() * last.x.squeeze(-1).square()).sum()
    return Report(
        title=f"Tempering to {config.label}",
        summary=f"{n} particles went from a standard normal to {config.label} with precision {config.precision:g}.",
        verdict=Verdict(abs(found - truth) < 0.2, f"log Z = {found:.3f}, truth {truth:.3f}.", "log Z within 0.2 of -log(precision)/2"),
        figure=Figure(
            histogram(
                {"particles": last.x}, x_label="x", bins=24, weights={"particles": last.weights()}, density={"truth": (grid, density)}
            ),
            "Weighted particles and the density that they should have.",
        ),
        comparison=(
            Table(
                "Normaliser and second moment",
                ("", "log Z", "E[x²]"),
                (
                    ("truth", truth, 1 / config.precision),
                    ("tempering", Measured(found, 1 / math.sqrt(n)), Measured(float(moments), float(moments) * math.sqrt(2 / n))),
                    ("no tempering", 0.0, Measured(float(start.x.square().mean()), math.sqrt(2 / n))),
                ),
                note=f"± is the standard error of {n} independent particles; resampling makes it a little larger.",
                emphasis=(1,),
            ),
        ),
        diagnostics=(
            Figure(
                lines(along, {"share of effective particles": [row["ess"] for row in rows]}, x_label="t", y_label="ESS / n"),
                "Effective sample size; it falls until the population is resampled.",
            ),
        ),
        results={"log Z": Measured(found), "log Z (truth)": Measured(truth)},
        files={"samples.safetensors": "the last population: x, log_w", "temper.safetensors": "the last checkpoint"},
    )


TEMPER = Task(Tempering, demo, summary="Temper to a normal distribution.")
METHOD = Method(name="tempering", summary="Tempering between two normal distributions.", cite=(CITE,), demo=TEMPER, task=TEMPER)
