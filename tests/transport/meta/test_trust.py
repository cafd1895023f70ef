"""What a reader leans on, by numbers that can be had by hand: novelty, weights in scores and files, shares brought inside training, labels kept."""

from types import SimpleNamespace

import pytest
import torch

from popflow.core import Population, Streams
from popflow.transport.meta import DeepSet, MetaFlow, Populations, compare, mixture
from popflow.transport.meta.ensemble import confidence
from popflow.transport.meta.field import EMBEDDED, Given, embedded
from popflow.transport.meta.job import by_counts

SIZES = {"width": 8, "cells": 20, "pairs": 10}


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def test_novelty_is_the_distance_from_training_over_the_usual_one():
    field = SimpleNamespace(embeddings=torch.tensor([[0.0], [1.0], [1.0], [3.0]]))  # one population twice: under two drugs
    given = SimpleNamespace(field=field, context=torch.tensor([[7.0, 99.0]]), cells=torch.zeros(2, 1))
    found = confidence([given], [Population.of(torch.ones(2, 1))])
    assert found.novelty == pytest.approx(4.0)  # nearest at 4; within training 1, 1 and 2
    assert (found.spread, found.disagreement) == (None, None)  # one member agrees with nobody
    two = confidence([given, given], [Population.of(torch.full((2, 1), move)) for move in (1.0, 3.0)])
    assert (float(two.mean), float(two.spread)) == pytest.approx((2.0, 2**0.5))
    assert two.disagreement == pytest.approx((1 / 5) ** 0.5)  # 1 about the mean, of a root mean square of sqrt(5)


def test_dead_cells_do_not_count_in_a_score():
    x = normal(200)
    populations = Populations.of([x, normal(200, 1)], [x + 3, normal(200, 2) + 3], groups=["a", "b"])
    training, test = populations.hold_out("b")

    def predict(pair, test):
        cells = torch.cat([normal(200, 3) + 3, normal(200, 4) - 50])
        return Population.of(cells).replace(log_w=torch.tensor([0.0, -60.0]).repeat_interleave(200))

    found = compare({"flow": predict}, training, test, rng=Streams(0), cells=400, draws=1)[test.pairs[0]]
    assert found["flow"].w1 < 1.5 * found["sampling floor"].w1


def test_the_cells_that_stand_for_a_large_population_do_not_depend_on_its_order():
    x = normal(3 * EMBEDDED)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    one, two = (embedded(cells, None)[0] for cells in (x, x[order]))
    assert len(one) == EMBEDDED
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_a_mixture_is_brought_to_the_nearest_shares_of_training(monkeypatch):
    kind = torch.arange(40) % 2
    before = [torch.stack([kind.float(), normal(40, k)[:, 0]], 1) for k in range(2)]
    populations = Populations.of(before, [x + 1 for x in before], types=([kind] * 2, [kind] * 2), type_names=["s", "t"])
    flow = MetaFlow(DeepSet(), **SIZES).fit(populations, steps=1, rng=Streams(0))
    rare = (torch.arange(100) % 10 == 0).long()  # one in ten is a t, where training has half
    given = flow.given(torch.stack([rare.float(), normal(100, 5)[:, 0]], 1))
    seen, push = [], Given.push
    monkeypatch.setattr(Given, "push", lambda self, *args, **how: (seen.append(self.cells[:, 0].mean()), push(self, *args, **how))[1])
    assert mixture(given, rare).outside == ("s", "t")
    assert [float(one) for one in seen] == pytest.approx([0.1, 0.5], abs=0.02)


def test_weights_are_written_beside_predicted_cells(tmp_path):
    ad = pytest.importorskip("anndata")
    from popflow.transport.meta.anndata import write_predictions

    populations = Populations.of([normal(20)], [normal(20, 1)], features=["m", "n"])
    predicted = Population.of(normal(20)).replace(log_w=torch.linspace(-1, 1, 20))
    written = ad.read_h5ad(write_predictions(tmp_path / "p.h5ad", populations, {populations.pairs[0]: predicted}, None, {}))
    assert written.obs["weight"].to_numpy() == pytest.approx(torch.linspace(-1, 1, 20).exp().numpy(), rel=1e-5)


def test_masses_are_numbers_of_cells_after_over_before():
    assert [pair.mass for pair in by_counts(Populations.of([normal(40), normal(20)], [normal(20, 1), normal(60, 1)])).pairs] == [0.5, 3.0]


def test_a_new_label_leaves_the_old_ones_where_they_were():
    x = normal(30)
    flow = MetaFlow(DeepSet(), **SIZES).fit(Populations.of([x, x], [x + 1, x - 1], treatments=["a", "b"]), steps=1, rng=Streams(0))
    field = flow.ready()
    with Streams(1).layers():
        wider = field.extended(Populations.of([x], [x + 2], treatments="c"))
    assert wider.treatments == ("a", "b", "c")
    wider.context.requires_grad_(False)
    wider.network.requires_grad_(False)
    for k in range(2):
        one, two = (Given.of(net, x, None, k, None).push(x, 0.0, 1.0, Streams(0), steps=4).x for net in (field, wider))
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
