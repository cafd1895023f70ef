"""Lower temperatures by Feynman-Kac annealing of a diffusion model (work in progress)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from popflow.compose.particles import icosahedron, lennard_jones, tempered
from popflow.core import Streams
from popflow.core.checkpoint import load_tensors, save_tensors

PARTS = Path(os.environ.get("POPFLOW_PARTS", "runs/annealing"))
LADDER = (0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


def part(name: str, make: Callable[[], tuple[dict[str, Tensor], dict]]) -> tuple[dict[str, Tensor], dict]:
    path = PARTS / f"{name}.safetensors"
    if not path.exists():
        save_tensors(path, *make())
    return load_tensors(path)


def lj13_truth(seed: int, sweeps: int = 6000, burn: int = 600):
    def make() -> tuple[dict[str, Tensor], dict]:
        out = tempered(lennard_jones(13), LADDER, icosahedron(), sweeps=sweeps, burn=burn, keep_every=15, rng=Streams(seed))
        about = {name: getattr(out, name).tolist() for name in ("acceptance", "exchanged", "step_size")}
        tensors = {f"x.{t}": out.at(t).float() for t in (0.8, 1.5, 2.0)} | {f"energy.{t}": out.energies[:, LADDER.index(t)].float() for t in (0.8, 1.5, 2.0)}
        return tensors, about

    return part(f"lj13-truth-{seed}", make)


if __name__ == "__main__":
    if sys.argv[1] == "truth":
        lj13_truth(int(sys.argv[2]))
    if sys.argv[1] == "train":
        def make():
            out = tempered(lennard_jones(13), (2.0,), icosahedron(), sweeps=2400, burn=400, chains=256, keep_every=12, rng=Streams(0))
            return {"x": out.at(2.0).float(), "energy": out.energies[:, 0]}, {"acceptance": out.acceptance.tolist()}
        part("lj13-train", make)
