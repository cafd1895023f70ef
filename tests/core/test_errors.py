"""The one message for an unknown name, and what the named errors can be caught as."""

from __future__ import annotations

import pytest
import torch

from popflow.core import CheckpointError, DivergenceError, MissingExtraError, NonFiniteError, StaleTrackingError, ZeroWeightsError
from popflow.core.checks import is_put_off, put_off, refuse, untouched
from popflow.core.errors import unknown


@pytest.mark.parametrize(
    ("error", "caught_as"),
    [
        (ZeroWeightsError, ValueError),
        (StaleTrackingError, ValueError),
        (NonFiniteError, ArithmeticError),
        (DivergenceError, RuntimeError),
        (CheckpointError, RuntimeError),
        (MissingExtraError, ImportError),
    ],
)
def test_named_errors_are_caught_as_the_builtin_that_fits(error: type[Exception], caught_as: type[Exception]) -> None:
    with pytest.raises(caught_as, match="seen"):
        raise error("seen")


def test_unknown_names_the_closest_and_lists_the_rest() -> None:
    message = unknown("method", "trasnport", ["paths", "transport"])
    assert "'trasnport'" in message
    assert "did you mean 'transport'?" in message
    assert message.endswith("Known: paths, transport.")


def test_unknown_without_anything_close_or_known() -> None:
    assert "did you mean" not in unknown("key", "zzz", ["alpha"])
    assert unknown("key", "zzz", []).endswith("Known: none.")


def _lost(count: int) -> NonFiniteError:
    return NonFiniteError(f"{count} lost")


def test_bad_values_are_refused_at_once_or_where_the_block_ends() -> None:
    refuse(torch.tensor(0), _lost)
    with pytest.raises(NonFiniteError, match="2 lost"):
        refuse(torch.tensor(2), _lost)
    reached = []

    def block() -> None:
        with put_off():
            refuse(torch.tensor([0, 0]), lambda *counts: AssertionError(counts))
            refuse(torch.tensor(3), _lost)
            refuse(torch.tensor(4), _lost)
            reached.append(is_put_off())

    with pytest.raises(NonFiniteError, match="3 lost"):
        block()
    assert reached == [True]
    assert not is_put_off()


def test_several_counts_are_handed_on_when_one_of_them_is_not_zero() -> None:
    with pytest.raises(ValueError, match="0 and 5"):
        refuse(torch.tensor([0, 5]), lambda bad, lost: ValueError(f"{bad} and {lost}"))


@pytest.mark.parametrize(("lost", "raised"), [(1, NonFiniteError), (0, IndexError)])
def test_the_failure_that_led_to_an_exception_is_raised_in_its_place(lost: int, raised: type[Exception]) -> None:
    def block() -> None:
        with put_off():
            refuse(torch.tensor(lost), _lost)
            raise IndexError("what came of it, or another matter")

    with pytest.raises(raised):
        block()
    assert not is_put_off()


def test_nothing_is_put_off_when_it_is_switched_off() -> None:
    with put_off(False), pytest.raises(NonFiniteError):
        refuse(torch.tensor(1), _lost)


@pytest.mark.parametrize(("name", "known"), [("seed", ["reward", "image"]), ("kind", ["and", "or"])])
def test_a_hint_is_given_only_where_it_is_near(name: str, known: list[str]) -> None:
    assert "did you mean" not in unknown("option", name, known)


def test_a_function_that_works_in_place_is_named_and_others_cost_nothing() -> None:
    x = torch.ones(3)
    assert untouched("f", lambda y: y + 1, x).tolist() == [2.0] * 3
    for wrong in (lambda y: y.mul_(2), lambda y: y[1:].zero_(), lambda y: y.view(3, 1).add_(1)):
        with pytest.raises(ValueError, match=r"f changed its input in place, wanted it left as it is: write y = 2 \* y"):
            untouched("f", wrong, x)
    with torch.inference_mode():
        assert untouched("f", lambda y: y + 1, torch.ones(1)).tolist() == [2.0]
    assert torch.func.grad(lambda y: untouched("f", lambda z: (z**2).sum(), y))(torch.ones(2)).tolist() == [2.0, 2.0]
