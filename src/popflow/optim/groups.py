"""Which layers of a parameter group form a batch, with which structures, and which parameters are left to the fallback."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from popflow.optim.auto import Auto
from popflow.optim.kronecker import Side
from popflow.optim.layer_batch import LayerBatch, factor_dtype
from popflow.optim.layers import Layer, find_layers
from popflow.optim.options import check
from popflow.optim.structures.structure import Structure


def listed(params: Iterable[Any]) -> list[Any]:
    """Return parameters, or groups of them, with iterators turned into lists, since they are read more than once.

    >>> listed([{"params": iter((1, 2)), "lr": 0.1}])
    [{'params': [1, 2], 'lr': 0.1}]
    """
    groups = list(params)
    return [
        entry | {"params": [given] if isinstance(given := entry["params"], Tensor) else list(given)} if isinstance(entry, dict) else entry
        for entry in groups
    ]


def batches_of(
    group: dict[str, Any], layers: Sequence[Layer], names: Mapping[Tensor, str], dtype: torch.dtype | None
) -> tuple[list[LayerBatch], list[Tensor]]:
    """Return the layer batches of a group of parameters, and the parameters that belong to no layer of it.

    Raises:
        TypeError: complex or sparse parameters, an object that is not a structure.
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
    return [_batch(group, same, dtype) for same in shapes.values()], rest


def _structures(group: dict[str, Any], layers: list[Layer], rest: list[Tensor]) -> list[tuple[Structure, Structure]]:
    chosen = Auto() if group["structure"] == "auto" else group["structure"]
    if isinstance(chosen, Auto):
        shapes = [(layer.blocks, layer.d, layer.inputs) for layer in layers]
        kept = sum(parameter.numel() for parameter in rest) * 2
        return chosen.choose(shapes, kept, momentum=group["momentum"] > 0, factor_momentum=group["alpha1"] > 0)
    pair = chosen if isinstance(chosen, tuple) else (chosen, chosen)
    if len(pair) != 2 or not all(isinstance(one, Structure) for one in pair):
        where = f" for layer {layers[0].name!r}" if layers else ""
        raise TypeError(
            f"structure={chosen!r}{where} is unknown: wanted an object such as Dense(), Diagonal(), BlockDiagonal(30), Hierarchical(15, 15), "
            "LowerToeplitz(), a pair (inputs, outputs) of them, Auto() or 'auto'."
        )
    return [pair] * len(layers)


def _batch(group: dict[str, Any], same: list[tuple[Layer, Structure, Structure]], dtype: torch.dtype | None) -> LayerBatch:
    layers = [layer for layer, _, _ in same]
    first, s_k, s_c = same[0]
    batch = sum(layer.blocks for layer in layers)
    like = torch.empty(0, dtype=factor_dtype(first.weight, dtype), device=first.weight.device)
    k = Side.identity(s_k, first.inputs, batch, like, group["alpha1"] > 0)
    c = Side.identity(s_c, first.d, batch, like, group["alpha1"] > 0)
    return LayerBatch(group, layers, k, c)


def named_layers(model: nn.Module, params: list[Any] | None, fallback: Collection[str]) -> tuple[list[Layer], dict[Tensor, str]]:
    """List the layers of a model that are to be preconditioned, and the name of each parameter.

    Tensors given by name in ``params`` that are not the model's own stand in for its parameters, in layers and names alike.

    Raises:
        ValueError: a stand-in of another shape, or a name in ``fallback`` that is not in the model.
    """
    own = dict(model.named_parameters())
    given = [one for entry in params or () for one in (entry["params"] if isinstance(entry, dict) else [entry])]
    mine = set(own.values())  # named parameters of a part of the model are not stand-ins
    stand_ins: dict[Tensor, Tensor] = {
        own[one[0]]: one[1] for one in given if isinstance(one, tuple) and one[0] in own and one[1] not in mine
    }
    names = {stand_ins.get(parameter, parameter): name for name, parameter in own.items()}
    for parameter, tensor in stand_ins.items():
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"params: {names[tensor]!r} has shape {tuple(tensor.shape)}, the model's has {tuple(parameter.shape)}. "
                "Fix: give the model that it belongs to."
            )
    layers = find_layers(model)
    for layer in layers:
        layer.standing = layer.weight in stand_ins
        layer.weight = stand_ins.get(layer.weight, layer.weight)
        layer.bias = None if layer.bias is None else stand_ins.get(layer.bias, layer.bias)
    known = {*own, *(name for name, _ in model.named_modules()), *(layer.name for layer in layers)}
    if unknown := sorted(set(fallback) - known):
        raise ValueError(f"fallback names {unknown[0]!r}, which is not a module or parameter of the model. Fix: see model.named_modules().")
    return [layer for layer in layers if not _is_named(layer, names, fallback)], names


def _is_named(layer: Layer, names: Mapping[Tensor, str], fallback: Collection[str]) -> bool:
    """Whether a layer, a module around it or a parameter of it is among the names."""
    own = {layer.name, *(names.get(parameter, "") for parameter in layer.parameters())}
    return any(name in own or layer.name.startswith(f"{name}.") for name in fallback)
