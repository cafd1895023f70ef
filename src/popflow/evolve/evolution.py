"""Evolution of molecules against an oracle with few calls: ask for a batch, tell its values, or run to the end of the budget.

    parents   ~ selection on fitness (the sum of objectives)
    children  = operators(parents), never scored before
    batch     = all children, the nearest to the best, or the choice of a Gaussian process
    survivors = truncation, Pareto front or NSGA-II of population + batch

Every molecule is asked for once. All randomness comes from one generator whose state is saved with the population after each generation, so that
a run that was killed continues as if it had not been: the batch in flight is proposed again, and a ledger knows the calls already made.

Source: Wang et al., *Efficient evolutionary search over chemical space with large language models* (MOLLEO, 2025).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from popflow.core.checkpoint import write_atomic
from popflow.core.checks import at_least_one
from popflow.core.errors import CheckpointError
from popflow.evolve.operators import Child, Operator, Parent, shares_of
from popflow.evolve.preranking import PreRanking, Surrogate
from popflow.evolve.recipes import Recipe
from popflow.evolve.records import Credit, Scored
from popflow.evolve.selection import Parents, rank, scalarised, truncation

ROUNDS = 3
"""Rounds of children without a new one before fresh molecules are taken."""
LEAST_GAIN = 1e-3
"""Gain of the mean of the best 100 in a generation that counts as progress."""


class Evolution:
    """A population of molecules that is asked for batches and told their values.

    Args:
        start: SMILES of the first population; those beyond its size are kept as fresh molecules.
        operators: Operators by name.
        recipe: How a generation is made.
        budget: Molecules asked for, exactly, unless patience or new molecules run out.
        seed: Of all randomness.
        shares: Share of the attempts of each operator; equal ones by default.
        adapt: Shares follow the rate at which scored children enter the population, with a tenth kept for equal ones.
        fallback: Operator for attempts that gave no child. What it makes is named "fallback" and earns no credit.
        reserve: Fresh molecules for a population from which no new child comes.
        accept: Whether a molecule may be scored, be it of the start, of the reserve or a child.
        key: ``SMILES -> canonical SMILES`` of the start, None for what is no molecule. Operators return canonical SMILES.
        surrogate: The process of pre-ranking.

    Attributes:
        scored: All molecules in the order of their calls.
        population: Places in ``scored``, the best first.
        credit: What each operator achieved.
        generation: Generations told.
        stopped: Why the run ended; empty while it goes on.

    Raises:
        ValueError: when the budget is smaller than the start, no start molecule is left, or shares do not fit the operators.

    Example:
        >>> def longer(parents, n, rng):
        ...     return [Child(p.smiles + "C", "longer", (p.smiles,)) for p in (parents[i] for i in rng.integers(len(parents), size=n))]
        >>> evolution = Evolution(["C", "O"], {"longer": longer}, Recipe(population=4, offspring=3), budget=9, seed=0)
        >>> while batch := evolution.ask():
        ...     evolution.tell(batch, [len(one) for one in batch])
        >>> len(evolution.scored), evolution.stopped, evolution.best.operator
        (9, 'budget', 'longer')
    """

    def __init__(
        self,
        start: Sequence[str],
        operators: Mapping[str, Operator],
        recipe: Recipe | None = None,
        *,
        budget: int = 1000,
        seed: int = 0,
        shares: Mapping[str, float] | None = None,
        adapt: bool = False,
        fallback: Operator | None = None,
        reserve: Sequence[str] = (),
        accept: Callable[[str], bool] | None = None,
        key: Callable[[str], str | None] | None = None,
        surrogate: Surrogate | None = None,
    ):
        at_least_one(budget=budget)
        self.recipe, self.budget, self.operators, self.adapt = recipe or Recipe(), budget, dict(operators), adapt
        self.shares = shares_of(self.operators, shares)
        self.fallback, self.accept, self.key = fallback, accept, key or _canonical_or_none
        self.rng, self.surrogate = np.random.default_rng(seed), surrogate or Surrogate()
        first = self._allowed(start)
        self._start = first[: self.recipe.population]
        self._reserve = [one for one in self._allowed((*first, *reserve)) if one not in set(self._start)]
        if not self._start:
            refused = " that accept allows" if accept is not None else ""
            raise ValueError(f"start holds no molecule{refused} among {len(start)}, wanted at least one SMILES{refused}.")
        if budget < len(self._start):
            raise ValueError(
                f"budget={budget} is smaller than the start population of {len(self._start)}, so nothing could be bred. Fix: a budget above it, or "
                "a smaller population."
            )
        self.scored: list[Scored] = []
        self.population: list[int] = []
        self.credit = {name: Credit() for name in self.operators}
        self.generation, self.fresh, self.stopped = 0, 0, ""
        self._place: dict[str, int] = {}
        self._pending: list[tuple[str, str, tuple[str, ...]]] = []
        self._stale = 0

    @property
    def best(self) -> Scored:
        """The molecule with the largest sum of objectives."""
        fitness = self.fitness()
        if not len(fitness) or not np.isfinite(fitness).any():
            raise ValueError("no molecule has a value yet.")
        return self.scored[int(fitness.argmax())]

    def fitness(self) -> np.ndarray:
        """Return the sum of the objectives of all molecules in the order of their calls, -inf for those without value."""
        good = [place for place, one in enumerate(self.scored) if one.values is not None]
        found = np.full(len(self.scored), -np.inf)
        if good:
            found[good] = self._objectives(good).sum(1)
        return found

    def front(self) -> list[Scored]:
        """Return the molecules that no other dominates, among all that were scored."""
        from popflow.evolve.selection import front

        good = [place for place, one in enumerate(self.scored) if one.values is not None]
        return [self.scored[good[i]] for i in front(self._objectives(good))] if good else []

    def lineage(self, smiles: str) -> list[Scored]:
        """Return a molecule and its ancestors, each once, the molecule first."""
        found: dict[str, None] = {}
        waiting = [smiles]
        while waiting:
            one = waiting.pop(0)
            if one in self._place and one not in found:
                found[one] = None
                waiting += self.scored[self._place[one]].parents
        return [self.scored[self._place[one]] for one in found]

    def ask(self) -> list[str]:
        """Return the molecules to score next, all new; the same ones until they are told; none once the run has ended."""
        if self.stopped or self._pending:
            return [smiles for smiles, _, _ in self._pending]
        if not self.scored:
            batch = [(smiles, "start", ()) for smiles in self._start]
        else:
            batch = self._batch()[: self.budget - len(self.scored)]
        if not batch:
            self.stopped = "no new molecules"
        self._pending = batch
        return [smiles for smiles, _, _ in batch]

    def origins(self) -> list[dict[str, Any]]:
        """Return generation, operator and parents of the batch that was asked for, as notes for a ledger."""
        return [{"generation": self.generation, "operator": name, "parents": list(parents)} for _, name, parents in self._pending]

    def tell(self, smiles: Sequence[str], values: Any) -> None:
        """Take the values of the batch that was asked for.

        Args:
            smiles: The batch.
            values: ``[n]``, or ``[n, k]`` for several objectives; NaN where there is no value.

        Raises:
            ValueError: for another batch, or another number of values.
        """
        if list(smiles) != [one for one, _, _ in self._pending] or not self._pending:
            raise ValueError("tell wants the molecules that ask returned, in their order.")
        table = np.asarray(values, dtype=float)
        table = table[:, None] if table.ndim == 1 else table
        wanted = next((len(one.values) for one in self.scored if one.values is not None), table.shape[-1])
        if table.shape != (len(smiles), wanted):
            raise ValueError(f"values of shape {table.shape}, wanted {len(smiles)} rows of {wanted}.")
        before = self.fitness()
        record, old = before.max(initial=-np.inf), self._level(before)
        for (one, name, parents), row in zip(self._pending, table, strict=True):
            found = tuple(map(float, row)) if np.isfinite(row).all() else None
            self._place[one] = len(self.scored)
            self.scored.append(Scored(one, found, name, parents, self.generation))
        self._pending = []
        fitness = self.fitness()
        new = range(len(before), len(fitness))
        pool = [place for place in (*self.population, *new) if self.scored[place].values is not None]
        kept = self.recipe.survive(self._objectives(pool), self.recipe.population) if pool else []
        self.population = [pool[i] for i in kept]
        self._settle(new, fitness, record)
        self.generation += 1
        self._end(old, self._level(fitness))

    def run(
        self,
        costly: Callable[..., Any],
        state: str | Path | None = None,
        told: Callable[[Evolution], None] | None = None,
    ) -> Evolution:
        """Ask and tell to the end.

        Args:
            costly: ``(batch, notes) -> values``, such as `popflow.runs.CostlyFunction` with ``on_error="skip"``.
            state: File written after each generation, from which the run continues when it exists.
            told: Called after each generation, before the state is written: what it records of a generation is never lost. It may set ``stopped``.
        """
        if state is not None and Path(state).exists():
            self.load(state)
        while batch := self.ask():
            self.tell(batch, costly(batch, self.origins()))
            if told is not None:
                told(self)
            if state is not None:
                self.save(state)
        return self

    def save(self, path: str | Path) -> None:
        """Write the state, with the batch that was asked for and not told, by atomic rename."""
        content = {
            "scored": [[one.smiles, one.values, one.operator, one.parents, one.generation] for one in self.scored],
            "pending": self._pending,
            "population": self.population,
            "credit": {name: asdict(one) for name, one in self.credit.items()},
            "reserve": self._reserve,
            "counts": {"generation": self.generation, "fresh": self.fresh, "stale": self._stale, "stopped": self.stopped},
            "rng": self.rng.bit_generator.state,
            "surrogate": [self.surrogate.ratio, self.surrogate.scale, self.surrogate.updates],
        }
        write_atomic(path, json.dumps(content))

    def load(self, path: str | Path) -> None:
        """Continue from a state of the same start, operators and recipe; a larger budget goes on where a smaller one ended.

        Raises:
            CheckpointError: when the file is no such state.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            self.scored = [Scored(s, None if v is None else tuple(v), o, tuple(p), g) for s, v, o, p, g in content["scored"]]
            self.population, self._reserve = content["population"], content["reserve"]
            self.credit = {name: Credit(**content["credit"][name]) for name in self.operators}
            counts = content["counts"]
            self.generation, self.fresh, self._stale, self.stopped = (counts[k] for k in ("generation", "fresh", "stale", "stopped"))
            self.rng.bit_generator.state = content["rng"]
            self.surrogate.ratio, self.surrogate.scale, self.surrogate.updates = content["surrogate"]
            self._pending = [(smiles, name, tuple(parents)) for smiles, name, parents in content["pending"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is no state of this evolution ({error}). Fix: delete it; the ledger keeps its calls.") from error
        self._place = {one.smiles: place for place, one in enumerate(self.scored)}
        if self.stopped == "budget" and len(self.scored) < self.budget:
            self.stopped = ""

    def _batch(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """The next molecules: new children, chosen; fresh molecules when there are none."""
        recipe = self.recipe
        attempts = recipe.preranking.children if recipe.preranking else recipe.children or recipe.offspring
        for _ in range(ROUNDS if self.population else 0):
            scores = self.fitness()[self.population]
            fitness = -np.arange(len(self.population), dtype=float) if recipe.by_place else scores
            parents = [Parent(self.scored[place].smiles, float(score)) for place, score in zip(self.population, scores, strict=True)]
            found = self._children(parents, fitness, recipe.parents, attempts, {})
            if found and recipe.preranking is not None:
                found = self._preranked(found, recipe.preranking)
            elif recipe.nearest and len(found) > recipe.offspring:
                from popflow.evolve.molecules import tanimoto

                order = np.argsort(-tanimoto(self.best.smiles, list(found)), kind="stable")[: recipe.offspring]
                found = {one: found[one] for one in (list(found)[i] for i in sorted(order))}
            elif len(found) > recipe.offspring:
                found = {one: found[one] for one in self.rng.permutation(list(found)).tolist()}
            if found:
                return [(one, *origin) for one, origin in list(found.items())[: recipe.offspring]]
        fresh = [one for one in self._reserve if one not in self._place][: recipe.offspring]
        self._reserve = [one for one in self._reserve if one not in set(fresh)]
        self.fresh += len(fresh)
        return [(one, "fresh", ()) for one in fresh]

    def _children(
        self,
        molecules: Sequence[Parent],
        fitness: np.ndarray,
        select: Parents,
        attempts: int,
        known: Mapping[str, Any],
    ) -> dict[str, tuple[str, tuple[str, ...]]]:
        """New children of molecules with their operator and parents, of about so many attempts."""
        parents = [molecules[int(i)] for i in select(fitness, max(len(molecules), 2), self.rng)]
        found: dict[str, tuple[str, tuple[str, ...]]] = {}
        for (name, operator), n in zip(self.operators.items(), self.rng.multinomial(attempts, self._mixture()), strict=True):
            if n == 0:
                continue
            credit = self.credit[name]
            children: list[Child] = list(operator(parents, int(n), self.rng))[:n]
            credit.asked, credit.made = credit.asked + int(n), credit.made + len(children)
            made = [(name, child) for child in children]
            if self.fallback is not None and len(children) < n:
                credit.fallbacks += int(n) - len(children)
                made += [("fallback", child) for child in self.fallback(parents, int(n) - len(children), self.rng)]
            for maker, child in made:
                refused = self.accept is not None and not self.accept(child.smiles)
                repeated = not refused and (child.smiles in self._place or child.smiles in found or child.smiles in known)
                if not refused and not repeated:
                    found[child.smiles] = (maker, child.parents)
                elif maker == name:
                    credit.refused, credit.repeated = credit.refused + refused, credit.repeated + repeated
        return found

    def _preranked(self, found: dict[str, tuple[str, tuple[str, ...]]], how: PreRanking) -> dict[str, tuple[str, tuple[str, ...]]]:
        """The batch that the process chooses among children, and among their children on its bound alone."""
        known, fitness = [one.smiles for one in self.scored], self._learned()
        if len(known) < 2 or not np.isfinite(fitness).any():
            return found
        self.surrogate.refit = how.refit
        self.surrogate.update(known, np.where(np.isfinite(fitness), fitness, fitness[np.isfinite(fitness)].min() - 1.0))
        if self.generation == 1:
            found = found | {one: ("fresh", ()) for one in self._allowed(how.screen) if one not in self._place and one not in found}
        first = len(self.population) if how.inner else 0
        names = [*(known[place] for place in self.population[:first]), *found]
        posterior = self.surrogate.posterior(names)
        for _ in range(how.inner):
            bound = posterior.upper(how.beta)
            best = np.argsort(-bound, kind="stable")[: self.recipe.population]
            breeding = [Parent(names[i], float(bound[i])) for i in best]
            made = self._children(breeding, bound[best], rank(), how.children, found)
            found = found | {one: (name, self._scored_ancestors(parents, found)) for one, (name, parents) in made.items()}
            if made:
                names, posterior = [*names, *made], posterior.joined(self.surrogate.posterior(list(made)))
        return {one: found[one] for one in (names[first + i] for i in posterior.since(first).batch(self.recipe.offspring, how.beta))}

    def _learned(self) -> np.ndarray:
        """What the process learns: the sum of objectives or, where a front is kept, their scalarisation by weights drawn anew."""
        fitness = self.fitness()
        good = np.flatnonzero(np.isfinite(fitness))
        if self.recipe.survive is not truncation and len(good):
            values = self._objectives(good.tolist())
            fitness[good] = scalarised(values, self.rng.dirichlet(np.ones(values.shape[1])))
        return fitness

    def _scored_ancestors(self, parents: tuple[str, ...], found: Mapping[str, tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
        """The scored molecules from which a child of inner generations comes."""
        reached = (ancestor for one in parents for ancestor in ((one,) if one in self._place else found[one][1] if one in found else ()))
        return tuple(dict.fromkeys(reached))

    def _allowed(self, molecules: Sequence[str]) -> list[str]:
        """The different molecules that may be scored, as keys."""
        keys = dict.fromkeys(key for one in molecules if (key := self.key(one)) is not None)
        return [one for one in keys if self.accept is None or self.accept(one)]

    def _mixture(self) -> np.ndarray:
        shares = np.array([self.shares[name] for name in self.operators])
        if self.adapt:
            rates = np.array([(self.credit[name].entered + 1) / (self.credit[name].scored + 2) for name in self.operators])
            shares = 0.9 * shares * rates / (shares * rates).sum() + 0.1 / len(shares)
        return shares / shares.sum()

    def _settle(self, new: range, fitness: np.ndarray, record: float) -> None:
        """Give credit for the molecules told."""
        inside = set(self.population)
        for place in new:
            one = self.scored[place]
            if one.operator not in self.credit:
                record = max(record, fitness[place])
                continue
            credit = self.credit[one.operator]
            credit.scored += 1
            known = [fitness[self._place[parent]] for parent in one.parents if parent in self._place]
            credit.improved += bool(known) and bool(fitness[place] > max(known))
            credit.entered += place in inside
            credit.records += bool(fitness[place] > record)
            record = max(record, fitness[place])

    def _end(self, old: float, new: float) -> None:
        if self.recipe.patience is not None and len(self.scored) > 100:
            self._stale = self._stale + 1 if new - old < LEAST_GAIN else 0
            if self._stale >= self.recipe.patience:
                self.stopped = "patience"
        if len(self.scored) >= self.budget:
            self.stopped = "budget"

    def _level(self, fitness: np.ndarray) -> float:
        """Mean of the best 100 with a value, 0 before there are more."""
        good = np.sort(fitness[np.isfinite(fitness)])
        return float(good[-100:].mean()) if len(good) > 100 else 0.0

    def _objectives(self, places: Sequence[int]) -> np.ndarray:
        return np.array([self.scored[place].values for place in places], dtype=float)


def _canonical_or_none(smiles: str) -> str | None:
    from popflow.evolve.molecules import canonical_or_none

    return canonical_or_none(smiles)
