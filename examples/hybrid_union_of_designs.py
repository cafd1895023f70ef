"""Optimisation inside the union of two feasible sets, each known to one diffusion model alone: SuperDiff's OR as the prior of DiffOPT.

    python examples/hybrid_union_of_designs.py         # two minutes
    python examples/hybrid_union_of_designs.py --quick

Two tables hold designs of two plants, each uniform in a disc that nobody wrote down. One diffusion model is learned of each. OR draws from their mixture and
tracks both log-densities, so each draw comes with the odds of either model, and a label is drawn from them: pairs (design, label) are then exact draws of
(p_1 + p_2) / 2. Sequential Monte Carlo tilts them by exp(-beta h); a design is moved by noising and denoising with the model of its label, which leaves that
model's density as it is. So the target is the tilted mixture, and no density is ever needed. The truth is a sum over a grid.
"""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose import either, karras, sample
from popflow.compose.constrained import Prior, Schema, tempered
from popflow.compose.constrained.model import Training, learn_model
from popflow.core import Streams

CENTRES = torch.tensor([[-0.7, 0.0], [0.9, 0.4]])
RADII = torch.tensor([1.0, 0.8])
BEST = torch.tensor([[-1.9, 0.0], [1.2, 1.4]])  # the two lowest points of h, each beyond the edge of one disc
BETA = 4.0


def h(x: Tensor) -> Tensor:
    """What is minimised: the lower one of two bowls, ``[n, 2] -> [n]``."""
    return (x[:, None] - BEST).square().sum(2).amin(1)


def inside(x: Tensor, margin: float = 1.05) -> Tensor:
    """Whether points are in each disc, inflated by 5 %, ``[n, 2] -> [n, 2]``."""
    return torch.cdist(x, CENTRES) <= margin * RADII


@dataclass(frozen=True)
class Labelled:
    """Priors side by side: the last coordinate of a row says which of them moves it."""

    priors: list[Prior]

    def renoise(self, x: Tensor, sigma: float, steps: int, rng: Streams) -> Tensor:
        """Move every row by the prior of its label."""
        moved = torch.stack([prior.renoise(x[..., :-1], sigma, steps, rng) for prior in self.priors])
        label = x[..., -1].long()
        return torch.cat([moved.gather(0, label[None, ..., None].expand(1, *moved.shape[1:]))[0], x[..., -1:]], -1)


def learn(seed: int, rows: int, training: Training) -> tuple[Schema, list[Prior]]:
    """Learn one prior of each table, in common coordinates."""
    rng, tables = Streams(seed), []
    for centre, radius in zip(CENTRES, RADII, strict=True):
        angle, share = (rng.uniform(name, (rows, 1)) for name in ("angle", "share"))
        angle = 2 * torch.pi * angle
        tables.append(centre + radius * share.sqrt() * torch.cat([angle.cos(), angle.sin()], 1))
    schema = Schema.of(torch.cat(tables).numpy())
    coordinates = [schema.encode(table.numpy()) for table in tables]
    models = [learn_model(schema, z, None, maximize=False, training=training, seed=seed, surrogate=False) for z in coordinates]
    return schema, [model.prior for model in models]


def optimise(schema: Schema, priors: list[Prior], seed: int, particles: int) -> Tensor:
    """Tilt the mixture of the priors (or one alone) by exp(-BETA h) and return designs ``[particles, 2]``."""
    rng = Streams(seed)
    if len(priors) == 1:
        drawn, label = priors[0].draw(particles, rng), torch.zeros(particles, 1)
    else:
        levels = karras(100, priors[0].sigma_min, priors[0].sigma_max)
        mixed = sample(either([prior.expert for prior in priors]), levels, particles=particles, rng=rng).population
        odds = mixed.aux["log_q"][0].softmax(1)
        drawn, label = mixed.x[0], (rng.uniform("label", (particles, 1)).to(odds) > odds[:, :1]).to(mixed.x)

    def design(x: Tensor) -> Tensor:
        return torch.as_tensor(schema.decode(x[:, :-1])).float()

    found = tempered(Labelled(priors), lambda x: BETA * h(design(x)), torch.cat([drawn, label], 1), rng=rng)
    return design(found.population.x)


def exact() -> dict[str, float]:
    """Mean of h and shares of the tilted mixture of both discs, by sums over a fine grid."""
    side = torch.linspace(-2, 2, 801)
    x = torch.cartesian_prod(side, side)
    density = (inside(x, 1.0) / RADII.square()).sum(1) * (-BETA * h(x)).exp()
    w = density / density.sum()
    first, second = ((w * within).sum() for within in inside(x).float().T)
    return {"mean h": float((w * h(x)).sum()), "union": 1.0, "first": float(first), "second": float(second)}


def measured(seed: int = 0, quick: bool = False) -> dict[str, dict[str, float]]:
    """Mean and least h, and shares inside the discs, for OR and for each expert alone, beside the truth."""
    rows, particles = (300, 128) if quick else (4000, 2000)
    schema, priors = learn(seed, rows, Training(steps=60, width=32) if quick else Training(steps=3000, width=128))
    found = {"exact": exact()}
    for name, chosen in (("OR of both", priors), ("first alone", priors[:1]), ("second alone", priors[1:])):
        x = optimise(schema, chosen, seed, particles)
        within = inside(x)
        shares = {"union": within.any(1), "first": within[:, 0], "second": within[:, 1]}
        found[name] = {"mean h": float(h(x).mean()), **{key: float(value.float().mean()) for key, value in shares.items()}}
        found[name]["least h"] = float(h(x[within.any(1)]).min())
    return found


def main() -> None:
    """Print the truth and the three priors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, row in measured(options.seed, options.quick).items():
        print(f"{name:14s}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
