"""The state of SINGD as tensors and plain numbers, keyed by parameter names: out of the optimiser and back in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from popflow.optim.capture import Layer
from popflow.optim.layer_batch import Bucket, momentum_dtype

if TYPE_CHECKING:
    from popflow.optim.singd import SINGD


def pack(optimizer: SINGD) -> dict[str, Any]:
    """Return ``{"state": {parameter name: {key: tensor}}, "param_groups": [plain numbers and names]}``; counters have the name ``""``."""
    state: dict[str, dict[str, Tensor]] = {}
    for bucket in optimizer.buckets:
        for layer, members in zip(bucket.layers, bucket.slices, strict=True):
            entry = state.setdefault(optimizer.names[layer.weight], {})
            for key, tensor in bucket.stored():
                entry[_key(layer, key)] = tensor[members].clone()
            entry[_key(layer, "started")] = torch.tensor(bucket.started[members])
            if bucket.weight:
                entry[_key(layer, "sizes")] = torch.tensor([[bucket.weight, size] for size in bucket.sizes[members]], dtype=torch.float64)
    for adamw in filter(None, optimizer.adamw):
        for parameter, values in adamw.state.items():
            state[optimizer.names[parameter]] = {key: value.clone() for key, value in values.items()}
    next_refresh = -1 if optimizer.next_refresh == math.inf else optimizer.next_refresh
    state[""] = {"counters": torch.tensor([optimizer.steps, optimizer.refreshes, next_refresh, optimizer.skipped, optimizer.gap])}
    if optimizer.rounding is not None:
        state[""]["rounding"] = optimizer.rounding.get_state()
    plain = (int, float, bool, type(None))
    groups = [
        {key: value for key, value in group.items() if isinstance(value, plain)} | {"params": [optimizer.names[p] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    return {"state": state, "param_groups": groups}


def unpack(optimizer: SINGD, state_dict: Mapping[str, Any]) -> None:
    """Put back what `pack` returned; the given mapping is not changed.

    Raises:
        ValueError: when names or shapes differ from this optimiser's: the model or the structures are not the same.
    """
    if not {"state", "param_groups"} <= set(state_dict) or "counters" not in state_dict["state"].get("", {}):
        raise ValueError(
            f"state_dict: {sorted(state_dict)} with no counters, wanted 'state' and 'param_groups'. Fix: give all that SINGD.state_dict() returned."
        )
    state, groups = state_dict["state"], state_dict["param_groups"]
    names = [[optimizer.names[p] for p in group["params"]] for group in optimizer.param_groups]
    if [list(group["params"]) for group in groups] != names:
        raise ValueError(
            "state_dict: the parameter groups hold other parameters than this optimiser's. Fix: build it for the same model and groups."
        )
    found = [
        _found(bucket, {layer.weight: optimizer.names[layer.weight] for layer in bucket.layers}, state) for bucket in optimizer.buckets
    ]
    for bucket, (momentum, tensors, started, sizes) in zip(optimizer.buckets, found, strict=True):  # all fits: nothing is loaded by half
        bucket.momentum, bucket.started, bucket.metric = momentum, started, [None, None]
        bucket.weight, bucket.sizes = (sizes[0][0], [size for _, size in sizes]) if sizes else (0.0, [])
        for tensor, value in tensors:
            tensor.copy_(value)
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    for adamw in filter(None, optimizer.adamw):
        adamw.state.clear()
        for p in adamw.param_groups[0]["params"]:
            values = state.get(optimizer.names[p])
            if values:
                adamw.state[p] = {k: v.clone() if k == "step" else v.to(p.device, p.dtype, copy=True) for k, v in values.items()}
    optimizer.steps, optimizer.refreshes, next_refresh, optimizer.skipped, optimizer.gap = state[""]["counters"].tolist()
    optimizer.next_refresh = math.inf if next_refresh < 0 else next_refresh
    rounding = state[""].get("rounding")
    if optimizer.rounding is not None and rounding is not None and rounding.numel() == optimizer.rounding.get_state().numel():
        optimizer.rounding.set_state(rounding.cpu())  # a generator of another kind of device has another state: it cannot go on


def _found(
    bucket: Bucket, names: Mapping[Tensor, str], state: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Tensor | None, list[tuple[Tensor, Tensor]], list[bool], list[list[float]]]:
    """Find what a bucket shall hold: its momentum, each of its tensors with the saved one, which members have started, their sizes."""
    first, momentum = bucket.layers[0], None
    if _key(first, "momentum") in state.get(names[first.weight], {}):
        shape, dtype = (len(bucket.started), first.d, first.inputs), momentum_dtype(first.weight)
        momentum = first.weight.new_empty(shape, dtype=dtype) if bucket.momentum is None else bucket.momentum
    pairs, started, sizes = [], list(bucket.started), []
    wanted = [(key, tensor) for key, tensor in bucket.stored() if key != "momentum"]
    for layer, members in zip(bucket.layers, bucket.slices, strict=True):
        name = names[layer.weight]
        if _key(layer, "started") not in state.get(name, {}):
            raise ValueError(f"state_dict: nothing for {name!r}. Fix: load the state of an optimiser for the same model and structures.")
        for key, tensor in wanted if momentum is None else [*wanted, ("momentum", momentum)]:
            value, here = state.get(name, {}).get(_key(layer, key)), tensor[members]
            if value is None or value.shape != here.shape:
                seen = "nothing" if value is None else f"shape {tuple(value.shape)}"
                raise ValueError(
                    f"state_dict: {seen} for {_key(layer, key)!r} of {name!r}, wanted shape {tuple(here.shape)}. "
                    "Fix: use the structures, alpha1 and momentum that it was saved with."
                )
            pairs.append((here, value))
        started[members] = state[name][_key(layer, "started")].tolist()
        sizes += state[name][_key(layer, "sizes")].tolist() if _key(layer, "sizes") in state[name] else []
    return momentum, pairs, started, sizes


def _key(layer: Layer, key: str) -> str:
    return key if layer.whole else f"rows{layer.start}.{key}"
