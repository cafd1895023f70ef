"""The estimator: scikit-learn's own checks, the exact optimum, ensembles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.utils.estimator_checks import parametrize_with_checks

from popflow.circuits import Choice, QuantumHypernetworkClassifier, born

TOO_LARGE = "10 features and 4 classes make 44 bits"


@parametrize_with_checks(
    [QuantumHypernetworkClassifier(depth=1, restarts=2, steps=20, phases=False)],
    expected_failed_checks=lambda estimator: {"check_dtype_object": TOO_LARGE},
)
def test_manners(estimator, check):
    state = np.random.get_state()  # noqa: NPY002
    try:
        check(estimator)
    finally:
        np.random.set_state(state)  # noqa: NPY002


def test_three_classes():
    """Iris: 15 bits. The optimum of all networks is known, and is found."""
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = QuantumHypernetworkClassifier(depth=4, restarts=4, steps=100, phases=False).fit(X, names)
    assert model.space_.n == 15
    assert model.cost_ == pytest.approx(model.truth_cost_)
    assert model.score(X, names) > 0.85
    torch.testing.assert_close(torch.from_numpy(model.predict_proba(X).sum(1)), torch.ones(150, dtype=torch.float64))


def test_ensembles_weigh_networks_by_probability():
    X, y = load_iris(return_X_y=True)
    X, y = X[:100], y[:100]
    model = QuantumHypernetworkClassifier(depth=2, restarts=2, steps=5, members=4, phases=False).fit(X, y)
    p = born(model.result_.ansatz, model.result_.angles[model.result_.best()].double()).topk(4).values
    torch.testing.assert_close(model.weights_, p / p.sum())
    x = torch.from_numpy((X - X.mean(0)) / X.std(0))
    each = torch.stack([model.space_.decode(bits)(x).sigmoid()[:, 0] for bits in model.members_])
    torch.testing.assert_close(torch.from_numpy(model.predict_proba(X)[:, 1]), model.weights_ @ each)


def test_choices_and_hidden_units():
    X, y = load_iris(return_X_y=True)
    alphabet = Choice("alphabet", ((0.0, 1.0), (-1.0, 1.0)))
    model = QuantumHypernetworkClassifier(hidden=(2,), alphabet=alphabet, depth=2, restarts=2, steps=30, phases=False)
    model.fit(X[50:, 2:], y[50:])
    assert model.space_.n == 10
    assert model.space_.describe(model.bits_)["alphabet"] in alphabet.options


def test_bad_input():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=r"n=303 bits, a state of .* bytes.*PCA"):
        QuantumHypernetworkClassifier().fit(np.tile(X, 25), y)
    with pytest.raises(ValueError, match=r"n=60001 bits, a state of 2\^60004 bytes"):
        QuantumHypernetworkClassifier(hidden=(10000,)).fit(X[:100], y[:100])
    with pytest.raises(TypeError, match=r"Fix: hidden=\(2,\)"):
        QuantumHypernetworkClassifier(hidden=2).fit(X, y)
    with pytest.raises(ValueError, match="members=0"):
        QuantumHypernetworkClassifier(members=0).fit(X, y)


@pytest.mark.usefixtures("unchecked")
def test_names_in_place_of_functions_are_refused():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(TypeError, match=r"activation='relu', wanted a function such as torch\.relu"):
        QuantumHypernetworkClassifier(hidden=(2,), activation="relu").fit(X[:100], y[:100])
    with pytest.raises(TypeError, match="objective='tail', wanted a function"):
        QuantumHypernetworkClassifier(objective="tail").fit(X[:100], y[:100])
