"""The command `popflow`: verbs, exit codes and error messages.

Exit codes: 0 done. 2 when another command is needed: its options, its configuration, or the files and folders that it names cannot be used. 1 when
the command may be right: it failed or was interrupted as it ran, another process has the run open, or the installation lacks something.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.main import get_command

from popflow import __version__
from popflow.cli.completion import SCRIPTS, Shell, verbs
from popflow.cli.installation import doctor
from popflow.cli.output import print_json
from popflow.cli.page import view
from popflow.cli.records import cite, methods, report
from popflow.cli.verbs import ARGUMENTS, InterruptedRun, demo_verb, verb
from popflow.core.errors import RunDirectoryError
from popflow.registry import BUILT_IN, RESERVED, TASKS, MethodError, method, plugins, task
from popflow.runs.config import ConfigError, options

_INTERRUPTED = 130  # what typer makes of Ctrl-C


def build(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the application. Its verbs come from the registry; a method of another package is loaded only when ``arguments`` name it."""
    app = typer.Typer(
        name="popflow",
        help="Move, weigh and breed populations of samples.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # boxes leave no room for the text of forty options
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_popflow)
    typed, other = _verb(arguments), {name: point for name, point in plugins().items() if name not in RESERVED}
    app.command("demo", short_help="Run a method on a problem whose answer is known.")(demo_verb(_demonstrated(arguments)))
    for name, one in TASKS.items():
        app.command(name, short_help=one.summary)(verb(name, one))
    for name, point in other.items():
        own = task(name) if name == typed else None
        if own is not None:
            app.command(name)(verb(name, own))
        else:
            app.command(name, short_help=f"From the package {point.dist.name if point.dist else point.value}.")(_without_task(name))
    for look in (methods, report, cite, view, doctor, completion):
        app.command()(look)
    return app


def completion(shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print a script that completes `popflow` in a shell.

    `source <(popflow completion bash)` in ~/.bashrc, `source <(popflow completion zsh)` in ~/.zshrc, or
    `popflow completion fish > ~/.config/fish/completions/popflow.fish`. Make it again after an update, or when a package adds a method.
    """
    typer.echo(SCRIPTS[shell](verbs(build)), nl=False)


def _verb(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def _demonstrated(arguments: Sequence[str]) -> Any:
    """The method whose demo is asked for, by default the first one; an unknown name is reported when the command runs."""
    if _verb(arguments) == "demo":
        known = {one.name for one in BUILT_IN} | plugins().keys()
        for before, argument in pairwise(arguments):
            if argument in known and not _takes_a_value(before, one := method(argument)):
                return one
    return BUILT_IN[0]


def _takes_a_value(argument: str, demonstrated: Any) -> bool:
    """Say whether an argument is an option whose value is the next argument."""
    switches = (option.names for option in options(demonstrated.demo.load("config")) if option.kind is bool)
    alone = {"--", "--json", *(side for names in switches for name in names for side in name.split("/"))}
    return argument.startswith("-") and "=" not in argument and argument not in alone


def _without_task(name: str) -> Any:
    def command() -> None:
        method(name)  # says why it cannot be loaded
        raise MethodError(f"the method {name!r} has no task of its own. Fix: run `popflow demo {name}`.")

    return command


def _tell_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"popflow {__version__}")
        raise typer.Exit
    return asked


def _popflow(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_tell_version)] = False,
) -> None:
    """Move, weigh and breed populations of samples. Begin with `popflow demo`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error is one clear message on standard error (and JSON with ``--json``)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    odd = next((argument for argument in arguments if any("\ud800" <= letter <= "\udfff" for letter in argument)), None)
    if odd is not None:  # config.json and the report are UTF-8
        return _fail(arguments, 2, "UsageError", f"the argument {odd!a} is not UTF-8 text. Fix: rename the file or folder.")
    begun = ARGUMENTS.set(tuple(arguments))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            command = get_command(build(arguments))
            known: Iterable[str] = getattr(command, "commands", {})
            typed = _verb(arguments)
            if typed is not None and typed not in known:
                from popflow.core.errors import unknown

                return _fail(arguments, 2, "UsageError", unknown("command", typed, known))
            code = command.main(args=arguments or ["--help"], prog_name="popflow", standalone_mode=False)
    except InterruptedRun as error:
        return _fail(arguments, 1, "KeyboardInterrupt", str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        return _fail(arguments, _code(error), type(error).__name__, _message(error))
    finally:
        ARGUMENTS.reset(begun)
    if code == _INTERRUPTED:
        return _fail(arguments, 1, "KeyboardInterrupt", "interrupted")
    return code if isinstance(code, int) else 0


def _code(error: Exception) -> int:
    return 2 if hasattr(error, "format_message") or isinstance(error, ConfigError | RunDirectoryError) else 1


def _message(error: Any) -> str:
    """One message: named errors as they are, other errors with their type in front, and a hint after bad usage."""
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        hint = f"\nSee `{context.command_path} --help`." if context is not None else ""
        return error.format_message() + hint
    known = isinstance(error, ValueError) or type(error).__module__.startswith("popflow")
    text = str(error) if known and str(error) else f"{type(error).__name__}: {error}"
    return "\n".join([text, *getattr(error, "__notes__", ())])


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    """Show popflow's own warnings as one message, others as Python does."""
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
