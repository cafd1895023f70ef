"""Quantum hypernetworks: binary networks from a variational circuit, exact truths, and classical search on the same space."""

from typing import TYPE_CHECKING, Any

from popflow.circuits.ansatz import Ansatz, all_to_all, brick, cx, cz, linear, ring, rotations
from popflow.circuits.cost import Cost, Truth, cross_entropy, idle_bits, squared_error, truth
from popflow.circuits.data import Dataset, digits, gaussians, mnist
from popflow.circuits.export import draw, qasm3
from popflow.circuits.hardware import (
    Depolarising,
    Measured,
    evaluate_counts,
    noisy_born,
    parameter_shift,
    sampled_energies,
    train_shots,
)
from popflow.circuits.hypernetwork import (
    Rate,
    Success,
    Trained,
    energy,
    entropy,
    evaluate,
    free_energy,
    marginals,
    success,
    tail_mean,
    train_adam,
    train_lbfgs,
    wilson,
)
from popflow.circuits.matrix_product import MatrixProduct, matrix_product, train_score
from popflow.circuits.oracle import Oracle
from popflow.circuits.packed import PackedNetwork, pack
from popflow.circuits.search import Found, annealing, exhaustive, genetic, local_search, random_search, reinforce, straight_through
from popflow.circuits.space import BinaryMLP, BinaryNetwork, Choice, Gate, bits_of, codes_of
from popflow.circuits.statevector import amplitudes, born, sample
from popflow.circuits.walsh import Quadratic, quadratic, walsh, weights

if TYPE_CHECKING:
    from popflow.circuits.classifier import QuantumHypernetworkClassifier

__all__ = [
    "Ansatz",
    "BinaryMLP",
    "BinaryNetwork",
    "Choice",
    "Cost",
    "Dataset",
    "Depolarising",
    "Found",
    "Gate",
    "MatrixProduct",
    "Measured",
    "Oracle",
    "PackedNetwork",
    "Quadratic",
    "QuantumHypernetworkClassifier",
    "Rate",
    "Success",
    "Trained",
    "Truth",
    "all_to_all",
    "amplitudes",
    "annealing",
    "bits_of",
    "born",
    "brick",
    "codes_of",
    "cross_entropy",
    "cx",
    "cz",
    "digits",
    "draw",
    "energy",
    "entropy",
    "evaluate",
    "evaluate_counts",
    "exhaustive",
    "free_energy",
    "gaussians",
    "genetic",
    "idle_bits",
    "linear",
    "local_search",
    "marginals",
    "matrix_product",
    "mnist",
    "noisy_born",
    "pack",
    "parameter_shift",
    "qasm3",
    "quadratic",
    "random_search",
    "reinforce",
    "ring",
    "rotations",
    "sample",
    "sampled_energies",
    "squared_error",
    "straight_through",
    "success",
    "tail_mean",
    "train_adam",
    "train_lbfgs",
    "train_score",
    "train_shots",
    "truth",
    "walsh",
    "weights",
    "wilson",
]


def __getattr__(name: str) -> Any:
    """Load the estimator, and scikit-learn with it, when it is asked for."""
    if name == "QuantumHypernetworkClassifier":
        from popflow.circuits.classifier import QuantumHypernetworkClassifier

        return QuantumHypernetworkClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
