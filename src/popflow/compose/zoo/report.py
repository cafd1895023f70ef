"""Tables and figures of the demos of composition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from popflow.compose.config import DemoConfig, SuperDiffDemoConfig
from popflow.compose.target import Expert
from popflow.compose.zoo import digits
from popflow.compose.zoo.even_prime import (
    AND,
    BEST,
    EXACT,
    LANGEVIN,
    NAIVE,
    OR,
    TRAINED,
    Judgement,
    Outcome,
    Truth,
    class_shares,
    gap,
    log_normalizer,
    shown,
)
from popflow.core.metrics import total_variation
from popflow.runs import Figure, Measured, Report, Table, Verdict
from popflow.runs.figures import image_grid, lines
from popflow.runs.stages import slug

NOT_PICKED = (
    "Evenly spaced images from the first run of each sampler, not hand-picked; shown without the blur of the experts, judged with it."
)
Made = Mapping[str, Mapping[str, Outcome]]
"""Outcomes by kind of experts and name of sampler."""


def product_report(
    sizes: DemoConfig,
    known: Truth,
    pairs: Mapping[str, Sequence[Expert]],
    made: Made,
    judged: Mapping[str, Mapping[str, Judgement]],
    exact: Judgement,
) -> Report:
    """Report even AND prime; ``exact`` judges exact draws."""
    bars = _bars(judged, exact, len(known.twos), sizes.quick)
    twos = {kind: {name: f"{100 * float(row[name].share.mean()):.0f} %" for name in (NAIVE, BEST)} for kind, row in judged.items()}
    return Report(
        title="The digit that is even and prime",
        summary=(
            "Two diffusion models, one of even digits and one of prime digits, are composed at sampling time; neither was trained for it. Their "
            "product is a model of 2, the only even prime. Summing the two scores samples the wrong distribution, however many steps it "
            "takes. Feynman-Kac correctors (FKC) weight and resample particles so that they follow the product; a few Langevin steps at each "
            "noise level keep the survivors apart.\n\n"
            "Exact experts are kernel mixtures of training images: score, density and draws from the product are known. Trained networks "
            "are small perceptrons. The classifier that judges them was trained on other images than the experts."
        ),
        verdict=Verdict(
            all(held for _, _, _, held in bars),
            f"{BEST} makes {twos[TRAINED][BEST]} 2s with trained networks (sum of scores: {twos[TRAINED][NAIVE]}), "
            f"{twos[EXACT][BEST]} with exact experts (sum of scores: {twos[EXACT][NAIVE]}; exact draws: {float(exact.share.mean()):.0%}). "
            + _against_langevin(judged[TRAINED]),
            "; ".join(f"{what} {wanted}" for what, wanted, _, _ in bars),
        ),
        figure=Figure(
            image_grid(
                {f"{name}, {TRAINED}": shown(o.x, pairs[TRAINED], sizes.sigma_min) for name, o in made[TRAINED].items() if name != OR}
                | {f"{BEST}, {EXACT}": shown(made[EXACT][BEST].x, pairs[EXACT], sizes.sigma_min)}
                | {"exact draws of the product": shown(known.product, pairs[EXACT], sizes.sigma_min)}
            ),
            f"Even AND prime. {NOT_PICKED}",
            "Rows of small digits, one row for each sampler.",
        ),
        comparison=(
            *(_product_table(kind, made[kind], judged[kind], exact, sizes, len(known.twos)) for kind in made),
            _mixture_table(made[EXACT][OR], made[TRAINED][OR], known, sizes),
        ),
        diagnostics=(
            Table("Criteria", ("", "wanted", "seen", "held"), bars),
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


def superposition_report(sizes: SuperDiffDemoConfig, known: Truth, pairs: Mapping[str, Sequence[Expert]], made: Made) -> Report:
    """Report AND and OR by SuperDiff."""
    gaps = {kind: {name: _over_runs(gap(o.x, sizes.sigma_min)) for name, o in row.items()} for kind, row in made.items()}
    far = {kind: total_variation(class_shares(row[OR].x).mean(0), class_shares(known.mixture).mean(0)) for kind, row in made.items()}
    return Report(
        title="Even and prime digits in superposition",
        summary=(
            "Two diffusion models, one of even digits and one of prime digits, in superposition (SuperDiff). The log-density of a sample "
            "under each model is tracked along its path at no cost. AND mixes the scores so that both models find the sample equally likely "
            "at every step; OR mixes them by the densities, which samples the mixture. Equal shares are the baseline.\n\n"
            "AND is a process on the surface of equal densities, not the product of the models: for that, see `popflow demo`."
        ),
        verdict=Verdict(
            gaps[EXACT][AND].value <= gaps[EXACT]["equal shares"].value / 4 and all(value <= 0.1 for value in far.values()),
            f"The log-densities of the two exact experts differ by {gaps[EXACT][AND]} nats after AND and by {gaps[EXACT]['equal shares']} after "
            f"equal shares (median). The classes of OR are {float(far[EXACT]):.3f} from those of the mixture, {float(far[TRAINED]):.3f} with networks.",
            "with exact experts AND leaves at most a quarter of the median gap of equal shares; classes of OR within 0.1 of the mixture in total variation",
        ),
        figure=Figure(
            image_grid(
                {f"{name}, {kind}": shown(o.x, pairs[kind], sizes.sigma_min) for kind, row in made.items() for name, o in row.items()}
            ),
            NOT_PICKED,
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


def _against_langevin(judged: Mapping[str, Judgement]) -> str:
    """Say how the correctors stand against Langevin steps without weights, which no criterion asks for."""
    alone, best = (_over_runs(judged[name].mmd2) for name in (LANGEVIN, BEST))
    closer = "Langevin steps alone are closer" if alone.value < best.value else f"{BEST} is closer than Langevin steps alone"
    return f"With trained networks {closer} to exact draws in MMD² ({alone} alone, {best} with weights); no criterion speaks of that."


def _bars(
    judged: Mapping[str, Mapping[str, Judgement]], exact: Judgement, twos: int, quick: bool
) -> tuple[tuple[str, str, str, bool], ...]:
    """Criteria for the correctors: ``(what, wanted, seen, held)``."""
    best, naive, learned, sums = judged[EXACT][BEST], judged[EXACT][NAIVE], judged[TRAINED][BEST], judged[TRAINED][NAIVE]
    off = abs(float(best.share.mean() - exact.share.mean()))
    ratio = float(best.mmd2.mean() / naive.mmd2.mean())
    gain = float(learned.share.mean() - sums.share.mean())
    variety = [float(one.distinct.mean()) / twos for one in (best, learned)]
    bars = (
        (f"{EXACT}: difference of the share of 2s from exact draws", "<= 0.03", f"{off:.3f}", off <= 0.03),
        (f"{TRAINED}: gain in the share of 2s over the sum of scores", ">= 0.2", f"{gain:.3f}", gain >= 0.2),
        (f"{EXACT}: ratio of MMD² to the sum of scores", "<= 0.2", f"{ratio:.3f}", ratio <= 0.2),
        (f"{EXACT}: distinct training 2s", f">= 60 % of {twos}", f"{100 * variety[0]:.0f} %", variety[0] >= 0.6),
        (f"{TRAINED}: distinct training 2s", f">= 40 % of {twos}", f"{100 * variety[1]:.0f} %", variety[1] >= 0.4),
    )
    return bars[:2] if quick else bars  # distances and variety need the full number of particles


def _product_table(
    kind: str, made: Mapping[str, Outcome], judged: Mapping[str, Judgement], exact: Judgement, sizes: DemoConfig, twos: int
) -> Table:
    def row(name: str, one: Judgement, outcome: Outcome | None) -> tuple:
        cells = (name, _over_runs(one.share), _over_runs(one.mmd2), _over_runs(one.distinct))
        return (*cells, None, None) if outcome is None else (*cells, _over_runs(outcome.ancestors[-1]), outcome.evaluations)

    rows = [row(name, one, made[name]) for name, one in judged.items()]
    return Table(
        f"Even AND prime, {kind}",
        ("", "share of 2s", "MMD² to exact draws", f"distinct 2s of {twos}", f"ancestors of {sizes.particles}", "evaluations per sample"),
        (row("exact draws", exact, None), *rows),
        "Share of 2s by the classifier; MMD² to exact draws from the product of the exact experts, lower is better; distinct: training 2s "
        "that are nearest to some sample; ancestors: initial particles with descendants at the end; evaluations of the two experts. "
        f"Langevin samplers take {sizes.kernel_steps} steps per level. {_errors(sizes)}",
        (1 + list(judged).index(BEST),),
    )


def _mixture_table(exact: Outcome, trained: Outcome, known: Truth, sizes: SuperDiffDemoConfig) -> Table:
    """Classes of OR compared with those of the mixture."""
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
    curves = partial(lines, sigma, x_label="sigma", log_x=True, downwards=True)
    return (
        Figure(
            curves(ess, y_label="ESS / particles"),
            "Effective sample size, mean over runs. It rises after each resampling, and hides that particles descend from few ancestors.",
        ),
        Figure(
            curves(ancestors, y_label="ancestors / particles", log_y=True),
            "Initial particles that still have descendants, as a share of the particles, mean over runs.",
        ),
        Figure(
            curves(log_z | exact, y_label="log Z (nats)"),
            "Log normaliser of the product of the noised models; its error shrinks as the number of steps grows. Exact: of the exact experts.",
        ),
    )


def _over_runs(values: Tensor) -> Measured:
    """Mean and standard error."""
    return Measured(float(values.mean()), float(values.std() / math.sqrt(len(values))))


def _errors(sizes: SuperDiffDemoConfig) -> str:
    return f"{sizes.runs} independent runs of {sizes.particles} particles, {sizes.steps} steps; errors are standard errors over runs."


def _files(made: Made) -> dict[str, str]:
    return {f"{slug(f'{kind} {name}')}.safetensors": f"last population, {name}, {kind}" for kind, row in made.items() for name in row}
