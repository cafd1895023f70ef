"""Inpainting: what is known is kept, what is free follows the conditional law in the limit of many steps; editing starts around data."""

from __future__ import annotations

import pytest
import torch

from popflow.compose import feynman_kac, gaussian_mixture, karras, sample
from popflow.compose.inpainting import keep
from popflow.core import Streams

GRID = torch.cat([karras(200, 0.01, 20.0), torch.zeros(1, dtype=torch.float64)])
MODES = torch.tensor([[-3.0, -3.0], [3.0, 3.0]])


def test_the_free_coordinate_follows_the_known_one():
    known = 3.0
    model = gaussian_mixture(MODES, 0.3)
    sampler = keep(feynman_kac(model, correct=False), torch.tensor([known, 0.0]), torch.tensor([0.0, 1.0]))
    x = sample(sampler, GRID, particles=500, rng=Streams(0)).x[0]
    assert (x[:, 0] == known).all()
    assert float(((x[:, 1] - known).abs() < 1.2).float().mean()) > 0.97
    near = x[(x[:, 1] - known).abs() < 1.2, 1]
    assert float(near.mean()) == pytest.approx(known, abs=0.1)  # replacement is an approximation: it pulls towards the other mode
    assert float(near.std()) == pytest.approx(0.3, abs=0.05)


def test_all_free_is_the_sampler_itself():
    model = feynman_kac(gaussian_mixture(MODES, 0.3))
    plain = sample(model, GRID, particles=16, rng=Streams(0)).population
    free = sample(keep(model, torch.zeros(2), torch.ones(2)), GRID, particles=16, rng=Streams(0)).population
    assert torch.equal(plain.x, free.x)
    assert torch.equal(plain.log_w, free.log_w)


def test_editing_starts_around_the_data_with_the_variance_of_the_target():
    power, seen, centre = 4.0, [], torch.tensor([5.0, -5.0])
    sample(
        feynman_kac(gaussian_mixture(MODES, 0.3) ** power, zeta=1.4),
        karras(2, 0.5, 2.0),
        particles=20000,
        rng=Streams(0),
        record=[seen.append],
        around=centre,
    )
    first = seen[0].pop.x[0]
    assert torch.allclose(first.mean(0), centre, atol=0.05)
    assert float(first.var(0).mean()) == pytest.approx(4.0 / power, rel=0.05)
