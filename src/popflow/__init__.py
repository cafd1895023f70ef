"""Moving, weighing and breeding populations of samples.

    d_t p = -div(p v) + 1/2 sigma^2 lap p + p (g - E[g])

Rooms are loaded when they are used: ``popflow.core`` (populations, rates, steps, the one loop), ``popflow.learn`` (training),
``popflow.compose`` (composition of diffusion models), ``popflow.optim`` (structured natural gradient), ``popflow.circuits`` (binary
networks from a variational circuit), ``popflow.runs`` (run directories and reports).
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

__all__ = ["__version__", "circuits", "compose", "core", "learn", "optim", "runs"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"popflow.{name}")
    raise AttributeError(f"module 'popflow' has no attribute {name!r}: the rooms are {', '.join(__all__[1:])}.")
