"""Oracles from the text of a command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from popflow.core.errors import unknown
from popflow.evolve.oracles.command import Command
from popflow.evolve.oracles.docking import Box, Docking
from popflow.evolve.oracles.pmo import OTHERS, TASKS, Objective
from popflow.runs.user_code import load

Oracle = Callable[[str], float]


def oracle(text: str, box: Box | None = None, exhaustiveness: int = 1, seed: int = 1) -> Oracle:
    """Return the oracle that a text names.

    Args:
        text: The name of an objective ("qed"); "module:function" for a function of Python; "cmd:" and a command; "vina:" and a receptor as PDBQT.
        box: Where a ligand may lie, in angstroms; needed by "vina:".
        exhaustiveness: Of docking.
        seed: Of docking.

    Raises:
        ValueError: for text that names nothing, and as `Command` and `Docking` do.

    Example:
        >>> oracle("qed")
        Objective(name='qed')
        >>> oracle("qedd")
        Traceback (most recent call last):
        ValueError: unknown oracle 'qedd': did you mean 'qed'? Known: ...
    """
    kind, mark, rest = text.partition(":")
    if mark and kind == "cmd":
        return Command(rest.strip())
    if mark and kind == "vina":
        if box is None:
            raise ValueError(f"oracle {text!r} has no box, wanted its center and size, in angstroms.")
        return Docking(rest.strip(), box, exhaustiveness, seed)
    if mark:
        return imported(kind, rest)
    if text not in TASKS and text not in OTHERS:
        raise ValueError(unknown("oracle", text, [*TASKS, *OTHERS, "module:function", "cmd:COMMAND", "vina:RECEPTOR.pdbqt"]))
    return Objective(text)


def imported(module: str, name: str) -> Oracle:
    """Return a function of a module, which may lie in the present folder.

    Raises:
        ValueError: when the module cannot be imported, or has no such function.

    Example:
        >>> imported("math", "sqrt")(9.0)
        3.0
    """
    found = load(f"oracle '{module}:{name}'", module, name)
    if not callable(found):
        raise ValueError(f"oracle '{module}:{name}' is of the type {type(found).__name__}, wanted a function of one SMILES.")
    return cast(Oracle, found)
