"""Minibatches of populations: cells stay with their partners, examples are of another patient, draws repeat no cell without need."""

from functools import partial

import pytest
import torch

from popflow.core import Streams
from popflow.transport.coupling import exact, independent, sinkhorn
from popflow.transport.meta import Populations, Settings, paired
from popflow.transport.meta.draws import Draws


def populations(cells: int, count: int = 3) -> Populations:
    """Every cell moves by one, and carries its number in the first coordinate."""
    before = [torch.stack([torch.arange(cells).float(), torch.full((cells,), float(k))], 1) for k in range(count)]
    return Populations.of(before, [x + torch.tensor([0.0, 1.0]) for x in before], treatments=[f"drug {k % 2}" for k in range(count)])


@pytest.mark.parametrize(("cells", "coupling"), [(40, exact), (40, paired), (40, partial(sinkhorn, epsilon=1e-2)), (1100, paired)])
def test_partners_stay_together(cells, coupling):
    draws = Draws(populations(cells), coupling, Settings(None, pairs=16, populations=2))
    batch = draws.matching(Streams(0))
    assert batch["x"].shape == (2, 16, 2)
    torch.testing.assert_close(batch["velocity"], torch.tensor([0.0, 1.0]).expand(2, 16, 2), atol=1e-5, rtol=0)


def test_a_draw_repeats_no_cell_where_there_are_enough():
    draws = Draws(populations(50), independent, Settings(cells=50, pairs=8))
    cells, _ = draws.cloud(0, 50, Streams(0))
    assert sorted(cells[:, 0].tolist()) == list(range(50))
    more, _ = draws.cloud(0, 80, Streams(0))
    assert len(more) == 80
    assert set(more[:, 0].tolist()) == set(range(50))


def test_an_example_is_of_another_patient_with_the_same_drug():
    draws = Draws(populations(30, 4), independent, Settings(by_example=True, cells=10, pairs=4, populations=4))
    batch = draws.context(torch.arange(4), Streams(0))
    assert batch["cells"][:, 0, 1].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert batch["before"][:, 0, 1].tolist() == [2.0, 3.0, 0.0, 1.0]
    assert batch["after"][:, 0, 1].tolist() == [3.0, 4.0, 1.0, 2.0]


def test_all_of_a_mean_field_is_at_one_time():
    draws = Draws(populations(30), exact, Settings(mean_field=True, pairs=8, populations=3))
    batch = draws.matching(Streams(0))
    assert "cells" not in batch
    assert (batch["t"] == batch["t"][:, :1]).all()
    assert batch["t"][:, 0].unique().numel() == 3


def test_cells_measured_twice_are_as_many_before_and_after():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="there are 20 cells before and 19 after"):
        Draws(Populations.of([x], [x[1:] + 1]), paired, Settings(cells=10, pairs=4)).matching(Streams(0))
