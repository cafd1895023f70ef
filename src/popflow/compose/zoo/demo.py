"""`popflow demo` and `popflow demo superdiff`: even AND prime, even OR prime, from two models that know only one of these.

Every sampler meets the same noise levels and the same noise, once with exact experts and once with trained networks. An interrupted demo resumes from
the last checkpoint of its stages.
"""

from __future__ import annotations

import torch

from popflow.compose.config import DemoConfig, SuperDiffDemoConfig
from popflow.compose.sampler import Sampler, diagnostics, sample
from popflow.compose.schedule import karras
from popflow.compose.superpose import average, both, either
from popflow.compose.target import Expert
from popflow.compose.zoo.catalogue import load
from popflow.compose.zoo.even_prime import AND, EXACT, OR, TRAINED, Outcome, exact_experts, judge, product_samplers, truth
from popflow.compose.zoo.report import product_report, superposition_report
from popflow.core import Streams
from popflow.runs import Report, Run, simulation


def demo(config: DemoConfig, run: Run) -> Report:
    """Sample even AND prime by sums of scores, Langevin steps, Feynman-Kac correctors and SuperDiff; even OR prime by SuperDiff."""
    sizes = config.sizes
    known = truth(sizes.runs, sizes.particles, sizes.sigma_min, Streams(sizes.seed))
    pairs = _experts(run)
    made = {
        kind: _followed(run, kind, product_samplers(pair, sizes.kernel_steps) | {AND: both(pair), OR: either(pair)}, sizes)
        for kind, pair in pairs.items()
    }
    judged = {kind: {name: judge(o.x, known) for name, o in row.items() if name != OR} for kind, row in made.items()}
    return product_report(sizes, known, pairs, made, judged, judge(known.product, known))


def superdiff(config: SuperDiffDemoConfig, run: Run) -> Report:
    """AND and OR by SuperDiff against equal shares: how equal the two densities come out, and the classes of the mixture."""
    sizes = config.sizes
    known = truth(sizes.runs, sizes.particles, sizes.sigma_min, Streams(sizes.seed))
    pairs = _experts(run)
    made = {
        kind: _followed(run, kind, {"equal shares": average(pair), AND: both(pair), OR: either(pair)}, sizes)
        for kind, pair in pairs.items()
    }
    return superposition_report(sizes, known, pairs, made)


def _experts(run: Run) -> dict[str, list[Expert]]:
    return {EXACT: exact_experts(), TRAINED: [load(name, device=run.device) for name in ("digits-even", "digits-prime")]}


def _followed(run: Run, kind: str, samplers: dict[str, Sampler], sizes: SuperDiffDemoConfig) -> dict[str, Outcome]:
    return {name: _follow(run, f"{kind} {name}", sampler, sizes) for name, sampler in samplers.items()}


def _follow(run: Run, stage: str, sampler: Sampler, sizes: SuperDiffDemoConfig) -> Outcome:
    """Sample as a stage of the run."""
    rng, trace, levels = Streams(sizes.seed, run.device), diagnostics(), karras(sizes.steps, sizes.sigma_min, sizes.sigma_max)
    resumed = simulation(run, stage, rng, last=sizes.steps, every=50, trace=trace)
    out = sample(sampler, levels, particles=sizes.particles, runs=sizes.runs, rng=rng, trace=trace, **resumed)
    rows = run.metrics.rows(stage)
    ess, log_z, ancestors = (torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in ("ess", "log_z", "ancestors"))
    x = out.draw(sizes.particles, rng).cpu()
    return Outcome(x, sizes.steps * sampler.evaluations, torch.tensor([row["t"] for row in rows]).sqrt(), ess, log_z, ancestors)
