"""Doob's Lagrangian on one page, without the library: a rare event without waiting for it.

    python examples/doobs_lagrangian_standalone.py           # half a minute
    python examples/doobs_lagrangian_standalone.py --quick

A particle in a double well, dx = -U'(x) dt + XI dW, starts at -1; how often is it near +1 at time T? A Gaussian path N(mu_t, s_t^2) between both states has the drift
u = mu' + (s'/s)(x - mu) - XI^2 / (2 s^2) (x - mu) in closed form, so that the action E int |u - b|^2 / (2 XI^2) dt, its divergence from the reference, is learned from random
times, without simulating. Then paths are simulated with u, and weighed by Girsanov's formula. The same in a few lines with popflow is at the end.
"""

import argparse
import math

import torch
from torch import nn

XI, T, A, B, S0, NEAR = 1.0, 0.5, -1.0, 1.0, 0.1, 0.2


def drift(x: torch.Tensor) -> torch.Tensor:
    """Minus the slope of U = 2 (x^2 - 1)^2, whose barrier is 2 = 4 kT."""
    return -8 * x * (x * x - 1)


class Path(nn.Module):
    """Means and widths of the path: right at both ends whatever the network says."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))

    def law(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation ``[n, 1]`` at times ``[n, 1]``."""
        u = t / T
        bend, width = self.net(2 * u - 1).split(1, 1)
        return A + (B - A) * u + 4 * u * (1 - u) * bend, (S0**2 + XI**2 * T * u * (1 - u) * width.exp()).sqrt()

    def drift(self, t: torch.Tensor, x_of, graph: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Points ``x_of(mu, s)`` and the drift there."""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            mu, s = self.law(t)
            dmu = torch.autograd.grad(mu.sum(), t, create_graph=True)[0]
            ds = torch.autograd.grad(s.sum(), t, create_graph=graph)[0]
        x = x_of(mu, s)
        return x, dmu + (ds / s - XI**2 / (2 * s**2)) * (x - mu)


def learn(steps: int) -> tuple[Path, float]:
    """Descend the action; return the path and the mean action of the last tenth."""
    path, values = Path(), []
    optimizer = torch.optim.Adam(path.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        t = T * (torch.arange(256)[:, None] + torch.rand(256, 1)) / 256
        z = torch.randn(128, 1)
        z = torch.cat([z, -z])
        x, u = path.drift(t, lambda mu, s: mu + s * z)  # noqa: B023
        action = T * ((u - drift(x)).square() / (2 * XI**2)).mean()
        optimizer.zero_grad()
        action.backward()
        optimizer.step()
        schedule.step()
        values.append(float(action.detach()))
    last = values[-max(1, steps // 10) :]
    return path, sum(last) / len(last)


@torch.no_grad()
def weighed(path: Path, n: int, steps: int) -> tuple[float, float]:
    """Probability of ending within NEAR of B, with its standard error, from simulated and weighed paths."""
    x, log_w, h = A + S0 * torch.randn(n, 1), torch.zeros(n, 1), T / steps
    for k in range(steps):
        _, u = path.drift(torch.full((n, 1), k * h), lambda mu, s: x, graph=False)  # noqa: B023
        gap, noise = (u.detach() - drift(x)) / XI, math.sqrt(h) * torch.randn(n, 1)
        log_w = log_w - gap * noise - gap.square() * h / 2
        x = x + u.detach() * h + XI * noise
    hit = log_w.exp() * ((x - B).abs() < NEAR)
    return float(hit.mean()), float(hit.std()) / math.sqrt(n)


def waited(n: int, steps: int) -> tuple[float, float]:
    """The same by waiting: plain simulation."""
    x, h = A + S0 * torch.randn(n, 1), T / steps
    for _ in range(steps):
        x = x + drift(x) * h + XI * math.sqrt(h) * torch.randn(n, 1)
    p = float(((x - B).abs() < NEAR).float().mean())
    return p, math.sqrt(p * (1 - p) / n)


def main() -> None:
    """Print the probability by weighed paths, by waiting, and by popflow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps and paths")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    path, action = learn(30 if quick else 1500)
    n, steps = (200, 100) if quick else (5000, 400)
    print(f"action of the path    {action:.2f} nats")
    print("weighed paths         {:.4f} +- {:.4f}   ({} paths)".format(*weighed(path, n, steps), n))
    print("waiting               {:.4f} +- {:.4f}   ({} paths)".format(*waited(40 * n, steps), 40 * n))

    from popflow.core import Streams
    from popflow.paths import DiagonalPath, Overdamped, fit, grid, probability

    rng = Streams(0)
    process = Overdamped(lambda x: 2 * (x[..., 0] ** 2 - 1) ** 2, noise=XI)
    family = DiagonalPath(torch.tensor([A]), torch.tensor([B]), T, noise=XI, sigma0=S0, components=3, rng=rng)
    fit(process, family, steps=30 if quick else 800, batch=256, rng=rng)
    found = probability(process, family, lambda x: (x[:, 0] - B).abs() < NEAR, n, grid(T, T / steps), rng=rng)
    print(f"popflow, three ways   {found}")


if __name__ == "__main__":
    main()
