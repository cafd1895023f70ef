"""MOLLEO on one page: molecules bred against an oracle, with children by graph crossover and by a language model.

    python examples/molleo_standalone.py           # a minute
    python examples/molleo_standalone.py --quick

The loop is written out; chemistry is RDKit's, and the small model of SMILES that comes with popflow stands in for a large language model (a chat endpoint has the
same place: popflow.evolve.AskChat). Parents are drawn in proportion to their score, children never scored before are scored, the best survive. The oracle is likeness to
celecoxib. The same in a few lines with popflow, with a Gaussian process that chooses what to score, is at the end.
"""

import argparse

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

from popflow.evolve import Crossover, Evolution, FillGap, LinkFragments, Parent, draw
from popflow.evolve.recipes import RECIPES

MORGAN = GetMorganGenerator(radius=2)
DRUG = MORGAN.GetCountFingerprint(Chem.MolFromSmiles("Cc1ccc(-c2cc(C(F)(F)F)nn2-c2ccc(S(N)(=O)=O)cc2)cc1"))
POPULATION, OFFSPRING = 100, 50


def oracle(smiles: str) -> float:
    """Tanimoto similarity to the drug, from 0 to 1."""
    return DataStructs.TanimotoSimilarity(MORGAN.GetCountFingerprint(Chem.MolFromSmiles(smiles)), DRUG)


def evolve(operators: list, budget: int, seed: int) -> list[tuple[float, str]]:
    """Score ``budget`` different molecules; return the survivors, the best first."""
    rng = np.random.default_rng(seed)
    scored = {one: oracle(one) for one in draw(POPULATION, seed)}
    population = sorted(((score, one) for one, score in scored.items()), reverse=True)
    while len(scored) < budget:
        scores = np.array([score for score, _ in population]) + 1e-10
        chosen = rng.choice(len(population), size=len(population), p=scores / scores.sum())
        parents = [Parent(population[i][1], population[i][0]) for i in chosen]
        children = [child.smiles for operator in operators for child in operator(parents, OFFSPRING // len(operators), rng)]
        new = [one for one in dict.fromkeys(children) if one not in scored][: budget - len(scored)]
        if not new:
            break
        scored |= {one: oracle(one) for one in new}
        population = sorted([*population, *((scored[one], one) for one in new)], reverse=True)[:POPULATION]
    return population


def tell(name: str, population: list[tuple[float, str]]) -> None:
    """Print the best molecule and the mean of the ten best."""
    print(f"{name:32s} top 10 {np.mean([score for score, _ in population[:10]]):.3f}   best {population[0][0]:.3f}  {population[0][1]}")


def main() -> None:
    """Print what equal numbers of calls find out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="110 calls")
    budget = 110 if parser.parse_args().quick else 1000
    tell("start", evolve([], POPULATION, 0))
    tell("graph crossover", evolve([Crossover()], budget, 0))
    tell("language model", evolve([FillGap(), LinkFragments()], budget, 0))
    tell("both", evolve([Crossover(), FillGap(), LinkFragments()], budget, 0))

    operators = {"graph": Crossover(), "fill": FillGap(), "link": LinkFragments()}
    evolution = Evolution(draw(POPULATION, 0), operators, RECIPES["preranked"], budget=budget, seed=0)
    while batch := evolution.ask():
        evolution.tell(batch, [oracle(one) for one in batch])
    tell("popflow, with a Gaussian process", sorted(((one.values[0], one.smiles) for one in evolution.scored), reverse=True))


if __name__ == "__main__":
    main()
