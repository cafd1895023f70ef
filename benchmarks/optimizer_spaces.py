"""Where the settings of each optimiser are looked for: one quasi-random sequence, as many points for every optimiser.

A space is a cube: each number has a range, by the logarithm where its size is what matters, and a point of a scrambled Sobol sequence picks all of
them at once. Ranges are wide, and the same wherever two optimisers share a number:

- step sizes in units of AdamW's (AdamW, SINGD, Muon, SOAP, KL-SOAP, KL-Shampoo, Kron; singd's default is the same number) span three decades up from AdamW's default of
  0.001, since runs are short. Averages of the gradient are as long as a run (1 - beta = 0.05) or absent (1), averages of its square from 1000 steps
  (the default) to 3; heavy-ball momentum lies between 0 and its default 0.9;
- KFAC's steps are natural ones: heavy-ball momentum repeats them ``1 / (1 - momentum)`` times, so ``whole = lr / (1 - momentum)`` is looked for around
  Newton's 1, from 0.1 to 2; ``kl_clip`` from a tenth of its default 1e-3 to a hundred times;
- ``damping`` within two decades of SINGD's default 1e-4, ``lr_cov`` (KFAC: 1 - decay) from 0.3 to 0.9, since averages longer than a few refreshes
  never fill in tens of steps; the factors are refreshed at step k after ``1 + growth k`` steps, from always (0.03) to at every doubling (1). The
  curvature is that of the loss's own gradients (``share = 0``), or of sampled ones on all of a batch (1) or on a quarter of it (0.25); SINGD looks at
  128 to 2048 rows of a layer;
- what is not preconditioned (embeddings, normalisation) is moved by AdamW: at SINGD's and Muon's own ``lr``, which is in its units, and at a rate of
  its own beside KFAC and singd.

Everything else is as each optimiser has it by default: SINGD's factors are dense, and its steps measured as Adam measures its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from optimizer_peers import KFAC, Make, Spring, adamw, heavy, kron, muon, reference, soap
from optimizer_tasks import Task

from popflow.optim import SINGD

Range = Callable[[float], Any]
"""From a number in [0, 1) to a value."""


def log(low: float, high: float) -> Range:
    return lambda u: low * (high / low) ** u


def even(low: float, high: float) -> Range:
    return lambda u: low + (high - low) * u


def one_of(*values: Any) -> Range:
    return lambda u: values[int(u * len(values))]


RATE, AVERAGE, SQUARES = log(1e-3, 1.0), log(0.05, 1.0), log(1e-3, 0.3)
MOMENTUM, DAMPING, FALLBACK = even(0.0, 0.9), log(1e-6, 1e-2), log(3e-3, 1e-1)
CURVATURE: dict[str, Range] = {"damping": DAMPING, "lr_cov": even(0.3, 0.9), "growth": log(0.03, 1.0)}
SPACES: dict[str, dict[str, Range]] = {
    "AdamW": {"lr": RATE, "forget": AVERAGE, "forget_squares": SQUARES},
    "SINGD": {"lr": RATE, "momentum": MOMENTUM} | CURVATURE | {"max_rows": lambda u: round(128 * 16**u)},
    "KFAC": {"whole": log(0.1, 2.0), "momentum": MOMENTUM, "kl_clip": log(1e-4, 1e-1)} | CURVATURE | {"fallback_lr": FALLBACK},
    "SPRING": {"lr": log(0.05, 1.0), "damping": log(1e-6, 1.0), "decay": even(0.0, 0.99), "norm_bound": log(1e-3, 10.0)},
    "Muon": {"lr": RATE, "forget": AVERAGE},
    "singd": {
        "lr": RATE,
        "momentum": MOMENTUM,
        "damping": DAMPING,
        "lr_cov": log(0.01, 0.9),
        "normalize_lr_cov": one_of(False, True),
        "interval": one_of(1, 2, 4, 8),
        "fallback_lr": FALLBACK,
    },
    "SOAP": {"lr": RATE, "forget": AVERAGE, "forget_squares": SQUARES, "frequency": one_of(1, 2, 5, 10)},
    "KL-SOAP": {"lr": RATE, "forget": AVERAGE, "forget_squares": SQUARES, "frequency": one_of(1, 2, 5, 10)},
    "KL-Shampoo": {"lr": RATE, "forget": AVERAGE, "forget_squares": SQUARES, "frequency": one_of(1, 2, 5, 10)},
    "Kron": {"lr": RATE, "forget": AVERAGE, "probability": log(0.1, 1.0)},
}


def settings(kind: str, task: Task, count: int) -> list[dict[str, Any]]:
    """``count`` points of the space of an optimiser, the same at every call; numbers to four digits."""
    space = dict(SPACES[kind])
    if kind in ("SINGD", "KFAC"):
        space["share"] = one_of(0.0, 1.0) if task.coupled else one_of(0.0, 0.25, 1.0)
    points = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=0).draw(count).clamp(max=math.nextafter(1.0, 0.0))
    chosen = [{name: pick(u) for (name, pick), u in zip(space.items(), point, strict=True)} for point in points.double().tolist()]
    return [{name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in one.items()} for one in chosen]


def competitor(kind: str, task: Task, setting: dict[str, Any]) -> tuple[Task, Make]:
    """Return the task, with the curvature that the setting asks for, and what makes the optimiser."""
    given = dict(setting)
    if kind not in ("SINGD", "KFAC"):
        return task, partial(MAKES[kind], **given)
    share, growth = given.pop("share"), given.pop("growth")
    given |= {"interval": lambda k: 1 + int(growth * k), "listen": share == 0, "averaging": task.averaging}
    if kind == "SINGD":
        given["fallback_lr"] = None
    else:
        given |= {"lr": given.pop("whole") * (1 - given["momentum"]), "decay": 1 - given.pop("lr_cov")}
    return replace(task, share=share or 1.0), partial(MAKES[kind], **given)


MAKES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda model, lr, forget, forget_squares: adamw(model, lr, (1 - forget, 1 - forget_squares)),
    "SINGD": SINGD,
    "KFAC": KFAC,
    "SPRING": Spring,
    "Muon": lambda model, lr, forget: muon(model, lr, momentum=1 - forget),
    "singd": partial(reference, alpha1=0.0),
    "SOAP": lambda model, lr, forget, forget_squares, frequency: soap(model, lr, (1 - forget, 1 - forget_squares), frequency),
    "KL-SOAP": lambda model, lr, forget, forget_squares, frequency: heavy("KLSOAP", model, lr, (1 - forget, 1 - forget_squares), frequency),
    "KL-Shampoo": lambda model, lr, forget, forget_squares, frequency: heavy(
        "KLShampoo", model, lr, (1 - forget, 1 - forget_squares), frequency
    ),
    "Kron": lambda model, lr, forget, probability: kron(model, lr, momentum=1 - forget, pre_conditioner_update_probability=probability),
}
