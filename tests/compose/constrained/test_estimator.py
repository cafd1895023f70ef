"""`DiffOPT` in scikit-learn's manners, on good input and bad."""

from __future__ import annotations

import copy
import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from popflow.compose.constrained import Constraint, DiffOPT
from popflow.core import PopflowWarning
from popflow.runs import CallError, Infeasible

TINY = DiffOPT(steps=2, width=4, members=2, particles=4, reverse_steps=2, moves=1, random_state=0)


@parametrize_with_checks([TINY])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_accepts_it(estimator, check) -> None:
    before = np.random.get_state()  # noqa: NPY002  (a check draws from it)
    check(estimator)
    np.random.set_state(before)  # noqa: NPY002


def test_candidates_are_good_typical_and_on_the_ring(fitted: DiffOPT, ring) -> None:
    y = ring[1]
    drawn = fitted.draw(100)
    radius = np.hypot(*drawn.rows.T)
    assert np.mean(np.abs(radius - 1) < 0.25) > 0.9  # a standard deviation of 0.05 in the data
    assert np.median(drawn.value) > np.quantile(y, 0.75)
    best = fitted.best(50)
    assert len(np.unique(best.rows, axis=0)) == 50
    assert np.median(best.value) >= np.median(drawn.value)
    assert drawn.feasibility.median() > 0.1
    assert fitted.found_.acceptance > 0.05
    assert 1 <= fitted.found_.ess <= 200


def test_beta_zero_is_the_data_and_beta_sharpens(fitted: DiffOPT, ring) -> None:
    medians = []
    for beta in (0.0, 2.0, 8.0):
        model = copy.copy(fitted).set_params(beta=beta)
        model.found_ = None
        medians.append(float(np.median(-((model.sample(200) - [1, 0]) ** 2).sum(1))))
    assert medians == sorted(medians)
    assert abs(medians[0] - np.median(ring[1])) < 0.5
    with pytest.raises(ValueError, match="beta=0: all rows are equally good"):
        copy.copy(fitted).set_params(beta=0.0).best(4)
    with pytest.raises(ValueError, match="n=-1, wanted at least 1"):
        fitted.best(-1)


def test_the_surrogate_predicts_and_knows_its_error(fitted: DiffOPT, ring) -> None:
    x, y = ring
    assert 1 - np.square(fitted.predict(x) - y).mean() / y.var() > 0.9
    _, error = fitted.model_.surrogate.predict(fitted.schema_.encode(x))
    assert bool((error > 0).all())


def test_feasibility_tells_rows_of_the_ring_from_others(fitted: DiffOPT, ring) -> None:
    inside = fitted.feasibility(ring[0])
    outside = fitted.feasibility(np.array([[0.0, 0.0], [2.0, 2.0], [3.0, 0.0]]))
    assert outside.max() < 0.05
    assert 0.3 < np.median(inside) <= 1


def test_feasibility_is_calibrated_on_fresh_rows(fitted: DiffOPT) -> None:
    rng = np.random.default_rng(9)
    angle = rng.uniform(0, 2 * np.pi, 2000)
    fresh = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 + 0.05 * rng.normal(size=(2000, 1)))
    value = fitted.feasibility(fresh)
    for level in (0.1, 0.5):  # 60 held-out rows: two standard errors of a quantile
        assert abs(np.mean(value <= level) - level) < 2 * np.sqrt(level * (1 - level) / 60)


def test_pandas_and_categories_in_and_out(small) -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    size, kind = rng.normal(size=300), rng.choice(["a", "b"], 300)
    frame = pandas.DataFrame({"size": size, "kind": pandas.Categorical(kind), "batch": rng.integers(1, 4, 300), "fixed": 1.0})
    value = pandas.Series(-(size**2) + (kind == "b"))
    model = DiffOPT(beta=3.0, categorical=["batch"], **small).fit(frame, value)
    found = model.sample(40)
    assert list(found.columns) == list(frame.columns)
    assert set(found["kind"]) <= {"a", "b"}
    assert set(found["batch"]) <= {1, 2, 3}
    assert (found["fixed"] == 1.0).all()
    assert (found["kind"] == "b").mean() > 0.7
    with pytest.raises(ValueError, match="'kind' holds 'z'"):
        model.predict(frame.assign(kind="z"))
    assert model.sample(40).equals(found)


def test_it_clones_and_ends_a_pipeline(small, ring) -> None:
    model = clone(DiffOPT(beta=2.0, **small))
    assert model.get_params()["beta"] == 2.0
    pipeline = make_pipeline(StandardScaler(), model).fit(*ring)
    assert pipeline[-1].sample(8).shape == (8, 2)
    assert pipeline.predict(ring[0][:3]).shape == (3,)


def test_the_same_seed_gives_the_same_rows_and_takes_no_global_number(small, ring) -> None:
    before = torch.random.get_rng_state()
    sizes = small | {"steps": 30, "particles": 32, "reverse_steps": 3}
    first, again = (DiffOPT(**sizes).fit(*ring).sample(16) for _ in range(2))
    assert np.array_equal(first, again)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not np.array_equal(first, DiffOPT(**sizes | {"random_state": 1}).fit(*ring).sample(16))


@pytest.mark.parametrize("route", ["guided", "langevin"])
def test_the_approximate_routes_come_near(small, ring, route: str) -> None:
    model = DiffOPT(beta=4.0, route=route, **small | {"particles": 40, "members": 1, "reverse_steps": 8}).fit(*ring)
    found = model.sample(40)
    assert np.median(-((found - [1, 0]) ** 2).sum(1)) > np.median(ring[1])
    assert (model.found_.acceptance > 0.2) if route == "langevin" else np.isnan(model.found_.acceptance)


def test_known_constraints_rule_out_and_push(fitted: DiffOPT) -> None:
    above = Constraint(is_feasible=lambda rows: rows[:, 1] > 0.3)
    model = copy.copy(fitted).set_params(constraints=[above], reverse_steps=8)
    model.found_ = None
    assert model.sample(50)[:, 1].min() > 0.3
    pushed = copy.copy(fitted).set_params(
        constraints=[Constraint(energy=lambda rows: 20 * np.maximum(0, 0.3 - rows[:, 1]))], reverse_steps=8
    )
    pushed.found_ = None
    assert np.mean(pushed.sample(100)[:, 1] > 0.2) > 0.9
    for bad, message in (
        (Constraint(is_feasible=lambda rows: rows[:, 1]), "is_feasible returned torch.float64, wanted booleans"),
        (Constraint(energy=lambda rows: rows), r"energy returned shape \(\d+, 2\)"),
        (Constraint(energy=lambda rows: rows[:, 0] * np.nan), "energy is NaN"),
    ):
        model = copy.copy(fitted).set_params(constraints=[bad])
        model.found_ = None
        with pytest.raises(ValueError, match=message):
            model.sample(4)
    with pytest.raises(ValueError, match="wanted one of the two"):
        Constraint()


def test_a_black_box_needs_only_values_and_is_asked_once_for_each_row(small, ring, tmp_path) -> None:
    path = tmp_path / "calls.jsonl"

    def value(row: np.ndarray) -> float:
        if row[1] < 0:
            raise Infeasible("below")
        return -float(((row - [1, 0]) ** 2).sum())

    sizes = small | {"particles": 30, "reverse_steps": 3, "steps": 40, "width": 16}
    model = DiffOPT(beta=3.0, objective=value, ledger=path, **sizes).fit(*ring)
    found = model.draw(20)
    assert found.rows[:, 1].min() >= 0
    np.testing.assert_allclose(found.value[:, 0], [value(row) for row in found.rows], rtol=1e-6)
    assert bool(found.uncertainty.isnan().all())
    made = model.calls_.made
    assert model.calls_.ledger.counts()["infeasible"] > 0
    model.calls_.ledger.close()
    again = DiffOPT(beta=3.0, objective=value, ledger=path, **sizes).fit(*ring)
    assert np.array_equal(again.draw(20).rows, found.rows)
    assert (made > 30, again.calls_.made) == (True, 0)


@pytest.mark.parametrize("policy", ["skip", "worst", "raise"])
def test_an_objective_that_fails_follows_the_policy(small, ring, policy: str) -> None:
    def value(row: np.ndarray) -> float:
        if row[0] > 0.8:
            raise RuntimeError("burnt")
        return float("nan") if row[0] < -0.9 else float(row[0])

    model = DiffOPT(beta=3.0, objective=value, on_error=policy, **small | {"particles": 40, "reverse_steps": 4, "steps": 60}).fit(*ring)
    if policy == "raise":
        with pytest.raises(CallError, match=r"burnt|not finite"):
            model.sample(4)
        return
    rows = model.sample(20)
    counts = model.calls_.ledger.counts()
    assert counts["error"] > 0
    assert counts["not finite"] > 0
    if policy == "skip":
        assert rows[:, 0].max() <= 0.8
        assert rows[:, 0].min() >= -0.9


def test_the_worst_is_that_of_the_table(small, ring) -> None:
    def value(row: np.ndarray) -> float:
        raise RuntimeError("burnt")

    model = DiffOPT(objective=value, on_error="worst", **small | {"steps": 5}).fit(*ring)
    assert model.predict(ring[0][:3]).tolist() == pytest.approx(
        [ring[1].min()] * 3
    )  # also before any call gave a value, as after an interruption


def test_an_objective_of_the_wrong_shape_is_an_error_not_a_zero(small, ring) -> None:
    small = small | {"particles": 10, "steps": 20, "reverse_steps": 2}
    model = DiffOPT(objective=lambda row: row, on_error="raise", **small).fit(*ring)
    with pytest.raises(CallError, match=r"shape \(2,\), wanted one number"):
        model.sample(4)
    model = DiffOPT(objective=lambda rows: rows.sum(), differentiable=True, **small).fit(*ring)
    with pytest.raises(ValueError, match=r"the objective returned \(\) for \d+ rows"):
        model.sample(4)


def test_an_objective_that_hangs_is_ended(small, ring) -> None:
    def value(row: np.ndarray) -> float:
        if row[0] > 0:
            time.sleep(60)
        return float(row[0])

    small = small | {"particles": 4, "steps": 10, "reverse_steps": 1, "moves": 1}
    model = DiffOPT(beta=0.5, objective=value, timeout=0.5, **small).fit(*ring)
    ask = model._objective().values
    found = ask(model.schema_.encode(np.array([[0.5, 0.5], [-0.5, 0.5]])))[:, 0]
    assert found.isnan().tolist() == [True, False]
    assert model.calls_.ledger.counts()["timeout"] == 1


def test_several_objectives_by_weights_and_as_a_front(small, learned) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(500, 2))
    y = np.stack([-((x[:, 0] - 0.5) ** 2), -((x[:, 0] + 0.5) ** 2)], 1) - 0.1 * x[:, 1:] ** 2
    learned = learned | {"steps": 300, "reverse_steps": 10}
    model = DiffOPT(beta=6.0, weights=[1.0, 0.0], **learned).fit(x, y)
    assert abs(np.median(model.sample(100)[:, 0]) - 0.5) < 0.2
    assert model.predict(x[:3]).shape == (3, 2)
    front = DiffOPT(beta=6.0, weights=3, **learned | {"particles": 60}).fit(x, y)
    rows = front.best(60).rows
    assert rows[:, 0].min() < -0.3
    assert rows[:, 0].max() > 0.3
    with pytest.raises(ValueError, match="wanted 2 numbers of at least 0"):
        DiffOPT(weights=[1.0, -1.0], **small | {"steps": 5}).fit(x, y).sample(2)
    with pytest.raises(ValueError, match="several weights at once need route='exact'"):
        DiffOPT(weights=3, route="guided").fit(x, y)


def test_few_rows_and_duplicates_are_noticed(small, ring) -> None:
    x, y = ring
    with pytest.warns(PopflowWarning, match="15 rows for 2 coordinates, wanted at least 20"):
        DiffOPT(**small | {"steps": 5}).fit(x[:15], y[:15])
    twice = DiffOPT(**small | {"steps": 5}).fit(np.repeat(x[:100], 3, 0), np.repeat(y[:100], 3))
    model = twice.model_
    assert model.duplicates == 200
    kept, held = ({tuple(row) for row in part.tolist()} for part in (model.rows, model.held))
    assert not kept & held
    assert len(held) == 10


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, lambda x, y: (np.where(x == x[3, 0], np.nan, x), y), "NaN"),
        ({}, lambda x, y: (x, np.where(np.arange(len(y)) == 5, np.nan, y)), "y holds NaN or infinity in 1 of 600 rows"),
        ({}, lambda x, y: (np.ones_like(x), y), "every column is constant"),
        ({}, lambda x, y: (x, np.full_like(y, 2.5)), r"y is constant \(2.5 in all"),
        ({}, lambda x, y: (np.column_stack([x, y]), y), "column '2' of X is y itself: the target stands among the features"),
        ({}, lambda x, y: (x, None), "requires y to be passed"),
        ({}, lambda x, y: (x, y[:5]), r"y has shape \(5,\) for 600 rows"),
        ({"route": "exct"}, lambda x, y: (x, y), "did you mean 'exact'"),
        ({"beta": -1.0}, lambda x, y: (x, y), "beta=-1.0, wanted a finite number"),
        ({"differentiable": True}, lambda x, y: (x, y), "differentiable=True without an objective"),
        ({"kappa": float("nan")}, lambda x, y: (x, y), "kappa=nan, wanted a finite number"),
        ({"particles": 0}, lambda x, y: (x, y), "particles=0, wanted at least 1"),
    ],
)
def test_bad_input_is_named(ring, settings, change, message: str) -> None:
    warnings.simplefilter("ignore")  # pytest puts the filters back
    with pytest.raises(ValueError, match=message):
        DiffOPT(steps=2, width=4, random_state=0, **settings).fit(*change(*ring))


def test_a_black_box_has_no_gradient_to_guide_by(small, ring) -> None:
    model = DiffOPT(route="langevin", objective=lambda row: float(row[0]), **small | {"steps": 5}).fit(ring[0])
    with pytest.raises(ValueError, match=r"black box without gradient\. Fix: route='exact'"):
        model.sample(2)
    with pytest.raises(NotFittedError):
        DiffOPT().sample(2)
