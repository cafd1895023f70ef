"""Objects of the user's own modules, named as ``MODULE:NAME`` on the command line. Importing this module imports no torch."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


def source_of(module: str) -> Path | None:
    """Return the file of a module, without running it; None where there is none, or it cannot be found.

    >>> source_of("json").name, source_of("no_such_module")
    ('__init__.py', None)
    """
    _find_modules_here()
    try:
        found = importlib.util.find_spec(module)
    except Exception:  # finding a module imports its package; `load` says what is wrong with it
        return None
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def load(what: str, module: str, name: str) -> Any:
    """Import a module of the current folder or an installed one, and return what stands there under a name.

    Args:
        what: How errors call it, with what was given: ``"objective 'chemistry:yield_of'"``.
        module: Name of the module.
        name: Name in it.

    Raises:
        ValueError: when the module cannot be imported, or has no such name.

    >>> load("objective 'math:sqrt'", "math", "sqrt")(9)
    3.0
    >>> load("objective 'math:squirt'", "math", "squirt")
    Traceback (most recent call last):
    ValueError: objective 'math:squirt': cannot import it: module 'math' has no attribute 'squirt'. Wanted MODULE:NAME of an installed module, or of one in this folder.
    """
    _find_modules_here()
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's may raise anything
        why = error if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{what}: cannot import it: {why}. Wanted MODULE:NAME of an installed module, or of one in this folder."
        ) from error


def _find_modules_here() -> None:
    """Make modules of the current folder importable, after all others: an installed command has only the folder of its script on the path."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
