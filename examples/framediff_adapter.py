"""Make an expert of a network of the kind of FrameDiff: scores of rotations and translations of a whole protein backbone, on its own schedules.

    python examples/framediff_adapter.py [--weights paper_weights.pth] [--residues 8] [--steps 40]

Conventions of the published model: lengths are scaled by 0.1; translations are noised by the variance-preserving process (beta 0.1 to 20), rotations by
Brownian motion of standard deviation ``sigma_r(t) = log(t e^{1.5} + (1 - t) e^{0.1})``, t from 0.01 to 1; translations have no centre of mass; rotations
start at Brownian motion from the identity. On the common level ``sigma = s/alpha`` in angstroms both are clocks of a `ProductSpace`.

This is the adapter alone: neither the network (invariant point attention) nor its weights are included, and designability was not measured. Without
a network of yours, the script samples the exact scores of one backbone. A network with self-conditioning must take its first prediction inside the
call, so that its score is a function of the point, as weights and tracked densities need.

Source: Yim et al., *SE(3) diffusion model with application to protein backbone generation*, ICML 2023, arXiv:2302.02277.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from popflow.compose import VP, CentredParticles, Expert, ProductSpace, Proportional, Rotations, feynman_kac, from_scores, levels_of, sample
from popflow.compose.spaces.igso3 import igso3_kernels, igso3_score
from popflow.compose.spaces.so3 import from_quaternion
from popflow.core import CheckpointError, Streams

SCALE = 0.1
"""Network units of length per angstrom."""
_SCHEDULE = VP(0.1, 20.0)
_CONFIGURATION = (
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
    ("omegaconf.nodes", "AnyNode"),
    ("typing", "Any"),
    ("collections", "defaultdict"),
    ("builtins", "dict"),
    ("builtins", "list"),
    ("builtins", "int"),
)  # what the configuration beside the published weights is made of; all of it data


class FrameNetwork(Protocol):
    """``network(rotations [rows, L, 3, 3], x [rows, L, 3], t [rows], mask [rows, L]) -> (rotation scores, translation scores)``, each ``[rows, L, 3]``.

    Rotation scores in the body frame (right multiplication), translation scores the gradient by the scaled and noised ``x``.
    """

    def __call__(self, rotations: Tensor, x: Tensor, t: Tensor, mask: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the scores at time t."""
        ...


def time_of(sigma: float) -> float:
    """Time of the networks at a common noise level in angstroms."""
    return float(_SCHEDULE.time(sigma * SCALE))


@dataclass(frozen=True)
class RotationClock:
    """Noise level of the rotations, ``log(t e^high + (1 - t) e^low)``, at the time of a common level."""

    low: float = 0.1
    high: float = 1.5

    def __call__(self, sigma: float) -> float:
        """Return the standard deviation in radians."""
        t = time_of(sigma)
        return math.log(t * math.exp(self.high) + (1 - t) * math.exp(self.low))


def framediff_levels(steps: int, last: float = 0.01) -> Tensor:
    """Common noise levels equally spaced in the networks' time, from 1 to ``last``; in angstroms."""
    return levels_of(_SCHEDULE, steps, 1.0, last) / SCALE


def framediff_space(residues: int, clock: RotationClock = RotationClock()) -> ProductSpace:
    """The space of backbones of so many residues; experts of different clocks do not compose."""
    return ProductSpace((Rotations(residues, uniform=False), CentredParticles(residues)), (clock, Proportional()))


def framediff_expert(
    network: FrameNetwork,
    residues: int,
    mask: Tensor | None = None,
    *,
    clock: RotationClock = RotationClock(),
    name: str = "framediff",
    chunk: int | None = None,
) -> Expert:
    """Make an expert of a network of frames; points are vectors of `framediff_space`, translations in angstroms.

    Args:
        network: See `FrameNetwork`; a module is switched to evaluation by its owner.
        residues: L.
        mask: ``[L]``, 1 where a residue is there; scores elsewhere are zero. None for all.
        clock: Schedule of the rotations.
        name: What errors and reports call it.
        chunk: Rows in one call of the network.

    Raises:
        ValueError: for a mask of another shape, or scores that are not ``[rows, L, 3]``.
    """
    present = torch.ones(residues) if mask is None else mask
    if tuple(present.shape) != (residues,):
        raise ValueError(f"mask has shape {tuple(present.shape)}, wanted ({residues},): one number for each residue.")

    def score(parts: Sequence[Tensor], levels: Sequence[float]) -> Sequence[Tensor]:
        rotations, y = parts
        alpha = SCALE * float(_SCHEDULE.alpha(levels[1] * SCALE))
        seen = present.to(y).expand(len(y), residues)
        turn, push = network(rotations, alpha * y, y.new_full((len(y),), time_of(levels[1])), seen)
        if turn.shape != y.shape or push.shape != y.shape:
            raise ValueError(f"the network returned shapes {tuple(turn.shape)} and {tuple(push.shape)}, wanted {tuple(y.shape)} twice.")
        return seen.unsqueeze(-1) * turn, seen.unsqueeze(-1) * push * alpha

    return from_scores(score, framediff_space(residues, clock), name=name, chunk=chunk)


def published_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a published checkpoint (``paper_weights.pth``: a dictionary with ``model``) without running anything that is in the file.

    The file is a pickle; it is read by torch's restricted loader, which makes tensors, plain containers and the classes of its configuration (omegaconf,
    where that is installed) and refuses everything else.

    Raises:
        CheckpointError: when the file is absent, holds anything else, or no tensors under ``model``.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(
            f"no file {file}: weights of FrameDiff are not part of this library. Fix: download the authors' paper_weights.pth and give its path."
        )
    try:
        with torch.serialization.safe_globals(_allowed()):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that is none, readers raise whatever comes first
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{file} is not a checkpoint of plain tensors: {why} Nothing in it was run. Fix: install omegaconf if its "
            "configuration is what was refused, or take the file of the authors."
        ) from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not model or not all(isinstance(value, Tensor) for value in model.values()):
        raise CheckpointError(f"{file} holds no tensors under 'model', wanted those of a network: give the published checkpoint.")
    return {name.removeprefix("module."): value for name, value in model.items()}


def _allowed() -> list[Any]:
    """The classes of a configuration that can be imported here."""
    found = []
    for module, name in _CONFIGURATION:
        try:
            found.append(getattr(importlib.import_module(module), name))
        except ImportError:  # omegaconf is not installed: its classes stay refused
            continue
    return found


def one_backbone(residues: int, rng: Streams) -> tuple[FrameNetwork, Tensor, Tensor]:
    """Return the exact scores of data that are one random backbone, in the conventions of the network; its rotations; its places in angstroms."""
    f64 = torch.empty(1, residues, 4, dtype=torch.float64)
    turns, places = from_quaternion(rng.normal("turns", f64)), 5 * rng.normal("places", f64[..., :3])
    places = places - places.mean(1, keepdim=True)

    def network(rotations: Tensor, x: Tensor, t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        time = float(t[0])
        sigma = math.log(time * math.exp(1.5) + (1 - time) * math.exp(0.1))
        alpha2 = math.exp(-(time**2) * 19.9 / 2 - time * 0.1)
        _, slope = igso3_kernels(rotations, turns, sigma**2)
        return igso3_score(rotations, turns, slope), -(x - math.sqrt(alpha2) * SCALE * places.to(x)) / (1 - alpha2)

    return network, turns, places


def main() -> None:
    """Sample one backbone through the adapter."""
    parser = argparse.ArgumentParser(description="Sample a FrameDiff-like network as an expert.")
    parser.add_argument("--weights", help="a published checkpoint, to list its tensors")
    parser.add_argument("--residues", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    if options.weights:
        print(f"{len(published_weights(options.weights))} tensors in {options.weights}")
    network, _, places = one_backbone(options.residues, Streams(1))
    expert = framediff_expert(network, options.residues)
    grid = torch.cat([framediff_levels(options.steps), torch.zeros(1, dtype=torch.float64)])
    out = sample(feynman_kac(expert), grid, particles=8, rng=Streams(0), dtype=torch.float64)
    _, sampled = expert.home.split(out.x[0])
    print(
        f"{options.residues} residues, {options.steps} steps: {float((sampled - places).abs().max()):.3f} angstroms from the data at most"
    )


if __name__ == "__main__":
    main()
