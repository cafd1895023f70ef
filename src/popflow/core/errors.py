"""Named errors and warnings, and the message for an unknown name.

Most bad input raises a plain `ValueError` or `TypeError`; the names below exist where a caller may want to catch one case.
Every message names the argument, the value seen, the value wanted and the fix. Importing this module imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PopflowWarning(UserWarning):
    """Something was done that the user probably did not intend; the message says what to change."""


class ZeroWeightsError(ValueError):
    """No particle of a population has any weight (all log weights are -inf), or a log weight is NaN or +inf."""


class NonFiniteError(ArithmeticError):
    """A drift, growth, expert or loss returned a non-finite value; the message says which one and when."""


class StaleTrackingError(ValueError):
    """A kernel would move particles without updating quantities tracked along the path, such as log-densities."""


class DivergenceError(RuntimeError):
    """Training diverged more often than the guard is allowed to roll back."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read, or does not belong to this run. Earlier checkpoints are untouched."""


class RunDirectoryError(CheckpointError):
    """A folder that was named is no run, holds another run or cannot be written. Another one has to be named."""


class MissingExtraError(ImportError):
    """An optional dependency is missing; the message says which extra installs it."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name, suggesting the closest known one.

    >>> unknown("method", "compse", ["compose", "transport"])
    "unknown method 'compse': did you mean 'compose'? Known: compose, transport."
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.65)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}: {hint}Known: {', '.join(known) or 'none'}."
