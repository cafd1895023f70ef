"""DiffOPT on one page, without the library: the best designs among those that could be data, when nothing but data says which could.

    python examples/diffopt_standalone.py           # half a minute
    python examples/diffopt_standalone.py --quick

Rows lie on a thin ring that nobody wrote down. A diffusion model learns where they lie; particles of the model are tilted by exp(-beta h) step by step: weighed,
resampled, and moved by noising and denoising, which leaves the model's density as it is, so Metropolis' rule needs the objective alone. A gradient descent on
h leaves the ring. The same in a few lines with popflow is at the end.
"""

import argparse
import math
from itertools import pairwise

import torch
from torch import nn

BETA, SIGMAS = 20.0, torch.logspace(math.log10(3.0), -2, 60)


def h(x: torch.Tensor) -> torch.Tensor:
    """What is minimised: least at (2, 1), off the ring; on the ring, at (2, 1) / sqrt(5)."""
    return (x - torch.tensor([2.0, 1.0])).square().sum(1) / 4


def denoise(net: nn.Module, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x | x + sigma eps = y]: rows have variance 1/2 in each coordinate."""
    total = sigma**2 + 0.5
    return 0.5 / total * y + sigma * 0.5**0.5 / total.sqrt() * net(torch.cat([y / total.sqrt(), sigma.log() / 3], 1))


def learn(x: torch.Tensor, steps: int) -> nn.Module:
    """Learn the denoiser at all noise levels."""
    net = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = x[torch.randint(len(x), (512,))]
        sigma = 0.01 * (3.0 / 0.01) ** torch.rand(512, 1)
        error = denoise(net, rows + sigma * torch.randn_like(rows), sigma) - rows
        loss = (error.square() * (sigma**2 + 0.5) / (0.5 * sigma**2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


@torch.no_grad()
def reverse(net: nn.Module, y: torch.Tensor, sigma: float) -> torch.Tensor:
    """Draw clean rows given noisy ones: the reverse diffusion from a noise level."""
    levels = [sigma, *(one for one in SIGMAS.tolist() if one < sigma), 0.0]
    for now, then in pairwise(levels):
        clean = denoise(net, y, torch.full((len(y), 1), now))
        keep = (then / now) ** 2
        y = clean + keep * (y - clean) + then * math.sqrt(1 - keep) * torch.randn_like(y)
    return y


def tilted(net: nn.Module, n: int, rises: int) -> torch.Tensor:
    """Sample p exp(-BETA h): the inverse temperature rises from 0 to BETA."""
    x = reverse(net, 3.0 * torch.randn(n, 2), 3.0)
    betas = BETA * torch.linspace(0, 1, rises + 1) ** 2
    for before, beta in zip(betas[:-1].tolist(), betas[1:].tolist(), strict=True):
        weights = (-(beta - before) * h(x)).softmax(0)
        points = (torch.arange(n) + torch.rand(1)) / n  # systematic resampling
        x = x[torch.searchsorted(weights.cumsum(0), points).clamp(max=n - 1)]
        for sigma in (0.1, 0.3, 1.0):
            moved = reverse(net, x + sigma * torch.randn_like(x), sigma)
            accepted = torch.rand(n).log() < -beta * (h(moved) - h(x))
            x = torch.where(accepted[:, None], moved, x)
    return x


def tell(name: str, x: torch.Tensor) -> None:
    """Print the mean of h and the share of rows on the ring."""
    on = ((x.norm(dim=1) - 1).abs() < 0.15).float().mean()
    print(f"{name:18s} mean h {h(x).mean():.3f}   on the ring {on:.1%}")


def main() -> None:
    """Print data, draws and tilted draws, and what a descent finds that does not know the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(5000)
    data = torch.stack([angle.cos(), angle.sin()], 1) * (1 + 0.05 * torch.randn(5000, 1))
    net = learn(data, 50 if quick else 3000)
    n = 100 if quick else 1000
    tell("data", data)
    tell("draws", reverse(net, 3.0 * torch.randn(n, 2), 3.0))
    tell("tilted draws", tilted(net, n, 2 if quick else 8))
    theta = torch.linspace(0, 2 * math.pi, 10001)
    ring = torch.stack([theta.cos(), theta.sin()], 1)
    print(f"{'exact, on a ring':18s} mean h {float((h(ring) * (-BETA * h(ring)).softmax(0)).sum()):.3f}")
    tell("descent alone", torch.tensor([[2.0, 1.0]]))

    from popflow.compose.constrained import DiffOPT

    sizes = (
        {"steps": 50, "width": 32, "particles": 128, "members": 1}
        if quick
        else {"steps": 3000, "width": 128, "particles": 1000, "members": 1}
    )
    values = h(data)
    model = DiffOPT(BETA * float(values.std()), objective=h, differentiable=True, maximize=False, random_state=0, **sizes)
    tell("popflow", torch.as_tensor(model.fit(data.numpy(), values.numpy()).sample(n)).float())


if __name__ == "__main__":
    main()
