"""What a drug does to each feature, net of the patient's own difference: treated less control within the patient, with intervals.

A patient's treated cells differ from other patients' cells for two reasons: the drug, and the patient. The paired effect compares each patient with
himself; what the patient differs by before treatment stands beside it and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core import Population, Streams
from popflow.transport.meta.field import Field
from popflow.transport.meta.populations import Populations, rows


@dataclass(frozen=True, slots=True)
class Effect:
    """Change of the mean of one feature, in its unit.

    Attributes:
        feature: Name of the feature.
        unit: Its unit.
        control: Mean before treatment.
        treated: Mean after.
        effect: ``treated - control``, within patients.
        low: Lower end of its 95 % interval.
        high: Upper end.
        own: What the patient differs by from the mean of the training patients before treatment; 0 for a mean over patients.
        usual: Mean effect in the training patients; NaN for a mean over patients.
    """

    feature: str
    unit: str
    control: float
    treated: float
    effect: float
    low: float
    high: float
    own: float = 0.0
    usual: float = math.nan


def observed_effects(populations: Populations, treatment: str) -> list[Effect]:
    """Mean over patients of the effect within each; intervals from the spread between patients (Student's t).

    Args:
        populations: Complete pairs of the treatment.
        treatment: Its name.

    Raises:
        ValueError: for fewer than two patients.

    Example:
        >>> before = [torch.zeros(3, 1), torch.full((3, 1), 9.0)]
        >>> one = observed_effects(Populations.of(before, [before[0] + 1, before[1] + 2]), "treated")[0]
        >>> one.effect, round(one.low, 2), round(one.high, 2)
        (1.5, -4.85, 7.85)
    """
    pairs = [pair for pair in populations.complete().pairs if pair.treatment == treatment]
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} patient(s) with treatment={treatment!r}, wanted at least two for an interval.")
    ends = [
        (rows(populations.clouds[pair.source]).mean(0), rows(populations.clouds[pair.target]).mean(0))
        for pair in pairs
        if pair.target is not None
    ]
    control, treated = (torch.stack(side).double() for side in zip(*ends, strict=True))
    change = treated - control
    half = student(len(pairs) - 1) * change.std(0) / math.sqrt(len(pairs))
    return _table(populations.features, populations.unit, control.mean(0), treated.mean(0), change.mean(0), half)


def predicted_effects(
    cells: Tensor, predictions: Sequence[Population], field: Field, training: Populations, treatment: str, *, rng: Streams, draws: int = 200
) -> list[Effect]:
    """Predicted effect in one patient, net of what the patient differs by before treatment.

    The interval joins the spread of the members of an ensemble and a bootstrap over the patient's cells. It says how well the prediction is known
    given the model, not how patients differ: the effects in the training patients stand beside it.

    Args:
        cells: Control cells ``[n, d]``.
        predictions: What each member predicts for them, row by row.
        field: A field of a member, for names and units.
        training: What was learned from.
        treatment: The treatment.
        rng: Streams for the bootstrap.
        draws: Bootstrap samples.
    """
    share = torch.stack([pop.weights() for pop in predictions]).double()[..., None]
    places = torch.stack([pop.x for pop in predictions]).double()
    means, control = (share * places).sum(1), cells.double().mean(0)
    gain = (len(cells) * share * (places - means[:, None])).mean(0) - (
        cells.double() - control
    )  # what each cell adds to the error of a ratio
    index = (rng.uniform("bootstrap", (draws, len(cells))) * len(cells)).long().to(cells.device)
    of_cells = torch.stack([gain[one].mean(0) for one in index]).std(0)
    members = len(predictions)
    of_members = means.std(0) / math.sqrt(members) if members > 1 else torch.zeros_like(control)
    half = student(members - 1) * of_members if members > 1 else of_members
    half = (half.square() + (1.96 * of_cells).square()).sqrt()
    pairs = [(pair.source, pair.target) for pair in training.pairs if pair.treatment == treatment and pair.target is not None]
    sources = {pair.source for pair in training.pairs if pair.target is not None}  # a patient counts once, whatever was tried on him
    before = torch.stack([rows(training.clouds[k]).double().mean(0) for k in sorted(sources)]).mean(0).to(control)
    usual = torch.full_like(control, math.nan)
    if pairs:
        usual = torch.stack([rows(training.clouds[k]).double().mean(0) - rows(training.clouds[j]).double().mean(0) for j, k in pairs]).mean(
            0
        )
    return _table(field.features, field.unit, control, means.mean(0), means.mean(0) - control, half, control - before, usual)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution.

    >>> round(student(1), 3), round(student(1000), 2)
    (12.706, 1.96)
    """
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def _table(features: Sequence[str], unit: str, *columns: Tensor) -> list[Effect]:
    control, treated, effect, half, *rest = (column.double().cpu() for column in columns)
    found = []
    for k, name in enumerate(features):
        numbers = [control[k], treated[k], effect[k], effect[k] - half[k], effect[k] + half[k], *(column[k] for column in rest)]
        found.append(Effect(name, unit, *map(float, numbers)))
    return found
