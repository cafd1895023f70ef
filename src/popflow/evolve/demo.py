"""``popflow demo molleo``: a drug is found again, by a genetic algorithm and with a Gaussian process before its oracle."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

import numpy as np

from popflow.evolve.config import DemoConfig
from popflow.evolve.evolution import Evolution
from popflow.evolve.graph_moves import Crossover
from popflow.evolve.molecules import canonical, parse
from popflow.evolve.oracles.terms import similarity
from popflow.evolve.pool import draw
from popflow.evolve.recipes import RECIPES
from popflow.evolve.report import drawing, ranked
from popflow.evolve.scores import top_mean
from popflow.runs import CostlyFunction, Figure, Ledger, Measured, Report, Run, Table, Verdict
from popflow.runs.figures import lines

DRUG = "CC(=O)Nc1ccc(O)cc1"
START, BATCH = 60, 20
NAMES = {"graph-ga": "genetic algorithm", "preranked": "with a Gaussian process"}


@dataclass(frozen=True, slots=True)
class Likeness:
    """Tanimoto similarity of Morgan counts of radius 2 to a molecule.

    >>> Likeness(DRUG)("CC(=O)Nc1ccc(O)cc1"), round(Likeness(DRUG)("CCO"), 2)
    (1.0, 0.06)
    """

    drug: str

    def __call__(self, smiles: str) -> float:
        """Return the similarity of a molecule."""
        return similarity(self.drug, "ECFP4")(parse(smiles))


def demo(config: DemoConfig, run: Run) -> Report:
    """Look for the drug with both recipes, on the same start and the same budget."""
    budget = min(config.budget, 300) if config.quick else config.budget
    found = {}
    for recipe, name in NAMES.items():
        evolution = Evolution(
            draw(START, config.seed), {"graph": Crossover()}, replace(RECIPES[recipe], offspring=BATCH), budget=budget, seed=config.seed
        )

        def told(evolution: Evolution, name: str = name) -> None:
            best = float(evolution.fitness().max())
            run.metrics.add(name, evolution.generation, {"calls": len(evolution.scored), "best": best})
            if best >= 1:
                evolution.stopped = "found"
            run.progress(name, len(evolution.scored), budget)

        with Ledger(run.path / f"calls-{recipe}.jsonl") as ledger:
            found[name] = evolution.run(CostlyFunction(Likeness(DRUG), ledger, on_error="skip"), run.path / f"state-{recipe}.json", told)
    return report(found, budget, run)


def report(found: dict[str, Evolution], budget: int, run: Run) -> Report:
    """Return calls until the drug was found, curves, and the molecules of the last population."""
    needed = {name: calls_to(evolution) for name, evolution in found.items()}
    with_process = NAMES["preranked"]
    best = ranked(found[with_process])
    again = best[0][0].smiles == canonical(DRUG)
    calls = list(range(1, budget + 1))
    curves = {}
    for name, evolution in found.items():
        top = np.maximum.accumulate(evolution.fitness())
        curves[name] = np.concatenate([top, np.full(budget - len(top), np.nan)]).tolist()
    rows = tuple(
        (name, needed[name], float(evolution.fitness().max()), top_mean(evolution.fitness()), len(evolution.scored))
        for name, evolution in found.items()
    )
    return Report(
        title="Paracetamol found again",
        summary=(
            f"{START} random molecules are crossed and mutated as graphs, {BATCH} children are scored in a generation, and the score is the "
            "similarity to paracetamol. One run scores whatever is bred; the other has a Gaussian process choose the batch out of 200 children, from "
            "what was scored so far. Only paracetamol scores 1."
        ),
        verdict=Verdict(
            again,
            f"found after {needed[with_process]} calls" if again else f"not found in {budget} calls",
            f"with a Gaussian process paracetamol is found within {budget} calls",
        ),
        figure=Figure(
            lines(calls, curves, x_label="calls", y_label="best similarity", reference={"paracetamol": 1.0}),
            "Best similarity against calls; a curve ends where the drug was found.",
            "two rising curves",
        ),
        comparison=(
            Table(
                "Calls until paracetamol was found",
                ("search", "calls", "best", "mean of the best 10", "calls made"),
                rows,
                f"One run each, with the same start and at most {budget} calls. A dash: not found.",
            ),
            drawing(best[:8]),
        ),
        results={
            f"{name}, {what}": Measured(value)
            for name, evolution in found.items()
            for what, value in (("best", float(evolution.fitness().max())), ("calls", float(len(evolution.scored))))
        },
        next=("popflow evolve --help", f"popflow cite {shlex.quote(str(run.path))}"),
    )


def calls_to(evolution: Evolution) -> int | str:
    """Return the number of calls after which the score was 1, or a dash."""
    hits = np.flatnonzero(evolution.fitness() >= 1)
    return int(hits[0]) + 1 if len(hits) else "–"
