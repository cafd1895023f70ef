"""One potential explains what two separate fields do: without a reference drift, and with exact plans, the saddle is a regression."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call

from popflow.core import Streams
from popflow.learn import MLP, cosine, fit
from popflow.transport import W2, WFR, Lagrangian, LagrangianFlow, Snapshots, path_coupling
from popflow.transport.conditional_paths import ConditionalPaths, follow, moments
from popflow.transport.saddle import dual, path_energy

STEPS, WIDTH, DEPTH = 300, 32, 2


def branching():
    """A cloud that parts into two, the lower of which grows."""
    g = torch.Generator().manual_seed(0)

    def cloud(n, *centre):
        return 0.3 * torch.randn(n, 2, generator=g) + torch.tensor(centre)

    later = (torch.cat([cloud(n, x, x / 2), cloud(m, x, -x / 2)]) for n, m, x in ((50, 70, 1.0), (40, 80, 2.0)))
    return Snapshots.of([cloud(120, 0.0, 0.0), *later], times=[0, 1, 3]).standardised()


class Fields(nn.Module):
    """A velocity ``[n, d]`` and a growth rate over ``lam`` ``[n]``, each a network of its own, on the coordinates of the potential."""

    def __init__(self, lagrangian, snapshots):
        super().__init__()
        self.times, (self.means, self.radii) = snapshots.times.float(), moments(lagrangian, snapshots)
        self.velocity, self.growth = (MLP(2, out=out, width=WIDTH, depth=DEPTH) for out in (2, 1))

    def forward(self, t, x):
        right = torch.searchsorted(self.times, t.contiguous()).clamp(1, len(self.times) - 1)
        length = (self.times[right] - self.times[right - 1])[:, None]
        gap = self.means[right] - self.means[right - 1]
        share = (t - self.times[right - 1])[:, None] / length
        wide = torch.lerp(self.radii[right - 1], self.radii[right], share[:, 0])[:, None]
        z, u = (x - self.means[right - 1] - share * gap) / wide, t / self.times[-1]
        return gap / length + self.velocity(z, u), self.growth(z, u)[:, 0]


def explained(lagrangian, fields, t, point):
    """The energy of the paths that two fields explain: the dual with ``v`` in the place of ``grad s`` and ``a`` in that of ``s``."""
    v, a = fields(t, point.x)
    along = (point.velocity * v).sum(-1) - v.square().sum(-1) / 2 - lagrangian.lam / 2 * a.square()
    return (point.mass * along + (point.mass_rate * a if lagrangian.lam else 0.0)).mean()


@pytest.mark.parametrize("kinetic", [W2(), WFR(0.3), WFR(1.0)], ids=["transport", "growth, 0.3", "growth, 1"])
def test_two_fields_and_the_dual_explain_the_same_energy(kinetic):
    lagrangian, snapshots = Lagrangian(kinetic), branching()
    flow = LagrangianFlow(lagrangian, width=WIDTH, depth=DEPTH).fit(snapshots, steps=STEPS, rng=Streams(0), compile=False)
    rng = Streams(0)
    paths = ConditionalPaths.of(lagrangian, snapshots, path_coupling.least_action, rng)
    with rng.layers():
        fields = Fields(lagrangian, snapshots)

    def loss(params, batch):
        t = batch["t"].flatten()
        gain = explained(lagrangian, lambda t, x: functional_call(fields, params, (t, x)), t, follow(lagrangian, batch, None))
        return -gain, {"explained": gain}

    learned = fit(
        loss,
        dict(fields.named_parameters()),
        lambda rng: paths.draw(rng, 16, 16),
        steps=STEPS,
        rng=rng,
        optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=1e-4),
        schedule=cosine(STEPS, warmup=STEPS // 10),
        clip_norm=10.0,
        ema=0.97,
        compile=False,
    )
    fields.load_state_dict(learned.ema, strict=False)
    one = two = energy = 0.0
    fresh = Streams(1)
    for _ in range(32):
        batch = paths.draw(fresh, 16, 64)
        t, point = batch["t"].flatten(), follow(lagrangian, batch, None)
        with torch.no_grad():
            one += float(dual(lagrangian, flow._ready()[0], t, point).mean())
            two += float(explained(lagrangian, fields, t, point))
            energy += float(path_energy(lagrangian, t, point).mean())
    assert two == pytest.approx(one, rel=0.03)
    assert 0.9 * energy < one < energy
    assert two < energy
