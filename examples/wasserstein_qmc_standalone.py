"""Wasserstein quantum Monte Carlo on one page, without the library: an energy descended by moving walkers.

    python examples/wasserstein_qmc_standalone.py           # a minute
    python examples/wasserstein_qmc_standalone.py --quick

Two electrons in a plane, in the trap |x|^2 / 2, repelling one another: the exact energy is 3. Walkers follow q = |psi|^2 by Metropolis' rule. The local energy is the
derivative of the energy by q, so that energy falls fastest along u = -grad E_loc (transport), or by re-weighing with E - E_loc (growth); the step of q is projected to psi by
the surrogate whose gradient is E[<grad E_loc, grad_x d log q>] or E[(E_loc - E) d log q]. The same in a few lines with popflow is at the end.
"""

import argparse

import torch
from torch import nn


class Psi(nn.Module):
    """log psi ``[n]`` of positions ``[n, 4]``: a Gaussian of wrong width, the cusp where electrons meet, and a symmetric network."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        self.width, self.reach = nn.Parameter(torch.tensor(0.35)), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate; the slope at r = 0 is 1, as it must be in a plane."""
        square, r = x.square().sum(1), (x[:, :2] - x[:, 2:]).square().sum(1).add(1e-12).sqrt()
        network = self.net(torch.stack([square / 4, r * r / 4], 1))[:, 0]
        return -self.width * square + r / (1 + self.reach.abs() * r) + network


def local_energy(psi: nn.Module, x: torch.Tensor, graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """E_loc ``[n]`` and its gradient ``[n, 4]``: V - (lap log psi + |grad log psi|^2) / 2."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(psi(x).sum(), x, create_graph=True)
    bend = sum(torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(4))
    potential = x.square().sum(1) / 2 + 1 / (x[:, :2] - x[:, 2:]).norm(dim=1)
    energy = potential - (bend + slope.square().sum(1)) / 2
    pull = torch.autograd.grad(energy.sum(), x)[0] if graph else torch.zeros_like(x)
    return energy.detach(), pull


@torch.no_grad()
def sweep(psi: nn.Module, x: torch.Tensor, steps: int, size: float = 0.6) -> torch.Tensor:
    """Move walkers by Metropolis' rule."""
    value = 2 * psi(x)
    for _ in range(steps):
        moved = x + size * torch.randn_like(x)
        other = 2 * psi(moved)
        taken = torch.rand(len(x)).log() < other - value
        x, value = torch.where(taken[:, None], moved, x), torch.where(taken, other, value)
    return x


def descend(psi: nn.Module, x: torch.Tensor, steps: int, transport: bool) -> torch.Tensor:
    """Follow one of the two geometries; return the walkers."""
    optimizer = torch.optim.Adam(psi.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = sweep(psi, x, 10)
        energy, pull = local_energy(psi, x, transport)
        if transport:  # bounded, since E_loc may have a pole where electrons meet
            point = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(2 * psi(point).sum(), point, create_graph=True)
            surrogate = (pull.tanh() * slope).sum(1).mean()
        else:
            surrogate = ((energy - energy.mean()).clamp(-5, 5) * 2 * psi(x)).mean()
        optimizer.zero_grad()
        surrogate.backward()
        optimizer.step()
        schedule.step()
    return x


def measured(psi: nn.Module, x: torch.Tensor, sweeps: int) -> str:
    """Energy with its standard error (walkers are independent chains) and the variance of E_loc."""
    found = []
    for _ in range(sweeps):
        x = sweep(psi, x, 10)
        found.append(local_energy(psi, x, False)[0])
    table = torch.stack(found)
    chains = table.mean(0)
    return f"energy {table.mean():.4f} +- {chains.std() / len(chains) ** 0.5:.4f}   variance {table.var():.4f}"


def main() -> None:
    """Print energies before and after, by growth and by transport, and by popflow; the exact one is 3."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few walkers and steps")
    quick = parser.parse_args().quick
    walkers, steps, sweeps = (64, 10, 5) if quick else (512, 400, 100)
    for name, transport in (("before", None), ("growth", False), ("transport", True)):
        torch.manual_seed(0)
        psi, x = Psi(), torch.randn(walkers, 4)
        x = sweep(psi, x, 200)
        if transport is not None:
            x = descend(psi, x, steps, transport)
        print(f"{name:10s} {measured(psi, x, sweeps)}")

    from popflow.core import Streams
    from popflow.electrons import SlaterJastrow, equilibrate, evaluate, place, quantum_dot, search

    system, rng = quantum_dot(), Streams(0)
    wave = SlaterJastrow(system, rng=rng)
    found = search(wave, system, equilibrate(wave, place(wave, system, walkers, rng), rng), optimiser="singd", steps=steps, rng=rng)
    print(f"{'popflow':10s} energy {evaluate(wave, system, found.walkers, sweeps=sweeps, rng=rng).energy}")


if __name__ == "__main__":
    main()
