"""A small fitted estimator and its rows, shared."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from popflow.compose.constrained import DiffOPT

LEARNED = {"steps": 600, "width": 64, "reverse_steps": 20}
"""What it takes to learn the ring."""
_SMALL = {"steps": 150, "width": 32, "members": 2, "particles": 200, "moves": 2, "reverse_steps": 8, "random_state": 0}


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Return sizes of a fit that takes a second."""
    return dict(_SMALL)


@pytest.fixture(scope="session")
def learned(small: dict[str, Any]) -> dict[str, Any]:
    """Return sizes of a fit that learns simple shapes."""
    return small | LEARNED


@pytest.fixture(scope="session")
def ring() -> tuple[np.ndarray, np.ndarray]:
    """Return points on a noisy ring, and minus their squared distance from (1, 0)."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 600)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 + 0.05 * rng.normal(size=(600, 1)))
    return x, -((x - [1, 0]) ** 2).sum(1)


@pytest.fixture(scope="session")
def fitted(ring: tuple[np.ndarray, np.ndarray]) -> DiffOPT:
    """Fit once, without a warning; tests copy it before they change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DiffOPT(beta=4.0, **_SMALL | LEARNED).fit(*ring)
