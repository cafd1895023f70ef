"""SINGD on one page, without the library: natural gradient with factors that no one inverts.

    python examples/singd_standalone.py           # seconds
    python examples/singd_standalone.py --quick

For a layer with inputs a and gradients g of its outputs, Kronecker-factored curvature is U (x) G, U = E[a a'], G = E[g g']. Instead of U and G keep K and C with
K K' ~ U^-1 and C C' ~ G^-1, and move them by products alone,

    m_K = (Tr(H_C) / d H_K + damping Tr(C'C) / d K'K - I) / 2,   H_K = K' U K,   K <- K (I - b m_K)

and alike for C. The step of the weight is C C' grad K K'. A small network is fitted to data whose inputs differ in scale by a thousand, which stalls plain gradients.
The same with popflow is at the end.
"""

import argparse

import torch
from torch import nn


class Factors:
    """K and C of one linear layer; the bias is the last column of its weight."""

    def __init__(self, layer: nn.Linear, lr_cov: float = 0.3, damping: float = 1e-4):
        self.layer, self.lr_cov, self.damping = layer, lr_cov, damping
        self.K, self.C = torch.eye(layer.in_features + 1), torch.eye(layer.out_features)
        layer.register_forward_hook(self._forward)

    def _forward(self, layer: nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self.a = torch.cat([inputs[0].detach(), torch.ones(len(inputs[0]), 1)], 1)
        if output.requires_grad:
            output.register_hook(lambda grad: setattr(self, "g", grad * len(grad)))  # the loss is a mean over rows

    def refresh(self) -> None:
        """Move both factors towards the roots of the inverses of this batch's curvature."""
        K, C, n = self.K, self.C, len(self.a)
        A, B = self.a @ K, self.g @ C
        H_K, H_C, p, d = A.T @ A / n, B.T @ B / n, len(K), len(C)
        m_K = (H_C.trace() / d * H_K + self.damping * C.square().sum() / d * K.T @ K - torch.eye(p)) / 2
        m_C = (H_K.trace() / p * H_C + self.damping * K.square().sum() / p * C.T @ C - torch.eye(d)) / 2
        self.K = K - self.lr_cov / max(1.0, float(m_K.norm())) * K @ m_K  # steps of bounded length: no factor can lose its rank
        self.C = C - self.lr_cov / max(1.0, float(m_C.norm())) * C @ m_C

    def step(self) -> torch.Tensor:
        """C C' grad K K', ``[out, in + 1]``."""
        grad = torch.cat([self.layer.weight.grad, self.layer.bias.grad[:, None]], 1)
        return self.C @ (self.C.T @ grad @ self.K) @ self.K.T


def network() -> nn.Sequential:
    """A perceptron with one hidden layer, the same each time."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))


def train(x: torch.Tensor, y: torch.Tensor, steps: int, make) -> float:
    """Train on whole batches and return the last loss; ``make(net) -> update()``."""
    net = network()
    update = make(net)
    for _ in range(steps):
        net.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        update()
    return float(loss.detach())


def singd(net: nn.Sequential, lr: float = 0.02, momentum: float = 0.9):
    """Update of the page: refresh, precondition, momentum; steps have a root mean square of at most ``lr``, as those of Adam."""
    layers = [Factors(layer) for layer in net if isinstance(layer, nn.Linear)]
    speed = [torch.zeros(one.layer.out_features, one.layer.in_features + 1) for one in layers]

    @torch.no_grad()
    def update() -> None:
        for k, one in enumerate(layers):
            one.refresh()
            step = one.step()
            speed[k] = momentum * speed[k] + (1 - momentum) * step / step.square().mean().sqrt()
            one.layer.weight -= lr * speed[k][:, :-1]
            one.layer.bias -= lr * speed[k][:, -1]

    return update


def main() -> None:
    """Print the loss after equal numbers of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps")
    steps = 30 if parser.parse_args().quick else 500
    torch.manual_seed(0)
    x = torch.randn(512, 10)
    y = torch.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    x = x * torch.logspace(-1.5, 1.5, 10)
    from popflow.optim import SINGD

    for name, make in {
        "gradient descent": lambda net: torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9).step,
        "Adam": lambda net: torch.optim.Adam(net.parameters(), 0.02).step,
        "SINGD": singd,
        "popflow": lambda net: SINGD(net, lr=0.02).step,
    }.items():
        print(f"{name:18s} loss after {steps} steps  {train(x, y, steps, make):.4f}")


if __name__ == "__main__":
    main()
