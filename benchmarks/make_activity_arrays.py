"""Makes the arrays of `activity` from the models of the Therapeutics Data Commons; run by hand, in an environment of its own.

The models are pickles of scikit-learn 1.2.2 inside the wheel of MolScore (MIT), which no later version reads, so they are not read at run time:

    python3.11 -m venv old && old/bin/pip install scikit-learn==1.2.2 "numpy<2" "scipy<1.14"
    pip download --no-deps MolScore==1.9.5 && unzip -j MolScore*.whl "molscore/data/models/molopt/*_current.pkl"
    old/bin/python benchmarks/make_activity_arrays.py FOLDER_OF_PICKLES FOLDER_OF_ARRAYS

Beside the arrays it writes ``activity_reference.npz``: random inputs and the probabilities that scikit-learn gives for them.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np


def forest_arrays(forest: Any) -> dict[str, Any]:
    """Return all trees of a random forest as one table of nodes."""
    trees = [estimator.tree_ for estimator in forest.estimators_]
    if any((tree.threshold[tree.feature >= 0] != 0.5).any() for tree in trees):
        raise ValueError("a tree asks for another threshold than 0.5, wanted one of bits")
    counts = [tree.value[:, 0, :] for tree in trees]
    return {
        "left": np.concatenate([tree.children_left for tree in trees]).astype(np.int32),
        "right": np.concatenate([tree.children_right for tree in trees]).astype(np.int32),
        "feature": np.concatenate([tree.feature for tree in trees]).astype(np.int16),
        "p1": np.concatenate([count[:, 1] / count.sum(1) for count in counts]).astype(np.float32),
        "offset": np.cumsum([0, *(tree.node_count for tree in trees)]).astype(np.int32),
    }


def machine_arrays(machine: Any) -> dict[str, Any]:
    """Return the support vectors and the coefficients of a support vector machine with an RBF kernel and Platt's probabilities."""
    vectors = machine.support_vectors_
    return {
        "sv": (vectors.toarray() if hasattr(vectors, "toarray") else vectors).astype(np.uint8),
        "dual": np.asarray(machine._dual_coef_).ravel().astype(np.float64),
        "intercept": np.asarray(machine._intercept_, dtype=np.float64),
        "probA": np.asarray(machine.probA_, dtype=np.float64),
        "probB": np.asarray(machine.probB_, dtype=np.float64),
        "gamma": np.float64(machine._gamma),
    }


def main() -> None:
    """Read the pickles of one folder and write the arrays into another."""
    parser = argparse.ArgumentParser(description="Activity models as plain arrays.")
    parser.add_argument("pickles", type=Path)
    parser.add_argument("arrays", type=Path)
    folders = parser.parse_args()
    rng = np.random.default_rng(0)
    bits = (rng.random((40, 2048)) < 0.03).astype(np.uint8)
    reference: dict[str, Any] = {"bits": np.packbits(bits, axis=1)}
    for name, arrays_of in (("jnk3", forest_arrays), ("gsk3b", forest_arrays), ("drd2", machine_arrays)):
        model = pickle.loads((folders.pickles / f"{name}_current.pkl").read_bytes())
        arrays = arrays_of(model)
        kind = "svc" if name == "drd2" else "rf"
        np.savez_compressed(folders.arrays / f"{name}_{kind}.npz", **arrays)
        if name == "drd2":
            reference["near"] = np.arange(0, len(arrays["sv"]), 60)
            inputs = arrays["sv"][reference["near"]].astype(np.float64) * (rng.random((len(reference["near"]), 2048)) < 0.8)
            reference["counts"] = inputs.astype(np.uint8)
        else:
            inputs = bits.astype(np.float64)
        reference[name] = model.predict_proba(inputs)[:, 1]
    np.savez_compressed(folders.arrays / "activity_reference.npz", **reference)


if __name__ == "__main__":
    main()
