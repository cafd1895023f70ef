"""Wasserstein Lagrangian flows on one page, without the library: optimal transport and growth as one regression along paths of mass.

    python examples/wasserstein_lagrangian_standalone.py           # half a minute

Two snapshots; a plan says which samples belong together; each pair moves along its own path of least action; a potential s(t, x) learns the
velocity grad s (and the growth lam s) of all of them. Minus the loss is a lower bound on the action. The same in a few lines with popflow
is at the end.
"""

import math

import ot
import torch
from torch import nn

torch.manual_seed(0)
LAM = 1.0  # price of transport against growth; mass further than pi / sqrt(LAM) away dies here and grows there


def network(dim: int) -> nn.Module:
    """The potential; smooth, because its gradient is what is used."""
    return nn.Sequential(nn.Linear(dim + 1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))


def potential(net: nn.Module, t: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return s and its gradient in x, both differentiable in the parameters."""
    x = x.detach().requires_grad_()
    s = net(torch.cat([t, x], 1))[:, 0]
    return s, torch.autograd.grad(s.sum(), x, create_graph=True)[0]


def learn(path, draw, dim: int, lam: float, steps: int = 600) -> tuple[nn.Module, float]:
    """Raise the dual E[m (<x', grad s> - |grad s|^2 / 2 - lam s^2 / 2) + m' s]; return the potential and its mean over the last steps."""
    net = network(dim)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    values = []
    for _ in range(steps):
        t = ((torch.arange(256) + torch.rand(256)) / 256)[:, None]  # one time in each of 256 equal parts
        x, velocity, mass, rate = path(t, *draw(256))
        s, slope = potential(net, t, x)
        dual = (mass * ((velocity * slope).sum(1) - slope.square().sum(1) / 2 - lam / 2 * s.square()) + rate * s).mean()
        optimizer.zero_grad()
        (-dual).backward()
        optimizer.step()
        schedule.step()
        values.append(dual.item())
    return net, sum(values[-100:]) / 100


def line(t, a, b):
    """Transport: straight lines of constant mass."""
    return (1 - t) * a + t * b, b - a, torch.ones(len(a)), torch.zeros(len(a))


def cone(t, a, b, h0, h1):
    """Transport and growth: straight lines in the plane whose radius is sqrt(mass) and whose angle is sqrt(lam) / 2 times the position."""
    gap = b - a
    distance = gap.norm(dim=1, keepdim=True)
    tau = math.sqrt(LAM) * distance / 2
    real, imaginary = (1 - t) * h0.sqrt() + t * h1.sqrt() * tau.cos(), t * h1.sqrt() * tau.sin()
    dreal, dimaginary = h1.sqrt() * tau.cos() - h0.sqrt(), h1.sqrt() * tau.sin()
    mass = real**2 + imaginary**2
    reach = 2 / math.sqrt(LAM) * gap / distance
    x, velocity = a + reach * torch.atan2(imaginary, real), reach * (real * dimaginary - imaginary * dreal) / mass
    return x, velocity, mass[:, 0], 2 * (real * dreal + imaginary * dimaginary)[:, 0]


def main() -> None:
    """Print actions, learned and exact."""
    n = 500
    x_0, x_1 = torch.tensor([-1.0, 0.0]) + 0.3 * torch.randn(n, 2), torch.tensor([1.0, 0.0]) + torch.tensor([0.3, 0.6]) * torch.randn(n, 2)
    plan = torch.from_numpy(ot.emd([], [], (torch.cdist(x_0, x_1) ** 2).double().numpy()))
    pair = plan.argmax(1)  # equal weights: the plan is a permutation

    def draw(rows: int):
        i = torch.randint(n, (rows,))
        return x_0[i], x_1[pair[i]]

    _, dual = learn(line, draw, 2, 0.0)
    print(
        f"transport   dual {dual:.3f}   least action of these samples {(x_1[pair] - x_0).square().sum(1).mean() / 2:.3f}   of the Gaussians 2.045"
    )

    h0, h1 = 1.0, 2.0
    _, dual = learn(
        cone, lambda rows: (torch.zeros(rows, 1), torch.ones(rows, 1), torch.full((rows, 1), h0), torch.full((rows, 1), h1)), 1, LAM
    )
    exact = 2 / LAM * (h0 + h1 - 2 * math.sqrt(h0 * h1) * math.cos(math.sqrt(LAM) / 2))
    print(f"growth      dual {dual:.3f}   exact {exact:.3f}")

    from popflow.core import Streams
    from popflow.transport import Lagrangian, LagrangianFlow, Snapshots

    flow = LagrangianFlow(Lagrangian()).fit(Snapshots.of([x_0, x_1], times=[0, 1]), steps=300, rng=Streams(0))
    print(flow.report())


if __name__ == "__main__":
    main()
