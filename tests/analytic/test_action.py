"""The action as it is estimated for training, against sums over simulated or tabulated laws that share nothing with it but the drift of the path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from popflow.core import Streams
from popflow.paths import DiagonalPath, DoubleWell, FullPath, Overdamped, action
from popflow.paths.doob import _Cost, draw


def _loud(path: DiagonalPath | FullPath) -> DiagonalPath | FullPath:
    rng = Streams(7)
    with torch.no_grad():
        for value in path.network.parameters():
            value.add_(0.3 * rng.normal("loud", value))
    return path.requires_grad_(False)


@pytest.mark.parametrize("components", [1, 2])
def test_action_of_correlated_laws_is_the_mean_over_their_samples(components: int) -> None:
    process = Overdamped(DoubleWell(), noise=1.0)
    ends = torch.tensor([-1.0, 0.2], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    path = _loud(FullPath(*ends, 1.0, noise=1.0, sigma0=0.3, rng=Streams(0), components=components, width=16))
    times, rng, means = (torch.arange(100) + 0.5) / 100, Streams(2), []
    for t in times.tolist():
        x = path.sample(t, 1000, rng)
        means.append(process.share(path.drift(t, x) - process.driven(x)))
    cost = torch.stack(means)
    error = float((cost.var(1) / 1000).mean()) ** 0.5 / 10
    got = action(process, path, 200_000, Streams(1))
    assert abs(got.value - float(cost.mean())) < 4 * (error**2 + got.error**2) ** 0.5
    assert error + got.error < 0.03 * got.value  # the comparison has power


def test_action_of_a_mixture_and_its_gradient_by_the_weights_are_those_of_a_table() -> None:
    process = Overdamped(DoubleWell(dim=1), noise=1.0)
    ends = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    path = _loud(DiagonalPath(*ends, 1.0, noise=1.0, sigma0=0.3, rng=Streams(0), components=2, width=16, bend=1.0))
    line = torch.linspace(-6, 6, 1201, dtype=torch.float64)[:, None]

    def tabulated(tilt: float) -> float:
        path.logits.copy_(torch.tensor([tilt, 0.0], dtype=torch.float64))
        total = 0.0
        for t in ((torch.arange(200) + 0.5) / 200).tolist():
            density = path.log_prob(t, line).exp() * 0.01
            total += float((density * process.share(path.drift(t, line) - process.driven(line))).nan_to_num().sum()) / 200
        return total

    wanted, slope = tabulated(0.4), (tabulated(0.41) - tabulated(0.39)) / 0.02
    path.logits.copy_(torch.tensor([0.4, 0.0], dtype=torch.float64))
    got = action(process, path, 40_000, Streams(1))
    assert abs(got.value - wanted) < 4 * got.error + 1e-3 * wanted
    path.logits.requires_grad_(True)
    cost, rng, slopes = _Cost(process, path), Streams(3), []
    for _ in range(40):
        (gradient,) = torch.autograd.grad(cost(*draw(path, 4000, rng)), path.logits)
        slopes.append(gradient[0])
    found: Tensor = torch.stack(slopes)
    error = float(found.std()) / 40**0.5
    assert abs(float(found.mean()) - slope) < 4 * error + 1e-3 * abs(slope)
    assert error < 0.1 * abs(slope)
