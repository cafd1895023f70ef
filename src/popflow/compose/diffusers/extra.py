"""The optional libraries of this adapter, imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from popflow.core import MissingExtraError


def extra(name: str) -> Any:
    """Import ``diffusers``, ``transformers`` or ``peft``, or a module of theirs.

    Raises:
        MissingExtraError: when it is absent, naming the extra that brings it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"pretrained pipelines need {name.split('.', maxsplit=1)[0]}, which cannot be imported ({error}): pip install 'popflow[diffusers]'."
        ) from error
