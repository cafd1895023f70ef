"""Several flows of different seeds: where they disagree, or the population is unlike those of training, a prediction is not to be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.core import Population, Streams
from popflow.core.checks import at_least_one
from popflow.transport.meta.flow import MetaFlow
from popflow.transport.meta.populations import Populations


@dataclass(frozen=True, eq=False)
class Confidence:
    """How much members agree on one population under one treatment.

    Attributes:
        mean: Mean over members of the mean displacement of each feature ``[d]``, in its unit.
        spread: Standard deviation over members ``[d]``; None for a single one.
        disagreement: Root mean square over members, cells and features of the displacement less its mean over members, relative to that of the
            displacement itself; None for a single one.
        novelty: Distance of the population's embedding from the nearest one of training, over the median of these distances within training; the mean
            over members. Above about 2 the population is unlike those of training. None for flows that do not embed populations.
    """

    mean: Tensor
    spread: Tensor | None
    disagreement: float | None
    novelty: float | None


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Flows that differ by their seeds alone.

    Attributes:
        members: The flows.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> before = [torch.randn(60, 1, generator=g) + k for k in range(4)]
        >>> populations = Populations.of(before, [x + 1 for x in before])
        >>> make = lambda: MetaFlow(width=16, cells=32, pairs=16)
        >>> ensemble = Ensemble.fit(make, populations, members=2, steps=100, seed=0)
        >>> ensemble.confidence(before[0]).spread.shape
        torch.Size([1])
    """

    members: tuple[MetaFlow, ...]

    @staticmethod
    def fit(
        make: Callable[[], MetaFlow], populations: Populations, *, members: int = 3, seed: int = 0, device: str = "cpu", **options: Any
    ) -> Ensemble:
        """Fit ``members`` flows with the seeds ``seed``, ``seed + 1``, ..."""
        at_least_one(members=members)
        return Ensemble(tuple(make().fit(populations, rng=Streams(seed + k, device), **options) for k in range(members)))

    def predict(self, cells: Any, treatment: str | None = None, **how: Any) -> list[Population]:
        """The prediction of each member; row k is always cell k."""
        return [flow.predict(cells, treatment, **how) for flow in self.members]

    def confidence(self, cells: Any, treatment: str | None = None, **how: Any) -> Confidence:
        """Agreement of the members on a population; the arguments are those of `MetaFlow.predict`."""
        keys = ("types", "example", "features")
        given = [flow.given(cells, treatment, **{name: value for name, value in how.items() if name in keys}) for flow in self.members]
        return confidence(given, self.predict(cells, treatment, **how))


def together(predicted: Sequence[Population]) -> Population:
    """One population for what all members predict: of each cell the expected weight ``w = mean_m w_m``, at the mean place ``sum_m w_m x_m / sum_m w_m``.

    >>> one, two = Population.of(torch.zeros(1, 1)), Population.of(torch.ones(1, 1)).replace(log_w=torch.tensor([3.0]).log())
    >>> both = together([one, two])
    >>> round(float(both.x), 3), float(both.log_w.exp())
    (0.75, 2.0)
    """
    log_w = torch.stack([pop.log_w for pop in predicted])
    place = (log_w.softmax(0)[..., None] * torch.stack([pop.x for pop in predicted])).sum(0)
    return predicted[0].replace(x=place, log_w=log_w.logsumexp(0) - math.log(len(predicted)))


def confidence(given: Sequence[Any], predicted: Sequence[Population]) -> Confidence:
    """Agreement of members, given their flows of one population and what they predict."""
    moved = torch.stack([pop.x - one.cells for one, pop in zip(given, predicted, strict=True)])
    means = torch.stack([(pop.weights()[:, None] * pop.x).sum(0) - one.cells.mean(0) for one, pop in zip(given, predicted, strict=True)])
    apart = (moved - moved.mean(0)).square().mean().sqrt() / moved.square().mean().sqrt().clamp_min(1e-12)
    far = [_novelty(one) for one in given]
    found = [one for one in far if one is not None]
    several = len(given) > 1
    return Confidence(
        means.mean(0),
        means.std(0) if several else None,
        float(apart) if several else None,
        sum(found) / len(found) if found else None,
    )


def _novelty(given: Any) -> float | None:
    known = given.field.embeddings
    if known is None:
        return None
    known = torch.unique(known, dim=0)
    width = known.shape[1]
    mine = given.context[:, :width]
    if len(known) < 2:
        return None
    apart = torch.cdist(known, known)
    apart.fill_diagonal_(torch.inf)
    return float(torch.cdist(mine, known).min() / apart.min(1).values.median().clamp_min(1e-12))
