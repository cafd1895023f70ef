"""The files and the report of ``popflow evolve``: the best molecules, scores against calls, credit, lineage."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, islice

import numpy as np
import torch
from rdkit.Chem import Descriptors, rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from popflow.core.checkpoint import write_atomic
from popflow.evolve.chat import AskChat, molecules_in
from popflow.evolve.config import EvolveConfig
from popflow.evolve.evolution import Evolution
from popflow.evolve.molecules import Chem, parse
from popflow.evolve.oracles import synthetic_accessibility
from popflow.evolve.records import Scored
from popflow.evolve.scores import area, diversity, top_mean
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict
from popflow.runs.figures import lines, scatter

DRAWN = 12
LISTED = 100
LINEAGE = 20
PAIRS = 6
"""Pairs of objectives whose front is drawn: all pairs of up to four objectives."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run of evolution came to.

    Attributes:
        config: The settings.
        evolution: The run.
        calls: Outcomes of the calls, by kind.
        chat: The chat operator, if there was one.
    """

    config: EvolveConfig
    evolution: Evolution
    calls: dict[str, int]
    chat: AskChat | None


def report(result: Result, run: Run) -> Report:
    """Write the files of the best molecules, and return the report."""
    evolution, config = result.evolution, result.config
    best = ranked(evolution)
    write_atomic(run.path / "top.csv", table_of(best, evolution, config.objectives()))
    write_atomic(run.path / "top.sdf", structures(best, evolution, config.objectives()))
    several = len(config.names()) > 1
    if several:
        write_atomic(run.path / "front.csv", table_of(front_of(evolution), evolution, config.objectives(), None))
    fitness = evolution.fitness()
    start = [value for value, one in zip(fitness, evolution.scored, strict=True) if one.generation == 0 and np.isfinite(value)]
    gain = float(fitness.max()) - max(start, default=-np.inf)
    names = ", ".join(config.objectives())
    return Report(
        title=f"Molecules for {names}",
        summary=(
            f"{len(fitness)} molecules were scored in {evolution.generation} generations, from {len(start)} seeds with a value, by the recipe "
            f"{config.recipe} with {', '.join(evolution.operators)}. It ended by: {evolution.stopped}.\n\nThe budget counts every different "
            "molecule that was asked for, those included for which the oracle gave no value."
        ),
        verdict=Verdict(
            bool(gain > 0),
            f"the best molecule has {best[0][1]:.4g}, the best seed {max(start, default=float('nan')):.4g}",
            "a molecule that was bred is better than every seed",
        ),
        figure=drawing(best[:DRAWN]),
        comparison=(_best_table(best), *([_front_table(evolution, config)] if several else []), _lineage(evolution, best[0][0])),
        diagnostics=(_curve(fitness), _credit(evolution), *_front_figures(evolution, config.objectives()))
        + ((_cost(result.chat, evolution),) if result.chat is not None else ())
        + (_calls(result),),
        results=_results(fitness, best, result),
        files={
            "top.csv": f"the best {LISTED} molecules with scores, origin and properties",
            **({"front.csv": "all molecules that no other dominates, with the same columns"} if several else {}),
            "top.sdf": "the best with drawings' coordinates, for any chemistry program",
            "calls.jsonl": "the ledger: every call with its outcome, operator and parents",
            "state.json": "the population after the last generation",
        },
    )


def ranked(evolution: Evolution) -> list[tuple[Scored, float]]:
    """Return molecules with a value and their sums of objectives, the best first."""
    fitness = evolution.fitness()
    order = [int(i) for i in np.argsort(-fitness, kind="stable") if np.isfinite(fitness[i])]
    return [(evolution.scored[i], float(fitness[i])) for i in order]


def front_of(evolution: Evolution) -> list[tuple[Scored, float]]:
    """Return the molecules that none dominates with their sums of objectives, the best first."""
    edge = {one.smiles for one in evolution.front()}
    return [(one, score) for one, score in ranked(evolution) if one.smiles in edge]


def properties(smiles: str) -> dict[str, float]:
    """Return what a chemist looks at first: QED, synthetic accessibility (1 easy, 10 hard), logP, molar mass in g/mol.

    >>> round(properties("CC(=O)Oc1ccccc1C(=O)O")["mass"], 2)
    180.16
    """
    molecule = parse(smiles)
    return {
        "qed": float(Descriptors.qed(molecule)),
        "sa": synthetic_accessibility(molecule),
        "logp": float(Descriptors.MolLogP(molecule)),  # pyright: ignore[reportAttributeAccessIssue]
        "mass": float(Descriptors.MolWt(molecule)),  # pyright: ignore[reportAttributeAccessIssue]
    }


def _row(place: int, one: Scored, score: float, call: int, names: Sequence[str]) -> dict[str, object]:
    values = dict(zip((f"value: {name}" for name in names), one.values or (), strict=True)) if len(names) > 1 else {}
    origin = {"call": call, "generation": one.generation, "operator": one.operator, "parents": " ".join(one.parents)}
    return {"place": place, "smiles": one.smiles, "score": score, **values, **origin, **properties(one.smiles)}


def rows_of(
    best: Sequence[tuple[Scored, float]], evolution: Evolution, names: Sequence[str], most: int | None = LISTED
) -> list[dict[str, object]]:
    """Return the rows of ``top.csv`` or, with ``most=None``, of ``front.csv``."""
    calls = {one.smiles: call for call, one in enumerate(evolution.scored, start=1)}
    return [_row(place, one, score, calls[one.smiles], names) for place, (one, score) in enumerate(best[:most], start=1)]


def table_of(best: Sequence[tuple[Scored, float]], evolution: Evolution, names: Sequence[str], most: int | None = LISTED) -> str:
    """Return the text of ``top.csv`` or, with ``most=None``, of ``front.csv``."""
    rows, text = rows_of(best, evolution, names, most), io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def structures(best: Sequence[tuple[Scored, float]], evolution: Evolution, names: Sequence[str]) -> str:
    """Return the text of ``top.sdf``."""
    text = io.StringIO()
    with Chem.SDWriter(text) as writer:
        for row in rows_of(best, evolution, names):
            molecule = parse(str(row["smiles"]))
            rdDepictor.Compute2DCoords(molecule)
            molecule.SetProp("_Name", f"{row['place']}")
            for name, value in row.items():
                molecule.SetProp(name.replace("<", " ").replace(">", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
            writer.write(molecule)
    return text.getvalue()


def drawing(best: Sequence[tuple[Scored, float]], across: int = 4) -> Figure:
    """Return a figure of molecules with their scores. It is an image: nothing in it is run or read as HTML."""
    side = 220
    deep = -(-len(best) // across)
    canvas = rdMolDraw2D.MolDraw2DSVG(side * min(across, len(best)), side * deep, side, side)
    canvas.drawOptions().clearBackground = False
    canvas.DrawMolecules([parse(one.smiles) for one, _ in best], legends=[f"{score:.4g}" for _, score in best])
    canvas.FinishDrawing()
    image = "data:image/svg+xml;base64," + base64.b64encode(canvas.GetDrawingText().encode()).decode()
    return Figure(image, f"The best {len(best)} molecules and their scores.", "drawings of " + ", ".join(one.smiles for one, _ in best))


def _best_table(best: Sequence[tuple[Scored, float]]) -> Table:
    rows = []
    for one, score in best[:10]:
        found = properties(one.smiles)
        rows.append((one.smiles, score, one.operator, *(found[name] for name in ("qed", "sa", "logp", "mass"))))
    head = ("SMILES", "score", "made by", "QED", "SA", "logP", "mass, g/mol")
    return Table(
        "The best molecules", head, tuple(rows), "top.csv holds a hundred. The score is the sum of objectives where there are several."
    )


def _front_table(evolution: Evolution, config: EvolveConfig) -> Table:
    found = evolution.front()
    names = config.objectives()
    rows = tuple((one.smiles, *(one.values or ())) for one in found[:20])
    return Table("Pareto front", ("SMILES", *names), rows, f"{len(found)} molecules are dominated by none; at most 20 are shown.")


def _front_figures(evolution: Evolution, names: Sequence[str]) -> list[Figure]:
    found = torch.tensor([one.values for one in evolution.scored if one.values is not None], dtype=torch.float64)
    edge = torch.tensor([one.values for one in evolution.front() if one.values is not None], dtype=torch.float64)
    figures = []
    for pair in islice(combinations(range(len(names)), 2), PAIRS):
        clouds = {"scored": found[:, pair], "front": edge[:, pair]}
        image = scatter(clouds, x_label=names[pair[0]], y_label=names[pair[1]])
        seen = "" if len(names) == 2 else f", by two of the {len(names)} objectives"
        figures.append(Figure(image, f"All molecules, and those that none dominates{seen}.", "a Pareto front"))
    return figures


def _lineage(evolution: Evolution, one: Scored) -> Table:
    line = evolution.lineage(one.smiles)
    rows = tuple(
        (f"{ancestor.generation}", ancestor.operator, ancestor.smiles, float(sum(ancestor.values or (float("nan"),))))
        for ancestor in line[:LINEAGE]
    )
    note = f"The best molecule and its ancestors, nearest first: {len(line)} in all, {len(rows)} shown."
    return Table("Lineage of the best molecule", ("generation", "made by", "SMILES", "score"), rows, note, (0,))


def _curve(fitness: np.ndarray) -> Figure:
    calls = np.unique(np.linspace(1, len(fitness), min(len(fitness), 200)).astype(int))
    series: dict[str, list[float]] = {"best": [], "mean of the best 10": [], "mean of the best 100": []}
    for count in calls:
        good = np.sort(fitness[:count][np.isfinite(fitness[:count])])[::-1]
        for label, top in zip(series, (1, 10, 100), strict=True):
            series[label].append(float(good[:top].mean()) if len(good) >= top else float("nan"))
    image = lines(calls.tolist(), series, x_label="calls", y_label="score")
    return Figure(image, "Scores against calls.", "curves of the best score and of the means of the best 10 and 100")


def _credit(evolution: Evolution) -> Table:
    rows = tuple((name, *asdict(credit).values()) for name, credit in evolution.credit.items())
    head = ("operator", *next(iter(map(asdict, evolution.credit.values()))))
    note = (
        "Attempts, children made, refused by constraints, known before, left to the fallback; then of the scored ones how many were better than "
        f"their parents, entered the population, and were the best so far. Fresh molecules for a collapsed population: {evolution.fresh}."
    )
    return Table("Credit of the operators", head, rows, note)


def _cost(chat: AskChat, evolution: Evolution) -> Table:
    credit, replay = evolution.credit["chat"], chat.client.replay
    replies = [note["reply"] for key in replay if "reply" in (note := replay.note(key))]
    made = {
        "children": credit.made,
        "replies without a molecule": sum(not molecules_in(text, 1) for text in replies),
        "attempts left to the fallback": credit.fallbacks,
    }
    spent = {name.replace("_", " "): value for name, value in asdict(chat.client.spent()).items() if name != "replayed"}
    rows = (*spent.items(), *made.items())
    note = "Counted over the whole run, in however many processes: every question and its tokens are in replies.jsonl."
    return Table("Cost of the chat model", ("what", "count"), rows, note)


def _calls(result: Result) -> Table:
    return Table("Outcomes of the calls", ("outcome", "calls"), tuple(result.calls.items()), "All are in calls.jsonl, with the reasons.")


def _results(fitness: np.ndarray, best: Sequence[tuple[Scored, float]], result: Result) -> dict[str, Measured]:
    values = [score for _, score in best]
    found = {"best score": values[0], "mean of the best 10": top_mean(values), "calls": float(len(fitness))}
    if len(best) == len(fitness):
        found["area under the curve of the best 10"] = area(fitness, max(result.config.budget, len(fitness)))
    if len(best) > 1:
        found["diversity of the best 100"] = diversity([one.smiles for one, _ in best[:100]])
    return {name: Measured(value) for name, value in found.items()}
