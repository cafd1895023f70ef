"""Parents are drawn with the probabilities that the formulas say, and survivors are those that brute force finds."""

from __future__ import annotations

import numpy as np
import pytest

from popflow.core.resampling import multinomial
from popflow.evolve.selection import boltzmann, crowding, front, fronts, nsga2, proportional, rank, scalarised, tournament, truncation

FITNESS = np.array([0.1, 0.7, 0.2, 0.4])
N = 40_000


def wanted() -> dict[str, tuple]:
    kappa, temperature, places = 0.2, 0.3, np.array([3, 0, 2, 1])
    rank_weights = 1 / (places + kappa * 4)
    boltzmann_weights = np.exp(FITNESS / temperature)
    beaten = 4 - places  # molecules that are not better, itself included
    return {
        "proportional": (proportional(), FITNESS / FITNESS.sum()),
        "shifted": (proportional(shift=True), FITNESS / FITNESS.sum()),
        "rank": (rank(kappa), rank_weights / rank_weights.sum()),
        "tournament": (tournament(3), (beaten / 4) ** 3 - ((beaten - 1) / 4) ** 3),
        "Boltzmann": (boltzmann(temperature), boltzmann_weights / boltzmann_weights.sum()),
        "Boltzmann, multinomial": (boltzmann(temperature, multinomial), boltzmann_weights / boltzmann_weights.sum()),
    }


@pytest.mark.parametrize("name", wanted())
def test_parents_have_their_probabilities(name: str) -> None:
    scheme, p = wanted()[name]
    counts = np.bincount(scheme(FITNESS, N, np.random.default_rng(0)), minlength=4)
    assert np.abs(counts / N - p).max() < 5 * np.sqrt(0.25 / N)


@pytest.mark.parametrize("name", wanted())
def test_one_molecule_is_always_drawn(name: str) -> None:
    assert wanted()[name][0](np.array([0.5]), 3, np.random.default_rng(0)).tolist() == [0, 0, 0]


def test_negative_fitness_is_refused_or_shifted() -> None:
    negative = np.array([-2.0, -1.0, -3.0])
    with pytest.raises(ValueError, match=r"fitness holds -3.*rank selection, or shift=True"):
        proportional()(negative, 3, np.random.default_rng(0))
    counts = np.bincount(proportional(shift=True)(negative, N, np.random.default_rng(0)), minlength=3)
    assert np.abs(counts / N - np.array([1 / 3, 2 / 3, 0])).max() < 0.02


def test_rank_is_blind_to_monotone_changes() -> None:
    draws = [rank()(f(FITNESS), 50, np.random.default_rng(3)).tolist() for f in (np.exp, lambda x: x**3 - 5)]
    assert draws[0] == draws[1]


def test_no_value_is_named() -> None:
    with pytest.raises(ValueError, match="must be one finite number"):
        rank()(np.array([1.0, np.nan]), 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"kappa=0"):
        rank(0)
    with pytest.raises(ValueError, match=r"temperature=-1"):
        boltzmann(-1)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a >= b).all() and (a > b).any())


@pytest.mark.parametrize("seed", range(6))
def test_fronts_are_those_of_brute_force(seed: int) -> None:
    values = np.random.default_rng(seed).integers(5, size=(40, 1 + seed % 3 + 1)).astype(float)
    left, level, found = set(range(40)), 0, np.full(40, -1)
    while left:
        first = [i for i in left if not any(dominates(values[j], values[i]) for j in left)]
        found[first] = level
        left, level = left - set(first), level + 1
    assert fronts(values).tolist() == found.tolist()
    assert set(front(values).tolist()) == set(np.flatnonzero(found == 0).tolist())


def test_nsga2_fills_by_front_and_keeps_the_ends() -> None:
    x = np.linspace(0, 1, 11)
    arc = np.stack([x, 1 - x**2], 1)
    both = np.concatenate([arc - 0.5, arc])
    kept = nsga2(both, 14)
    assert set(kept[:11].tolist()) == set(range(11, 22)), "the whole first front comes first"
    assert {0, 10} <= set(kept[11:].tolist()), "then the ends of the second"
    assert np.isinf(crowding(arc)[[0, 10]]).all()
    assert truncation(both, 1).tolist() == [11 + int((arc.sum(1)).argmax())]


def test_a_scalarisation_knows_no_units_and_finds_a_dented_front() -> None:
    rng = np.random.default_rng(0)
    dent = np.array([[0.0, 1.0], [0.4, 0.4], [1.0, 0.0], [0.3, 0.3]])
    assert dent.sum(1).argmax() != 1, "no sum with these weights chooses the dent"
    weights = rng.dirichlet(np.ones(2), size=200)
    chosen = {int(scalarised(dent, one).argmax()) for one in weights}
    assert chosen == {0, 1, 2}, "the whole front, and nothing that is dominated"
    units = np.exp(3 * dent) * np.array([1e-3, 1e6]) - 7.0
    for one in weights:
        assert scalarised(units, one) == pytest.approx(scalarised(dent, one), abs=0)
