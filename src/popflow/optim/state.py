"""The state of SINGD as tensors and plain numbers, keyed by parameter names: out of the optimiser and back in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from popflow.optim.layer_batch import LayerBatch, momentum_dtype
from popflow.optim.layers import Layer
from popflow.optim.preconditioner import Preconditioner

Fallback = Iterable[torch.optim.AdamW | None]
Groups = Sequence[dict[str, Any]]


def pack(of: Preconditioner, fallback: Fallback, groups: Groups) -> dict[str, Any]:
    """Return ``{"state": {parameter name: {key: tensor}}, "param_groups": [plain numbers and names]}``; counters have the name ``""``."""
    state: dict[str, dict[str, Tensor]] = {}
    for batch in of.batches:
        for layer, members in zip(batch.layers, batch.slices, strict=True):
            entry = state.setdefault(of.names[layer.weight], {})
            for key, tensor in batch.stored():
                entry[_key(layer, key)] = tensor[members].clone()
            entry[_key(layer, "started")] = torch.tensor(batch.started[members])
            if batch.weight:
                entry[_key(layer, "sizes")] = torch.tensor([[batch.weight, size] for size in batch.sizes[members]], dtype=torch.float64)
    for adamw in filter(None, fallback):
        for parameter, values in adamw.state.items():
            state[of.names[parameter]] = {key: value.clone() for key, value in values.items()}
    next_refresh = -1 if of.next_refresh == math.inf else of.next_refresh
    state[""] = {"counters": torch.tensor([of.steps, of.refreshes, next_refresh, of.skipped, of.gap])}
    if of.rounding is not None:
        state[""]["rounding"] = of.rounding.get_state()
    plain = (int, float, bool, type(None))
    saved = [
        {key: value for key, value in group.items() if isinstance(value, plain)} | {"params": [of.names[p] for p in group["params"]]}
        for group in groups
    ]
    return {"state": state, "param_groups": saved}


def unpack(of: Preconditioner, fallback: Fallback, groups: Groups, state_dict: Mapping[str, Any]) -> None:
    """Restore what `pack` returned; the given mapping is not changed.

    Raises:
        ValueError: when names or shapes differ from this optimiser's: the model or the structures are not the same.
    """
    if not {"state", "param_groups"} <= set(state_dict) or "counters" not in state_dict["state"].get("", {}):
        raise ValueError(
            f"state_dict: {sorted(state_dict)} with no counters, wanted 'state' and 'param_groups'. Fix: give everything that SINGD.state_dict() returned."
        )
    state, saved_groups = state_dict["state"], state_dict["param_groups"]
    names = [[of.names[p] for p in group["params"]] for group in groups]
    if [list(group["params"]) for group in saved_groups] != names:
        raise ValueError(
            "state_dict: the parameter groups hold other parameters than this optimiser's. Fix: build it for the same model and groups."
        )
    found = [_found(batch, {layer.weight: of.names[layer.weight] for layer in batch.layers}, state) for batch in of.batches]
    for batch, (momentum, tensors, started, sizes) in zip(of.batches, found, strict=True):  # everything fits: nothing is left half loaded
        batch.momentum, batch.started, batch.metrics = momentum, started, [None, None]
        batch.weight, batch.sizes = (sizes[0][0], [size for _, size in sizes]) if sizes else (0.0, [])
        for tensor, value in tensors:
            tensor.copy_(value)
    for group, saved in zip(groups, saved_groups, strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    for adamw in filter(None, fallback):
        adamw.state.clear()
        for p in adamw.param_groups[0]["params"]:
            values = state.get(of.names[p])
            if values:
                adamw.state[p] = {k: v.clone() if k == "step" else v.to(p.device, p.dtype, copy=True) for k, v in values.items()}
    of.steps, of.refreshes, next_refresh, of.skipped, of.gap = state[""]["counters"].tolist()
    of.next_refresh = math.inf if next_refresh < 0 else next_refresh
    rounding = state[""].get("rounding")
    if of.rounding is not None and rounding is not None and rounding.numel() == of.rounding.get_state().numel():
        of.rounding.set_state(rounding.cpu())  # a generator of another kind of device has another state and cannot be continued
    of.forget()
    if of.tap is not None:
        of.tap.armed = of.due


def _found(
    batch: LayerBatch, names: Mapping[Tensor, str], state: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Tensor | None, list[tuple[Tensor, Tensor]], list[bool], list[list[float]]]:
    """Find what a batch is to hold: its momentum, each of its tensors with the saved one, which members have started, their sizes."""
    first, momentum = batch.layers[0], None
    if _key(first, "momentum") in state.get(names[first.weight], {}):
        shape, dtype = (len(batch.started), first.d, first.inputs), momentum_dtype(first.weight)
        momentum = first.weight.new_empty(shape, dtype=dtype) if batch.momentum is None else batch.momentum
    pairs, started, sizes = [], list(batch.started), []
    wanted = [(key, tensor) for key, tensor in batch.stored() if key != "momentum"]
    for layer, members in zip(batch.layers, batch.slices, strict=True):
        name = names[layer.weight]
        if _key(layer, "started") not in state.get(name, {}):
            raise ValueError(f"state_dict: no entry for {name!r}. Fix: load the state of an optimiser for the same model and structures.")
        for key, tensor in wanted if momentum is None else [*wanted, ("momentum", momentum)]:
            value, here = state.get(name, {}).get(_key(layer, key)), tensor[members]
            if value is None or value.shape != here.shape:
                seen = "nothing" if value is None else f"shape {tuple(value.shape)}"
                raise ValueError(
                    f"state_dict: {seen} for {_key(layer, key)!r} of {name!r}, wanted shape {tuple(here.shape)}. "
                    "Fix: use the structures, alpha1 and momentum of the optimiser that was saved."
                )
            pairs.append((here, value))
        started[members] = state[name][_key(layer, "started")].tolist()
        sizes += state[name][_key(layer, "sizes")].tolist() if _key(layer, "sizes") in state[name] else []
    return momentum, pairs, started, sizes


def _key(layer: Layer, key: str) -> str:
    return key if layer.whole else f"rows{layer.start}.{key}"
