"""Configurations: frozen dataclasses whose fields are the keyword arguments, to JSON and back with every key and type checked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from popflow.core.errors import unknown

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration has an unknown key, a missing key, a value of the wrong type or a value out of range."""


def config_of(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the frozen dataclass ``cls`` from JSON-like values: lists become tuples, integers become floats where floats are wanted.

    Fields may be bool, int, float, str, None, `pathlib.Path`, `typing.Literal`, unions of these, tuples, mappings with string keys, and
    other dataclasses. ``"inf"``, ``"-inf"`` and ``"nan"`` stand for the floats that JSON cannot write.

    Raises:
        ConfigError: for an unknown key (naming the closest one), a missing key, a wrong type, or what the dataclass itself refuses.
        TypeError: when ``cls`` is not a dataclass, or a field has a type that JSON cannot hold.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Anneal:
        ...     beta: float = 1.0
        ...     steps: int = 100
        >>> config_of(Anneal, {"beta": 2})
        Anneal(beta=2.0, steps=100)
        >>> config_of(Anneal, {"betta": 2})
        Traceback (most recent call last):
        popflow.runs.config.ConfigError: unknown key of Anneal 'betta': did you mean 'beta'? Known: beta, steps.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"cls={cls!r}, wanted a frozen dataclass whose fields are the keyword arguments of the job.")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in values:
        if name not in fields:
            raise ConfigError(unknown(f"key of {cls.__name__}", str(name), fields))
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in values
    ]
    if required:
        raise ConfigError(f"{cls.__name__} lacks {', '.join(map(repr, required))}: give a value of type {_say(hints[required[0]])}.")
    checked = {name: _read(hints[name], value, name) for name, value in values.items()}
    try:
        return cls(**checked)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def plain(value: Any) -> Any:
    """Return a configuration (or a part of one) as what JSON can hold; the inverse of `config_of`.

    >>> plain({"sigma": (1, math.inf), "folder": Path("runs")})
    {'sigma': [1, 'inf'], 'folder': 'runs'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"a configuration holds {value!r} of type {type(value).__name__}, wanted numbers, text, paths, tuples, mappings or dataclasses."
    )


def read_values(path: str | Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ConfigError: when the file is absent, is not JSON, or holds something else than an object.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}. Fix: give the path of a JSON file.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}. Fix: correct it there, or take config.json from a run.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a JSON {type(values).__name__}, wanted an object of keys and values.")
    return values


def _read(hint: Any, value: Any, name: str) -> Any:
    """Return ``value`` as the annotated type; the first matching member of a union."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for member in args:
            if _is_record(member) and isinstance(value, Mapping):
                return _read(member, value, name)
            with contextlib.suppress(ConfigError):
                return _read(member, value, name)
    elif origin is Literal:
        if value in args:
            return value
        if isinstance(value, str):
            raise ConfigError(unknown(name, value, [str(arg) for arg in args]))
    elif origin is tuple:
        if isinstance(value, list | tuple):
            members = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
            if len(members) == len(value):
                return tuple(_read(member, one, f"{name}[{i}]") for i, (member, one) in enumerate(zip(members, value, strict=True)))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {key: _read(args[1], one, f"{name}.{key}") for key, one in value.items()}
    elif _is_record(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return config_of(hint, value)
    else:
        return _read_scalar(hint, value, name)
    raise ConfigError(f"{name}={value!r}, wanted {_say(hint)}.")


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _read_scalar(hint: Any, value: Any, name: str) -> Any:
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if value in ("inf", "-inf", "nan"):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif hint in (bool, str):
        if isinstance(value, hint):
            return value
    elif hint in (None, type(None)):
        if value is None:
            return None
    else:
        raise TypeError(f"the field {name} is annotated {hint!r}, which a JSON configuration cannot hold.")
    raise ConfigError(f"{name}={value!r}, wanted {_say(hint)}.")


def _say(hint: Any) -> str:
    known = {float: "a number", int: "a whole number", str: "text", bool: "true or false", Path: "a path", type(None): "null"}
    if hint in known:
        return known[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_say(member) for member in args)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return f"a list, each {_say(args[0])}" if args[-1] is Ellipsis else f"a list of {len(args)}: {', '.join(map(_say, args))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"an object with values of {_say(args[1])}"
    return f"an object with the keys of {hint.__name__}"
