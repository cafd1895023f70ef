"""The pair network keeps the symmetries of particles, and the loss it learns by has the right minimiser."""

import pytest
import torch

from popflow.compose.particles import Cluster, PairNetwork
from popflow.compose.particles.network import size
from popflow.compose.particles.training import mostly_below, noised, samples_of, score_matching
from popflow.core import Streams

TRAP = Cluster("trap", 5, 2, lambda r2: (0 * r2, 0 * r2), trap=2.0)


def network(n: int, d: int) -> PairNetwork:
    with Streams(0).layers():
        made = PairNetwork(n, d, width=16)
        torch.nn.init.normal_(made.strength.weight)
    return made.double()


@pytest.mark.parametrize(("n", "d"), [(2, 3), (4, 2), (5, 3), (13, 3)])
def test_symmetries(n, d):
    """Odd and even n: the last circle of pairs is special for even n."""
    net, generator = network(n, d), torch.Generator().manual_seed(1)
    x = torch.randn(6, n, d, generator=generator, dtype=torch.float64)
    t = torch.linspace(-1, 0.5, 6, dtype=torch.float64)
    v = net(x, t)
    turn, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    order = torch.randperm(n, generator=generator)
    assert float(v.abs().max()) > 0.01
    assert torch.allclose(net(x[:, order], t), v[:, order], atol=1e-10)
    assert torch.allclose(net(x @ turn, t), v @ turn, atol=1e-10)
    assert torch.allclose(net(x + 2.0, t), v, atol=1e-10)
    assert float(v.sum(1).abs().max()) < 1e-10


def test_rows_are_independent_and_one_row_works():
    net = network(4, 2)
    x, t = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    assert torch.allclose(net(x, t)[3:4], net(x[3:4], t[3:4]), atol=1e-12)


def test_particles_on_one_another_push_with_no_force_and_no_nan():
    net, x = network(4, 2), torch.zeros(1, 4, 2, dtype=torch.float64)
    assert float(net(x, torch.zeros(1, dtype=torch.float64)).abs().max()) == 0.0


def gaussian() -> tuple[torch.Tensor, float]:
    """Draws of the trap at T = 1: each coordinate of the subspace is N(0, 1/2)."""
    z = torch.randn(40000, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (z - z.mean(1, keepdim=True)) * 0.5**0.5, 0.5


@pytest.mark.parametrize("sigma", [0.05, 0.7, 5.0])
def test_the_target_regresses_on_the_score_of_the_noised_density(sigma):
    """For N(0, v) the score at sigma is ``-y / (v + sigma^2)`` whatever the mixing; its mean square is ``J / (1 + J sigma^2)``, here 1/(v + sigma^2)."""
    x, v = gaussian()
    samples = samples_of(TRAP, 1.0, x)
    assert samples.information == pytest.approx(1 / v, rel=0.02)
    y, level, target = noised(samples, 40000, lambda u: torch.full_like(u, sigma))(Streams(0))
    assert bool((level == sigma).all())
    slope = float((y * target).sum() / y.square().sum())
    assert slope == pytest.approx(-1 / (v + sigma**2), rel=0.03)
    assert float(target.square().sum() / (len(y) * TRAP.space.dim)) == pytest.approx(1 / (v + sigma**2), rel=0.03)


def test_the_loss_is_the_error_of_the_score_in_units_of_its_size():
    """At a Gaussian the exact output of the network is known; the loss of the exact one is what is left of the target's noise, here none."""
    x, v = gaussian()
    samples, spread = samples_of(TRAP, 1.0, x[:4000]), 0.8

    class Exact(PairNetwork):
        def forward(self, x, t):
            sigma = (4 * t).exp().view(-1, 1, 1)
            total = (sigma**2 + spread**2).sqrt()
            y = x * total
            return sigma / spread * (y / total - total * y / (v + sigma**2))

    with Streams(0).layers():
        net = Exact(5, 2, stiff=v**0.5)
    y, sigma, _ = noised(samples, 4000, mostly_below(0.5, 0.05, 5.0))(Streams(0))
    exact = -y / (v + sigma.view(-1, 1, 1) ** 2)
    loss, _ = score_matching(net, spread)({}, (y, sigma, exact))
    assert float(loss) < 1e-9
    wrong = exact * 1.1
    loss, _ = score_matching(net, spread)({}, (y, sigma, wrong))
    total = sigma.view(-1, 1, 1) ** 2 + spread**2
    by_hand = ((0.1 * exact * sigma.view(-1, 1, 1) * total.sqrt() / spread) / size(sigma.view(-1, 1, 1), v**0.5)).square().mean()
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-4)


def test_noise_levels_are_mostly_small_and_stay_inside():
    levels = mostly_below(0.7, 0.01, 10.0)(torch.linspace(0, 1 - 1e-6, 10001))
    assert float(levels.min()) == pytest.approx(0.01, rel=1e-4)
    assert float(levels.max()) == pytest.approx(10.0, rel=1e-3)
    assert float((levels < 0.7).double().mean()) == pytest.approx(0.75, abs=1e-3)
    with pytest.raises(ValueError, match="lowest < knee < highest"):
        mostly_below(0.1, 0.2, 1.0)
