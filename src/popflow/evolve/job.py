"""The job of ``popflow evolve``: an oracle and a file of seeds to the best molecules of a budget."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from popflow.core.errors import CheckpointError
from popflow.evolve.chat import AskChat, Objective
from popflow.evolve.chat_client import ChatClient, ChatError, Endpoint
from popflow.evolve.config import EvolveConfig
from popflow.evolve.constraints import Alerts, Constraint, Core, Forbidden, Hit, Required, Similarity, refused
from popflow.evolve.evolution import Evolution
from popflow.evolve.graph_moves import Crossover, Mutation
from popflow.evolve.molecules import read_seeds
from popflow.evolve.operators import Operator
from popflow.evolve.oracles import oracle, read_box
from popflow.evolve.pool import start_pool
from popflow.evolve.recipes import RECIPES, Recipe, edit_the_best
from popflow.evolve.report import Result, report
from popflow.evolve.selection import front, nsga2, proportional, rank, tournament
from popflow.runs import ConfigError, CostlyFunction, Ledger, Report, Run

PARENTS = {"proportional": proportional(), "shifted": proportional(shift=True), "rank": rank(), "tournament": tournament()}
SURVIVAL = {"front": front, "nsga2": nsga2}
WORKERS_A_CORE = 8
"""Workers allowed for each core: more only fill the memory, even where calls wait for another machine."""


@dataclass(frozen=True, slots=True)
class Several:
    """Objectives of one molecule as a vector, all to be maximised.

    >>> Several((len, len), (1.0, -1.0))("CCO")
    (3.0, -3.0)
    """

    oracles: tuple[Callable[[str], float], ...]
    signs: tuple[float, ...]

    def __call__(self, smiles: str) -> tuple[float, ...]:
        """Return the values of a molecule."""
        return tuple(sign * one(smiles) for one, sign in zip(self.oracles, self.signs, strict=True))


def run(config: EvolveConfig, run: Run) -> Report:
    """Breed molecules to the end of the budget; every call is in the ledger, every generation in the state."""
    most = WORKERS_A_CORE * (os.cpu_count() or 1)
    if config.workers > most:
        raise ConfigError(
            f"workers={config.workers} is more than {most}, {WORKERS_A_CORE} for each core: every worker is a process. Fix: --workers {most}."
        )
    try:
        seeds = read_seeds(config.seeds)
        function = objective(config)
        operators, chat = operators_of(config, run)
        evolution = evolution_of(config, seeds, operators)
    except (ValueError, TypeError, ImportError, ChatError, CheckpointError) as error:
        raise ConfigError(str(error)) from error
    with Ledger(run.path / "calls.jsonl") as ledger:
        costly = CostlyFunction(
            function,
            ledger,
            values=len(function.oracles) if isinstance(function, Several) else None,
            workers=config.workers,
            timeout=config.timeout,
            on_error="skip",
            maximize=True,
        )

        def told(evolution: Evolution) -> None:
            fitness = np.sort(evolution.fitness())[::-1]
            finite = fitness[np.isfinite(fitness)]
            if not len(finite):
                first = ledger[evolution.scored[0].smiles]
                raise ConfigError(
                    f"the oracle gave no value for any of {len(fitness)} molecules. The first: {first.kind}: {first.message}. Fix: mend it, then delete "
                    f"{run.path} or give another --out."
                )
            row = {"calls": len(fitness), "best": float(finite[0]), "top_10": float(finite[:10].mean())}
            run.metrics.add("evolve", evolution.generation, row)
            run.progress("evolve", len(evolution.scored), config.budget)

        try:
            evolution.run(costly, run.path / "state.json", told)
        except ValueError as error:
            negative = any(value < 0 for value in evolution.fitness() if np.isfinite(value))
            raise ConfigError(f"{error}{' Here: --parents rank or --parents shifted.' if negative else ''}") from error
        counts = {kind: count for kind, count in ledger.counts().items() if count}
    if chat is not None:
        chat.client.close()
    return report(Result(config, evolution, {str(kind): count for kind, count in counts.items()}, chat), run)


def objective(config: EvolveConfig) -> Callable[[str], float] | Several:
    """Return the objective of a configuration, to be maximised."""
    box = None if config.box is None else read_box(config.box)
    found = tuple(oracle(text, box, config.exhaustiveness, 1) for text in config.names())
    if config.target is not None:
        return Hit(found[0], config.target, config.width)
    signs = (*(1.0 for _ in config.oracle), *(-1.0 for _ in config.minimize))
    if len(found) == 1 and not config.minimize:
        return found[0]
    return Several(found, signs)


def operators_of(config: EvolveConfig, run: Run) -> tuple[dict[str, Operator], AskChat | None]:
    """Return the operators by name, and the chat operator if there is one."""
    found: dict[str, Operator] = {}
    chat = None
    for name in config.mixture():
        if name == "lm":
            from popflow.evolve.infilling import FillGap, LearnFirst, LinkFragments
            from popflow.evolve.smiles_model import shipped

            shipped()
            for label, one in (("lm: fill gap", FillGap()), ("lm: link fragments", LinkFragments())):
                found[label] = LearnFirst(one) if config.learn else one
        elif name == "latent":
            from popflow.evolve.latent import LatentEdit
            from popflow.evolve.smiles_model import shipped

            shipped()
            found[name] = LatentEdit()
        elif name.startswith("hf:"):
            found[name] = model_in_folder(config, name)
        elif name == "chat":
            endpoint = Endpoint(str(config.chat_url), config.chat_model)
            client = ChatClient(endpoint, Ledger(run.path / "replies.jsonl"))
            chat = AskChat(client, objective=Objective(config.told(), reveal=config.reveal))
            client.check()
            found[name] = chat
        else:
            found[name] = {"graph": Crossover(), "mutation": Mutation(), "edits": edit_the_best(Mutation())}[name]
    return found, chat


def model_in_folder(config: EvolveConfig, name: str) -> Operator:
    """Return the operator ``hf:FOLDER``; the same one whatever process makes it, so that a resumed run goes on alike."""
    from popflow.evolve.language_models import BIOT5, EditText, Template, load_text_model

    template = None
    if config.template == "biot5":
        template = replace(BIOT5, goal=config.wish or BIOT5.goal)
    elif config.template is not None:
        template = Template(config.template, config.wish, selfies="{selfies}" in config.template)
    told = Objective(config.told(), reveal=config.reveal)
    return EditText(load_text_model(name.removeprefix("hf:")), template, objective=told, name=name)


def constraints_of(config: EvolveConfig) -> list[Constraint]:
    """Return what every molecule must or must not be."""
    found: list[Constraint] = [*map(Required, config.require), *map(Forbidden, config.forbid), *map(Alerts, config.alerts)]
    if config.similar_to is not None:
        try:
            found.append(Similarity(config.similar_to, config.least_similarity, config.most_similarity))
        except ValueError as error:
            raise ConfigError(f"similar_to={config.similar_to!r}: {error}") from error
    if config.core:
        found.append(Core(config.core))
    return found


def evolution_of(config: EvolveConfig, seeds: list[str], operators: dict[str, Operator]) -> Evolution:
    """Return the evolution of a configuration; molecules of the start pool stand by for a population from which no new child comes."""
    constraints = constraints_of(config)
    reasons = [refused(one, constraints) for one in seeds]
    if all(reasons):
        raise ConfigError(
            f"none of the {len(seeds)} seeds is what a molecule must be. The first, {seeds[0]!r}: {reasons[0]}. Fix: give a seed that is, or ask for less."
        )
    mixture = config.mixture()
    shares = {name: mixture[name] if name in mixture else mixture["lm"] / 2 for name in operators}
    return Evolution(
        seeds,
        operators,
        recipe_of(config),
        budget=config.budget,
        seed=config.seed,
        shares=shares,
        adapt=config.adapt,
        fallback=Crossover(),
        reserve=start_pool(),
        accept=(lambda smiles: refused(smiles, constraints) is None) if constraints else None,
    )


def recipe_of(config: EvolveConfig) -> Recipe:
    """Return the recipe with what the configuration changes."""
    recipe = RECIPES[config.recipe]
    given = {name: getattr(config, name) for name in ("population", "offspring", "patience") if getattr(config, name) is not None}
    if config.parents != "recipe":
        given["parents"] = PARENTS[config.parents]
    if config.goal != "sum":
        given |= {"survive": SURVIVAL[config.goal], "by_place": config.goal == "nsga2"}
        if config.goal == "nsga2" and config.parents == "recipe":
            given["parents"] = rank()
    return replace(recipe, **given)
