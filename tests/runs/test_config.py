"""Configurations: what goes in comes back, and what is wrong is named."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from popflow.runs import ConfigError, Flag, check, config_of, options, plain, read_values


@dataclass(frozen=True)
class Job:
    expert: tuple[str, ...]
    seed: int = 0
    zeta: float | None = None
    out: Path = Path("out")
    quick: bool = False
    box: tuple[float, int] = (0.0, 1)
    kind: Literal["karras", "geometric"] | None = "karras"

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}, wanted 0 or more.")


def test_a_configuration_survives_json():
    config = Job(("a", "b"), 3, math.inf, Path("x/y"), True, (math.nan, 2), None)
    text = json.dumps(plain(config), allow_nan=False)
    back = config_of(Job, json.loads(text))
    assert plain(back) == plain(config)
    assert back.expert == ("a", "b")
    assert math.isnan(back.box[0])
    assert back.zeta == math.inf
    assert back.out == Path("x/y")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expert": ["a"], "sed": 1}, "unknown key of Job 'sed': did you mean 'seed'"),
        ({}, r"Job lacks expert \(a list, each text\): give a value"),
        ({"expert": "a"}, "expert='a', wanted a list, each text"),
        ({"expert": ["a", 2]}, r"expert\[1\]=2, wanted text"),
        ({"expert": [], "seed": 1.0}, "seed=1.0, wanted an integer"),
        ({"expert": [], "seed": True}, "seed=True, wanted an integer"),
        ({"expert": [], "zeta": "much"}, "zeta='much', wanted a number or null"),
        ({"expert": [], "quick": 1}, "quick=1, wanted true or false"),
        ({"expert": [], "box": [1.0]}, "wanted a list of 2: a number, an integer"),
        ({"expert": [], "kind": "karas"}, "unknown kind 'karas': did you mean 'karras'"),
        ({"expert": [], "kind": 3}, "kind=3, wanted one of 'karras', 'geometric' or null"),
        ({"expert": [], "seed": -1}, "seed=-1, wanted 0 or more"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        config_of(Job, values)


def test_numbers_are_floats_where_floats_are_wanted():
    found = config_of(Job, {"expert": [], "zeta": 2, "box": [1, 2]})
    assert isinstance(found.zeta, float)
    assert isinstance(found.box[0], float)
    assert isinstance(found.box[1], int)


@pytest.mark.parametrize("text", [None, "{", "[1]", "\x00"])
def test_unreadable_files_are_named(tmp_path, text):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_values(file)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="holds <object"):
        plain({"x": object()})
    with pytest.raises(TypeError, match="wanted a frozen dataclass"):
        config_of(dict, {})


@dataclass(frozen=True)
class Declared:
    """A task.

    Attributes:
        cells: File of cells. It is not changed.
        beta: Exponents, one for each expert
            or one for all. 1 when empty.
        share: Share of the steps. If None: 1, or 0.5 for images.
        grid: Spacing.
        ode: Without noise.
        limit: Bound on the noise.
    """

    cells: Annotated[Path, Flag("CELLS")]
    beta: Annotated[tuple[float, ...], Flag(gt=0)] = ()
    share: Annotated[float | None, Flag("--share", "--part", gt=0, le=1)] = None
    grid: Literal["karras", "linear"] | None = None
    ode: Annotated[bool, Flag("--ode/--sde")] = False
    limit: Annotated[float, Flag(ge=0, le=math.inf)] = 1.0

    def __post_init__(self):
        check(self)


def test_options_are_read_off_the_declaration():
    found = {option.name: option for option in options(Declared)}
    assert [option.names for option in found.values()] == [
        ("CELLS",),
        ("--beta",),
        ("--share", "--part"),
        ("--grid",),
        ("--ode/--sde",),
        ("--limit",),
    ]
    assert [option.kind for option in found.values()] == [Path, float, float, str, bool, float]
    assert found["beta"].help == "Exponents, one for each expert or one for all."
    assert found["beta"].many
    assert found["grid"].choices == ("karras", "linear")
    assert [option.otherwise for option in found.values()] == ["", "", "1, or 0.5 for images", "", "", ""]
    assert (found["share"].range, found["beta"].range, found["limit"].range) == ("> 0, <= 1", "> 0", ">= 0")


def test_inherited_fields_keep_their_help_and_may_have_another():
    @dataclass(frozen=True)
    class More(Declared):
        """A task.

        Attributes:
            steps: Number of steps.
            grid: Spacing of the steps.
        """

        steps: int = 3

    helps = {option.name: option.help for option in options(More)}
    assert helps == {option.name: option.help for option in options(Declared)} | {
        "steps": "Number of steps.",
        "grid": "Spacing of the steps.",
    }


def test_a_field_without_a_help_text_is_refused():
    @dataclass(frozen=True)
    class Silent:
        """A task.

        Attributes:
            a: ...
        """

        a: int = 0
        b: int = 0

    with pytest.raises(TypeError, match=r"Silent has no help text for a, b"):
        options(Silent)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beta": (1.0, -1.0)}, r"beta=\(1.0, -1.0\), wanted a number > 0"),
        ({"share": 1.5}, r"share=1.5, wanted a number > 0, <= 1"),
        ({"share": math.nan}, "share=nan, wanted a number > 0, <= 1"),
        ({"beta": (math.inf,)}, r"beta=\(inf,\), wanted a number > 0"),
        ({"limit": -1.0}, "limit=-1.0, wanted a number >= 0"),
        ({"grid": "karas"}, "unknown grid 'karas': did you mean 'karras'"),
        ({"share": "0.5"}, "share='0.5', wanted a number or null"),
        ({"beta": (1.0, "2")}, r"beta\[1\]='2', wanted a number"),
        ({"ode": "no"}, "ode='no', wanted true or false"),
    ],
)
def test_kinds_ranges_and_choices_hold_in_python_too(values, message):
    with pytest.raises(ValueError, match=message):
        Declared(Path("x"), **values)
    assert Declared(Path("x"), limit=math.inf).limit == math.inf


def test_what_no_option_can_hold_is_refused():
    @dataclass(frozen=True)
    class Held:
        """A task.

        Attributes:
            a: A mapping.
        """

        a: dict

    with pytest.raises(TypeError, match=r"Held\.a is annotated <class 'dict'>, wanted bool"):
        options(Held)


@dataclass(frozen=True)
class Numbered:
    """A task.

    Attributes:
        order: Order of the scheme.
        steps: Number of steps.
    """

    order: Literal[1, 2] = 1
    steps: Annotated[int, Flag(ge=1)] | None = None

    def __post_init__(self):
        check(self)


def test_choices_may_be_numbers_and_a_flag_may_stand_in_a_union():
    order, steps = options(Numbered)
    assert (order.kind, order.choices, steps.kind, steps.range) == (int, ("1", "2"), int, ">= 1")
    assert config_of(Numbered, {"order": 2, "steps": 3}) == Numbered(2, 3)
    for values, message in (
        ({"order": 3}, "wanted one of 1, 2"),
        ({"steps": 0}, "steps=0, wanted an integer >= 1"),
        ({"steps": "x"}, "wanted an integer or null"),
    ):
        with pytest.raises(ConfigError, match=message):
            config_of(Numbered, values)
    for wrong, message in (
        ({"order": 3}, "order=3, wanted one of 1, 2"),
        ({"steps": 2.5}, "steps=2.5, wanted an integer or null"),
        ({"steps": 2**63}, "below 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Numbered(**wrong)


def test_an_integer_too_large_for_a_float_is_out_of_range():
    with pytest.raises(ConfigError, match="wanted an integer >= 1"):
        config_of(Numbered, {"steps": 10**400})
    with pytest.raises(ConfigError, match=r"share=inf, wanted a number > 0, <= 1"):
        config_of(Declared, {"cells": "x", "share": 10**400})
