"""The loop: exact budgets, one call a molecule, credit that adds up, resumption after a kill, recipes on real molecules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from popflow.core.errors import CheckpointError
from popflow.evolve import RECIPES, Child, Evolution, Parent, PreRanking, Recipe, draw, edit_the_best
from popflow.evolve.graph_moves import Crossover, Mutation
from popflow.evolve.oracles.pmo import Objective
from popflow.evolve.preranking import Surrogate
from popflow.evolve.selection import front, nsga2, rank, truncation
from popflow.runs import CostlyFunction, Ledger, RunBusyError

SLOW_RUN = Path(__file__).parent / "slow_run.py"


def letters(words: Sequence[str]) -> np.ndarray:
    return np.array([[word.count(c) for c in "ab"] for word in words])


def spell(parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
    """Draw about a third of the letters of a word again."""
    children = []
    for i in rng.integers(len(parents), size=n):
        word = ["ab"[rng.integers(2)] if rng.random() < 0.35 else letter for letter in parents[i].smiles]
        children.append(Child("".join(word), "spell", (parents[i].smiles,)))
    return children


def words(count: int = 8, length: int = 20, seed: int = 0) -> list[str]:
    table = np.random.default_rng(seed).integers(2, size=(count, length))
    return ["".join("ab"[k] for k in row) for row in table]


def evolution(recipe: Recipe | None = None, **options) -> Evolution:
    given = {"budget": 100, "seed": 0, "key": str, "surrogate": Surrogate(letters)} | options
    start = given.pop("start", words())
    operators = given.pop("operators", {"spell": spell})
    return Evolution(start, operators, recipe or Recipe(population=10, offspring=7, parents=rank()), **given)


def count_a(batch: Sequence[str], notes: object = None) -> list[float]:
    return [float(one.count("a")) for one in batch]


PRERANKED = Recipe(population=10, offspring=4, parents=rank(), preranking=PreRanking(children=20))
GP_BO = Recipe(population=10, offspring=4, parents=rank(), preranking=PreRanking(children=10, inner=2))


@pytest.mark.parametrize("recipe", [None, PRERANKED, GP_BO])
@pytest.mark.parametrize("budget", [8, 9, 53])
def test_the_budget_is_spent_exactly_on_different_molecules(recipe: Recipe | None, budget: int) -> None:
    asked: list[str] = []
    found = evolution(recipe, budget=budget).run(lambda batch, notes: (asked.extend(batch), count_a(batch))[1])
    assert len(asked) == len(set(asked)) == len(found.scored) == budget
    assert found.stopped == "budget"
    values = found.fitness()[found.population]
    assert (np.diff(values) <= 0).all()
    assert values.tolist() == sorted(found.fitness(), reverse=True)[:10], "truncation keeps the best of all"


def test_credit_adds_up_and_parents_are_told() -> None:
    found = evolution(operators={"one": spell, "two": spell}, shares={"one": 3, "two": 1}).run(count_a)
    credit = found.credit
    assert sum(one.scored for one in credit.values()) == 100 - 8
    assert credit["one"].asked > 2 * credit["two"].asked
    for one in credit.values():
        assert one.made == one.asked
        assert one.scored <= one.made - one.repeated - one.refused
        assert one.records <= one.improved <= one.scored
    by_hand = sum(1 for one in found.scored if one.parents and one.values[0] > max(count_a(one.parents)))
    assert sum(one.improved for one in credit.values()) == by_hand
    line = found.lineage(found.best.smiles)
    assert line[0] == found.best
    assert {one.operator for one in line if not one.parents} == {"start"}
    known = {one.smiles for one in found.scored}
    assert all(parent in known for one in found.scored for parent in one.parents)


def test_shares_follow_what_enters_the_population() -> None:
    def useless(parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        return [Child("b" * int(k), "useless", (parents[0].smiles,)) for k in rng.integers(13, 10**3, size=n)]

    found = evolution(operators={"spell": spell, "useless": useless}, adapt=True).run(count_a)
    assert found.credit["spell"].asked > 2 * found.credit["useless"].asked
    assert found.credit["useless"].asked > 0


def test_a_failing_operator_leaves_its_attempts_to_the_fallback() -> None:
    found = evolution(operators={"down": lambda parents, n, rng: []}, fallback=spell).run(count_a)
    assert found.stopped == "budget"
    assert found.credit["down"].fallbacks == found.credit["down"].asked > 0
    assert found.credit["down"].made == found.credit["down"].scored == found.credit["down"].entered == 0
    assert {one.operator for one in found.scored} == {"start", "fallback"}
    part = evolution(operators={"down": lambda parents, n, rng: []}, fallback=spell)
    part.tell(batch := part.ask(), count_a(batch))
    part.ask()
    assert {one["operator"] for one in part.origins()} == {"fallback"}


def test_what_is_not_accepted_is_never_asked_for() -> None:
    screened = Recipe(population=10, offspring=4, parents=rank(), preranking=PreRanking(children=20, screen=tuple(words(30, seed=5))))
    asked: list[str] = []
    found = evolution(screened, start=words(20), reserve=words(50, 14), budget=40, accept=lambda one: one.endswith("b"))
    found.run(lambda batch, notes: (asked.extend(batch), count_a(batch))[1])
    assert len(asked) == 40
    assert all(one.endswith("b") for one in asked)
    assert {"start", "fresh"} <= {one.operator for one in found.scored}
    with pytest.raises(ValueError, match="no molecule that accept allows among 8"):
        evolution(accept=lambda one: False)


def test_a_collapsed_population_gets_fresh_molecules_and_then_ends() -> None:
    def twin(parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        return [Child(parents[0].smiles, "twin", (parents[0].smiles,))] * n

    found = evolution(operators={"twin": twin}, reserve=words(9, 14)).run(count_a)
    assert found.stopped == "no new molecules"
    assert found.fresh == 9
    assert len(found.scored) == 17


def test_molecules_without_value_are_kept_out_and_counted() -> None:
    def some(batch: Sequence[str], notes: object) -> list[float]:
        return [np.nan if one.startswith("b") else value for one, value in zip(batch, count_a(batch), strict=True)]

    for recipe in (None, PRERANKED):
        found = evolution(recipe).run(some)
        assert len(found.scored) == 100
        assert any(one.values is None for one in found.scored)
        assert not any(found.scored[place].smiles.startswith("b") for place in found.population)
    nothing = evolution(reserve=words(20, 15)).run(lambda batch, notes: [np.nan] * len(batch))
    assert nothing.stopped == "no new molecules"
    with pytest.raises(ValueError, match="no molecule has a value"):
        _ = nothing.best


@pytest.mark.parametrize("survive", [nsga2, front])
def test_two_objectives_find_the_whole_front(survive) -> None:
    """Words of 6 letters: count of a in the first half and of b anywhere; the front is known by enumeration."""

    def both(batch: Sequence[str], notes: object = None) -> list[tuple[float, float]]:
        return [(float(one[:3].count("a")), float(one.count("b"))) for one in batch]

    recipe = Recipe(population=20, offspring=10, parents=rank(), survive=survive, by_place=survive is nsga2)
    found = evolution(recipe, start=words(6, 6), budget=60).run(both)
    assert {one.values for one in found.front()} == {(0.0, 6.0), (1.0, 5.0), (2.0, 4.0), (3.0, 3.0)}


def test_operators_see_the_scores_of_parents_and_not_their_places() -> None:
    seen = {}

    def watch(parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        seen.update({one.smiles: one.score for one in parents})
        return spell(parents, n, rng)

    kept = evolution(Recipe(population=8, offspring=4, parents=rank(), survive=nsga2, by_place=True), operators={"spell": watch}, budget=20)
    kept.run(lambda batch, notes: [[one, one] for one in count_a(batch)])
    assert len(seen) > 2
    assert seen == {one: 2.0 * count_a([one])[0] for one in seen}


def test_patience_ends_a_run_without_progress() -> None:
    recipe = Recipe(population=10, offspring=10, parents=rank(), patience=3)
    found = evolution(recipe, start=words(8, 40), budget=1000).run(lambda batch, notes: [1.0] * len(batch))
    assert found.stopped == "patience"
    assert len(found.scored) < 200


def test_ask_repeats_itself_until_it_is_told() -> None:
    one = evolution()
    batch = one.ask()
    assert one.ask() == batch == words()
    with pytest.raises(ValueError, match="in their order"):
        one.tell(batch[::-1], count_a(batch))
    with pytest.raises(ValueError, match=r"values of shape \(7, 1\), wanted 8 rows"):
        one.tell(batch, count_a(batch)[:-1])
    one.tell(batch, count_a(batch))
    assert set(one.ask()).isdisjoint(batch)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="budget=5 is smaller than the start population of 8"):
        evolution(budget=5)
    with pytest.raises(ValueError, match="start holds no molecule"):
        evolution(start=[])
    with pytest.raises(ValueError, match="shares="):
        evolution(shares={"spel": 1.0})
    with pytest.raises(ValueError, match="both choose the batch"):
        Recipe(nearest=True, preranking=PreRanking())
    with pytest.raises(ValueError, match="fitness holds -"):
        evolution(Recipe(population=10, offspring=5)).run(lambda batch, notes: [-value for value in count_a(batch)])


@pytest.mark.parametrize("recipe", [None, PRERANKED, GP_BO])
def test_a_saved_run_continues_to_the_bit(recipe: Recipe | None, tmp_path: Path) -> None:
    whole = evolution(recipe, adapt=True).run(count_a)
    for stop in (1, 3, 6):
        part, state = evolution(recipe, adapt=True), tmp_path / f"{stop}.json"
        for _ in range(stop):
            part.tell(batch := part.ask(), count_a(batch))
        part.save(state)
        part.ask()  # in flight when the process dies
        again = evolution(recipe, adapt=True).run(count_a, state)
        assert (again.scored, again.population, again.credit) == (whole.scored, whole.population, whole.credit)
    (tmp_path / "1.json").write_text('{"scored": []}')
    with pytest.raises(CheckpointError, match="is no state of this evolution"):
        evolution().load(tmp_path / "1.json")


def test_a_batch_in_flight_is_saved_and_a_larger_budget_goes_on(tmp_path: Path) -> None:
    whole = evolution().run(count_a)
    part = evolution(budget=30)
    for _ in range(2):
        part.tell(batch := part.ask(), count_a(batch))
    asked, state = part.ask(), tmp_path / "state.json"
    part.save(state)
    again = evolution()
    again.load(state)
    assert again.ask() == asked
    assert again.run(count_a).scored == whole.scored
    ends = sum(one.generation < 3 for one in whole.scored)
    short = evolution(budget=ends).run(count_a, state := tmp_path / "short.json")
    assert short.stopped == "budget"
    assert evolution().run(count_a, state).scored == whole.scored


def test_children_beyond_the_batch_are_left_out_at_random() -> None:
    recipe = Recipe(population=10, offspring=6, children=30, parents=rank())
    found = evolution(recipe, operators={"one": spell, "two": spell}).run(count_a)
    assert min(one.scored for one in found.credit.values()) > 25, "by order the second would get next to nothing"


def start(folder: Path, seconds: float, budget: int) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SLOW_RUN), str(folder), str(seconds), str(budget), "2"]
    return subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE)


def outcome(folder: Path) -> tuple:
    state = json.loads((folder / "state.json").read_text())
    with Ledger(folder / "calls.jsonl") as ledger:
        return sorted(ledger, key=ledger.index), state["population"], state["scored"]


def test_kill_9_loses_no_call_and_repeats_none(tmp_path: Path) -> None:
    whole, cut, rng = tmp_path / "whole", tmp_path / "cut", np.random.default_rng(0)
    assert start(whole, 0.0, 60).wait() == 0
    for _ in range(2):
        process = start(cut, 0.02, 60)
        before = lines(cut)
        while process.poll() is None and lines(cut) < before + 6:
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.1)))
        process.kill()
        process.wait()
    with (cut / "calls.jsonl").open("ab") as file:
        file.write(b'{"key": "C')  # a torn last line
    assert start(cut, 0.0, 60).wait() == 0
    assert outcome(cut) == outcome(whole)
    assert len(outcome(cut)[0]) == 60


def lines(folder: Path) -> int:
    file = folder / "calls.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_two_writers_are_refused(tmp_path: Path) -> None:
    process = start(tmp_path / "run", 0.2, 30)
    while not (tmp_path / "run" / "calls.jsonl").exists() or lines(tmp_path / "run") < 2:
        time.sleep(0.02)
    try:
        with pytest.raises(RunBusyError):
            CostlyFunction(len, tmp_path / "run" / "calls.jsonl")
    finally:
        process.kill()
        process.wait()


def test_recipes_improve_real_molecules() -> None:
    qed = Objective("qed")
    operators = {"crossover": Crossover(), "edits": edit_the_best(Mutation())}
    for name in RECIPES:
        start = draw(20, seed=3)
        found = Evolution(start, operators, RECIPES[name], budget=60, seed=1, shares={"crossover": 0.7, "edits": 0.3})
        found.run(lambda batch, notes: [qed(one) for one in batch])
        assert len(found.scored) == 60, name
        kept = [found.scored[place].values[0] for place in found.population[:20]]
        assert np.mean(kept) > np.mean([qed(one) for one in start]) + 0.02, name


def test_the_process_learns_ranks_where_a_front_is_kept() -> None:
    """In units that differ a millionfold the batch is the same as in like ones; a sum is learned as it is."""

    def batch(survive, unit: float) -> list[str]:
        recipe = Recipe(
            population=8, offspring=4, parents=rank(), survive=survive, by_place=survive is nsga2, preranking=PreRanking(children=40)
        )
        found = Evolution(["CCO", "CCN", "CCCC", "c1ccccc1", "CC(C)O", "OCCO"], {"graph": Crossover()}, recipe, budget=60, seed=3)
        for _ in range(3):
            asked = found.ask()
            found.tell(asked, [[float(len(one)), unit * one.count("O")] for one in asked])
        return found.ask()

    assert batch(nsga2, 1.0) == batch(nsga2, 1e6)
    assert batch(truncation, 1.0) != batch(truncation, 1e6)
