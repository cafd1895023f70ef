"""Many populations in constant memory, over any number of processes: only what is kept of each grows with their number.

    python examples/sample_many_populations.py                                       # one process
    torchrun --nproc-per-node 2 examples/sample_many_populations.py --out means.json  # two, with the same bits

Every population has a seed of its own (StreamsOfRuns), so it does not depend on which others are sampled beside it, or where. A few are sampled at once, and mean and
log-normaliser of each are kept; processes take equal shares of the seeds and every one gets all results.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from popflow.compose import feynman_kac, gaussian_mixture, karras, sample
from popflow.core import StreamsOfRuns
from popflow.learn.distributed import processes

AT_ONCE = 10


def sampled(seeds: torch.Tensor, particles: int, levels: int = 20) -> torch.Tensor:
    """Mean and log-normaliser ``[populations, 2]`` of the product of two Gaussians, N(0, 1) and N(1, 1), by Feynman-Kac weights."""
    left, right = (gaussian_mixture(torch.tensor([[mean]]), 1.0) for mean in (0.0, 1.0))
    found = []
    for some in seeds.split(AT_ONCE):
        rng = StreamsOfRuns(some.tolist())
        pop = sample(feynman_kac(left * right), karras(levels, 0.01, 20.0), particles=particles, runs=len(some), rng=rng).population
        found.append(torch.cat([pop.mean(), pop.log_normalizer()[:, None]], 1))
    return torch.cat(found)


def main() -> None:
    """Sample, and compare with the truth: the mean of the product is 1/2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 populations of 200 particles")
    parser.add_argument("--populations", type=int, default=1000, help="a multiple of the number of processes")
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the means and log-normalisers")
    options = parser.parse_args()
    count, particles = (20, 200) if options.quick else (options.populations, options.particles)
    team = processes(torch.device("cpu"))
    found = team.in_shares(lambda seeds: sampled(seeds, particles), torch.arange(count))
    if team.rank == 0:
        mean = found[:, 0]
        print(f"{count} populations of {particles}: mean {mean.mean():.4f} +- {mean.std() / math.sqrt(count):.4f}, exact 0.5")
        if options.out:
            options.out.write_text(json.dumps(found.tolist()))


if __name__ == "__main__":
    main()
