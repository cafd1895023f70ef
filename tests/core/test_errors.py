"""The one message for an unknown name, and what the named errors can be caught as."""

from __future__ import annotations

import pytest

from popflow.core import CheckpointError, DivergenceError, MissingExtraError, NonFiniteError, StaleTrackingError, ZeroWeightsError
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
