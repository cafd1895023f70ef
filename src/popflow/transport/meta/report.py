"""The report of ``popflow flow --populations``: scores of every held-out population, effects, embeddings, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core import Population
from popflow.runs import Figure, Measured, Report, Table, Verdict, figures
from popflow.transport.evaluate import FLOOR, FLOW, SPLITS
from popflow.transport.meta.baselines import CELLS, IDENTITY, POOLED, SHIFT, SHIFT_BY_TYPE, Scores
from popflow.transport.meta.effects import Effect, observed_effects
from popflow.transport.meta.ensemble import Confidence
from popflow.transport.meta.field import Field
from popflow.transport.meta.mixture import Mixture
from popflow.transport.meta.populations import Pair, Populations, rows

PLAIN = "plain flow matching"
TRIVIAL = (IDENTITY, SHIFT, SHIFT_BY_TYPE, POOLED)
"""Answers that a flow has to beat: they need no flow, and do not look at the truth."""
_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Found:
    """What was predicted for one population.

    Attributes:
        cells: Predicted cells, the mean over members.
        effects: Effect on each feature.
        confidence: Agreement of the members.
        mixture: Its cell types beside those of training, where types are known.
        embedding: Its embedding.
    """

    cells: Population
    effects: tuple[Effect, ...]
    confidence: Confidence
    mixture: Mixture | None
    embedding: Tensor


@dataclass(frozen=True, eq=False)
class Outcome:
    """The results of a run.

    Attributes:
        name: Name of the file.
        populations: All populations.
        training: Those that were learned from.
        field: The field of the first member.
        found: Pair -> what was predicted.
        scores: Pair -> what -> distances, for pairs with treated cells.
    """

    name: str
    populations: Populations
    training: Populations
    field: Field
    found: Mapping[Pair, Found]
    scores: Mapping[Pair, Mapping[str, Scores]]


def report(outcome: Outcome) -> Report:
    """Report an outcome."""
    training, unit = outcome.training, outcome.populations.unit
    means = {
        what: sum(row[what].w1 for row in outcome.scores.values() if what in row) / len(outcome.scores)
        for what in (FLOW, PLAIN, *TRIVIAL, FLOOR)
        if outcome.scores and all(what in row for row in outcome.scores.values())
    }
    shown = sorted(outcome.found, key=lambda pair: pair.target is None)[:_SHOWN]
    figures_ = tuple(_response(outcome, pair) for pair in shown)
    rest = len(outcome.found) - len(shown)
    return Report(
        title=f"Responses of patients in {outcome.name}",
        summary=(
            f"Learned from {len(training.pairs)} populations before and after treatment ({', '.join(training.groups)}; "
            f"{', '.join(training.treatments)}), {training.dim} features. A flow reads a patient's untreated cells and predicts their response.\n\n"
            f"Features, distances and effects are in {unit}. Weights are relative to the control cells."
            + (f" Effects are shown for {len(shown)} populations; cells of {rest} more are in predicted.h5ad." if rest else "")
        ),
        verdict=_verdict(outcome.scores),
        figure=figures_[0] if figures_ else _map(outcome),
        comparison=(
            *((_scores(outcome.scores, unit),) if outcome.scores else ()),
            *figures_[1:],
            *(_effects(outcome, pair) for pair in shown),
            *_observed(training),
        ),
        diagnostics=(
            *((_map(outcome),) if figures_ else ()),
            *((_trust(outcome.found, unit),) if outcome.found else ()),
            *_mixtures(outcome.found, unit),
        ),
        results={f"W1, {what}": Measured(value) for what, value in means.items()},
        files={
            "flow-1.safetensors": "the flow of the first member, for popflow.transport.meta.load; the others beside it",
            **({"predicted.h5ad": "predicted cells, in the unit of the file"} if outcome.found else {}),
        },
    )


def _verdict(scores: Mapping[Pair, Mapping[str, Scores]]) -> Verdict:
    beaten = [all(row[FLOW].w1 < row[one].w1 for one in TRIVIAL if one in row) for row in scores.values()]
    return Verdict(
        all(beaten) if beaten else None,
        f"the flow is nearer to the treated cells than every trivial answer for {sum(beaten)} of {len(beaten)} held-out populations"
        if beaten
        else "nothing with treated cells was held out: predictions are not scored",
        "W1 below that of the control cells, their shift by the mean response (within cell types too, where they are known), and the treated cells of "
        "the others, for every held-out population",
    )


def _scores(scores: Mapping[Pair, Mapping[str, Scores]], unit: str) -> Table:
    rows_ = [
        (str(pair), what, Measured(s.w1, s.w1_error), Measured(s.w2, s.w2_error), Measured(s.mmd, s.mmd_error))
        for pair, row in scores.items()
        for what, s in row.items()
    ]
    return Table(
        "Distance from the treated cells of held-out populations",
        ("population", "what", f"W1, {unit}", f"W2, {unit}", "MMD"),
        tuple(rows_),
        f"At most {CELLS} cells of each cloud; errors over subsamples. The ideal shift looks at the answer. Lower is better; at the sampling floor (two "
        f"samples of the treated cells of these sizes, a mean over {SPLITS} random splits) a prediction cannot be told from the truth.",
        tuple(i for i, row in enumerate(rows_) if row[1] == FLOW),
    )


def _response(outcome: Outcome, pair: Pair) -> Figure:
    """Effect on each feature, predicted and observed."""
    effects = outcome.found[pair].effects
    series = {"predicted": torch.tensor([one.effect for one in effects])}
    bands = {"predicted": (torch.tensor([one.low for one in effects]), torch.tensor([one.high for one in effects]))}
    if pair.target is not None:
        clouds = outcome.populations.clouds
        series["observed"] = rows(clouds[pair.target]).mean(0).cpu() - rows(clouds[pair.source]).mean(0).cpu()
    series["mean of the training patients"] = torch.tensor([one.usual for one in effects])
    image = figures.lines(
        torch.arange(1, len(effects) + 1),
        series,
        bands=bands,
        x_label="feature, in the order of the table",
        y_label=f"treated - control, {outcome.populations.unit}",
    )
    return Figure(image, f"Response of each feature, {pair}: means within the patient, band: 95 % interval.", "response of each feature")


def _effects(outcome: Outcome, pair: Pair) -> Table:
    effects = outcome.found[pair].effects
    return Table(
        f"Predicted effect on each feature: {pair}",
        ("feature", "control", "treated", "effect", "95 % interval", "the patient's own difference", "mean effect in training"),
        tuple(
            (one.feature, one.control, one.treated, one.effect, f"{one.low:.3g} to {one.high:.3g}", one.own, one.usual) for one in effects
        ),
        f"In {outcome.populations.unit}. The effect is treated less control within the patient; what the patient differs by from the training patients "
        "before treatment is not part of it. The interval joins the spread of the members, where there are several, and a bootstrap of cells: it does "
        "not say how patients differ.",
    )


def _observed(training: Populations) -> list[Table]:
    found = []
    for treatment in training.treatments:
        if sum(pair.treatment == treatment for pair in training.pairs) > 1:
            effects = observed_effects(training, treatment)
            found.append(
                Table(
                    f"Observed effect of {treatment} within the training patients",
                    ("feature", "control", "treated", "effect", "95 % interval"),
                    tuple((one.feature, one.control, one.treated, one.effect, f"{one.low:.3g} to {one.high:.3g}") for one in effects),
                    f"In {training.unit}; means over patients of the difference within each, intervals from the spread between patients.",
                )
            )
    return found


def _map(outcome: Outcome) -> Figure:
    """Embeddings in the plane of the training populations' principal components."""
    known = outcome.field.embeddings
    assert known is not None
    known = torch.unique(known.cpu(), dim=0)
    mean = known.mean(0)
    axes = torch.linalg.svd(known - mean, full_matrices=False).Vh[:2]
    axes = axes if len(axes) == 2 else torch.cat([axes, torch.zeros_like(axes)])
    series = {"training": (known - mean) @ axes.T}
    if outcome.found:
        series["predicted"] = (torch.stack([one.embedding for one in outcome.found.values()]) - mean) @ axes.T
    image = figures.scatter(series, x_label="first principal component", y_label="second")
    return Figure(image, "Embeddings of the populations of control cells. One far from all others is unlike training.", "embedding map")


def _trust(found: Mapping[Pair, Found], unit: str) -> Table:
    rows_ = []
    for pair, one in found.items():
        trust = one.confidence
        spread = None if trust.spread is None else float(trust.spread.norm())
        rows_.append((str(pair), float(trust.mean.norm()), spread, trust.disagreement, trust.novelty))
    return Table(
        "How far to trust the predictions",
        ("population", f"mean displacement, {unit}", f"its spread over members, {unit}", "disagreement of cells, relative", "novelty"),
        tuple(rows_),
        "Novelty: distance of the embedding from the nearest of training over the usual one; above about 2 a population is unlike those of training.",
    )


def _mixtures(found: Mapping[Pair, Found], unit: str) -> list[Table]:
    rows_ = [
        (str(pair), str(one.mixture), one.mixture.change, one.mixture.relative) for pair, one in found.items() if one.mixture is not None
    ]
    note = "Change: root mean square difference of predictions when the population is brought inside the proportions of training, and over the displacement."
    return (
        [Table("Proportions of cell types", ("population", "unseen in training", f"change, {unit}", "relative"), tuple(rows_), note)]
        if rows_
        else []
    )
