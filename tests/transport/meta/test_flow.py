"""Flows that know their population: unseen populations, exact resume, the same bytes again, growth, noise, examples, and what is refused."""

import re
import warnings

import pytest
import torch

from popflow.core import CheckpointError, PopflowWarning, Streams
from popflow.transport import Flow, independent
from popflow.transport.lagrangian import WFR, Harmonic, Lagrangian, Linear
from popflow.transport.meta import DeepSet, Ensemble, Knn, MetaFlow, Populations, drug_screen, gaussians, load, mixture, save
from popflow.transport.meta.populations import rows

SMALL = {"width": 32, "depth": 2, "cells": 48, "pairs": 24, "populations": 6, "lr": 5e-3}


def error(flow: MetaFlow, test: Populations) -> float:
    """Mean distance of the predicted mean from the true one."""
    found = []
    for pair in test.pairs:
        predicted = flow.predict(rows(test.clouds[pair.source]), pair.treatment if len(test.treatments) > 1 else None, steps=6)
        found.append(float((predicted.mean() - rows(test.clouds[pair.target]).mean(0)).norm()))
    return sum(found) / len(found)


@pytest.fixture(scope="module")
def planes():
    """Gaussian populations to learn from, and unseen ones."""
    return gaussians(30, 100, Streams(1)), gaussians(8, 100, Streams(2))


@pytest.fixture(scope="module")
def screen():
    return drug_screen(8, 120, Streams(1), treatments=2, features=3)


@pytest.fixture(scope="module")
def learned(screen):
    """A flow of two drugs that sees cell types."""
    training, _ = screen.populations.hold_out("patient 0")
    return MetaFlow(Knn(5, frequencies=2), see_types=True, within_types=True, frequencies=3, **SMALL).fit(
        training, steps=150, rng=Streams(0)
    )


@pytest.mark.parametrize("embed", [Knn(5), DeepSet()])
def test_unseen_populations_move_as_their_own_cells_say(planes, embed):
    training, test = planes
    plain = MetaFlow(None, coupling=independent, **SMALL).fit(training, steps=100, rng=Streams(0))
    flow = MetaFlow(embed, coupling=independent, **SMALL).fit(training, steps=250, rng=Streams(0))
    assert error(flow, test) < 0.5 * error(plain, test)
    x = rows(test.clouds[0])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.predict(x).x[order], flow.predict(x[order]).x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("how", [{"alternate": True}, {"mean_field": True}, {"nearby": 2}])
def test_other_ways_to_learn_gather_cells_around_the_mean_of_their_own_population(how):
    """A cell goes towards the mean of its population, wherever that is: on the way too the population tells where."""
    g = torch.Generator().manual_seed(0)
    mean = 4 * torch.rand(36, 1, 2, generator=g) - 2
    before = mean + torch.randn(36, 100, 2, generator=g)
    after = mean + 0.2 * torch.randn(36, 100, 2, generator=g)
    training, test = Populations.of(list(before[:30]), list(after[:30])), list(before[30:])
    flow = MetaFlow(DeepSet(), **how, **SMALL).fit(training, steps=200, rng=Streams(0))
    spread = torch.stack([flow.predict(x, steps=6).x.std(0).mean() for x in test]).mean()
    off = torch.stack([flow.predict(x, steps=6).mean() - mean[30 + k, 0] for k, x in enumerate(test)]).norm(dim=1).mean()
    assert float(spread) < 0.4
    assert float(off) < 0.35


def test_in_turn_one_part_learns_and_the_other_rests(planes):
    from popflow.transport.meta.losses import Alternating, matching_loss

    flow = MetaFlow(DeepSet(), alternate=True, **SMALL).fit(planes[0], steps=2, rng=Streams(0))
    field = flow.ready()
    modules = (("context.", field.context), ("network.", field.network))
    params = {f"{part}{name}": p.clone().requires_grad_() for part, module in modules for name, p in module.named_parameters()}
    before = {name: p.detach().clone() for name, p in params.items()}
    g = torch.Generator().manual_seed(0)
    batch = {"cells": torch.randn(2, 9, 2, generator=g), "x": torch.randn(2, 5, 2, generator=g), "velocity": torch.ones(2, 5, 2)}
    batch |= {"t": torch.full((2, 5), 0.5), "treatment": torch.zeros(2).long(), "turn": torch.zeros(2)}
    matching_loss(field, alternate=True)(params, batch)[0].backward()
    Alternating(params.values(), lr=0.1).step()
    moved = {name for name, p in params.items() if not torch.equal(p, before[name])}
    assert moved == {name for name in params if name.startswith("context.")}


def test_saved_and_loaded_it_predicts_the_same_bytes(learned, screen, tmp_path):
    x, types = rows(screen.populations.clouds[0]), rows(screen.populations.types[0])
    again = load(save(learned, tmp_path / "flow.safetensors"))
    one, two = (flow.predict(x, "drug 1", types=types) for flow in (learned, again))
    assert one.x.numpy().tobytes() == two.x.numpy().tobytes()
    assert (again.settings, again.ready().treatments) == (learned.settings, ("drug 0", "drug 1"))
    assert save(again, tmp_path / "again.safetensors").read_bytes() == (tmp_path / "flow.safetensors").read_bytes()
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        load(tmp_path / "no.safetensors")


def test_an_interrupted_fit_ends_with_the_same_bytes(planes, tmp_path):
    def fit(steps: int, checkpoint=None):
        flow = MetaFlow(DeepSet(), alternate=True, **SMALL)
        return flow.fit(planes[0], steps=steps, rng=Streams(0), checkpoint=checkpoint, checkpoint_every=5)

    def stop(progress):
        if progress.step == 10:
            raise KeyboardInterrupt

    whole = fit(20)
    flow = MetaFlow(DeepSet(), alternate=True, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        flow.fit(planes[0], steps=20, rng=Streams(0), checkpoint=tmp_path / "c", checkpoint_every=5, log_every=5, record=[stop])
    resumed = fit(20, tmp_path / "c")
    x = rows(planes[1].clouds[0])
    assert torch.equal(whole.predict(x).x, resumed.predict(x).x)


def test_from_disk_it_learns_the_same(planes, tmp_path):
    stored = planes[0].store(tmp_path)
    one, two = (MetaFlow(DeepSet(), coupling=independent, **SMALL).fit(p, steps=5, rng=Streams(0)) for p in (planes[0], stored))
    x = rows(planes[1].clouds[0])
    assert torch.equal(one.predict(x).x, two.predict(x).x)


def test_growth_is_that_of_the_population():
    """Cells on the left die, more so in populations that lie further up; the masses are given."""
    g = torch.Generator().manual_seed(0)
    level = torch.linspace(-1, 1, 12)
    before = [torch.cat([torch.tensor([[-4.0, float(h)]]), torch.tensor([[4.0, float(h)]])]).repeat(40, 1) for h in level]
    before = [x + 0.3 * torch.randn(80, 2, generator=g) for x in before]
    left = 0.55 + 0.4 * level
    after = [
        torch.cat([x[0::2][: max(2, int(40 * p))], x[1::2]]) + 0.1 * torch.randn(1, 2, generator=g)
        for x, p in zip(before, left, strict=True)
    ]
    masses = [(float(p) + 1) / 2 for p in left]
    populations = Populations.of(before, after, masses=masses)
    training, test = populations.hold_out("4")
    flow = MetaFlow(DeepSet(), lagrangian=Lagrangian(WFR(1.0, normalized=False)), **SMALL).fit(training, steps=300, rng=Streams(0))
    x = rows(test.clouds[test.pairs[0].source])
    given = flow.given(x)
    assert isinstance(given, Flow)
    weight = given.push(x, 0.0, 1.0, Streams(0)).log_w.exp()
    assert float(weight[x[:, 0] < 0].mean()) == pytest.approx(float(left[4]), abs=0.15)
    assert float(weight[x[:, 0] > 0].mean()) == pytest.approx(1.0, abs=0.15)
    other = flow.predict(before[11]).log_w.exp()
    assert float(other[before[11][:, 0] < 0].mean()) > float(weight[x[:, 0] < 0].mean()) + 0.15


def test_noise_spreads_cells(planes):
    training, test = planes
    x = rows(test.clouds[0])
    noisy = MetaFlow(DeepSet(), lagrangian=Lagrangian(noise=0.5), **SMALL).fit(training, steps=30, rng=Streams(0))
    one, two = (noisy.predict(x, rng=Streams(seed)).x for seed in (0, 1))
    assert float((one - two).std()) == pytest.approx(0.5 * 2**0.5, rel=0.5)  # but for the drift, which has hardly been learned
    bent = MetaFlow(DeepSet(), lagrangian=Lagrangian(WFR(0.1), potential=Harmonic(1.0)), **SMALL).fit(training, steps=5, rng=Streams(0))
    assert bent.predict(x).x.isfinite().all()


def test_a_potential_bends_the_paths_of_cells():
    """Under a constant acceleration a the way is ``x + t move - a t (1 - t) / 2``: off by a / 8 half way, and not at the end."""
    g = torch.Generator().manual_seed(0)
    before = [torch.randn(60, 2, generator=g) + k / 4 for k in range(-4, 5)]
    training = Populations.of(before, [x + torch.tensor([1.0, 0.0]) + 0.05 * torch.randn(60, 2, generator=g) for x in before])
    lagrangian = Lagrangian(potential=Linear(torch.tensor([0.0, 8.0])))
    given = MetaFlow(DeepSet(), lagrangian=lagrangian, **SMALL).fit(training, steps=150, rng=Streams(0)).given(before[4])
    for t, wanted in ((0.5, [0.5, -1.0]), (1.0, [1.0, 0.0])):
        moved = given.push(before[4], 0.0, t, Streams(0)).x - before[4]
        assert moved.mean(0).tolist() == pytest.approx(wanted, abs=0.1)


def test_a_treatment_by_example_needs_no_label():
    """Two drugs with opposite effects, and a third that training has not seen: halfway along the first."""
    g = torch.Generator().manual_seed(0)
    before = [torch.randn(60, 2, generator=g) for _ in range(8)]
    effect = {"a": 2.0, "b": -2.0, "c": 1.2, "d": -1.0}
    pairs = [(x, x.flip(0) + torch.tensor([size, 0.0]), str(k), name) for k, x in enumerate(before) for name, size in effect.items()]
    x, y, groups, drugs = zip(*pairs, strict=True)
    training, test = Populations.of(x, y, groups=groups, treatments=drugs).hold_out("0")
    training = training.of_pairs([pair for pair in training.pairs if pair.treatment != "c"])
    flow = MetaFlow(DeepSet(), by_example=True, **SMALL).fit(training, steps=250, rng=Streams(0))
    for pair in test.pairs:
        shown = [rows(test.clouds[k]) for k in (pair.source, pair.target)]
        moved = flow.predict(before[3], example=tuple(shown)).mean() - before[3].mean(0)
        assert float(moved[0]) == pytest.approx(effect[pair.treatment], abs=0.4)
    with pytest.raises(ValueError, match=r"wanted example=\(control cells, treated cells\) and no treatment"):
        flow.predict(before[0], "a")


def test_columns_go_by_their_names(learned, screen):
    populations = screen.populations
    x, types = rows(populations.clouds[0]), rows(populations.types[0])
    straight = learned.predict(x, "drug 0", types=types).x
    turned = learned.predict(x.flip(1), "drug 0", types=types, features=populations.features[::-1]).x
    assert torch.equal(straight, turned)
    with pytest.warns(PopflowWarning, match=r"\['CD99'\] were not in training and are left out"):
        wider = learned.predict(torch.cat([x, x[:, :1]], 1), "drug 0", types=types, features=[*populations.features, "CD99"]).x
    assert torch.equal(straight, wider)
    with pytest.raises(ValueError, match=r"features lack \['marker 3'\]"):
        learned.predict(x[:, :2], "drug 0", types=types, features=populations.features[:2])
    with pytest.raises(ValueError, match=r"cells have shape \(120, 2\), wanted \[cells, 3\]"):
        learned.predict(x[:, :2], "drug 0", types=types)


@pytest.mark.parametrize(
    ("treatment", "types", "message"),
    [
        ("drug 9", True, "unknown treatment 'drug 9': did you mean"),
        (None, True, "treatment is None, wanted one of ['drug 0', 'drug 1']"),
        ("drug 0", False, "types holds nothing for 120 cells"),
    ],
)
def test_what_a_prediction_lacks_is_named(learned, screen, treatment, types, message):
    x, code = rows(screen.populations.clouds[0]), rows(screen.populations.types[0])
    with pytest.raises(ValueError, match=re.escape(message)):
        learned.predict(x, treatment, types=code if types else None)


def test_types_go_by_name_or_number(learned, screen):
    x, code = rows(screen.populations.clouds[0]), rows(screen.populations.types[0])
    names = [screen.populations.type_names[k] for k in code.tolist()]
    assert torch.equal(learned.predict(x, "drug 0", types=names).x, learned.predict(x, "drug 0", types=code).x)
    with pytest.raises(ValueError, match=r"types holds \['T cell'\], which training has not seen"):
        learned.predict(x, "drug 0", types=["T cell", *names[1:]])
    with pytest.raises(ValueError, match="steps=0, wanted at least 1"):
        learned.predict(x, "drug 0", types=code, steps=0)


def test_an_example_that_is_the_answer_is_warned_of(planes):
    alone = planes[0].of_pairs(planes[0].pairs[:1])
    with pytest.warns(PopflowWarning, match=r"\['treated'\] were given to one patient only"):
        MetaFlow(DeepSet(), by_example=True, **SMALL).fit(alone, steps=1, rng=Streams(0))


def test_tiny_duplicated_and_constant_populations_are_predicted_or_named(planes):
    flow = MetaFlow(Knn(5), **SMALL).fit(planes[0], steps=5, rng=Streams(0))
    x = rows(planes[1].clouds[0])
    assert flow.predict(x[:2]).x.isfinite().all()
    assert flow.predict(x[:1].repeat(9, 1)).x.isfinite().all()
    torch.testing.assert_close(flow.predict(torch.cat([x, x])).x[:100], flow.predict(x).x, atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="cells holds 1 cell"):
        flow.predict(x[:1])
    with pytest.raises(ValueError, match="NaN or infinite values in 1 rows"):
        flow.predict(torch.cat([x, torch.tensor([[torch.nan, 0.0]])]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x, x), "the treated cells are the control cells"),
        (lambda x: (x, x.flip(0)), "the treated cells are the control cells"),
        (lambda x: (torch.ones(20, 2), x), "control cells of 0: all cells coincide"),
        (lambda x: (x, None), "no pair has treated cells"),
    ],
)
def test_what_cannot_be_learned_from_is_named(change, message):
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    before, after = change(x)
    with pytest.raises(ValueError, match=message):
        MetaFlow(**SMALL).fit(Populations.of([before], [after]), steps=1, rng=Streams(0))


def test_settings_that_do_not_fit_are_named(planes):
    with pytest.raises(ValueError, match=r"embed is None with \['by_example'\]"):
        MetaFlow(None, by_example=True)
    with pytest.raises(ValueError, match="mean_field and see_types"):
        MetaFlow(mean_field=True, see_types=True)
    with pytest.raises(ValueError, match="pairs=0, wanted at least 1"):
        MetaFlow(pairs=0)
    with pytest.raises(ValueError, match="have no cell types"):
        MetaFlow(see_types=True).fit(planes[0], steps=1, rng=Streams(0))
    with pytest.raises(ValueError, match="has not been fitted"):
        MetaFlow().predict(torch.zeros(3, 2))
    with pytest.warns(PopflowWarning, match="smaller than a draw"):
        MetaFlow(DeepSet(), width=8, cells=500).fit(planes[0], steps=1, rng=Streams(0))
    x = torch.randn(70, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(PopflowWarning, match=r"1 pairs have no treated cells and are not learned from: \['b'\]"):
        MetaFlow(DeepSet(), width=8, cells=9, pairs=9).fit(
            Populations.of([x, x + 2], [x + 1, None], groups=["a", "b"]), steps=1, rng=Streams(0)
        )


def test_a_strange_mixture_is_told_with_what_it_changes(learned, screen):
    x, types = rows(screen.populations.clouds[0]), rows(screen.populations.types[0])
    many = (types == 1) | (torch.arange(len(x)) % 5 == 0)
    with pytest.warns(PopflowWarning, match=r"fibroblast 8.% \(training .*Predictions change by .* arcsinh units"):
        given = learned.given(x[many], "drug 0", types=types[many])
    found = mixture(given, types[many])
    assert "fibroblast" in found.outside
    assert found.change > 1e-3
    assert found.relative < 1
    alone = types == 1
    with pytest.warns(PopflowWarning, match="fibroblast 100%"):
        learned.given(x[alone], "drug 0", types=types[alone])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = rows(screen.populations.clouds[screen.populations.pairs[2].source])
        learned.predict(known, "drug 0", types=rows(screen.populations.types[screen.populations.pairs[2].source]))


def test_fine_tuning_learns_a_new_drug_and_leaves_the_first_flow_alone(planes):
    training, _ = planes
    flow = MetaFlow(DeepSet(), coupling=independent, **SMALL).fit(training, steps=100, rng=Streams(0))
    x = rows(training.clouds[0])
    before = flow.predict(x).x.clone()
    sources = [rows(training.clouds[p.source]) for p in training.pairs[:8]]
    other = Populations.of(sources, [y + 3 for y in sources], treatments="up")
    tuned = flow.fine_tune(other, steps=200, lr=3e-3, rng=Streams(1))
    assert tuned.ready().treatments == ("treated", "up")
    assert float((tuned.predict(x, "up").mean() - x.mean(0) - 3).norm()) < 0.6
    assert torch.equal(flow.predict(x).x, before)
    with pytest.raises(ValueError, match="lack the features"):
        flow.fine_tune(Populations.of(sources, [y + 1 for y in sources], features=["m", "n"]), rng=Streams(0))


def test_members_disagree_far_from_training(planes):
    training, test = planes
    ensemble = Ensemble.fit(lambda: MetaFlow(DeepSet(), coupling=independent, **SMALL), training, members=2, steps=150)
    x = rows(test.clouds[0])
    near, far = ensemble.confidence(x), ensemble.confidence(x + 20)
    assert far.novelty > 5 * near.novelty
    assert (far.spread.norm(), far.mean.shape) > (near.spread.norm(), (2,))
