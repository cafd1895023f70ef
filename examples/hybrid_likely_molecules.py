"""Molecules that score well and that a language model finds likely: evolution whose parents are resampled towards a Boltzmann target.

    python examples/hybrid_likely_molecules.py         # two minutes
    python examples/hybrid_likely_molecules.py --quick

The target is pi(x) ~ p(x) exp(f(x) / T): p is the model of SMILES that comes with popflow, f an objective. Everything scored stays in the population, with
log weight log p + f / T, and parents are drawn by systematic resampling; children are crossed and mutated as graphs. Plain evolution (Graph-GA) knows f
alone. Both make the same number of calls.
"""

import argparse

import numpy as np

from popflow.evolve import Crossover, Evolution, Recipe, draw, log_likelihood, shipped
from popflow.evolve.oracles import oracle
from popflow.evolve.scores import top_mean
from popflow.evolve.selection import boltzmann
from popflow.evolve.smiles_tokens import encode

OBJECTIVE = "perindopril_mpo"
T = 0.01  # a hundredth of the objective is worth one nat of likelihood
START, BATCH = 100, 50


def everything(values: np.ndarray, size: int) -> np.ndarray:
    """Keep all: survival is a matter of weights."""
    return np.argsort(-values.sum(1), kind="stable")


def written(smiles: str) -> bool:
    """Whether the model knows all tokens of a molecule; p is zero where it does not, and neither evolution may go there."""
    try:
        return bool(encode(smiles))
    except ValueError:
        return False


def evolve(costly, recipe: Recipe, calls: int, seed: int) -> Evolution:
    """Breed from molecules of the start pool to the end of the budget."""
    return Evolution(draw(START, seed), {"graph": Crossover()}, recipe, budget=calls, seed=seed, accept=written).run(costly)


def measured(seed: int = 0, quick: bool = False) -> dict[str, dict[str, float]]:
    """Mean of the ten best, and log p of them and of all children, of both evolutions."""
    calls = 150 if quick else 1000
    score, model = oracle(OBJECTIVE), shipped()
    memory: dict[str, tuple[float, float]] = {}

    def both(smiles: str) -> tuple[float, float]:
        if smiles not in memory:
            memory[smiles] = score(smiles) / T, log_likelihood(model, smiles)
        return memory[smiles]

    ways = {
        "plain": (lambda batch, notes: [both(one)[0] for one in batch], Recipe(population=START, offspring=BATCH)),
        "Boltzmann": (
            lambda batch, notes: np.array([both(one) for one in batch]),  # the fitness of several objectives is their sum
            Recipe(population=calls, offspring=BATCH, parents=boltzmann(1.0), survive=everything),
        ),
    }
    found = {}
    for name, (costly, recipe) in ways.items():
        scored = evolve(costly, recipe, calls, seed).scored
        values, likely = np.array([both(one.smiles) for one in scored]).T
        best = np.argsort(-values, kind="stable")[:10]
        found[name] = {
            "top 10": top_mean(values * T),
            "log p of the top 10": float(likely[best].mean()),
            "log p of children": float(likely[START:].mean()),
            "calls": float(len(scored)),
        }
    return found


def main() -> None:
    """Print both evolutions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="150 calls")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, row in measured(options.seed, options.quick).items():
        print(f"{name:12s}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
