"""`popflow demo` and `popflow demo superdiff`: even AND prime, even OR prime, from two models that know only one of these.

Every sampler meets the same noise levels and the same noise, once with exact experts and once with trained networks. A killed demo goes on
from the last checkpoint of its stages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from popflow.compose.sampler import Sampler, distinct, sample
from popflow.compose.schedule import karras
from popflow.compose.superpose import average, both, either
from popflow.compose.zoo import digits
from popflow.compose.zoo.even_prime import (
    Judgement,
    Truth,
    class_shares,
    exact_experts,
    gap,
    judge,
    log_normalizer,
    product_samplers,
    shown,
    trained_experts,
    truth,
)
from popflow.core import Streams
from popflow.core.metrics import total_variation
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, simulation
from popflow.runs.figures import image_grid, lines

EXACT, TRAINED = "exact experts", "trained networks"
NOT_CHOSEN = (
    "Images at equal distances in the first run of each sampler, not chosen; shown without the blur of the experts, judged with it."
)
NAIVE, BEST, AND, OR = "sum of scores", "FKC + Langevin", "SuperDiff AND", "SuperDiff OR"


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demos.

    Attributes:
        seed: Of every random stream.
        quick: Smaller, within seconds: at most 2 runs of 256 particles over 60 levels.
        runs: Independent populations; errors are standard errors over them.
        particles: In each.
        steps: Steps from the first noise level to the last.
        sigma_max: First noise level.
        sigma_min: Last noise level.
        kernel_steps: Langevin steps at each level, where a sampler takes any.
    """

    seed: int = 0
    quick: bool = False
    runs: int = 5
    particles: int = 512
    steps: int = 150
    sigma_max: float = 10.0
    sigma_min: float = 0.1
    kernel_steps: int = 5

    def __post_init__(self):
        if self.runs < 2 or self.particles < 16:
            raise ValueError(f"runs={self.runs}, particles={self.particles}, wanted at least 2 (one run has no error) and 16.")
        karras(self.steps, self.sigma_min, self.sigma_max)  # says what is wrong with the levels

    @property
    def sizes(self) -> DemoConfig:
        """The same settings, smaller when quick."""
        return replace(self, runs=2, particles=min(256, self.particles), steps=min(60, self.steps)) if self.quick else self


@dataclass(frozen=True)
class Outcome:
    """What a sampler made: ``x [runs, particles, 1, 8, 8]`` without weights, and traces ``[steps + 1, runs]``."""

    x: Tensor
    evaluations: int
    sigma: Tensor
    ess: Tensor
    log_z: Tensor
    ancestors: Tensor


def demo(config: DemoConfig, run: Run) -> Report:
    """Sample even AND prime by sums of scores, Langevin steps, Feynman-Kac correctors and SuperDiff; even OR prime by SuperDiff."""
    sizes = config.sizes
    known = truth(sizes.runs, sizes.particles, sizes.sigma_min, Streams(sizes.seed))
    made: dict[str, dict[str, Outcome]] = {}
    pairs = _experts(run)
    for kind, pair in pairs.items():
        samplers = product_samplers(pair, sizes.kernel_steps) | {AND: both(pair), OR: either(pair)}
        made[kind] = {name: _follow(run, f"{kind} {name}", sampler, sizes) for name, sampler in samplers.items()}
    judged = {kind: {name: judge(o.x, known) for name, o in row.items() if name != OR} for kind, row in made.items()}
    exact = judge(known.product, known)
    bars = _bars(judged, exact, len(known.twos), sizes.quick)
    twos = {kind: {name: f"{100 * float(row[name].share.mean()):.0f} %" for name in (NAIVE, BEST)} for kind, row in judged.items()}
    return Report(
        title="The digit that is even and prime",
        summary=(
            "Two diffusion models, one of even digits and one of prime digits, are composed at sampling time; neither was made for it. Their "
            "product is a model of 2, the only even prime. The sum of the two scores samples a wrong distribution, however many steps it "
            "takes. Feynman-Kac correctors (FKC) weigh and resample particles so that the product is met; a few Langevin steps at each "
            "noise level keep the survivors apart.\n\n"
            "Exact experts are kernel mixtures of training images: score, density and draws from the product are known. Trained networks "
            "are small perceptrons. The classifier that judges has learned from other images than the experts."
        ),
        verdict=Verdict(
            all(held for _, _, _, held in bars),
            f"{BEST} makes {twos[TRAINED][BEST]} 2s with trained networks (sum of scores: {twos[TRAINED][NAIVE]}), "
            f"{twos[EXACT][BEST]} with exact experts (sum of scores: {twos[EXACT][NAIVE]}; exact draws: {float(exact.share.mean()):.0%}).",
            "; ".join(f"{what} {wanted}" for what, wanted, _, _ in bars),
        ),
        figure=Figure(
            image_grid(
                {f"{name}, {TRAINED}": shown(o.x, pairs[TRAINED], sizes.sigma_min) for name, o in made[TRAINED].items() if name != OR}
                | {f"{BEST}, {EXACT}": shown(made[EXACT][BEST].x, pairs[EXACT], sizes.sigma_min)}
                | {"exact draws of the product": shown(known.product, pairs[EXACT], sizes.sigma_min)}
            ),
            f"Even AND prime. {NOT_CHOSEN}",
            "Rows of small digits, one row for each sampler.",
        ),
        comparison=(
            *(_product_table(kind, made[kind], judged[kind], exact, sizes, len(known.twos)) for kind in made),
            _mixture_table(made[EXACT][OR], made[TRAINED][OR], known, sizes),
        ),
        diagnostics=(
            Table("What was asked", ("", "wanted", "seen", "held"), bars),
            *_traces({f"{name}, {kind}": o for kind, row in made.items() for name, o in row.items() if name.startswith("FKC")}),
        ),
        results={
            f"{name}, {kind}, {what}": _over_runs(value)
            for kind, row in judged.items()
            for name in (NAIVE, BEST)
            for what, value in (("share of 2s", row[name].share), ("MMD2", row[name].mmd2), ("distinct 2s", row[name].distinct))
        },
        files=_files(made),
        next=("popflow demo superdiff", "popflow sample --help"),
    )


def superdiff(config: DemoConfig, run: Run) -> Report:
    """AND and OR by SuperDiff against equal shares: how equal the two densities come out, and the classes of the mixture."""
    sizes = config.sizes
    known = truth(sizes.runs, sizes.particles, sizes.sigma_min, Streams(sizes.seed))
    made: dict[str, dict[str, Outcome]] = {}
    pairs = _experts(run)
    for kind, pair in pairs.items():
        samplers = {"equal shares": average(pair), AND: both(pair), OR: either(pair)}
        made[kind] = {name: _follow(run, f"{kind} {name}", sampler, sizes) for name, sampler in samplers.items()}
    gaps = {kind: {name: _over_runs(gap(o.x, sizes.sigma_min)) for name, o in row.items()} for kind, row in made.items()}
    far = {kind: total_variation(class_shares(row[OR].x).mean(0), class_shares(known.mixture).mean(0)) for kind, row in made.items()}
    return Report(
        title="Even and prime digits in superposition",
        summary=(
            "Two diffusion models, one of even digits and one of prime digits, in superposition (SuperDiff). The log-density of a sample "
            "under each model is tracked along its path at no cost. AND mixes the scores so that both models find the sample equally likely "
            "at every step; OR mixes them by the densities, which samples the mixture. Equal shares are the baseline.\n\n"
            "AND is a process on the surface of equal densities, not the product of the models: for that see `popflow demo`."
        ),
        verdict=Verdict(
            gaps[EXACT][AND].value <= gaps[EXACT]["equal shares"].value / 4 and all(value <= 0.1 for value in far.values()),
            f"The densities of the two exact experts differ by {gaps[EXACT][AND]} nats after AND and by {gaps[EXACT]['equal shares']} after "
            f"equal shares (median). The classes of OR are {float(far[EXACT]):.3f} from the mixture's, {float(far[TRAINED]):.3f} with networks.",
            "with exact experts AND leaves at most a quarter of the median gap of equal shares; total variation of the classes of OR at most 0.1",
        ),
        figure=Figure(
            image_grid(
                {f"{name}, {kind}": shown(o.x, pairs[kind], sizes.sigma_min) for kind, row in made.items() for name, o in row.items()}
            ),
            NOT_CHOSEN,
            "Rows of small digits, one row for each sampler.",
        ),
        comparison=(
            Table(
                "Superposition of even and prime",
                ("", "median |log q(even) − log q(prime)| (nats)", "share of 2s", "evaluations per sample"),
                tuple(
                    (f"{name}, {kind}", gaps[kind][name], _over_runs(class_shares(o.x)[:, 2]), o.evaluations)
                    for kind, row in made.items()
                    for name, o in row.items()
                ),
                f"Densities by the exact experts. {_errors(sizes)}",
            ),
            _mixture_table(made[EXACT][OR], made[TRAINED][OR], known, sizes),
        ),
        results={f"{name}, {kind}, gap of log-densities": value for kind, row in gaps.items() for name, value in row.items()}
        | {f"{OR}, {kind}, total variation": Measured(float(value)) for kind, value in far.items()},
        files=_files(made),
        next=("popflow demo", "popflow sample --help"),
    )


def _experts(run: Run) -> dict:
    return {EXACT: exact_experts(), TRAINED: trained_experts(run.device)}


def _stage(name: str) -> str:
    """Name of a stage, and of its file."""
    return re.sub(r"\W+", "-", name.lower())


def _follow(run: Run, name: str, sampler: Sampler, sizes: DemoConfig) -> Outcome:
    """Sample as a stage of the run, from its last checkpoint where there is one."""
    stage, rng = _stage(name), Streams(sizes.seed, run.device)
    begun = simulation(
        run,
        stage,
        rng,
        last=sizes.steps,
        every=50,
        ess=lambda state: state.pop.ess(),
        log_z=lambda state: state.pop.log_normalizer(),
        ancestors=lambda state: distinct(state.pop.aux["ancestor"]),
    )
    levels = karras(sizes.steps, sizes.sigma_min, sizes.sigma_max)
    out = sample(sampler, levels, particles=sizes.particles, runs=sizes.runs, rng=rng, **begun)
    rows = run.metrics.rows(stage)
    ess, log_z, ancestors = (torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in ("ess", "log_z", "ancestors"))
    x = out.draw(sizes.particles, rng).cpu()
    return Outcome(x, sizes.steps * sampler.evaluations, torch.tensor([row["t"] for row in rows]).sqrt(), ess, log_z, ancestors)


def _bars(
    judged: Mapping[str, Mapping[str, Judgement]], exact: Judgement, twos: int, quick: bool
) -> tuple[tuple[str, str, str, bool], ...]:
    """What is asked of the correctors: ``(what, wanted, seen, held)``."""
    best, naive, learned, sums = judged[EXACT][BEST], judged[EXACT][NAIVE], judged[TRAINED][BEST], judged[TRAINED][NAIVE]
    off = abs(float(best.share.mean() - exact.share.mean()))
    ratio = float(best.mmd2.mean() / naive.mmd2.mean())
    gain = float(learned.share.mean() - sums.share.mean())
    variety = [float(one.distinct.mean()) / twos for one in (best, learned)]
    bars = (
        (f"{EXACT}: share of 2s off that of exact draws", "<= 0.03", f"{off:.3f}", off <= 0.03),
        (f"{TRAINED}: share of 2s above that of the sum of scores", ">= 0.2", f"{gain:.3f}", gain >= 0.2),
        (f"{EXACT}: MMD² over that of the sum of scores", "<= 0.2", f"{ratio:.3f}", ratio <= 0.2),
        (f"{EXACT}: distinct training 2s", f">= 60 % of {twos}", f"{100 * variety[0]:.0f} %", variety[0] >= 0.6),
        (f"{TRAINED}: distinct training 2s", f">= 40 % of {twos}", f"{100 * variety[1]:.0f} %", variety[1] >= 0.4),
    )
    return bars[:2] if quick else bars  # distances and variety want the full number of particles


def _product_table(
    kind: str, made: Mapping[str, Outcome], judged: Mapping[str, Judgement], exact: Judgement, sizes: DemoConfig, twos: int
) -> Table:
    def row(name: str, one: Judgement, outcome: Outcome | None) -> tuple:
        cells = (name, _over_runs(one.share), _over_runs(one.mmd2), _over_runs(one.distinct))
        return (*cells, None, None) if outcome is None else (*cells, _over_runs(outcome.ancestors[-1]), outcome.evaluations)

    rows = [row(name, one, made[name]) for name, one in judged.items()]
    columns = (
        "",
        "share of 2s",
        "MMD² to exact draws",
        f"distinct 2s of {twos}",
        f"ancestors of {sizes.particles}",
        "evaluations per sample",
    )
    return Table(
        f"Even AND prime, {kind}",
        (*columns,),
        (row("exact draws", exact, None), *rows),
        "Share of 2s by the classifier; MMD² to exact draws from the product of the exact experts, less is better; distinct: training 2s "
        "that are nearest to some sample; ancestors: initial particles with descendants at the end; evaluations of the two experts. "
        f"{sizes.kernel_steps} Langevin steps a level where any. {_errors(sizes)}",
        (1 + list(judged).index(BEST),),
    )


def _mixture_table(exact: Outcome, trained: Outcome, known: Truth, sizes: DemoConfig) -> Table:
    """Classes of OR against those of the mixture."""
    shares = [class_shares(x) for x in (known.mixture, exact.x, trained.x)]
    rows = [(str(digit), *(_over_runs(one[:, digit]) for one in shares)) for digit in digits.ALL]
    far = [total_variation(one.mean(0), shares[0].mean(0)) for one in shares[1:]]
    return Table(
        "Even OR prime: share of each digit",
        ("digit", "exact draws of the mixture", f"{OR}, {EXACT}", f"{OR}, {TRAINED}"),
        (*rows, ("total variation", None, *map(float, far))),
        f"By the classifier. 1 and 9 are neither even nor prime; 2 is both. {_errors(sizes)}",
    )


def _traces(made: Mapping[str, Outcome]) -> tuple[Figure, ...]:
    sigma = next(iter(made.values())).sigma
    ess = {name: o.ess.mean(1) / o.x.shape[1] for name, o in made.items()}
    ancestors = {name: o.ancestors.mean(1) / o.x.shape[1] for name, o in made.items()}
    log_z = {name: o.log_z.mean(1) for name, o in made.items()}
    exact = {"exact": log_normalizer(sigma)}
    return (
        Figure(
            lines(sigma, ess, x_label="sigma", y_label="ESS / particles", log_x=True, downwards=True),
            "Effective sample size, mean over runs. It rises after each resampling; that particles descend from few ancestors it does not show.",
        ),
        Figure(
            lines(sigma, ancestors, x_label="sigma", y_label="ancestors / particles", log_x=True, log_y=True, downwards=True),
            "Initial particles that still have descendants, as a share of the particles, mean over runs.",
        ),
        Figure(
            lines(sigma, log_z | exact, x_label="sigma", y_label="log Z (nats)", log_x=True, downwards=True),
            "Log normaliser of the product of the noised models, with the error of finite steps (it falls with their number); exact: of the exact experts.",
        ),
    )


def _over_runs(values: Tensor) -> Measured:
    """Mean and standard error."""
    return Measured(float(values.mean()), float(values.std() / math.sqrt(len(values))))


def _errors(sizes: DemoConfig) -> str:
    return f"{sizes.runs} independent runs of {sizes.particles} particles, {sizes.steps} steps; errors are standard errors over runs."


def _files(made: Mapping[str, Mapping[str, Outcome]]) -> dict[str, str]:
    return {f"{_stage(f'{kind} {name}')}.safetensors": f"last population, {name}, {kind}" for kind, row in made.items() for name in row}
