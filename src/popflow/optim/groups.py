"""Which layers of a parameter group share a bucket, with which structures, and what is left to the fallback."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from popflow.optim.auto import Auto
from popflow.optim.capture import Layer
from popflow.optim.kronecker import Side
from popflow.optim.layer_batch import Bucket, Heard, factor_dtype
from popflow.optim.options import check
from popflow.optim.structures.structure import Structure


def listed(params: Iterable[Any]) -> list[Any]:
    """Parameters, or groups of them, with every iterator made a list: they are read more than once.

    >>> listed([{"params": iter((1, 2)), "lr": 0.1}])
    [{'params': [1, 2], 'lr': 0.1}]
    """
    groups = list(params)
    return [
        entry | {"params": [given] if isinstance(given := entry["params"], Tensor) else list(given)} if isinstance(entry, dict) else entry
        for entry in groups
    ]


def buckets_of(
    group: dict[str, Any], layers: Sequence[Layer], names: Mapping[Tensor, str], dtype: torch.dtype | None
) -> tuple[list[Bucket], list[Tensor]]:
    """Return the buckets of a group of parameters, and the parameters that no layer of it holds.

    Raises:
        TypeError: complex or sparse parameters, something that is no structure.
        ValueError: a number out of its range, parameters that are not the model's, one layer split over groups.
    """
    check(group)
    for parameter in group["params"]:
        name = names.get(parameter)
        if name is None:
            shape = tuple(parameter.shape)
            raise ValueError(f"params: one of shape {shape} is not a parameter of the model. Fix: give the model that holds it.")
        if parameter.is_complex() or parameter.layout != torch.strided:
            kind = "complex" if parameter.is_complex() else "sparse"
            raise TypeError(
                f"parameter {name!r} is {kind}, wanted real and dense. Fix: leave it out of params and give it to another optimiser."
            )
    members = set(group["params"])
    mine = []
    for layer in layers:
        inside = [parameter in members for parameter in layer.parameters()]
        if any(inside) and not all(inside):
            raise ValueError(
                f"layer {layer.name!r} is split over parameter groups: its weight and bias have one curvature. Fix: put both into one group, "
                f"or name it in fallback=[{layer.name!r}]."
            )
        if all(inside):
            mine.append(layer)
    taken = {parameter for layer in mine for parameter in layer.parameters()}
    rest = [parameter for parameter in group["params"] if parameter not in taken]
    shapes: dict[Any, list[tuple[Layer, Structure, Structure]]] = {}
    for layer, (k, c) in zip(mine, _structures(group, mine, rest), strict=True):
        key = (layer.d, layer.p, layer.bias is None, layer.weight.dtype, layer.weight.device, repr(k), repr(c))
        shapes.setdefault(key, []).append((layer, k, c))
    return [_bucket(group, same, dtype) for same in shapes.values()], rest


def _structures(group: dict[str, Any], layers: list[Layer], rest: list[Tensor]) -> list[tuple[Structure, Structure]]:
    chosen = Auto() if group["structure"] == "auto" else group["structure"]
    if isinstance(chosen, Auto):
        shapes = [(layer.blocks, layer.d, layer.inputs) for layer in layers]
        kept = sum(parameter.numel() for parameter in rest) * 2
        return chosen.choose(shapes, kept, momentum=group["momentum"] > 0, factor_momentum=group["alpha1"] > 0)
    pair = chosen if isinstance(chosen, tuple) else (chosen, chosen)
    if len(pair) != 2 or any(not isinstance(one, Structure) or isinstance(one, type) for one in pair):
        where = f" for layer {layers[0].name!r}" if layers else ""
        raise TypeError(
            f"structure={chosen!r}{where} is unknown: wanted an object such as Dense(), Diagonal(), BlockDiagonal(30), Hierarchical(15, 15), "
            "LowerToeplitz(), a pair (inputs, outputs) of them, Auto() or 'auto'."
        )
    return [pair] * len(layers)


def _bucket(group: dict[str, Any], same: list[tuple[Layer, Structure, Structure]], dtype: torch.dtype | None) -> Bucket:
    layers = [layer for layer, _, _ in same]
    first, s_k, s_c = same[0]
    batch = sum(layer.blocks for layer in layers)
    like = torch.empty(0, dtype=factor_dtype(first.weight, dtype), device=first.weight.device)
    k = Side.identity(s_k, first.inputs, batch, like, group["alpha1"] > 0)
    c = Side.identity(s_c, first.d, batch, like, group["alpha1"] > 0)
    return Bucket(group, layers, k, c, None, [False] * batch, [Heard() for _ in layers])


def stand_ins(params: list[Any] | None, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors given by name that are not the model's own."""
    given = [one for entry in params or () for one in (entry["params"] if isinstance(entry, dict) else [entry])]
    mine = set(own.values())  # named parameters of a part of the model are not stand-ins
    standing = {one[0]: one[1] for one in given if isinstance(one, tuple) and one[0] in own and one[1] not in mine}
    for name, tensor in standing.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"params: {name!r} has shape {tuple(tensor.shape)}, the model's has {tuple(own[name].shape)}. Fix: give the model that it is of."
            )
    return standing


def put_in(layers: Iterable[Layer], by: Mapping[Tensor, Tensor]) -> None:
    """Put the given tensors in place of a layer's weight and bias."""
    for layer in layers:
        standing: Any = [by.get(parameter, parameter) for parameter in layer.parameters()]
        layer.standing = layer.weight in by
        layer.weight, layer.bias = standing if len(standing) == 2 else (*standing, None)


def named(layer: Layer, names: Mapping[Tensor, str], fallback: Collection[str]) -> bool:
    """Whether a layer, a module around it or a parameter of it is among the names."""
    own = {layer.name, *(names.get(parameter, "") for parameter in layer.parameters())}
    return any(name in own or layer.name.startswith(f"{name}.") for name in fallback)
