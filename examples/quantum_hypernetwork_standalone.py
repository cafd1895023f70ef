"""A quantum hypernetwork on one page, without the library: a circuit whose measurements are binary networks.

    python examples/quantum_hypernetwork_standalone.py           # seconds
    python examples/quantum_hypernetwork_standalone.py --quick

Nine bits are the weights, the biases and the activation of a network with two inputs and one hidden unit pair; the circuit gives each of the 512 networks
an amplitude. Its angles descend the mean cost under the Born distribution p(bits) = |psi(bits)|^2, so that all weights and the choice of activation are learned at once.
All costs are enumerated, which tells the optimum. The same in a few lines with popflow is at the end.
"""

import argparse

import torch

BITS, DEPTH = 9, 4


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes in the plane: inside a diagonal band or not."""
    x = torch.randn(200, 2)
    return x, ((x.sum(1)).abs() < 0.8).double()


def costs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every network, ``[512]``: hidden weights (4 bits), biases (2), output weights (2), activation (1)."""
    bits = (torch.arange(2**BITS)[:, None] >> torch.arange(BITS)) & 1
    sign = 2.0 * bits.double() - 1
    hidden = torch.einsum("kji,ni->knj", sign[:, :4].reshape(-1, 2, 2), x.double()) + sign[:, None, 4:6]
    hidden = torch.where(bits[:, 8, None, None] == 1, hidden.relu(), hidden.tanh())
    logit = (hidden * sign[:, None, 6:8]).sum(2)
    return torch.nn.functional.binary_cross_entropy_with_logits(logit, y.expand_as(logit), reduction="none").mean(1)


def born(angles: torch.Tensor) -> torch.Tensor:
    """Born distribution ``[512]`` of rotations R_y, each layer followed by controlled Z gates between neighbours; amplitudes are real."""
    psi = torch.zeros(2**BITS, dtype=torch.float64)
    psi[0] = 1.0
    bits = (torch.arange(2**BITS)[:, None] >> torch.arange(BITS)) & 1
    signs = 1 - 2.0 * ((bits[:, 1:] & bits[:, :-1]).sum(1) % 2)
    for layer in angles:
        for k, angle in enumerate(layer):  # qubit k is bit k, the last but k axis
            c, s = (angle / 2).cos(), (angle / 2).sin()
            zero, one = psi.reshape(-1, 2, 2**k).unbind(1)
            psi = torch.stack([c * zero - s * one, s * zero + c * one], 1).reshape(-1)
        psi = psi * signs
    return psi.square()


def train(cost: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
    """Descend the mean cost from random angles; return the Born distribution found."""
    generator = torch.Generator().manual_seed(seed)
    angles = (torch.rand(DEPTH, BITS, generator=generator, dtype=torch.float64) * 6.283).requires_grad_()
    optimizer = torch.optim.Adam([angles], 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (born(angles) @ cost).backward()
        optimizer.step()
    return born(angles.detach())


def main() -> None:
    """Print the cost found from several starts beside the optimum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps and restarts")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    x, y = data()
    cost = costs(x, y)
    restarts, steps = (2, 20) if quick else (20, 300)
    found = [train(cost, steps, seed) for seed in range(restarts)]
    modes = torch.stack([cost[p.argmax()] for p in found])
    print(f"cost of the best of 512 networks   {cost.min():.4f}   of the mean one {cost.mean():.4f}")
    print(f"likeliest network of a circuit     {modes.min():.4f} (best of {restarts} starts), {modes.mean():.4f} (mean)")
    print(
        f"starts that end at the optimum     {(modes == cost.min()).double().mean():.0%}   by chance {(cost == cost.min()).double().mean():.2%}"
    )

    from popflow.circuits import Ansatz, success, train_lbfgs
    from popflow.core import Streams

    ansatz = Ansatz(n=BITS, depth=DEPTH)
    trained = train_lbfgs(ansatz, cost, ansatz.random(restarts, Streams(0)), steps=steps)
    print(f"popflow, by L-BFGS                 {success(trained, cost).top.value:.0%}")


if __name__ == "__main__":
    main()
