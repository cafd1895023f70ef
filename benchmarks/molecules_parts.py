"""The parts of the benchmark of molecules: one run of one recipe on one task with one seed, kept as one line of ``benchmarks/parts/molecules.jsonl``.

    python benchmarks/molecules_parts.py --recipes graph-ga preranked --seeds 0 1

makes the parts that are missing, seed after seed, and may be stopped at any time. A line holds the area under the curve, the mean of the best ten
after each hundred calls, the processor's seconds, and a digest of the code (without docstrings), parameters and peers that the recipe uses. When a
digest is no longer that of the present code, the cheapest such part is made again: if its curve is the same, all lines of the recipe stay, else they go.

Peers: mol_ga is a package; mol_opt's operators run in our loop when the environment variable MOL_OPT names a clone of wenhao-gao/mol_opt.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

import popflow.evolve
from popflow.evolve import RECIPES, Evolution, FillGap, LinkFragments, Recipe, draw
from popflow.evolve.graph_moves import Crossover
from popflow.evolve.molecules import Chem, canonical_or_none
from popflow.evolve.operators import Child, Operator, Parent
from popflow.evolve.oracles.pmo import TASKS, Objective
from popflow.evolve.scores import area, top_mean

BUDGET, START, EVERY = 1000, 120, 100
TWELVE = (
    *("qed", "jnk3", "gsk3b", "drd2", "mestranol_similarity", "thiothixene_rediscovery", "perindopril_mpo", "sitagliptin_mpo"),
    *("ranolazine_mpo", "isomers_c9h10n2o2pf2cl", "scaffold_hop", "deco_hop"),
)
FILE = Path(__file__).parent / "parts" / "molecules.jsonl"
LOOP = ("evolution", "molecules", "operators", "pool", "recipes", "selection", "oracles/pmo", "oracles/terms", "oracles/activity")
GRAPH, MODEL = ("graph_moves", "graph_edits"), ("infilling", "smiles_model", "smiles_tokens", "data/smiles.safetensors")
ABSENT = "absent: the environment variable MOL_OPT names no clone of mol_opt"


@dataclass(frozen=True)
class Contender:
    """A recipe with its operators, and the files of the room that its results depend on."""

    recipe: Recipe
    operators: Callable[[], dict[str, Operator]]
    files: tuple[str, ...]


def graph() -> dict[str, Operator]:
    return {"graph": Crossover()}


def language() -> dict[str, Operator]:
    return {"fill": FillGap(), "link": LinkFragments()}


def mixture() -> dict[str, Operator]:
    return graph() | language()


CONTROL = replace(RECIPES["preranked"], preranking=None)
CONTENDERS = {
    "graph-ga": Contender(RECIPES["graph-ga"], graph, GRAPH),
    "mol_opt": Contender(RECIPES["graph-ga"], lambda: {"graph": theirs}, ()),
    "lm": Contender(RECIPES["graph-ga"], language, MODEL),
    "mixture": Contender(RECIPES["graph-ga"], mixture, (*GRAPH, *MODEL)),
    "control": Contender(CONTROL, graph, GRAPH),
    "preranked": Contender(RECIPES["preranked"], graph, (*GRAPH, "preranking")),
    "gp-bo": Contender(RECIPES["gp-bo"], graph, (*GRAPH, "preranking")),
    "preranked, lm": Contender(RECIPES["preranked"], language, (*MODEL, "preranking")),
    "preranked, mixture": Contender(RECIPES["preranked"], mixture, (*GRAPH, *MODEL, "preranking")),
}
NAMES = (*CONTENDERS, "mol_ga")


def theirs(parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
    """mol_opt's crossover, and with its probability of 0.067 its mutation, as an operator of ours. Their code changes parents, so each try reads them anew."""
    from graph_moves import peer

    operators = peer()
    random.seed(int(rng.integers(2**62)))
    np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002 their code draws from the global generator
    children = []
    for _ in range(n):
        pair = tuple(parents[random.randrange(len(parents))].smiles for _ in range(2))
        child = operators.crossover(*map(Chem.MolFromSmiles, pair))
        if child is not None and random.random() <= Crossover().mutation_rate:
            child = operators.mutate(child)
        key = None if child is None else canonical_or_none(Chem.MolToSmiles(child))
        if key is not None and key not in pair:
            children.append(Child(key, "mol_opt", pair))
    return children


def absent(name: str) -> str:
    """Why a contender cannot run here; empty when it can."""
    if name == "mol_opt":
        from graph_moves import peer

        return "" if peer() else ABSENT
    if name == "mol_ga":
        try:
            import mol_ga  # noqa: F401
        except ImportError as error:
            return f"absent: {error}"
    return ""


def scores(task: str, name: str, seed: int, budget: int) -> list[float]:
    """Scores of one run in the order of the calls. All contenders start from the same molecules."""
    oracle, start = Objective(task), draw(min(START, budget // 2), seed)
    if name == "mol_ga":
        return peer_scores(oracle, start, seed, budget)
    contender = CONTENDERS[name]
    evolution = Evolution(start, contender.operators(), contender.recipe, budget=budget, seed=seed)
    evolution.run(lambda batch, notes: [oracle(one) for one in batch])
    return [one.values[0] for one in evolution.scored if one.values]


def peer_scores(oracle: Callable[[str], float], start: list[str], seed: int, budget: int) -> list[float]:
    """The defaults of mol_ga with 70 children a generation, one call a molecule, stopped at the budget."""
    from mol_ga import default_ga

    seen: dict[str, float] = {}

    class Spent(Exception):
        pass

    def several(batch: list[str]) -> list[float]:
        for one in batch:
            if one not in seen:
                if len(seen) == budget:
                    raise Spent
                try:
                    seen[one] = oracle(one)
                except ValueError:  # larger than our oracles take
                    seen[one] = 0.0
        return [seen[one] for one in batch]

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 a package may draw from the global generator
    with contextlib.suppress(Spent):
        default_ga(
            starting_population_smiles=start,
            scoring_function=several,
            max_generations=10 * budget,
            offspring_size=70,
            rng=random.Random(seed),
        )
    return list(seen.values())


@cache
def digest(name: str) -> str:
    """Digest of what the results of a contender depend on."""
    found, folder = hashlib.sha256(), Path(popflow.evolve.__file__).parent
    for one in (*LOOP, *(CONTENDERS[name].files if name in CONTENDERS else ())):
        path = folder / one
        found.update(path.read_bytes() if path.suffix else bare(path.with_suffix(".py").read_text(encoding="utf-8")).encode())
    if name == "mol_ga":
        found.update(metadata.version("mol_ga").encode())
    if name == "mol_opt":
        for one in ("crossover.py", "mutate.py"):
            found.update((Path(os.environ["MOL_OPT"]) / "main" / "graph_ga" / one).read_bytes())
    return found.hexdigest()[:12]


def bare(source: str) -> str:
    """Code without docstrings, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def made(task: str, name: str, seed: int, budget: int = BUDGET) -> dict:
    """Make one part."""
    start = time.process_time()
    found = scores(task, name, seed, budget)
    ends = [*range(EVERY, len(found), EVERY), len(found)]
    return {
        "task": task,
        "recipe": name,
        "seed": seed,
        "calls": len(found),
        "area": area(found, budget),
        "curve": [round(top_mean(found[:end]), 6) for end in ends],
        "seconds": round(time.process_time() - start, 1),
        "digest": digest(name),
    }


def stored(file: Path = FILE) -> dict[tuple[str, str, int], dict]:
    """The parts of a file, by task, recipe and seed; a torn last line is left out."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            one = json.loads(line)
            found[one["task"], one["recipe"], one["seed"]] = one
    return found


def renew(name: str, file: Path = FILE) -> None:
    """Keep or drop the parts of a contender whose code has changed: the cheapest is made again, and all stay if its curve is the same."""
    old = [one for one in stored(file).values() if one["recipe"] == name and one["digest"] != digest(name)]
    if not old:
        return
    cheapest = min(old, key=lambda one: one["seconds"])
    same = made(cheapest["task"], name, cheapest["seed"])["curve"] == cheapest["curve"]
    print(f"{name}: code has changed, its results have {'not: parts stay' if same else 'too: parts go'}", file=sys.stderr, flush=True)
    lines = list(stored(file).values())  # read again: another process may have added some meanwhile
    for one in lines:
        if one["recipe"] == name and one["digest"] != digest(name):
            one["digest"] = digest(name) if same else None
    file.write_text("".join(json.dumps(one) + "\n" for one in lines if one["digest"] is not None), encoding="utf-8")


def fill(names: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], file: Path = FILE, budget: int = BUDGET) -> Iterator[dict]:
    """Make the parts that are missing, whole seeds one after another, and write each down."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not file.read_text(encoding="utf-8").endswith("\n"):
        with file.open("a", encoding="utf-8") as lines:
            lines.write("\n")  # a line that a killed run left torn
    for name in names:
        renew(name, file)
    for seed in seeds:
        for name in names:
            for task in tasks:
                if (task, name, seed) in stored(file):
                    continue
                part = made(task, name, seed, budget)
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(part) + "\n")
                yield part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "twelve"], default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    tasks = TWELVE if options.tasks == ["twelve"] else options.tasks
    names = [name for name in options.recipes if not absent(name)]
    for part in fill(names, tasks, options.seeds, options.file):
        print(f"{part['task']} {part['recipe']} {part['seed']}: {part['area']:.3f}, {part['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
