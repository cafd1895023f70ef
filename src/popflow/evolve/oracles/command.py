"""An oracle that is a command of the user's: SMILES in, score out."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass

from popflow.core.checks import real

_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Command:
    """A command that reads one SMILES and prints its score, ``command(smiles) -> value``.

    The SMILES is given on standard input, or in place of ``{}`` if the command has it. It never passes through a shell. The last line
    that the command prints on standard output is the score; what it prints before is ignored.

    Args:
        text: The command as one would type it, such as "python score.py" or "score --smiles {}".
        timeout: Seconds allowed for a call; None for any number.

    Raises:
        ValueError: for an empty command, an unclosed quotation, a program that is not there; by a call, when the last line is no number.
        RuntimeError: by a call, when the command fails; the message ends as its standard error does.
        TimeoutError: by a call that takes too long; the command is ended.

    Example:
        >>> Command("python3 -c 'print(len(input()))'")("CCO")
        3.0
    """

    text: str
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None:
            real(timeout=self.timeout)
            if not 0 < self.timeout < float("inf"):
                raise ValueError(f"timeout={self.timeout!r}, wanted seconds above 0, or None.")
        try:
            words = shlex.split(self.text)
        except ValueError as error:
            raise ValueError(
                f"command {self.text!r} cannot be split into words ({error}), wanted one such as 'python score.py'."
            ) from error
        if not words:
            raise ValueError("command is empty, wanted one such as 'python score.py'.")
        if shutil.which(words[0]) is None:
            raise ValueError(f"command {self.text!r}: there is no program {words[0]!r}. Fix: install it, or give its whole path.")

    def __call__(self, smiles: str) -> float:
        """Return the score that the command prints for one molecule."""
        words = [word.replace("{}", smiles) for word in shlex.split(self.text)]
        try:
            done = subprocess.run(words, input=smiles + "\n", capture_output=True, text=True, timeout=self.timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"command {self.text!r} took more than {self.timeout:g} s for {smiles!r}.") from error
        if done.returncode:
            raise RuntimeError(f"command {self.text!r} ended with {done.returncode} for {smiles!r}: {done.stderr.strip()[-_SHOWN:]}")
        lines = done.stdout.strip().splitlines()
        try:
            return float(lines[-1])
        except (IndexError, ValueError) as error:
            seen = lines[-1][:_SHOWN] if lines else ""
            raise ValueError(f"command {self.text!r} printed {seen!r} last for {smiles!r}, wanted one number.") from error
