"""Meta flow matching on one page, without the library: a velocity that reads the whole population, for populations never seen.

    python examples/meta_flow_matching_standalone.py           # half a minute
    python examples/meta_flow_matching_standalone.py --quick

Each population is a Gaussian cloud; the treatment turns it about its own mean by an angle that depends on where that mean lies. One cell cannot tell, its
population can. A network phi embeds the population before treatment, v(t, x, phi(p_0)) is learned by flow matching over many populations, and new ones are
pushed. The same in a few lines with popflow is at the end.
"""

import argparse
import math

import ot
import torch
from torch import nn


def population(cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells before and after treatment, ``[cells, 2]`` each; two draws, so no cell is paired."""
    centre, shape = 2 * torch.randn(2), torch.diag(torch.tensor([1.0, 0.3]))
    angle = torch.atan2(centre[1], centre[0])
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    before, after = (torch.randn(cells, 2) @ shape for _ in range(2))
    return centre + before, centre + 2.0 + after @ turn.T


class Embedding(nn.Module):
    """A deep set: the mean over cells of features of each cell, ``[populations, cells, 2] -> [populations, size]``."""

    def __init__(self, size: int = 32):
        super().__init__()
        self.cell = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.whole = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, size))

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Embed populations."""
        return self.whole(self.cell(cells).mean(1))


def learn(before: torch.Tensor, after: torch.Tensor, steps: int, meta: bool) -> tuple[nn.Module, nn.Module]:
    """Flow matching along straight lines between cells that optimal transport pairs; ``before`` and ``after`` are ``[populations, cells, 2]``."""
    phi, v = Embedding(), nn.Sequential(nn.Linear(3 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
    optimizer = torch.optim.Adam([*phi.parameters(), *v.parameters()], 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    count = before.shape[1]
    pairs = [
        torch.from_numpy(ot.emd([], [], torch.cdist(a, b).square().double().numpy())).argmax(1) for a, b in zip(before, after, strict=True)
    ]
    after = torch.stack([cells[pair] for cells, pair in zip(after, pairs, strict=True)])
    for _ in range(steps):
        rows, t = torch.randint(len(before), (16,)), torch.rand(16, count, 1)
        a, b = before[rows], after[rows]
        context = phi(a)[:, None].expand(-1, count, -1) * meta  # without it: one velocity for all populations
        loss = (v(torch.cat([t, (1 - t) * a + t * b, context], 2)) - (b - a)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return phi, v


@torch.no_grad()
def push(phi: nn.Module, v: nn.Module, cells: torch.Tensor, meta: bool, steps: int = 50) -> torch.Tensor:
    """Follow the velocity from a population that was not seen in training."""
    context, x = phi(cells[None]).expand(len(cells), -1) * meta, cells
    for k in range(steps):
        x = x + v(torch.cat([torch.full((len(x), 1), (k + 0.5) / steps), x, context], 1)) / steps
    return x


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Wasserstein-2 distance of two clouds."""
    return math.sqrt(float(ot.emd2([], [], torch.cdist(a, b).square().double().numpy())))


def main() -> None:
    """Print the distance to the treated cells of new populations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few populations and steps")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    many, cells, steps = (20, 50, 30) if quick else (200, 200, 3000)
    before, after = (torch.stack(side) for side in zip(*(population(cells) for _ in range(many)), strict=True))
    new = [population(cells) for _ in range(5 if quick else 20)]
    print(f"{'not moved':24s} {sum(distance(a, b) for a, b in new) / len(new):.3f}")
    for name, meta in (("flow matching", False), ("meta flow matching", True)):
        found = learn(before, after, steps, meta)
        print(f"{name:24s} {sum(distance(push(*found, a, meta), b) for a, b in new) / len(new):.3f}")

    from popflow.core import Streams
    from popflow.transport.meta import DeepSet, MetaFlow, Populations

    cloud = torch.cat([x for pair in zip(before, after, strict=True) for x in pair])
    patient = [f"patient {k}" for k in range(many) for _ in range(2 * cells)]
    drug = [name for _ in range(many) for name in ["none"] * cells + ["drug"] * cells]
    flow = MetaFlow(DeepSet(), cells=50, pairs=50).fit(
        Populations.from_cells(cloud, patient, drug, control="none"), steps=30 if quick else 2000, rng=Streams(0)
    )
    print(f"{'popflow':24s} {sum(distance(flow.predict(a, 'drug').x, b) for a, b in new) / len(new):.3f}")


if __name__ == "__main__":
    main()
