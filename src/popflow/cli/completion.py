"""`popflow completion SHELL`: a script that completes verbs, options, methods and choices, made from the declarations that the verbs are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import typer
from typer.main import get_command


class Shell(StrEnum):
    """The shells that are known."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@dataclass(frozen=True, slots=True)
class Verb:
    """What may follow a verb.

    Attributes:
        summary: Its description in one line.
        options: Names of its options and what their value may be: words, or none for a value that is free; None for a switch.
        words: What may stand in place of an option.
    """

    summary: str
    options: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    words: tuple[str, ...] = ()


def verbs(build: Callable[[Sequence[str]], typer.Typer]) -> dict[str, Verb]:
    """Return what may follow each verb of the application, of other packages too; a package that cannot be loaded has its name alone.

    Args:
        build: Makes the application for a command line.
    """
    from popflow.registry import methods, plugins

    found = {name: _verb(command) for name, command in _commands(build([])).items()}
    for name in plugins().keys() & found.keys():
        try:
            found[name] = _verb(_commands(build([name]))[name])
        except Exception:
            continue
    known = methods().methods
    demos = [_verb(_commands(build(["demo", name]))["demo"]).options for name in known]
    found["demo"] = Verb(found["demo"].summary, {name: words for one in demos for name, words in one.items()}, tuple(known))
    found["completion"] = replace(found["completion"], words=tuple(Shell))
    return dict(sorted(found.items()))


def _commands(app: typer.Typer) -> dict[str, Any]:
    return getattr(get_command(app), "commands", {})


def _verb(command: Any) -> Verb:
    """Read a command of typer: choices are written in the placeholder of a value."""
    options, words = {"--help": None}, ()
    for parameter in command.params:
        choices = tuple((parameter.metavar or "").split("|"))
        choices = choices if len(choices) > 1 else ()
        if parameter.param_type_name == "argument":
            words = choices or words
        else:
            options |= dict.fromkeys((*parameter.opts, *parameter.secondary_opts), None if parameter.is_flag else choices)
    return Verb(" ".join(command.get_short_help_str(200).split()), options, words)


def _cases(found: Mapping[str, Verb]) -> tuple[str, str]:
    """Two bodies of ``case``, of values by verb and option, and of options and words by verb, as bash and zsh read them."""
    values = [
        f"    {name}:{option}) words='{' '.join(words)}'; value=1 ;;"
        for name, verb in found.items()
        for option, words in verb.options.items()
        if words is not None
    ]
    rest = [f"    {name}) words='{' '.join((*verb.words, *verb.options))}' ;;" for name, verb in found.items()]
    return "\n".join(values), "\n".join([f"    '') words='{' '.join(found)} --help --version' ;;", *rest])


def bash(found: Mapping[str, Verb]) -> str:
    """Return the script for bash; where no word fits, bash completes files."""
    values, rest = _cases(found)
    return f"""# completes popflow in bash: source <(popflow completion bash)
_popflow() {{
  local words='' value='' verb='' word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    if [[ $word != -* ]]; then verb=$word; break; fi
  done
  case "$verb:${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
  esac
  if [[ -z $value ]]; then case "$verb" in
{rest}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _popflow popflow
"""


def zsh(found: Mapping[str, Verb]) -> str:
    """Return the script for zsh."""
    values, rest = _cases(found)
    values, rest = (text.replace("words=", "fitting=") for text in (values, rest))
    return f"""# completes popflow in zsh: source <(popflow completion zsh)
_popflow() {{
  local fitting='' value='' verb='' word
  for word in "${{(@)words[2,CURRENT-1]}}"; do
    if [[ $word != -* ]]; then verb=$word; break; fi
  done
  case "$verb:${{words[CURRENT-1]}}" in
{values}
  esac
  if [[ -z $value ]]; then case "$verb" in
{rest}
  esac; fi
  compadd -- ${{=fitting}}
  if [[ -n $verb ]]; then _files; fi
}}
compdef _popflow popflow
"""


def fish(found: Mapping[str, Verb]) -> str:
    """Return the script for fish."""
    lines = ["# completes popflow in fish: popflow completion fish > ~/.config/fish/completions/popflow.fish"]
    for name, verb in found.items():
        about = verb.summary.replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"complete -c popflow -f -n __fish_use_subcommand -a {name} -d '{about}'")
        seen = f"complete -c popflow -n '__fish_seen_subcommand_from {name}'"
        if verb.words:
            lines.append(f"{seen} -f -a '{' '.join(verb.words)}'")
        for option, words in verb.options.items():
            flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            lines.append(f"{seen} {flag}" + ("" if words is None else f" -x -a '{' '.join(words)}'" if words else " -r"))
    return "\n".join(lines) + "\n"


SCRIPTS: Mapping[Shell, Callable[[Mapping[str, Verb]], str]] = {Shell.bash: bash, Shell.zsh: zsh, Shell.fish: fish}
