"""Areas against sums by hand, volumes against counting, diversity against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from popflow.evolve import area, diversity, hypervolume, top_mean


@pytest.mark.parametrize(
    ("count", "budget", "every"), [(1000, 1000, 100), (300, 1000, 100), (100, 1000, 100), (250, 10000, 100), (50, 1000, 100)]
)
def test_a_constant_loses_half_of_the_first_step(count: int, budget: int, every: int) -> None:
    assert area(np.full(count, 0.8), budget, every=every) == pytest.approx(0.8 * (1 - min(every, count) / (2 * budget)))


def test_the_area_of_a_step_by_hand() -> None:
    # best of one: 0 for the first 100 calls, then 1; read at 100, 200, 300 and, for the rest, at 350
    values = [0.0] * 150 + [1.0] + [0.0] * 199
    assert area(values, 1000, top=1) == pytest.approx((0 + 100 * (1 + 0) / 2 + 100 + 50 + 650) / 1000)
    # the average of the ten best sees one tenth of it
    assert area(values, 1000, top=10) == pytest.approx((0 + 100 * 0.05 + 10 + 5 + 65) / 1000)


def test_the_order_of_calls_matters_and_early_success_pays() -> None:
    ramp = np.linspace(0, 1, 1000)
    assert area(ramp[::-1], 1000) > area(ramp, 1000)
    assert area(-ramp - 1, 1000) < 0


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at most budget=10"):
        area(np.ones(11), 10)
    for bad in ([], [np.nan], [[1.0]]):
        with pytest.raises(ValueError, match=r"values has shape|not finite"):
            area(bad, 10)
    with pytest.raises(ValueError, match="top=0"):
        top_mean([1.0], top=0)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_volume_is_the_share_of_points_that_are_dominated(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    front = rng.random((12, objectives))
    front[3] = front[4]
    probes = rng.random((200_000, objectives))
    share = np.any([np.all(probes <= point, axis=1) for point in front], axis=0).mean()
    assert hypervolume(front, np.zeros(objectives)) == pytest.approx(share, abs=0.005)


def test_the_volume_by_hand_and_its_invariances() -> None:
    front = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    assert hypervolume(front, [0.0, 0.0]) == 6.0
    assert hypervolume(front - 5, [-5.0, -5.0]) == pytest.approx(6.0)
    assert hypervolume(np.vstack([front, [0.5, 0.5], [-1.0, 9.0]]), [0.0, 0.0]) == 6.0
    assert hypervolume([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0], [1.0, 2.0, 1.0]], [0.0, 0.0, 0.0]) == 4.0
    assert hypervolume(np.zeros((0, 2)), [0.0, 0.0]) == 0.0
    cube = np.random.default_rng(0).random((20, 3))
    assert hypervolume(cube[:, [2, 0, 1]], np.zeros(3)) == pytest.approx(hypervolume(cube, np.zeros(3)))


def test_bad_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted \[n, 2\]"):
        hypervolume([[1.0, 2.0, 3.0]], [0.0, 0.0])
    with pytest.raises(ValueError, match="reference has shape"):
        hypervolume([[1.0] * 4], [0.0] * 4)
    with pytest.raises(ValueError, match="not finite"):
        hypervolume([[np.nan, 1.0]], [0.0, 0.0])


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    assert diversity([]) == diversity(["CCO"]) == diversity(["CCO", "OCC"]) == 0.0
    assert diversity(["CCCCCC", "c1ccccc1"]) == 1.0
    assert diversity(["CCCCCC", "CCCCCC", "c1ccccc1"]) == pytest.approx(2 / 3)
