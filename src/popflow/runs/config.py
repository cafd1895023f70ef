"""One declaration per task: a frozen dataclass that yields its verb, ``--help``, ``--config``, config.json and the checks.

The entries under ``Attributes:`` of its docstring are the help texts, the annotations are the types. An option is called ``--field-name``, unless
``Annotated[..., Flag(...)]`` gives it another name; a range is said there as well. Importing this module imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from popflow.core.errors import unknown

T = TypeVar("T")
_TOO_LARGE = 2**63
"""Beyond what torch takes for a size or a count."""


class ConfigError(ValueError):
    """A configuration has an unknown key, a missing key, a value of the wrong type or a value out of range."""


class Flag:
    """How the option of a field departs from ``--field-name``, and the range of its values.

    Args:
        *names: ``"--cfg"`` or several names; ``"--ode/--sde"`` for both sides of a bool; a name without dashes makes a positional argument.
        metavar: Placeholder of the value in ``--help``.
        ge: Least value (``>=``).
        gt: Values are above this one.
        le: Greatest value (``<=``). ``le=math.inf`` admits infinity; without it a bounded number is finite.
        lt: Values are below this one.
    """

    def __init__(
        self,
        *names: str,
        metavar: str | None = None,
        ge: float | None = None,
        gt: float | None = None,
        le: float | None = None,
        lt: float | None = None,
    ):
        self.names, self.metavar = names, metavar
        self.bounds = {
            symbol: (bound, holds)
            for symbol, bound, holds in (
                (">=", ge, float.__ge__),
                (">", gt, float.__gt__),
                ("<=", le, float.__le__),
                ("<", lt, float.__lt__),
            )
            if bound is not None
        }

    @property
    def range(self) -> str:
        """The range in words: ``"> 0, <= 1"``; empty without one."""
        return ", ".join(f"{symbol} {bound:g}" for symbol, (bound, _) in self.bounds.items() if bound != math.inf)

    def admits(self, value: Any) -> bool:
        """Say whether a value lies in the range."""
        number = _float(value)
        inside = all(holds(number, float(bound)) for bound, holds in self.bounds.values())
        return inside and (math.isfinite(number) or "<=" in self.bounds)


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """A field of a configuration, as the command line shows it.

    Attributes:
        name: Name of the field.
        names: Names of the option: ``("--steps",)``, or ``("CELLS",)`` of a positional argument.
        kind: ``bool``, ``int``, ``float``, ``str`` or ``Path``, of one value.
        many: Whether it may be given several times.
        choices: The values of a `Literal`.
        default: Default value, or None.
        help: The first sentence of the entry in the docstring.
        metavar: Placeholder of the value.
        range: Range of the values, in words.
        otherwise: What stands for a default of None: the words after "If None:" in the docstring.
        required: Whether there is no default.
    """

    name: str
    names: tuple[str, ...]
    kind: type
    many: bool
    choices: tuple[str, ...]
    default: Any
    help: str
    metavar: str | None
    range: str
    otherwise: str
    required: bool


def options(cls: type) -> tuple[Option, ...]:
    """Return the options of a configuration, in the order of its fields.

    Raises:
        TypeError: when ``cls`` is not a dataclass, or a field has no help text or a type that no option can hold.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Anneal:
        ...     '''Anneal.
        ...
        ...     Attributes:
        ...         beta: Exponent. Above 1 sharpens.
        ...         kernel_steps: Langevin steps at each level.
        ...     '''
        ...     beta: Annotated[float, Flag("--exponent", gt=0)] = 1.0
        ...     kernel_steps: int = 0
        >>> [(option.names, option.help, option.range) for option in options(Anneal)]
        [(('--exponent',), 'Exponent.', '> 0'), (('--kernel-steps',), 'Langevin steps at each level.', '')]
    """
    texts, hints = _texts(cls), _hints(cls)
    silent = [name for name in hints if not texts.get(name, "").strip(".… ")]
    if silent:
        raise TypeError(
            f"{cls.__name__} has no help text for {', '.join(silent)}, wanted an entry for each under 'Attributes:' of its docstring."
        )
    found = []
    for field in _fields(cls):
        hint, flag = _parts(hints[field.name])
        kind, many, choices = _element(hint)
        if kind not in (bool, int, float, str, Path):
            raise TypeError(
                f"{cls.__name__}.{field.name} is annotated {hint!r}, wanted bool, int, float, str, Path, a Literal, or tuples of these."
            )
        dashed = field.name.replace("_", "-")
        names = flag.names or ((f"--{dashed}/--no-{dashed}",) if kind is bool else (f"--{dashed}",))
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = None if field.default is dataclasses.MISSING else field.default
        short = re.split(r"(?<=[.!?])\s+(?=[A-Z0-9`])", texts[field.name], maxsplit=1)[0].replace("``", "`")
        otherwise = re.search(r"\bIf None: (.+?)\.(?:\s|$)", texts[field.name].replace("``", "`"))
        note = otherwise[1] if otherwise else ""
        found.append(Option(field.name, names, kind, many, choices, default, short, flag.metavar, flag.range, note, required))
    return tuple(found)


def check(config: Any) -> None:
    """Check the kinds of numbers, the ranges and the choices of a configuration; call it in ``__post_init__``.

    Raises:
        ValueError: naming the field, the value seen and the value wanted.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Anneal:
        ...     steps: Annotated[int, Flag(ge=1)] = 100
        ...     def __post_init__(self):
        ...         check(self)
        >>> Anneal(steps=0)
        Traceback (most recent call last):
        ValueError: steps=0, wanted an integer >= 1.
    """
    for name, annotated in _hints(type(config)).items():
        hint, flag = _parts(annotated)
        kind, many, choices = _element(hint)
        value = getattr(config, name)
        if kind in (bool, int, float):
            _read(annotated, value, name)
        for one in (value if many else (value,)) if value is not None else ():
            if choices and str(one) not in choices:
                raise ValueError(unknown(name, str(one), choices))
            if flag.bounds and not flag.admits(one):
                raise ValueError(f"{name}={value!r}, wanted {_say(kind)} {flag.range}.")
            if kind is int and one >= _TOO_LARGE:
                raise ValueError(f"{name}={value!r}, wanted an integer below 2^63.")


def config_of(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the frozen dataclass ``cls`` from JSON-like values: lists become tuples, integers become floats where floats are wanted.

    Fields may be bool, int, float, str, None, `pathlib.Path`, `typing.Literal`, unions and tuples of these. ``"inf"``, ``"-inf"`` and ``"nan"``
    stand for the floats that JSON cannot write.

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
    hints, fields = _hints(cls), {field.name: field for field in _fields(cls)}
    for name in values:
        if name not in fields:
            raise ConfigError(unknown(f"key of {cls.__name__}", str(name), fields))
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in values
    ]
    if missing:
        wanted = ", ".join(f"{name} ({_say(_parts(hints[name])[0])})" for name in missing)
        raise ConfigError(f"{cls.__name__} lacks {wanted}: give a value for each.")
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
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}. Fix: give the path of a JSON file.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}. Fix: correct it there, or take config.json from a run.") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds {'null' if values is None else f'a JSON {type(values).__name__}'}, wanted an object of keys and values."
        )
    return values


def inputs(config: Any) -> Iterable[Path]:
    """Yield the files and folders that a configuration reads: its fields of type `Path`, and what its own method ``inputs()`` returns."""
    if not dataclasses.is_dataclass(config):
        return
    for field in _fields(type(config)):
        value = getattr(config, field.name)
        yield from (one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Path))
    yield from getattr(config, "inputs", tuple)()


def _fields(cls: type) -> list[dataclasses.Field]:
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"cls={cls!r}, wanted a frozen dataclass whose fields are the keyword arguments of the job.")
    return [field for field in dataclasses.fields(cls) if field.init]


def _hints(cls: type) -> dict[str, Any]:
    names = [field.name for field in _fields(cls)]
    hints = get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in names}


def _texts(cls: type) -> dict[str, str]:
    """Entries of ``Attributes:`` in the docstrings of a class and of those that it inherits fields from."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        name = ""
        for line in inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")[2].splitlines():
            if line and not line.startswith(" "):
                break
            if entry := re.match(r"    (\w+): (.*)", line):
                name, found[entry[1]] = entry[1], entry[2]
            elif name and line.strip():
                found[name] += " " + line.strip()
    return found


def _parts(hint: Any) -> tuple[Any, Flag]:
    """Type and flag of an annotation."""
    if get_origin(hint) in (Union, types.UnionType):
        return hint, next((_parts(one)[1] for one in get_args(hint) if get_origin(one) is Annotated), Flag())
    if get_origin(hint) is not Annotated:
        return hint, Flag()
    hint, *extra = get_args(hint)
    return hint, next((one for one in extra if isinstance(one, Flag)), Flag())


def _element(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    """Type of one value, whether there may be many, and choices; None in a union is left out."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = _parts(next(one for one in get_args(hint) if one is not type(None)))[0]
    if get_origin(hint) is tuple:
        kind, _, choices = _element(get_args(hint)[0])
        return kind, True, choices
    if get_origin(hint) is Literal:
        values = get_args(hint)
        return type(values[0]), False, tuple(map(str, values))
    return hint, False, ()


def _read(hint: Any, value: Any, name: str) -> Any:
    """Return ``value`` as the annotated type; the first matching member of a union."""
    hint = _parts(hint)[0]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for member in args:
            with contextlib.suppress(ConfigError):
                return _read(member, value, name)
        choices = [one for member in args if get_origin(member) is Literal for one in get_args(member)]
        if choices and isinstance(value, str):
            raise ConfigError(unknown(name, value, choices))
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
    else:
        return _read_scalar(hint, value, name)
    raise ConfigError(f"{name}={value!r}, wanted {_say(hint)}.")


def _read_scalar(hint: Any, value: Any, name: str) -> Any:
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _float(value)
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


def _float(value: float) -> float:
    """A number as a float; an integer that is too large for one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _say(hint: Any) -> str:
    known = {float: "a number", int: "an integer", str: "text", bool: "true or false", Path: "a path", type(None): "null"}
    hint = _parts(hint)[0]
    if hint in known:
        return known[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_say(member) for member in args)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return f"a list, each {_say(args[0])}" if args[-1] is Ellipsis else f"a list of {len(args)}: {', '.join(map(_say, args))}"
    raise TypeError(f"a field is annotated {hint!r}, which a JSON configuration cannot hold.")
