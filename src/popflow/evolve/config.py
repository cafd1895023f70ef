"""The settings of ``popflow evolve`` and of its demo."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from popflow import citations
from popflow.core.errors import unknown
from popflow.evolve.addresses import plain_address
from popflow.runs.config import Flag, check
from popflow.runs.user_code import source_of

OPERATORS = ("graph", "mutation", "edits", "lm", "latent", "chat")


@dataclass(frozen=True)
class EvolveConfig:
    """Breed molecules against an oracle, with an exact budget of calls.

    Attributes:
        seeds: File with a SMILES on each line, the first population; those beyond its size are kept in reserve.
        oracle: What is maximised: the name of an objective such as qed or jnk3, MODULE:FUNCTION, 'cmd:COMMAND' or vina:RECEPTOR.pdbqt. Repeat the
            option for several objectives.
        minimize: What is minimised, named as an oracle.
        operators: What makes children, separated by commas, in equal shares: graph, mutation, edits (mutations of the best), lm (the language
            model that comes with the library), latent (the same model, its state moved along the gradient of the scores), chat (an endpoint), hf:FOLDER
            (a language model saved with save_pretrained). A name may have a share, as in lm=0.7,graph=0.3.
        learn: Let the language model that comes with the library learn from the parents, anew in each generation.
        template: Prompt for the models in folders, with {smiles} or {selfies} for the parent, {score} and {goal}; one with {selfies} is answered in
            SELFIES. The word biot5 stands for the form of BioT5. If None: the chat template of the folder.
        wish: What a template puts for {goal}.
        recipe: How a generation is made.
        goal: How several objectives are traded: by their sum, by the Pareto front, or by NSGA-II.
        parents: How parents are drawn. The default is what the recipe says.
        adapt: Let shares follow the rate at which the children of an operator enter the population.
        budget: Molecules scored, exactly.
        population: Molecules kept. If None: 120, as in all recipes.
        offspring: Molecules scored in a generation. If None: that of the recipe, 20 or 70.
        patience: Generations without progress after which to stop. If None: spend the budget.
        target: Value that a single objective is to hit. If None: it is maximised.
        width: Distance from the target at which the score falls to 0.61.
        require: SMARTS pattern that every molecule has.
        forbid: SMARTS pattern that no molecule has.
        alerts: Catalogue of structural alerts, none of which a molecule has.
        similar_to: SMILES to which every molecule has a Tanimoto similarity (ECFP4) from least_similarity to most_similarity. If None: no such window.
        least_similarity: Lower end of the window.
        most_similarity: Upper end of the window; below 1 it asks for something new.
        core: SMILES of a core that every molecule keeps; attachment points may be marked as [*:1]. If None: no core.
        box: Configuration file of Vina with center and size of the box. If None: there is no docking.
        exhaustiveness: Exhaustiveness of docking.
        chat_url: Base address of a chat endpoint, such as http://localhost:8000/v1. If None: no chat.
        chat_model: Name of the model there.
        reveal: Name the objective to the chat model, instead of showing it scores alone.
        workers: Oracle calls at once.
        timeout: Seconds after which an oracle call is ended. If None: no limit.
        seed: Random seed.
    """

    seeds: Annotated[Path, Flag("SEEDS")]
    oracle: Annotated[tuple[str, ...], Flag(metavar="ORACLE")] = ()
    minimize: Annotated[tuple[str, ...], Flag(metavar="ORACLE")] = ()
    operators: Annotated[str, Flag(metavar="NAMES")] = "graph"
    learn: bool = False
    template: Annotated[str | None, Flag(metavar="TEXT")] = None
    wish: Annotated[str, Flag(metavar="TEXT")] = ""
    recipe: Literal["graph-ga", "crossover", "edits", "preranked", "gp-bo"] = "preranked"
    goal: Literal["sum", "front", "nsga2"] = "sum"
    parents: Literal["recipe", "proportional", "shifted", "rank", "tournament"] = "recipe"
    adapt: bool = False
    budget: Annotated[int, Flag(ge=1)] = 1000
    population: Annotated[int | None, Flag(ge=1)] = None
    offspring: Annotated[int | None, Flag(ge=1)] = None
    patience: Annotated[int | None, Flag(ge=1)] = None
    target: float | None = None
    width: Annotated[float, Flag(gt=0)] = 1.0
    require: Annotated[tuple[str, ...], Flag(metavar="SMARTS")] = ()
    forbid: Annotated[tuple[str, ...], Flag(metavar="SMARTS")] = ()
    alerts: tuple[Literal["PAINS", "BRENK", "NIH", "ZINC"], ...] = ()
    similar_to: Annotated[str | None, Flag(metavar="SMILES")] = None
    least_similarity: Annotated[float, Flag(ge=0, le=1)] = 0.0
    most_similarity: Annotated[float, Flag(ge=0, le=1)] = 1.0
    core: Annotated[str | None, Flag(metavar="SMILES")] = None
    box: Path | None = None
    exhaustiveness: Annotated[int, Flag(ge=1)] = 1
    chat_url: Annotated[str | None, Flag(metavar="URL")] = None
    chat_model: Annotated[str, Flag(metavar="NAME")] = ""
    reveal: bool = False
    workers: Annotated[int, Flag(ge=1)] = 1
    timeout: Annotated[float | None, Flag(gt=0, metavar="SECONDS")] = None
    seed: Annotated[int, Flag(ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        if not self.oracle and not self.minimize:
            raise ValueError("oracle is empty and nothing is minimised, wanted something to optimise. Fix: --oracle qed.")
        several = len(self.oracle) + len(self.minimize) > 1
        if self.goal != "sum" and not several:
            raise ValueError(f"goal={self.goal!r} with one objective, wanted several. Fix: give another --oracle or --minimize.")
        if self.goal == "nsga2" and self.parents == "proportional":
            raise ValueError(
                "goal='nsga2' orders parents by place, which parents='proportional' cannot use. Fix: --parents rank or tournament."
            )
        twice = sorted(name for name in self.names() if self.names().count(name) > 1)
        if twice:
            raise ValueError(
                f"{twice[0]!r} is named twice as an objective, wanted each once. Fix: scale it in a function of your own: --oracle MODULE:FUNCTION."
            )
        for name, path in (("seeds", self.seeds), ("box", self.box)):
            if path is not None and path.is_dir():
                raise ValueError(f"{name}={str(path)!r} is a folder, wanted a file.")
        if self.target is not None and (several or self.minimize):
            raise ValueError("target with several or minimised objectives, wanted one --oracle whose value is to be hit.")
        if self.target is None and self.width != type(self).width:
            raise ValueError(f"width={self.width!r} has no effect without a target.")
        if any(one.startswith("vina:") for one in self.names()) != (self.box is not None):
            raise ValueError("box and an oracle vina:RECEPTOR.pdbqt belong together. Fix: give both: --box FILE with center and size.")
        if self.recipe == "edits" and not {"edits", "chat"} & self.mixture().keys():
            raise ValueError(
                f"recipe='edits' with operators={self.operators!r} edits nothing, wanted edits or chat among them. Fix: --operators graph=0.7,edits=0.3."
            )
        chat = "chat" in self.mixture()
        if chat != (self.chat_url is not None) or chat != bool(self.chat_model):
            raise ValueError("the operator chat, chat_url and chat_model belong together. Fix: give all three, or none.")
        if self.chat_url is not None:
            plain_address("chat_url", self.chat_url)
        if self.reveal and not chat and not (self.folders() and self.template is None):
            raise ValueError("reveal has no effect without the operator chat, or a folder that is asked by its chat template.")
        self._check_window()
        self._check_models()

    def _check_window(self) -> None:
        low, high = self.least_similarity, self.most_similarity
        if (self.similar_to is None) != ((low, high) == (0.0, 1.0)):
            raise ValueError("similar_to and a window of similarities belong together. Fix: --similar-to SMILES --least-similarity 0.4.")
        if low > high:
            raise ValueError(f"least_similarity={low!r} is above most_similarity={high!r}, wanted least <= most.")

    def _check_models(self) -> None:
        if self.learn and "lm" not in self.mixture():
            raise ValueError("learn has no effect without the operator lm, the model that learns. Fix: --operators lm,graph --learn.")
        folders = self.folders()
        for folder in folders:
            if not (folder / "config.json").is_file():
                raise ValueError(
                    f"operators={self.operators!r}: the folder {str(folder)!r} holds no config.json, wanted one written by "
                    "model.save_pretrained(folder) and tokenizer.save_pretrained(folder)."
                )
        if self.template is not None and not folders:
            raise ValueError("template has no effect without a model in a folder. Fix: --operators graph,hf:FOLDER.")
        if self.template not in (None, "biot5") and not ("{smiles}" in self.template or "{selfies}" in self.template):
            raise ValueError(f"template={self.template!r} shows the model no molecule, wanted {{smiles}} or {{selfies}} in it, or biot5.")
        if self.wish and self.template != "biot5" and "{goal}" not in (self.template or ""):
            raise ValueError("wish has no effect without a template that holds {goal}. Fix: --template '{goal}: {smiles} ->', or biot5.")

    def names(self) -> tuple[str, ...]:
        """Return the oracles, maximised ones first."""
        return (*self.oracle, *self.minimize)

    def objectives(self) -> tuple[str, ...]:
        """Return the oracles as they are maximised: with a minus, as in -sa, where one is minimised."""
        return (*self.oracle, *(f"-{one}" for one in self.minimize))

    def told(self) -> str:
        """Return the objective in words, for a chat model."""
        if self.target is not None:
            return f"{self.oracle[0]} near {self.target:g}"
        return " and ".join([*(f"high {one}" for one in self.oracle), *(f"low {one}" for one in self.minimize)])

    def mixture(self) -> dict[str, float]:
        """Return the shares of the operators by name."""
        found: dict[str, float] = {}
        for part in self.operators.split(","):
            name, mark, share = part.strip().partition("=")
            if name not in OPERATORS and not name.startswith("hf:"):
                raise ValueError(unknown("operators", name, (*OPERATORS, "hf:FOLDER")))
            if name in found:
                raise ValueError(
                    f"operators={self.operators!r} names {name!r} twice, wanted each once. Fix: give it a share, as in {name}=2."
                )
            try:
                found[name] = float(share) if mark else 1.0
            except ValueError:
                raise ValueError(f"operators={self.operators!r}: {share!r} is no share, wanted a number as in lm=0.7,graph=0.3.") from None
        return found

    def folders(self) -> list[Path]:
        """Return the folders of language models."""
        return [Path(name.removeprefix("hf:")) for name in self.mixture() if name.startswith("hf:")]

    def inputs(self) -> Iterable[Path]:
        """Yield receptors, the sources of functions, the files that commands name, and folders of models."""
        yield from self.folders()
        for text in self.names():
            kind, mark, rest = text.partition(":")
            if kind == "vina":
                yield Path(rest)
            elif kind == "cmd":
                try:
                    words = shlex.split(rest)
                except ValueError:  # loading the oracle says what is wrong with it
                    continue
                yield from (Path(word) for word in words if Path(word).is_file())
            elif mark:
                found = source_of(kind)
                if found is not None:
                    yield found


@dataclass(frozen=True)
class DemoConfig:
    """Find paracetamol again from 60 random molecules, by its similarity to what is proposed.

    Only the drug itself scores 1, so the answer is known. A genetic algorithm and the same moves with a Gaussian process before the oracle have
    the same start and the same budget, and stop when they have found it.

    Attributes:
        seed: Random seed.
        quick: Run a smaller version in seconds, of at most 300 calls.
        budget: Molecules scored by each run, at most.
    """

    seed: Annotated[int, Flag(ge=0)] = 0
    quick: bool = False
    budget: Annotated[int, Flag(ge=100)] = 1000

    def __post_init__(self) -> None:
        check(self)


def cite(config: EvolveConfig) -> tuple[str, ...]:
    """Return the BibTeX entries of what a run builds on."""
    return (citations.MOLLEO, citations.GRAPH_GA)
