"""The state of SINGD in torch's form, as tensors and plain numbers alone: out of the optimiser and back in."""

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
Entry = dict[str, Tensor]


def entries(of: Preconditioner, fallback: Fallback, groups: Groups) -> dict[Tensor, Entry]:
    """Return the state of every parameter, in the tensors in use; the first layer's weight also holds the counters."""
    found: dict[Tensor, Entry] = {parameter: {} for group in groups for parameter in group["params"]}
    for batch in of.batches:
        for layer, members in zip(batch.layers, batch.slices, strict=True):
            entry = found[layer.weight]
            entry |= {_key(layer, key): tensor[members] for key, tensor in batch.stored()}
            entry[_key(layer, "started")] = torch.tensor(batch.started[members])
            if batch.weight:
                entry[_key(layer, "sizes")] = torch.tensor([[batch.weight, size] for size in batch.sizes[members]], dtype=torch.float64)
    for adamw in filter(None, fallback):
        for parameter, values in adamw.state.items():
            found[parameter] |= values
    for entry in found.values():
        entry.setdefault("step", torch.tensor(float(of.steps)))
    next_refresh = -1 if of.next_refresh == math.inf else of.next_refresh
    first = found[of.batches[0].layers[0].weight]
    first["counters"] = torch.tensor([of.steps, of.refreshes, int(next_refresh), of.skipped, of.gap])
    if of.rounding is not None:
        first["rounding"] = of.rounding.get_state()
    return found


def pack(of: Preconditioner, fallback: Fallback, groups: Groups) -> dict[str, Any]:
    """Return ``{"state": {number of the parameter: {key: tensor}}, "param_groups": [options, numbers and names of parameters]}``, a copy.

    Of options that are objects or functions there is a text; it is not read back.
    """
    found = entries(of, fallback, groups)
    numbers = {parameter: number for number, parameter in enumerate(found)}
    saved = [
        {key: _plain(value) for key, value in group.items() if key not in ("params", "param_names")}
        | {"params": [numbers[p] for p in group["params"]], "param_names": [of.names[p] for p in group["params"]]}
        for group in groups
    ]
    return {
        "state": {numbers[p]: {key: value.clone() for key, value in entry.items()} for p, entry in found.items()},
        "param_groups": saved,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return value if value is None or isinstance(value, int | float | str) else getattr(value, "__qualname__", repr(value))


def unpack(of: Preconditioner, fallback: Fallback, groups: Groups, state_dict: Mapping[str, Any]) -> None:
    """Restore what `pack` returned, whatever its parameters are called there; the given mapping is not changed.

    Raises:
        ValueError: when names or shapes differ from this optimiser's: the model or the structures are not the same.
    """
    if not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(
            f"state_dict: {sorted(state_dict)}, wanted 'state' and 'param_groups'. Fix: give everything that SINGD.state_dict() returned."
        )
    saved_groups = state_dict["param_groups"]
    for name, saved_names in _named(of, groups, saved_groups):
        if name != saved_names:
            raise ValueError(
                "state_dict: the parameter groups hold other parameters than this optimiser's. Fix: build it for the same model and groups."
            )
    state = {
        p: state_dict["state"].get(number, {})
        for group, saved in zip(groups, saved_groups, strict=True)
        for p, number in zip(group["params"], saved["params"], strict=True)
    }
    first = state[of.batches[0].layers[0].weight]
    if not isinstance(first.get("counters"), Tensor):
        raise ValueError(
            "state_dict: no counters in 'state', wanted them with the first layer. Fix: give everything that SINGD.state_dict() returned."
        )
    found = [_found(batch, of.names, state) for batch in of.batches]
    for batch, (momentum, tensors, started, sizes) in zip(of.batches, found, strict=True):  # everything fits: nothing is left half loaded
        batch.momentum, batch.started, batch.metrics = momentum, started, [None, None]
        batch.weight, batch.sizes = (sizes[0][0], [size for _, size in sizes]) if sizes else (0.0, [])
        for tensor, value in tensors:
            tensor.copy_(value)
    for group, saved in zip(groups, saved_groups, strict=True):
        group.update(
            {key: _copied(value) for key, value in saved.items() if key not in ("params", "param_names") and not isinstance(value, str)}
        )
    for adamw in filter(None, fallback):
        adamw.state.clear()
        for p in adamw.param_groups[0]["params"]:
            values = {key: value for key, value in state[p].items() if isinstance(value, Tensor)}
            if values.keys() > {"step"}:
                adamw.state[p] = {k: v.clone() if k == "step" else v.to(p.device, p.dtype, copy=True) for k, v in values.items()}
    of.steps, of.refreshes, next_refresh, of.skipped, of.gap = first["counters"].tolist()
    of.next_refresh = math.inf if next_refresh < 0 else next_refresh
    rounding = first.get("rounding")
    if of.rounding is not None and isinstance(rounding, Tensor) and rounding.numel() == of.rounding.get_state().numel():
        of.rounding.set_state(rounding.cpu())  # a generator of another kind of device has another state and cannot be continued
    of.forget()
    if of.tap is not None:
        of.tap.armed = of.due


def _named(of: Preconditioner, groups: Groups, saved_groups: Groups) -> Iterable[tuple[Any, Any]]:
    """What must be equal for a state to fit: the number of groups, how many parameters they hold, and their names where the state has them."""
    yield len(groups), len(saved_groups)
    for group, saved in zip(groups, saved_groups, strict=False):
        yield len(group["params"]), len(saved["params"])
        if "param_names" in saved:
            yield [of.names[p] for p in group["params"]], list(saved["param_names"])


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _found(
    batch: LayerBatch, names: Mapping[Tensor, str], state: Mapping[Tensor, Mapping[str, Any]]
) -> tuple[Tensor | None, list[tuple[Tensor, Tensor]], list[bool], list[list[float]]]:
    """Find what a batch is to hold: its momentum, each of its tensors with the saved one, which members have started, their sizes."""
    first, momentum = batch.layers[0], None
    if isinstance(state[first.weight].get(_key(first, "momentum")), Tensor):
        shape, dtype = (len(batch.started), first.d, first.inputs), momentum_dtype(first.weight)
        momentum = first.weight.new_empty(shape, dtype=dtype) if batch.momentum is None else batch.momentum
    pairs, started, sizes = [], list(batch.started), []
    wanted = [(key, tensor) for key, tensor in batch.stored() if key != "momentum"]
    for layer, members in zip(batch.layers, batch.slices, strict=True):
        name, entry = names[layer.weight], state[layer.weight]
        if not isinstance(entry.get(_key(layer, "started")), Tensor):
            raise ValueError(f"state_dict: no entry for {name!r}. Fix: load the state of an optimiser for the same model and structures.")
        for key, tensor in wanted if momentum is None else [*wanted, ("momentum", momentum)]:
            value, here = entry.get(_key(layer, key)), tensor[members]
            if not isinstance(value, Tensor) or value.shape != here.shape:
                seen = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else "nothing"
                raise ValueError(
                    f"state_dict: {seen} for {_key(layer, key)!r} of {name!r}, wanted shape {tuple(here.shape)}. "
                    "Fix: use the structures, alpha1 and momentum of the optimiser that was saved."
                )
            pairs.append((here, value))
        started[members] = entry[_key(layer, "started")].tolist()
        sizes += kept.tolist() if isinstance(kept := entry.get(_key(layer, "sizes")), Tensor) else []
    return momentum, pairs, started, sizes


def _key(layer: Layer, key: str) -> str:
    return key if layer.whole else f"rows{layer.start}.{key}"
