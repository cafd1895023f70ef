"""The form of a job and its command line, both made from the declaration of its task (`popflow.runs.config.options`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popflow.registry import TASKS, Task, methods
from popflow.runs.config import Option, config_of, options, plain
from popflow.view.folders import text

_FIRST, _FEW = ("seed", "quick"), 8
"""Fields that come first; a form of so few fields shows all of them at once."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the page can start.

    Attributes:
        name: As config.json has it, such as ``"sample"`` or ``"demo fkc"``: the first words of the command.
        summary: In one line.
        task: The task.
        options: Its options.
    """

    name: str
    summary: str
    task: Task
    options: tuple[Option, ...]


def jobs() -> tuple[dict[str, Job], dict[str, str]]:
    """Return the verbs and the demos, those of other packages included, and why some of these cannot be shown."""
    registry = methods()
    broken, found = dict(registry.broken), {}
    own = {name: (one.task, one.summary) for name, one in registry.methods.items() if isinstance(one.task, Task)}
    listed = {name: (task, task.summary) for name, task in TASKS.items()} | own
    listed |= {f"demo {name}": (one.demo, one.summary) for name, one in registry.methods.items()}
    for name, (task, summary) in listed.items():
        try:
            found[name] = Job(name, task.summary or summary, task, options(task.load("config")))
        except Exception as error:  # a package that declares its task badly disturbs no other
            broken[name] = f"{type(error).__name__}: {error}"
    return found, broken


def plain_jobs(found: Mapping[str, Job]) -> list[dict[str, Any]]:
    """The forms, for JSON."""
    return [
        {
            "name": one.name,
            "summary": text(one.summary),
            "examples": [text(example) for example in one.task.examples],
            "fields": [_field(one, option) for option in one.options],
        }
        for one in found.values()
    ]


def arguments(job: Job, values: Mapping[str, Any], folder: Path, device: str) -> list[str]:
    """Return the command line of a job with these values of its fields; others keep their defaults.

    Raises:
        ConfigError: for values that the configuration refuses.

    Example:
        >>> arguments(jobs()[0]["demo fkc"], {"quick": True, "seed": 3}, Path("runs/a"), "cpu")
        ['demo', 'fkc', '--out=runs/a', '--device=cpu', '--seed=3', '--quick']
    """
    config_of(job.task.load("config"), values)
    given, positional = _shared(folder, device), []
    for option in job.options:
        value = plain(values.get(option.name))
        if value is None:
            continue
        name = next((one for one in option.names if one.startswith("--")), option.names[0])
        if option.kind is bool:
            on, _, off = name.partition("/")
            given += [on] if value else [off] if off else []
            continue
        several = list(map(str, value)) if option.many else [str(value)]
        if not name.startswith("-"):
            positional += several
        else:
            given += [f"{name}={one}" if name.startswith("--") else f"{name}{one}" for one in several]
    return [*job.name.split(), *given, *(["--", *positional] if positional else [])]


def again(job: Job, folder: Path, device: str) -> list[str]:
    """Return the command line that resumes the run in a folder."""
    return [*job.name.split(), f"--config={_short(folder / 'config.json')}", *_shared(folder, device)]


def _shared(folder: Path, device: str) -> list[str]:
    return [f"--out={_short(folder)}", *([f"--device={device}"] if device != "auto" else [])]


def _short(path: Path) -> str:
    """A path as seen from the current folder, where it lies below that."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _field(job: Job, option: Option) -> dict[str, Any]:
    """A field of a form; the first ones are those that are needed or that an example of the task uses."""
    sides = {side for name in option.names for side in name.split("/")}
    used = not sides.isdisjoint(word.partition("=")[0] for example in job.task.examples for word in example.split())
    default = option.otherwise if option.default in (None, ()) else ", ".join(map(str, option.default)) if option.many else option.default
    return {
        "name": option.name,
        "label": option.names[0].partition("/")[0],
        "kind": option.kind.__name__,
        "many": option.many,
        "choices": list(option.choices),
        "default": default if isinstance(default, bool) else text(default, 200),
        "help": text(option.help),
        "range": option.range,
        "placeholder": option.metavar or "",
        "required": option.required,
        "first": len(job.options) <= _FEW or used or option.required or not option.names[0].startswith("-") or option.name in _FIRST,
    }
