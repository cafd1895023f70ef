"""Quantum hypernetworks as a scikit-learn classifier: ``fit(X, y).predict(X)``, one network or an ensemble of the most probable ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from popflow.circuits.ansatz import Ansatz
from popflow.circuits.cost import Cost, cross_entropy
from popflow.circuits.hypernetwork import energy, train_adam
from popflow.circuits.space import BinaryMLP, Choice, bits_of, size_of
from popflow.circuits.statevector import MAX_QUBITS, born
from popflow.core import Streams
from popflow.core.checks import at_least_one


class QuantumHypernetworkClassifier(ClassifierMixin, BaseEstimator):
    """A binary network found by a quantum hypernetwork, simulated exactly.

    Features are standardised with the mean and standard deviation of the training set. At these sizes enumeration gives the optimum, which
    is kept as ``truth_cost_``; the hypernetwork is a method to study, not the fastest way to a binary network.

    Args:
        hidden: Widths of the hidden layers, each a number or a `Choice`.
        activation: Activation of the hidden layers, a function or a `Choice`.
        alphabet: The two values ``(low, high)`` of weights and biases, or a `Choice`.
        depth: Layers of the circuit.
        restarts: Trainings from random angles; the one whose most probable network costs least is kept.
        steps: Adam steps.
        lr: Learning rate.
        objective: `energy`, or what `free_energy` or `tail_mean` returns.
        members: Size of the ensemble: the most probable networks, weighted by probability. 1 is a single network.
        phases: Whether the circuit has ``R_z``; it is faster without.
        seed: Random seed of the starting angles.

    Attributes:
        space_: The search space.
        bits_: The most probable network.
        cost_: Its training cost.
        truth_cost_: The exact optimum.
        members_: Networks ``[k, n]`` of the ensemble.
        weights_: Weights ``[k]`` of the networks.
        result_: The trained restarts.

    Raises:
        ValueError: from ``fit``, when the network has more bits than can be simulated, or y holds a single class.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = QuantumHypernetworkClassifier(depth=4, restarts=4).fit(X[:100], y[:100])
        >>> model.bits_, model.score(X[:100], y[:100]), model.cost_ == model.truth_cost_
        ('10111', 1.0, True)
    """

    def __init__(
        self,
        *,
        hidden=(),
        activation=torch.relu,
        alphabet=(-1.0, 1.0),
        depth=6,
        restarts=16,
        steps=200,
        lr=0.1,
        objective=energy,
        members=1,
        phases=True,
        seed=0,
    ):
        self.hidden, self.activation, self.alphabet = hidden, activation, alphabet
        self.depth, self.restarts, self.steps, self.lr = depth, restarts, steps, lr
        self.objective, self.members, self.phases, self.seed = objective, members, phases, seed

    def fit(self, X: Any, y: Any) -> QuantumHypernetworkClassifier:
        """Train on ``X [N, features]`` and labels ``y [N]`` of any kind."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        if y.dtype.kind == "f" and not np.array_equal(y, np.round(y)):
            raise ValueError("Unknown label type: continuous. wanted class labels. Fix: bin y, or use a regressor.")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]!r}: this classifier needs at least 2 classes.")
        if isinstance(self.hidden, int | Choice):
            raise TypeError(f"hidden={self.hidden!r}: wanted the widths of the hidden layers. Fix: hidden=({self.hidden!r},).")
        at_least_one(members=self.members)
        self.mean_, self.scale_ = X.mean(0), np.where(X.std(0) > 0, X.std(0), 1.0)
        outputs = 1 if len(self.classes_) == 2 else len(self.classes_)
        self.space_ = BinaryMLP(X.shape[1], tuple(self.hidden), outputs, activation=self.activation, alphabet=self.alphabet)
        n = self.space_.n
        if n > MAX_QUBITS:
            raise ValueError(
                f"{X.shape[1]} features and {len(self.classes_)} classes make a network of n={n} bits, a state of {size_of(8, n)}; wanted "
                f"n <= {MAX_QUBITS}. Fix: fewer features (PCA, feature selection), fewer hidden units, or circuits.matrix_product."
            )
        cost = Cost(self.space_, self._scaled(X), torch.from_numpy(codes), cross_entropy)
        table = cost.table()
        ansatz = Ansatz(n, self.depth, phases=self.phases)
        start = ansatz.random(self.restarts, Streams(self.seed))
        self.result_ = train_adam(ansatz, table, start, steps=self.steps, lr=self.lr, objective=self.objective)
        best = self.result_.best()
        p = born(ansatz, self.result_.angles[best].double())
        likely, networks = p.topk(min(self.members, len(p)))
        self.members_, self.weights_ = bits_of(networks, n), likely / likely.sum()
        self.bits_ = f"{int(networks[0]):0{n}b}"
        self.cost_, self.truth_cost_ = float(table[networks[0]]), float(table.min())
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities ``[N, classes]``: those of the members, averaged with their weights."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        z = self.space_.logits(self.members_, self._scaled(X))
        p = torch.cat(((-z).sigmoid(), z.sigmoid()), -1) if z.shape[-1] == 1 else z.softmax(-1)
        return torch.tensordot(self.weights_, p, 1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class ``[N]``."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def __sklearn_tags__(self) -> Any:
        """Declare that two-valued weights cannot fit every data set."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags

    def _scaled(self, X: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((X - self.mean_) / self.scale_)
