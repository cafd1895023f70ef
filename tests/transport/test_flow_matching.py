"""Flow matching of Gaussians: the field of the optimal map, the right times, the held-out marginal unseen."""

import pytest
import torch

from popflow.core import Population, Streams
from popflow.transport import Snapshots
from popflow.transport.coupling import exact, independent
from popflow.transport.flow_matching import match


def gaussians():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 1, generator=g)
    return Snapshots.of([x, 2 * x + 3, 2 * x + 7], times=[1, 3, 4])


@pytest.mark.parametrize("coupling", [exact, independent])
def test_the_end_and_the_speed_are_those_of_the_snapshots(coupling):
    snapshots = gaussians()
    flow = match(snapshots, rng=Streams(0), coupling=coupling, steps=400, batch=128, width=32, depth=2, lr=5e-3)
    middle = flow.push(Population.of(snapshots.x[0]), 1.0, 3.0, Streams(0))
    assert float(middle.mean()) == pytest.approx(float(snapshots.x[1].mean()), abs=0.15)
    assert float(middle.x.std()) == pytest.approx(float(snapshots.x[1].std()), rel=0.12)
    last = flow.push(middle, 3.0, 4.0, Streams(0))
    assert float(last.mean()) == pytest.approx(float(snapshots.x[2].mean()), abs=0.2)
    # On the second interval every cell moves by 4 within one unit of time, whoever it is paired with on average.
    assert float(flow.velocity(3.5, middle.x + 2).mean()) == pytest.approx(4.0, abs=0.3)
    assert flow.growth(2.0, middle.x).abs().max() == 0
