"""Verbs that run jobs, made from the registry: from options to a configuration, a run directory, the job and its report."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popflow.cli.output import ProgressLine, print_json, print_report
from popflow.core.errors import CheckpointError
from popflow.registry import Task
from popflow.runs.config import ConfigError, Option, config_of, options, plain, read_values

if TYPE_CHECKING:
    from popflow.registry import Method

ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("arguments")
"""The command line being run, for the report."""


class InterruptedRun(Exception):
    """Ctrl-C while a job ran; the message says where the same command resumes."""


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output; everything else goes to standard error.")]
_SHARED: dict[str, tuple[Any, Any]] = {
    "out": (
        Annotated[
            Path | None,
            typer.Option(
                "--out", metavar="DIR", help="Run directory; the same command resumes the run in it.  [default: runs/VERB-DIGEST]"
            ),
        ],
        None,
    ),
    "config": (
        Annotated[
            Path | None,
            typer.Option(
                "--config", metavar="FILE", help="JSON file of settings, such as the config.json of a run; options on the command line win."
            ),
        ],
        None,
    ),
    "device": (
        Annotated[
            Device,
            typer.Option(
                "--device",
                metavar="auto|cpu|cuda",
                help="Where to compute; auto uses a GPU if there is one.  [default: auto]",
                show_default=False,
            ),
        ],
        Device.auto,
    ),
    "as_json": (AsJson, False),
}


_RESERVED_OPTIONS = {"--all", "--out", "--config", "--device", "--json", "--help", "-h"}
_RESERVED_FIELDS = {"job", "inputs", "method_name", *_SHARED}
"""Names that no field may have: keys of config.json beside the fields, and parameters of every verb."""


def verb(name: str, task: Task) -> Callable[..., None]:
    """Return the command of a task: its signature is what typer makes options from."""

    def command(out: Path | None, config: Path | None, device: Device, as_json: bool, **given: Any) -> None:
        carry_out(name, task, given, out=out, file=config, device=device, as_json=as_json)

    return _declared(command, name, "\n\n".join([task.summary, *(f"`{example}`" for example in task.examples)]), task)


def demo_verb(method: Method) -> Callable[..., None]:
    """Return the command ``popflow demo``, with the options of one method's demo."""

    def command(method_name: str, every: bool, out: Path | None, config: Path | None, device: Device, as_json: bool, **given: Any) -> None:
        from popflow.registry import BUILT_IN, UnknownMethodError, method as find, methods

        if every:
            from popflow.cli.gallery import demonstrate

            others = [name for name, value in given.items() if value not in (None, []) and name != "quick"] + ["config"] * bool(config)
            if others or method_name != BUILT_IN[0].name:
                raise typer.BadParameter(
                    "runs every demo with its quick settings. Fix: leave out METHOD and its options.", param_hint="--all"
                )
            raise typer.Exit(demonstrate(list(methods().methods.values()), out or Path("runs/demos"), device.value, as_json))
        try:
            found = find(method_name)
        except UnknownMethodError as error:
            raise typer.BadParameter(str(error), param_hint="METHOD") from error
        carry_out(f"demo {found.name}", found.demo, given, out=out, file=config, device=device, as_json=as_json, cite=found.cite)

    text = (
        "Run a method on a problem whose answer is known, and compare.\n\nThe default, fkc, samples digits that are even AND prime from two models "
        f"that each know only one of the two.\n\nThe options below are those of `popflow demo {method.name}`."
    )
    which = Annotated[str, typer.Argument(metavar="METHOD", help="See `popflow methods`.")]
    every = Annotated[bool, typer.Option("--all", help="Run every method's demo in turn, quick, and write one page that links them.")]
    return _declared(command, "demo", text, method.demo, method_name=(which, method.name), every=(every, False))


def carry_out(
    job: str,
    task: Task,
    given: Mapping[str, Any],
    *,
    out: Path | None,
    file: Path | None,
    device: Device,
    as_json: bool,
    cite: Sequence[str] = (),
) -> None:
    """Run a job in its directory and print its report. A failure is logged there with its traceback and raised again."""
    from popflow.runs.run import Run

    config = config_of(task.load("config"), settings(_read(task.load("config"), given), file, job))
    command, cite = shlex.join(["popflow", *ARGUMENTS.get()]), task.cited(config) or cite
    opened = Run.open(out, config, job=job, device=_device(device), cite=cite, command=command, progress=ProgressLine())
    path = opened.path
    try:
        with opened as run:
            typer.echo(f"{'Resuming' if run.resumed else 'Running'} in {path}", err=True)
            report = task.load("run")(config, run)
            html = run.finish(report)
    except KeyboardInterrupt as error:
        saved = any(path.glob("*.safetensors"))
        raise InterruptedRun("interrupted; the same command " + ("resumes from the last checkpoint" if saved else "starts anew")) from error
    except Exception as error:
        shown = _out_of_memory(error, config) or error
        if (path / "log.txt").exists():
            resumes = shown is error and any(path.glob("*.safetensors")) and not isinstance(error, CheckpointError)
            shown.add_note(f"Traceback: {path / 'log.txt'}.{' The same command resumes from the last checkpoint.' if resumes else ''}")
        if shown is error:
            raise
        raise shown from error
    if as_json:
        print_json({"ok": True, "job": job, "out": str(path), "html": str(html), **_without_images(report.plain())})
    else:
        print_report(report, html)


def _out_of_memory(error: Exception, config: Any) -> MemoryError | None:
    """Name the sizes that were asked for when an allocator fails: of Python and numpy, of an accelerator, or of torch on a CPU (no class of its own)."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not named and not (
        isinstance(error, RuntimeError) and re.search(r"allocate memory|Storage size calculation overflowed", str(error))
    ):
        return None
    counts = [(getattr(config, option.name), option.name) for option in options(type(config)) if option.kind is int and not option.many]
    sizes = sorted(((count, name) for count, name in counts if count is not None and name != "seed"), reverse=True)
    asked = ", ".join(f"{name}={count}" for count, name in sizes[:4])
    return MemoryError(f"{str(error).partition('. Error code')[0]}. Fix: lower the sizes; the largest are {asked}.")


def settings(given: Mapping[str, Any], file: Path | None, job: str) -> dict[str, Any]:
    """Merge the options that were given (not None, not empty) over those of a configuration file.

    Raises:
        ConfigError: when the file cannot be read, or is of another job.
    """
    values = read_values(file) if file is not None else {}
    values.pop("inputs", None)
    of = values.pop("job", job)
    if of != job:
        raise ConfigError(
            f"{file} belongs to the job {of!r}, wanted {job!r}. Fix: give `popflow {of} --config {shlex.quote(str(file))}`, or another file."
        )
    return values | {name: plain(value) for name, value in given.items() if value not in (None, [])}


def _read(config: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn option text into numbers; text that is not a number is left for the configuration to refuse."""

    def number(kind: type, text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    numeric = {option.name: option for option in options(config) if option.kind in (int, float)}
    values = dict(given)
    for name in given.keys() & numeric.keys():
        option, value = numeric[name], given[name]
        values[name] = (
            [number(option.kind, one) for one in value] if option.many and value else number(option.kind, value) if value else value
        )
    return values


def _declared(command: Callable[..., None], name: str, text: str, task: Task, **before: tuple[Any, Any]) -> Callable[..., None]:
    """Give a function the signature that a configuration declares, plus the options that all verbs share."""
    found = options(task.load("config"))
    taken = sorted(
        option.name
        for option in found
        if option.name in _RESERVED_FIELDS or any(_RESERVED_OPTIONS & set(both.split("/")) for both in option.names)
    )
    if taken:
        raise TypeError(
            f"the configuration of {name!r} has fields {taken}, wanted other names: these are taken by options of every verb, and by keys of config.json."
        )
    own = {option.name: (_typed(option), None) for option in found}
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(key, kind, annotation=annotation, default=default)
        for key, (annotation, default) in {**before, **own, **_SHARED}.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__, command.__doc__ = name, text
    return command


def _typed(option: Option) -> Any:
    """The annotation that typer reads. An option that is not given is None, so that values of ``--config`` stay; numbers are read by `_read`."""
    default = _default(option)
    notes = ["required"] if option.required else [f"default: {default}"] if default else []
    notes += ["may be repeated"] if option.many else []
    notes += [f"range: {option.range}"] if option.range else []
    text = option.help + (f"  [{'; '.join(notes)}]" if notes else "")
    metavar = option.metavar or "|".join(option.choices) or {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}.get(option.kind)
    if option.names[0].startswith("-"):
        how = typer.Option(*option.names, metavar=metavar, help=text, show_default=False)
    else:
        how = typer.Argument(metavar=option.names[0], help=text, show_default=False)
    word = Path if option.kind is Path else str
    typed: Any = bool if option.kind is bool else list[word] if option.many else word
    return Annotated[typed | None, how]


def _default(option: Option) -> str:
    if option.default is None or option.default == ():
        return option.otherwise
    if option.kind is bool:
        on, _, off = option.names[0].partition("/")
        return (on if option.default else off).removeprefix("--")
    return ", ".join(map(str, option.default)) if option.many else str(option.default)


def _device(device: Device) -> str:
    import torch

    there = torch.cuda.is_available()
    if device is Device.cuda and not there:
        raise typer.BadParameter(
            "cuda, but torch sees no GPU: give --device cpu, or install a CUDA build of torch (popflow doctor)", param_hint="--device"
        )
    return "cuda" if there and device is not Device.cpu else "cpu"


def _without_images(report: dict[str, Any]) -> dict[str, Any]:
    tables = {name: [item for item in report[name] if "image" not in item] for name in ("comparison", "diagnostics")}
    return {name: value for name, value in report.items() if name != "figure"} | tables
