"""Recipes of evolution by name: Graph-GA, the variants of MOLLEO, pre-ranking and Bayesian optimisation.

| recipe | population, batch | children |
|---|---|---|
| `GRAPH_GA` | 120, 70 | all are scored |
| `CROSSOVER` | 120, 70 | the same: a language model crosses, and graph moves replace what it fails to answer (MOLLEO with a chat model) |
| `EDITS` | 120, 70 | 70 graph crossovers and 30 edits of the best molecules; of the 100 the 70 nearest to the best (MOLLEO with BioT5 or MoleculeSTM) |
| `PRERANKED` | 120, 20 | a Gaussian process chooses 20 of 200; parents by rank |
| `GP_BO` | 120, 20 | the same, after four generations on the bound alone |

The first three draw parents in proportion to their fitness and keep the best. The paper stops after five generations without progress; here
the whole budget is spent unless ``patience`` says so, as sums of scores against calls want it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from popflow.core.checks import at_least_one
from popflow.evolve.operators import Child, Operator, Parent
from popflow.evolve.preranking import PreRanking
from popflow.evolve.selection import Parents, Survival, proportional, rank, truncation


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a generation is made.

    Attributes:
        population: Molecules kept.
        offspring: Molecules scored in a generation, at most.
        children: Attempts of the operators in a generation; None for ``offspring``.
        parents: Parent scheme, one of `popflow.evolve.selection`.
        survive: Survival scheme.
        by_place: Parents are drawn by their place among the survivors, for NSGA-II; otherwise by the sum of the objectives.
        nearest: Of the children those with the largest Tanimoto similarity to the best molecule are scored.
        preranking: Of the children those are scored that a Gaussian process chooses.
        patience: Generations without progress after which the run ends; None to spend the whole budget.
    """

    population: int = 120
    offspring: int = 70
    children: int | None = None
    parents: Parents = field(default_factory=proportional)
    survive: Survival = truncation
    by_place: bool = False
    nearest: bool = False
    preranking: PreRanking | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        at_least_one(population=self.population, offspring=self.offspring)
        if self.nearest and self.preranking is not None:
            raise ValueError("nearest=True and preranking both choose the batch. Fix: give one of them.")


def edit_the_best(operator: Operator) -> Operator:
    """Return an operator that applies another one to each parent in turn, the best first: the mutation of MOLLEO's edits.

    >>> def methyl(parents, n, rng):
    ...     return [Child(parents[0].smiles + "C", "methyl", (parents[0].smiles,))]
    >>> pool = [Parent("CO", 0.1), Parent("CN", 0.9), Parent("CN", 0.9)]
    >>> [child.smiles for child in edit_the_best(methyl)(pool, 2, np.random.default_rng(0))]
    ['CNC', 'COC']
    """

    def edits(parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        best = sorted({one.smiles: one for one in parents}.values(), key=lambda one: -one.score)
        found: list[Child] = []
        for one in best:
            if len(found) >= n:
                break
            found += operator([one], 1, rng)
        return found[:n]

    return edits


GRAPH_GA = Recipe()
CROSSOVER = Recipe()
EDITS = Recipe(children=100, nearest=True)
PRERANKED = Recipe(offspring=20, parents=rank(), preranking=PreRanking())
GP_BO = Recipe(offspring=20, parents=rank(), preranking=PreRanking(inner=4))
RECIPES = {"graph-ga": GRAPH_GA, "crossover": CROSSOVER, "edits": EDITS, "preranked": PRERANKED, "gp-bo": GP_BO}
"""Recipes by name."""
