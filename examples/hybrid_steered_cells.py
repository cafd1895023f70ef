"""A population of cells steered to a marker profile: a learned Wasserstein Lagrangian flow, weighed and resampled as it runs.

    python examples/hybrid_steered_cells.py            # half a minute
    python examples/hybrid_steered_cells.py --quick

A bridge (transport with noise sigma) is learned from two snapshots; it carries mu_0 to mu_1. Cells with a marker near TARGET are wanted at the end, so each
path is weighed by the change of u_t(x) = -t (x_marker - TARGET)^2 / (2 WIDTH^2), and cells are resampled on the way. The changes add up to u_1(x_1) whatever
the flow, so the weights are those of mu_1 exp(u_1) exactly, as far as the flow reaches mu_1. For Gaussian snapshots all of it is known in closed form.
"""

import argparse
import math

import torch

from popflow.core import Population, Streams, chain, euler, resample_if, simulate
from popflow.core.metrics import distinct_ancestors
from popflow.transport import Lagrangian, LagrangianFlow, Snapshots

MEANS = torch.tensor([[0.0, 0.0], [2.0, 1.0]])  # markers of mu_0 and mu_1; the second is steered
STDS = torch.tensor([[1.0, 1.0], [0.8, 1.0]])
TARGET, WIDTH = 3.0, 0.5
SIGMA = 0.7  # noise of the bridge: copies made by resampling part again


def log_profile(x: torch.Tensor) -> torch.Tensor:
    """How well cells ``[n, 2]`` fit the profile, ``[n]``."""
    return -(x[:, 1] - TARGET).square() / (2 * WIDTH**2)


def exact() -> tuple[float, float, float]:
    """Mean and standard deviation of the marker under mu_1 exp(u_1), and the log of its mass, all from products of Gaussians."""
    mean, var, noise = float(MEANS[1, 1]), float(STDS[1, 1]) ** 2, WIDTH**2
    both = var + noise
    mass = 0.5 * math.log(noise / both) - (mean - TARGET) ** 2 / (2 * both)
    return (mean * noise + TARGET * var) / both, math.sqrt(var * noise / both), mass


def learn(seed: int, cells: int, steps: int) -> LagrangianFlow:
    """Learn the bridge from unpaired cells."""
    rng = Streams(seed)
    x = [MEANS[k] + STDS[k] * rng.normal("cells", torch.empty(cells, 2)) for k in (0, 1)]
    return LagrangianFlow(Lagrangian(noise=SIGMA)).fit(Snapshots.of(x, times=[0, 1]), steps=steps, rng=rng)


def push(flow: LagrangianFlow, seed: int, cells: int, steps: int, *, weighed: bool = True, resampled: bool = True) -> Population:
    """Push fresh cells of mu_0 along the flow, weighed by the changes of u_t."""
    rng = Streams(seed + 1)
    x = MEANS[0] + STDS[0] * rng.normal("start", torch.empty(cells, 2))
    start = Population.of(x, told=torch.zeros(cells), ancestor=torch.arange(cells))

    def weigh(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        told = t1 * log_profile(pop.x)
        return pop.reweight(told - pop.aux["told"]).replace(aux={**pop.aux, "told": told})

    parts = [euler(flow.process), *([weigh] if weighed else [])]
    if resampled:
        parts.insert(0, resample_if(0.5))
    return simulate(chain(*parts), start, torch.linspace(0, 1, steps + 1, dtype=torch.float64), rng=rng)


def measured(seed: int = 0, quick: bool = False) -> dict[str, dict[str, float]]:
    """Marker of the population without weights, weighed at the end alone, and steered along the way; the same with the closed form."""
    sizes = (300, 60, 500, 20) if quick else (4000, 2000, 20_000, 200)
    flow = learn(seed, *sizes[:2])
    mean, std, mass = exact()
    found = {"exact": {"mean": mean, "std": std, "log mass": mass}}
    for name, how in (
        ("not steered", {"weighed": False, "resampled": False}),
        ("weighed at the end", {"resampled": False}),
        ("steered", {}),
    ):
        pop = push(flow, seed, *sizes[2:], **how)
        mean, square = float(pop.mean()[1]), float(pop.mean(lambda x: x.square())[1])
        found[name] = {
            "mean": mean,
            "std": math.sqrt(square - mean**2),
            "log mass": float(pop.log_normalizer()),
            "effective share": float(pop.ess()) / len(pop),
            "lines": float(distinct_ancestors(pop.aux["ancestor"])) / len(pop),
        }
    return found


def main() -> None:
    """Print the marker of each population beside the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, row in measured(options.seed, options.quick).items():
        print(f"{name:20s}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
