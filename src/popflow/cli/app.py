"""The command `popflow`: verbs, exit codes (0 done, 1 failed, 2 bad usage) and how errors are told."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from popflow import __version__
from popflow.cli.cite import cite
from popflow.cli.demo import demo
from popflow.cli.doctor import doctor
from popflow.cli.flow import flow
from popflow.cli.job import ARGUMENTS
from popflow.cli.methods import methods
from popflow.cli.output import print_json
from popflow.cli.report import report
from popflow.cli.sample import sample
from popflow.cli.search import search

_INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="popflow",
    help="Move, weigh and breed populations of samples.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo, sample, flow, search, methods, report, cite, doctor):
    app.command()(verb)


def _tell_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"popflow {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def popflow(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_tell_version)] = False,
) -> None:
    """Move, weigh and breed populations of samples. Begin with `popflow demo`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error is one clear message on standard error (and JSON with ``--json``)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = get_command(app)
    verbs: Iterable[str] = getattr(command, "commands", {})
    typed = next((argument for argument in arguments if not argument.startswith("-")), None)
    if typed is not None and typed not in verbs:
        from popflow.core.errors import unknown

        return _fail(arguments, 2, "UsageError", unknown("command", typed, verbs))
    begun = ARGUMENTS.set(tuple(arguments))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = command.main(args=arguments or ["--help"], prog_name="popflow", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        return _fail(arguments, _code(error), type(error).__name__, _message(error))
    finally:
        ARGUMENTS.reset(begun)
    if code == _INTERRUPTED:
        return _fail(arguments, 1, "KeyboardInterrupt", "interrupted; the same command goes on from the last checkpoint")
    return code if isinstance(code, int) else 0


def _code(error: Exception) -> int:
    if hasattr(error, "format_message"):
        return 2
    if "popflow.runs" not in sys.modules:
        return 1
    from popflow.runs import ConfigError

    return 2 if isinstance(error, ConfigError) else 1


def _message(error: Any) -> str:
    """One message: as the named errors say it, with the type in front of anything else, and the usage after bad usage."""
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        hint = f"\nSee `{context.command_path} --help`." if context is not None else ""
        return error.format_message() + hint
    known = isinstance(error, ValueError) or type(error).__module__.startswith("popflow")
    text = str(error) if known and str(error) else f"{type(error).__name__}: {error}"
    return "\n".join([text, *getattr(error, "__notes__", ())])


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    """Tell a warning of ours as one message, others as Python does."""
    if category.__module__.startswith("popflow"):
        typer.secho(f"warning: {message}", err=True, fg="yellow")
    else:
        typer.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


def _fail(arguments: Sequence[str], code: int, kind: str, message: str) -> int:
    if "--json" in arguments:
        print_json({"ok": False, "error": {"type": kind, "message": message}})
    typer.secho(f"error: {message}", err=True, fg="red")
    return code


if __name__ == "__main__":
    sys.exit(main())
