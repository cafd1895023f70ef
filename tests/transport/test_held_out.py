"""What is held out is never looked at: filled with NaN it changes no bit of any fit."""

from dataclasses import replace

import pytest
import torch

from popflow.core import Streams
from popflow.transport import WFR, Lagrangian, LagrangianFlow, MeanAcceleration, Snapshots, VelocityPrior, match


def snapshots(*, poisoned):
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(30, 2, generator=g) + k for k in range(4)]
    held = replace(Snapshots.of(x, times=[0, 1, 2, 4]).hold_out(1), velocity=tuple(torch.ones_like(rows) for rows in x))
    if not poisoned:
        return held.standardised()
    nan = [torch.full_like(rows, torch.nan) if k == 1 else rows for k, rows in enumerate(x)]
    velocity = [torch.full_like(v, torch.nan) if k == 1 else v for k, v in enumerate(held.velocity)]
    return replace(held, x=tuple(nan), velocity=tuple(velocity)).standardised()


FITS = {
    "transport": lambda s: LagrangianFlow(Lagrangian(), width=8).fit(s, steps=4, rng=Streams(0), compile=False),
    "growth": lambda s: LagrangianFlow(Lagrangian(WFR(1.0)), width=8).fit(s, steps=4, rng=Streams(0), compile=False),
    "bridge, acceleration, velocity": lambda s: LagrangianFlow(
        Lagrangian(noise=0.3, potential=MeanAcceleration.of(s), drift=VelocityPrior.of(s, 1.0, cells=8)), width=8
    ).fit(s, steps=4, rng=Streams(0), compile=False),
    "velocities between snapshots": lambda s: LagrangianFlow(Lagrangian(drift=VelocityPrior.between(s, 1.0)), width=8).fit(
        s, steps=4, rng=Streams(0), compile=False
    ),
    "flow matching": lambda s: match(s, rng=Streams(0), steps=4, width=8, depth=2, compile=False),
}


@pytest.mark.parametrize("name", FITS)
def test_nan_where_nobody_looks_changes_nothing(name):
    clean, dirty = snapshots(poisoned=False), snapshots(poisoned=True)
    flows = [FITS[name](s) for s in (clean, dirty)]
    x = clean.x[0]
    speeds = [flow.velocity(0.7, x) for flow in flows]
    assert speeds[0].isfinite().all()
    assert torch.equal(*speeds)
    assert torch.equal(*(flow.growth(0.7, x) for flow in flows))
    assert torch.equal(*(flow.push(x, 0.0, 1.0, Streams(1)).x for flow in flows))
    if name != "flow matching":
        assert flows[0].report(draws=2) == flows[1].report(draws=2)
        assert torch.equal(*(flow.interpolate(1.0, 9, Streams(1)).x for flow in flows))
