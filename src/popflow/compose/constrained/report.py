"""The report of ``popflow optimize``: candidates beside the data, and how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.compose.constrained.candidates import Candidates, Found
from popflow.compose.constrained.config import OptimizeConfig
from popflow.compose.constrained.model import Model
from popflow.compose.constrained.pareto import front
from popflow.runs import Figure, Measured, Report, Table, Verdict, figures

TYPICAL = 0.05
"""Feasibility above which a row counts as one that the data could hold: nineteen of twenty held-out rows do."""
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Outcome:
    """The results of a run.

    Attributes:
        config: The configuration.
        model: What was learned.
        found: The particles.
        chosen: The candidates.
        values: Values of the table's rows, ``[n, targets]``; None without targets.
        dropped: Rows left out because values were missing.
        calls: Outcomes of the calls of the objective, by kind; empty without one.
        prior: Predicted values of draws from the prior; None for a black box.
    """

    config: OptimizeConfig
    model: Model
    found: Found
    chosen: Candidates
    values: Tensor | None
    dropped: int
    calls: Mapping[str, int]
    prior: Tensor | None


def report(found: Outcome) -> Report:
    """Report an outcome: candidates beside the data and the prior, feasibility, temperatures."""
    config, model, chosen = found.config, found.model, found.chosen
    names: tuple[str, ...] = config.target or ("objective",)
    typical = float((chosen.feasibility > TYPICAL).double().mean())
    front_of = f"a front of {', '.join(names)}" if len(names) > 1 else next(iter(names))
    source = f"calls of {config.objective}" if config.objective else "a surrogate learned from the table"
    results = {f"median {name}": Measured(float(chosen.value[:, k].median())) for k, name in enumerate(names)}
    results |= {"typical of the data": Measured(typical), "acceptance": Measured(found.found.acceptance), "ESS": Measured(found.found.ess)}
    if model.surrogate is not None:
        results |= {f"R2 of {name}, held out": Measured(float(model.surrogate.score[k])) for k, name in enumerate(names)}
    results |= {f"calls: {kind}": Measured(count) for kind, count in found.calls.items() if count}
    return Report(
        title=f"Candidates for {front_of}: {config.data.name}",
        summary=(
            f"{len(chosen.z)} rows proposed from {len(model.rows) + len(model.held)} measured ones ({model.duplicates} repeated, {found.dropped} left out), "
            f"{'lower' if config.minimize else 'higher'} values wanted, by {source}. A diffusion model of the table says which rows could be rows of it; "
            f"candidates are {'the best different particles' if config.select == 'best' else 'draws'} of its density times exp(beta y), beta {config.beta:g}.\n\n"
            "Feasibility is the share of held-out rows that are no more typical of the data; predictions are not measurements."
        ),
        verdict=_verdict(found, typical),
        figure=_map(model, chosen),
        comparison=(_values(found, names), _rows(found, names)),
        diagnostics=(_feasibility(found), *_levels(found)),
        results=results,
        files={"candidates.csv": "the candidates with value, uncertainty, feasibility, acceptance and effective sample size"}
        | ({"calls.jsonl": "every call of the objective, written before its value was used"} if config.objective else {}),
    )


def _verdict(found: Outcome, typical: float) -> Verdict:
    criterion = f"three quarters of the candidates have a feasibility above {TYPICAL}, and their median value is better than nine tenths of the table"
    if found.values is None or found.values.shape[1] > 1:
        return Verdict(typical >= 0.75, f"{typical:.0%} of the candidates have a feasibility above {TYPICAL}", criterion.partition(",")[0])
    sign = 1.0 if found.config.minimize else -1.0
    median = float(found.chosen.value[:, 0].median())
    better = float((sign * median < sign * found.values[:, 0]).double().mean())
    statement = (
        f"{typical:.0%} of the candidates have a feasibility above {TYPICAL}, their median value is better than {better:.0%} of the table"
    )
    return Verdict(typical >= 0.75 and better >= 0.9, statement, criterion)


def plane(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Project rows and others onto the two leading principal axes of the rows, ``[n, 2]``; the second is zero for a single coordinate."""
    centre = rows.double().mean(0)
    if rows.shape[1] < 2:
        return tuple(torch.cat([x.double() - centre, torch.zeros(len(x), 1, dtype=torch.float64)], 1) for x in (rows, others))  # type: ignore[return-value]
    axes = torch.linalg.svd(rows.double() - centre, full_matrices=False).Vh[:2]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return (rows.double() - centre) @ axes.T, (others.double() - centre) @ axes.T


def _map(model: Model, chosen: Candidates) -> Figure:
    data, new = plane(model.rows[:2000], chosen.z)
    image = figures.scatter({"table": data, "candidates": new}, x_label="first principal axis", y_label="second principal axis")
    return Figure(image, "The table and the candidates, on the two directions in which the table varies most.", "Two clouds of points.")


def _values(found: Outcome, names: tuple[str, ...]) -> Table:
    rows: list[tuple[Any, ...]] = []

    def add(name: str, values: Tensor | None) -> None:
        if values is not None and len(values):
            for k, one in enumerate(names):
                column = values[:, k].double()
                rows.append(
                    (f"{name}: {one}" if len(names) > 1 else name, len(column), *(float(column.quantile(q)) for q in (0.0, 0.5, 0.9, 1.0)))
                )

    add("table, measured", found.values)
    add("draws of the prior, predicted", found.prior)
    add("candidates, " + ("called" if found.calls else "predicted"), found.chosen.value)
    if len(names) > 1:
        sign = 1.0 if found.config.minimize else -1.0
        add("their front", found.chosen.value[front(sign * found.chosen.value)])
    return Table("Values", ("rows", "number", "least", "median", "90 %", "greatest"), tuple(rows), emphasis=(len(rows) - 1,))


def _rows(found: Outcome, names: tuple[str, ...]) -> Table:
    chosen = found.chosen
    table = found.model.schema.values(chosen.z[:_SHOWN])
    shown = list(table)[:6]
    rows = []
    for i in range(min(_SHOWN, len(chosen.z))):
        cells: list[Any] = [i + 1]
        for k in range(len(names)):
            error = float(chosen.uncertainty[i, k])
            cells.append(Measured(float(chosen.value[i, k]), None if math.isnan(error) else error))
        rows.append((*cells, float(chosen.feasibility[i]), *(_cell(table[name][i]) for name in shown)))
    note = "" if len(table) <= len(shown) else f"{len(table) - len(shown)} more columns stand in candidates.csv."
    return Table("First candidates", ("", *names, "feasibility", *shown), tuple(rows), note)


def _cell(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, str | int | float | bool) else str(plain)


def _feasibility(found: Outcome) -> Figure:
    held = found.model.feasibility(found.model.held[:2000])
    image = figures.histogram({"held-out rows": held, "candidates": found.chosen.feasibility}, x_label="feasibility", bins=20)
    return Figure(
        image, "Feasibility: even for rows that the table could hold, by construction; low for rows unlike it.", "Two histograms."
    )


def _levels(found: Outcome) -> tuple[Figure | Table, ...]:
    levels = found.found.levels
    if not levels:
        return ()
    beta = found.config.beta
    rows = tuple((k + 1, one.fraction * beta, one.ess, one.acceptance, one.sigma) for k, one in enumerate(levels))
    note = "The noise level of moves is tuned to their squared jumps; the acceptance counts moves that changed the row."
    return (Table("Temperatures", ("step", "beta", "ESS, share", "acceptance", "noise level"), rows, note),)
