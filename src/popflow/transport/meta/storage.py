"""A fitted flow as one file of tensors and plain settings. Nothing is pickled."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.core.errors import CheckpointError
from popflow.core.streams import Streams
from popflow.transport.lagrangian import W2, WFR, Lagrangian
from popflow.transport.meta.field import Field
from popflow.transport.meta.flow import MetaFlow
from popflow.transport.meta.networks import Context, ContextMLP
from popflow.transport.meta.settings import Settings

_KIND = "popflow meta flow"


def save(flow: MetaFlow, path: str | Path) -> Path:
    """Write a fitted flow as safetensors; loaded again it predicts the same bytes.

    Raises:
        ValueError: for a flow that was not fitted, or a Lagrangian with a potential or drift, which are functions.
        CheckpointError: when the file cannot be written.
    """
    field, lagrangian = flow.ready(), flow.lagrangian
    kinetic = None
    if lagrangian is not None:
        if lagrangian.potential is not None or lagrangian.drift is not None:
            raise ValueError("the Lagrangian has a potential or a drift, which are functions and cannot be written. Fix: fit it again.")
        known = isinstance(lagrangian.kinetic, WFR)
        kinetic = [
            lagrangian.noise,
            [lagrangian.kinetic.lam, lagrangian.kinetic.normalized] if isinstance(lagrangian.kinetic, WFR) else known,
        ]
    tensors = {f"context.{name}": value for name, value in field.context.state_dict().items()}
    tensors |= {f"network.{name}": value for name, value in field.network.state_dict().items()}
    for name in ("shift", "scale", "embeddings", "shares"):
        if (value := getattr(field, name)) is not None:
            tensors[name] = value
    about = {
        "kind": _KIND,
        "settings": flow.settings.plain(),
        "lagrangian": kinetic,
        "features": field.features,
        "unit": field.unit,
        "treatments": field.treatments,
        "types": field.type_names,
        "groups": field.groups,
        "labels": field.context.treatments,
    }
    return save_tensors(path, tensors, about)


def load(path: str | Path) -> MetaFlow:
    """Read a flow that `save` wrote; couplings, which only a fit needs, are the default ones.

    Raises:
        CheckpointError: when the file is missing, damaged, or holds something else.
    """
    tensors, about = load_tensors(path)
    if about.get("kind") != _KIND:
        raise CheckpointError(f"{path} does not hold a meta flow, wanted a file that popflow.transport.meta.save wrote.")
    settings, kinetic = Settings.of(about["settings"]), about["lagrangian"]
    flow = MetaFlow(**{name: getattr(settings, name) for name in Settings.__slots__})
    if kinetic is not None:
        noise, growth = kinetic
        flow.lagrangian = Lagrangian(WFR(growth[0], normalized=growth[1]) if growth else W2(), noise=noise)
    shift = tensors["shift"]
    types = len(about["types"]) if settings.see_types else 0
    with Streams(0).layers():  # all parameters are replaced
        context = Context(settings.embed, len(shift), about["labels"] or 1, types, settings.cells, settings.by_example)
        out = None if flow.lagrangian is None else 1
        network = ContextMLP(
            len(shift),
            context.size,
            out=out,
            width=settings.width,
            depth=settings.depth,
            frequencies=settings.frequencies,
            nearby=settings.nearby,
        )
    for part, module in (("context.", context), ("network.", network)):
        _fill(module.to(shift), {name[8:]: value for name, value in tensors.items() if name.startswith(part)}, path)
    flow.field = Field(
        context,
        network,
        flow.lagrangian,
        settings.mean_field,
        shift,
        tensors["scale"],
        tuple(about["features"]),
        about["unit"],
        tuple(about["treatments"]),
        tuple(about["types"]),
        tuple(about["groups"]),
        tensors.get("embeddings"),
        tensors.get("shares"),
    )
    return flow


def _fill(module: nn.Module, state: dict, path: str | Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Fix: give another file, or fit again.") from error
    module.requires_grad_(False)
