"""MinSR and SPRING against dense linear algebra on the whole Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from popflow.optim.gram import apply, kernel, minsr, spring

F64 = torch.float64


class Wave(nn.Module):
    """Layers of one use and of several, normalisation, a bare parameter, a shared layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.norm = nn.Conv1d(1, 2, 2), nn.Linear(2, 3), nn.LayerNorm(3)
        self.mix, self.out, self.scale = nn.Linear(3, 3), nn.Linear(3, 1), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        h = torch.tanh(self.hidden(self.conv(x[:, None]).mT)).sum(1)
        return self.scale * self.out(self.norm(self.mix(torch.tanh(self.mix(h)))))[:, 0]


def problem(n: int = 9):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Wave().double()
    rng = torch.Generator().manual_seed(1)
    x, e = torch.randn(n, 5, generator=rng, dtype=F64), torch.randn(n, generator=rng, dtype=F64)
    jacobian = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters()), retain_graph=True)]) for value in net(x)]
    )
    return net, x, e, jacobian


def flat(net, update):
    return torch.cat([update[name].flatten() for name, _ in net.named_parameters()])


def prepared(jacobian, e, centred):
    n = len(e)
    return ((jacobian - jacobian.mean(0), e - e.mean()) if centred else (jacobian, e))[0] / n**0.5, (
        e - e.mean() if centred else e
    ) / n**0.5


@pytest.mark.parametrize("centred", [True, False])
def test_kernel_products_are_those_of_the_jacobian(centred):
    net, x, e, jacobian = problem()
    j, _ = prepared(jacobian, e, centred)
    values, found = kernel(net, lambda: net(x), centred=centred)
    torch.testing.assert_close(values, net(x).detach())
    torch.testing.assert_close(found.gram(), j @ j.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(flat(net, found.transposed(e)), j.T @ (e - e.mean() if centred else e), rtol=1e-10, atol=1e-12)
    update = found.transposed(e)
    torch.testing.assert_close(found.times(update), j @ flat(net, update), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("damping", [1e-4, 1e-1])
def test_minsr_is_stochastic_reconfiguration(centred, damping):
    net, x, e, jacobian = problem()
    j, target = prepared(jacobian, e, centred)
    _, found = kernel(net, lambda: net(x), centred=centred)
    dense = torch.linalg.solve(j.T @ j + damping * torch.eye(j.shape[1], dtype=F64), j.T @ target)
    torch.testing.assert_close(flat(net, minsr(found, e, damping=damping)), dense, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_spring_solves_its_proximal_problem(centred):
    net, x, e, jacobian = problem()
    j, target = prepared(jacobian, e, centred)
    _, found = kernel(net, lambda: net(x), centred=centred)
    first = spring(found, e, {}, damping=1e-2)
    second = spring(found, 2 * e, first, damping=1e-2, decay=0.9)
    phi, old = flat(net, second), flat(net, first)
    gradient = j.T @ (j @ phi - 2 * target) + 1e-2 * (phi - 0.9 * old)
    assert gradient.norm() < 1e-10 * (j.T @ target).norm() + 1e-12


def test_residuals_of_a_network_are_solved_in_few_steps():
    """Gauss-Newton in sample space on a regression that gradient descent would take thousands of steps for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    y = (3 * x[:, 0]).sin()
    previous = {}
    start = (net(x)[:, 0] - y).square().mean().item()
    for _ in range(30):
        values, found = kernel(net, lambda: net(x)[:, 0], centred=False)
        previous = spring(found, values - y, previous, damping=1e-3, decay=0.5)
        apply(net, previous, lr=0.5, norm_bound=None)
    assert (net(x)[:, 0] - y).square().mean().item() < 1e-2 * start


def test_bad_input():
    net, x, e, _ = problem()
    _, found = kernel(net, lambda: net(x))
    with pytest.raises(ValueError, match=r"target has shape \(3,\), wanted \(9,\)"):
        minsr(found, e[:3])
    with pytest.raises(ValueError, match=r"damping=0\.0"):
        minsr(found, e, damping=0.0)
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        spring(found, e, {}, decay=1.0)
    with pytest.raises(ValueError, match="one real scalar per datum"):
        kernel(net, lambda: net(x)[:, None])
    with pytest.raises(ValueError, match="damping=inf"):
        minsr(found, e, damping=float("inf"))
    with pytest.raises(ValueError, match="target has 9 values that are not finite"):
        minsr(found, e * float("nan"))
    with pytest.raises(ValueError, match="previous: '"):
        spring(found, e, {"stranger": e})


def test_a_frozen_bias_has_no_direction():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Linear(3, 1).double()
    net.bias.requires_grad_(False)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, found = kernel(net, lambda: net(x)[:, 0], centred=False)
    update = minsr(found, x[:, 0], damping=1e-12)
    torch.testing.assert_close(update["weight"], x.new_tensor([[1.0, 0.0, 0.0]]))
    assert list(update) == ["weight"]
