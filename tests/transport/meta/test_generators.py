"""Populations whose response is known: what is generated is what is said, and the negative controls tell nothing."""

import math

import pytest
import torch

from popflow.core import Streams
from popflow.transport.coupling import exact
from popflow.transport.evaluate import sampling_floor
from popflow.transport.meta import compare, drug_screen, gaussians, letters, within_types
from popflow.transport.meta.baselines import FLOOR, IDEAL, IDENTITY, POOLED, SHIFT, SHIFT_BY_TYPE
from popflow.transport.meta.populations import rows


def test_the_mean_of_a_gaussian_population_tells_where_it_goes():
    for negative in (False, True):
        populations = gaussians(12, 4000, Streams(0), negative=negative)
        off = []
        for pair in populations.pairs:
            x, y = rows(populations.clouds[pair.source]), rows(populations.clouds[pair.target])
            angle = float(x.mean(0) @ torch.tensor([math.pi / 2, math.pi / 4]))
            told = torch.tensor([math.sin(angle), math.cos(angle)]) * 2
            off.append(float((y.mean(0) - x.mean(0) - told).norm()))
            assert y.std(0).mean() == pytest.approx(0.5, abs=0.03)
        assert (max(off) < 0.2) is not negative


def test_a_screen_responds_as_its_truth_says():
    screen = drug_screen(5, 6000, Streams(0), treatments=2)
    populations = screen.populations
    for k, pair in enumerate(populations.pairs):
        before, after = (rows(populations.clouds[j]) for j in (pair.source, pair.target))
        kinds = [rows(populations.types[j]) for j in (pair.source, pair.target)]
        for kind in range(3):
            moved = after[kinds[1] == kind].mean(0) - before[kinds[0] == kind].mean(0)
            torch.testing.assert_close(moved, screen.shift[k, kind], atol=0.12, rtol=0)
        share = populations.proportions(pair.source)
        assert float(share[1]) == pytest.approx(float(screen.environment[k // 2]), abs=0.02)
        assert pair.mass == pytest.approx(float(share @ screen.growth[k].double()), abs=0.02)
        torch.testing.assert_close(populations.proportions(pair.target), share * screen.growth[k] / pair.mass, atol=0.03, rtol=0)
        moved, weight = screen.truth(k, before, kinds[0])
        assert float(weight.mean()) == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(moved - before, screen.shift[k][kinds[0]])


def test_letters_are_blurred_and_turned_but_keep_their_shape():
    populations = letters("LX", 2, Streams(0), cells=400)
    for pair in populations.pairs:
        before, after = rows(populations.clouds[pair.source]), rows(populations.clouds[pair.target])
        assert float((before - after).std()) == pytest.approx(0.5, rel=0.1)
        assert 2.0 < float(after.norm(dim=1).max()) < 4.8
    spread = [float(rows(populations.clouds[pair.target]).T.cov().trace()) for pair in populations.pairs]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_trivial_answers_are_what_they_say_and_scores_meet_the_floor():
    screen = drug_screen(4, 400, Streams(0), treatments=1)
    training, test = screen.populations.hold_out("patient 0")
    pair = test.pairs[0]

    def perfect(pair, test):
        from popflow.core import Population

        return Population.of(rows(test.clouds[pair.target]))

    found = compare({"perfect": perfect}, training, test, rng=Streams(0), cells=150, draws=2)[pair]
    assert set(found) == {"perfect", IDENTITY, SHIFT, SHIFT_BY_TYPE, IDEAL, POOLED, FLOOR}
    assert found["perfect"].w1 < 1.2 * found[FLOOR].w1
    assert found[FLOOR].w1 == sampling_floor(rows(test.clouds[pair.target]), 150, 150, rng=Streams(0)).w1
    assert found[FLOOR].w1 < min(found[name].w1 for name in (IDENTITY, SHIFT, IDEAL, POOLED))
    assert found[SHIFT_BY_TYPE].w1 < found[SHIFT].w1  # types move apart


def test_cells_are_coupled_within_their_types_and_types_without_partner_are_not():
    x, y = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[1.0], [0.0]])
    plan = within_types(exact, x, y, torch.tensor([0, 1, 2]), torch.tensor([0, 1]))
    assert plan.tolist() == [[pytest.approx(1 / 3), 0.0], [0.0, pytest.approx(1 / 3)], [0.0, 0.0]]
    with pytest.raises(ValueError, match="no cell type is in both"):
        within_types(exact, x, y, torch.tensor([5, 5, 5]), torch.tensor([0, 1]))
