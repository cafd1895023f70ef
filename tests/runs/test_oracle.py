"""Each input is asked for once, everything is counted, and a function that misbehaves is named."""

from __future__ import annotations

import math

import pytest
import torch

from popflow.runs import Oracle


@pytest.fixture
def rows():
    return torch.randint(2, (300, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def bytes_of(rows):
    return [row.tobytes() for row in rows.numpy()]


def test_each_input_is_asked_for_once_and_one_in_a_hundred_again(rows):
    asked = []

    def cost(rows):
        asked.append(len(rows))
        return rows.double().sum(1)

    oracle = Oracle(cost, keys=bytes_of)
    values = torch.cat([oracle(some) for some in (rows[:130], rows[130:], rows)])
    assert torch.equal(values, rows.double().sum(1).repeat(2))
    different = len(rows.unique(dim=0))
    assert (oracle.calls, oracle.evaluations) == (600, different)
    assert sum(asked) == different + different // 100
    assert list(oracle.known) == list(dict.fromkeys(bytes_of(rows)))


def test_any_hashable_input_and_any_sequence_of_numbers():
    oracle = Oracle(lambda pairs: [a * b for a, b in pairs])
    assert oracle([(2, 3), (5, 7), (2, 3)]).tolist() == [6.0, 35.0, 6.0]
    assert oracle([]).shape == (0,)
    assert oracle.known == {(2, 3): 6.0, (5, 7): 35.0}


def test_values_keep_their_double_precision():
    assert Oracle(lambda xs: xs)([1 / 3]).item() == 1 / 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda rows: torch.zeros(1), r"returned shape \(1,\) for 290 inputs, wanted \[290\]"),
        (lambda rows: torch.full((len(rows),), math.nan), "returned 290 values that are NaN or infinite for 290 inputs"),
    ],
)
def test_bad_values_are_refused(rows, function, message):
    assert len(rows.unique(dim=0)) == 290
    with pytest.raises(ValueError, match=message):
        Oracle(function, keys=bytes_of)(rows)


def test_answers_that_change_are_found(rows):
    noise = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"not deterministic: input [01]{12} gave 0\.\d+ first and 0\.\d+ again"):
        Oracle(lambda rows: torch.rand(len(rows), generator=noise), keys=bytes_of)(rows)
    times = iter(range(200))
    with pytest.raises(ValueError, match="not deterministic: input 99 gave 99 first and 100 again"):
        Oracle(lambda xs: [next(times) for _ in xs])(list(range(100)))
