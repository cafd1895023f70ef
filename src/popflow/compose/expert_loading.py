"""Load the experts that strings name, and the recipe that suits them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from popflow.compose.expert_spec import ExpertSpec
from popflow.compose.experts import kernel_mixture
from popflow.compose.target import Expert
from popflow.compose.zoo import catalogue
from popflow.compose.zoo.catalogue import OF_DATA, Recipe
from popflow.runs.user_code import load


def load_experts(texts: Sequence[str], device: torch.device | str = "cpu") -> list[Expert]:
    """Return the experts that strings name; a network is loaded once, so that its conditions are evaluated in one call.

    Raises:
        ValueError: as `ExpertSpec.of`; for an unknown name (naming the closest) or label, and for a file or module without an expert.
    """
    loaded: dict[tuple[str, str, str], Expert] = {}

    def load(spec: ExpertSpec) -> Expert:
        label = spec.detail if spec.kind == "zoo" else ""
        key = (spec.kind, spec.name, "" if label else spec.detail)
        if label:
            _check_label(spec)
        if key not in loaded:
            make = {"kernel": _from_file, "python": _from_python}.get(spec.kind)
            loaded[key] = catalogue.load(spec.name, device=device) if make is None else make(spec, device)
        expert = loaded[key]
        if not label:
            return expert
        assert expert.cond is not None
        return expert.given(torch.full_like(expert.cond, int(label)), name=f"{spec.name}:{label}")

    return [load(ExpertSpec.of(text)) for text in texts]


def recipe_of(texts: Sequence[str]) -> Recipe:
    """Return how the named experts are sampled and checked.

    Raises:
        ValueError: for an unknown name, and for experts of different kinds.
    """
    specs = [ExpertSpec.of(text) for text in texts]
    recipes = [catalogue.find(spec.name).recipe if spec.kind == "zoo" else OF_DATA for spec in specs]
    if any(recipe is not recipes[0] for recipe in recipes):
        raise ValueError(
            f"experts {list(texts)} model different things and share no space, wanted experts of one particle system, or of data."
        )
    return recipes[0]


def _check_label(spec: ExpertSpec) -> None:
    labels = catalogue.find(spec.name).labels
    if not labels:
        raise ValueError(f"expert {spec.text!r}: this expert takes no label; drop ':{spec.detail}', or use a class-conditional one.")
    if not spec.detail.isdecimal() or int(spec.detail) >= labels:
        raise ValueError(
            f"expert {spec.text!r}: label {spec.detail!r}, wanted a class number from 0 to {labels - 1} ({labels - 1}: any class)."
        )


def _from_file(spec: ExpertSpec, device: torch.device | str) -> Expert:
    import numpy

    try:
        if spec.name.endswith(".csv"):
            data = numpy.loadtxt(spec.name, delimiter=",", ndmin=2)
        else:
            data = numpy.load(spec.name, allow_pickle=False)
            data = data if isinstance(data, numpy.ndarray) else data[data.files[0]]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(
            f"expert {spec.text!r}: cannot read {spec.name!r} as .npy, .npz or .csv: {str(error).rstrip('.')}. Fix: a .csv "
            "holds numbers and commas only, one sample per line, no header."
        ) from error
    points = torch.as_tensor(data, dtype=torch.float64, device=device)
    if points.ndim < 2 or not points.numel() or not bool(points.isfinite().all()):
        raise ValueError(
            f"expert {spec.text!r}: the array has shape {tuple(points.shape)}, wanted finite samples [N, *event] with at least two axes."
        )
    return kernel_mixture(points, float(spec.detail), name=Path(spec.name).stem)


def _from_python(spec: ExpertSpec, device: torch.device | str) -> Expert:
    """Import an expert; it stays on the device that its module has put it on."""
    expert = load(f"expert {spec.text!r}", spec.name, spec.detail)
    if not isinstance(expert, Expert):
        raise ValueError(f"expert {spec.text!r} is a {type(expert).__name__}, wanted a popflow.compose.Expert.")
    return expert
