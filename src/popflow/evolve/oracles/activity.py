r"""Predicted activity against JNK3, GSK3b and DRD2, evaluated from plain arrays.

JNK3 and GSK3b are random forests on 2048 Morgan bits of radius 2: each of 100 trees asks one bit a node and answers with the share of actives
in its leaf; the score is their mean. DRD2 is a support vector machine on folded counts of pharmacophore features of radius 3,

.. math:: f(x) = b + \sum_i a_i \exp(-\gamma \lVert x - x_i \rVert^2), \qquad p = 1 / (1 + \exp(A f + B)).

The arrays were made by ``benchmarks/make_activity_arrays.py`` from the models of the Therapeutics Data Commons, which learned them from ExCAPE-DB and ChEMBL
(Li et al. 2018; Olivecrona et al. 2017). The probability p is not what libsvm answers: see `coupled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np

from popflow.evolve.molecules import Chem, rdFingerprintGenerator

SIZE = 2048
_BITS = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=SIZE)
_FEATURES = rdFingerprintGenerator.GetMorganGenerator(
    radius=3, fpSize=SIZE, atomInvariantsGenerator=rdFingerprintGenerator.GetMorganFeatureAtomInvGen()
)


@lru_cache(maxsize=3)
def _arrays(name: str) -> dict[str, np.ndarray]:
    with as_file(files("popflow.evolve.oracles") / "data" / f"{name}.npz") as path, np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


@dataclass(frozen=True)
class Forest:
    """A forest on bits, all trees in one table of nodes.

    Attributes:
        feature: Bit that each node asks ``[nodes]``; negative for a leaf.
        left: Node that follows a 0, as an offset from the root of the tree ``[nodes]``.
        right: Node that follows a 1 ``[nodes]``.
        probability: Share of actives among the training molecules of each node ``[nodes]``.
        roots: First node of each tree ``[trees]``.
    """

    feature: np.ndarray
    left: np.ndarray
    right: np.ndarray
    probability: np.ndarray
    roots: np.ndarray

    def __call__(self, bits: np.ndarray) -> float:
        """Return the mean over trees of the leaves that bits ``[2048]`` lead to."""
        node = self.roots.copy()
        open_trees = np.flatnonzero(self.feature[node] >= 0)
        while len(open_trees):
            here = node[open_trees]
            step = np.where(bits[self.feature[here]] > 0, self.right[here], self.left[here])
            node[open_trees] = self.roots[open_trees] + step
            open_trees = open_trees[self.feature[node[open_trees]] >= 0]
        return float(self.probability[node].mean(dtype=np.float64))


@lru_cache(maxsize=2)
def _forest(name: str) -> Forest:
    stored = _arrays(name)
    return Forest(stored["feature"], stored["left"], stored["right"], stored["p1"], stored["offset"][:-1].astype(np.int64))


def jnk3(molecule: Chem.Mol) -> float:
    """Return the predicted probability that a molecule inhibits JNK3."""
    return _forest("jnk3_rf")(_BITS.GetFingerprintAsNumPy(molecule))


def gsk3b(molecule: Chem.Mol) -> float:
    """Return the predicted probability that a molecule inhibits GSK3b."""
    return _forest("gsk3b_rf")(_BITS.GetFingerprintAsNumPy(molecule))


def drd2(molecule: Chem.Mol) -> float:
    """Return the predicted probability that a molecule binds to the dopamine receptor D2."""
    return machine(_FEATURES.GetCountFingerprintAsNumPy(molecule).astype(np.float64))


def machine(counts: np.ndarray) -> float:
    """Return the probability that the support vector machine gives to counts ``[2048]``."""
    stored = _arrays("drd2_svc")
    used = np.flatnonzero(counts)
    squared = _squares() + counts @ counts - 2.0 * (stored["sv"][:, used] @ counts[used])
    f = stored["dual"] @ np.exp(-float(stored["gamma"]) * squared) + stored["intercept"][0]
    inactive = 1.0 / (1.0 + np.exp(stored["probA"][0] * f + stored["probB"][0]))
    return coupled(float(np.clip(inactive, 1e-7, 1 - 1e-7)))


def coupled(r: float) -> float:
    """Return the probability of the second of two classes as libsvm couples it, where r is the pairwise one of the first: near 1 - r.

    The iteration of Wu, Lin and Weng (2004), algorithm 2, begins at one half and stops at a tolerance, so the answer is off 1 - r by up to .002.
    The models of the benchmark carry this error, and so do we.
    """
    q = np.array([[(1 - r) ** 2, -r * (1 - r)], [-r * (1 - r), r**2]])
    p = np.array([0.5, 0.5])
    for _ in range(100):
        gradient = q @ p
        value = float(p @ gradient)
        if np.abs(gradient - value).max() < 0.0025:
            break
        for t in range(2):
            step = (value - gradient[t]) / q[t, t]
            value = (value + step * (step * q[t, t] + 2 * gradient[t])) / (1 + step) ** 2
            gradient = (gradient + step * q[t]) / (1 + step)
            p[t] += step
            p /= 1 + step
    return float(p[1])


@lru_cache(maxsize=1)
def _squares() -> np.ndarray:
    return (_arrays("drd2_svc")["sv"].astype(np.float64) ** 2).sum(1)
