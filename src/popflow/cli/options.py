"""Options that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output; all else goes to standard error.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Run directory. Default: runs/JOB-DIGEST, so that the same command goes on with the same run."
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="JSON of the settings, such as config.json of a run; options given here win."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of all randomness.", show_default="0")]
Where = Annotated[Device, typer.Option("--device", help="Where to compute; auto takes a GPU when there is one.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
