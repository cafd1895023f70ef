"""Which layers of a parameter group form a batch, with which structures, and which parameters are left to the fallback."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from popflow.optim.auto import Auto
from popflow.optim.kronecker import Side
from popflow.optim.layer_batch import LayerBatch, factor_dtype
from popflow.optim.layers import UNSEEN, Layer, find_layers
from popflow.optim.options import check
from popflow.optim.structures.structure import Structure


def uncompiled(name: str) -> str:
    """A dotted name without what `torch.compile` adds to it.

    >>> uncompiled("_orig_mod.0._orig_mod.weight")
    '0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def listed(params: Iterable[Any]) -> list[Any]:
    """Return parameters, or groups of them, with iterators turned into lists, since they are read more than once.

    Raises:
        TypeError: for what is neither: a number, for instance, meant as ``lr``.

    >>> listed([{"params": iter((1, 2)), "lr": 0.1}])
    [{'params': [1, 2], 'lr': 0.1}]
    """
    if isinstance(params, Tensor | Mapping | str) or not isinstance(params, Iterable):
        one: Any = params.item() if isinstance(params, Tensor) and params.numel() == 1 else params
        fix = f"lr={one:g})" if isinstance(one, int | float) else "model.parameters()), or leave params out for all of them"
        raise TypeError(f"params is a {type(params).__name__}, wanted parameters or a list of groups of them. Fix: SINGD(model, {fix}.")
    groups = list(params)
    return [
        entry | {"params": [given] if isinstance(given := entry["params"], Tensor) else list(given)} if isinstance(entry, dict) else entry
        for entry in groups
    ]


def batches_of(
    groups: Sequence[dict[str, Any]], layers: Sequence[Layer], names: Mapping[Tensor, str], dtype: torch.dtype | None
) -> tuple[list[LayerBatch], list[list[Tensor]]]:
    """Return the layer batches of groups of parameters, and of each group the parameters that belong to no layer.

    A layer belongs to the group of its weight. Its bias may be in another one, with its own ``lr`` and ``weight_decay``.

    Raises:
        TypeError: complex or sparse parameters, an object that is not a structure.
        ValueError: a number out of its range, parameters that are not the model's, a layer of which only a part is in the groups, or whose weight
            and bias differ in an option of their curvature.
    """
    for group in groups:
        check(group)
        for parameter in group["params"]:
            _refuse_strange(parameter, names)
    home = {parameter: number for number, group in enumerate(groups) for parameter in group["params"]}
    mine: list[list[tuple[Layer, dict[str, Any]]]] = [[] for _ in groups]
    for layer in layers:
        at = [home.get(parameter) for parameter in layer.parameters()]
        if at[0] is None and at[-1] is None:
            continue
        if at[0] is None or at[-1] is None:
            raise ValueError(
                f"layer {layer.name!r} is split over parameter groups: its {'bias' if at[0] is None else 'weight'} is in one of those given, the "
                f"{'weight' if at[0] is None else 'bias'} is not. Fix: give both at once, or name it in fallback=[{layer.name!r}]."
            )
        _refuse_two_curvatures(layer, groups[at[0]], groups[at[-1]])
        mine[at[0]].append((layer, groups[at[-1]]))
    taken = {parameter for own in mine for layer, _ in own for parameter in layer.parameters()}
    rests = [[parameter for parameter in group["params"] if parameter not in taken] for group in groups]
    batches: list[LayerBatch] = []
    for group, own, rest in zip(groups, mine, rests, strict=True):
        shapes: dict[Any, list[tuple[Layer, dict[str, Any], Structure, Structure]]] = {}
        for (layer, bias_group), (k, c) in zip(own, _structures(group, [layer for layer, _ in own], rest), strict=True):
            like = (layer.d, layer.p, layer.bias is None, layer.weight.dtype, layer.weight.device, layer.reversed)
            shapes.setdefault((*like, repr(k), repr(c), id(bias_group)), []).append((layer, bias_group, k, c))
        batches += [_batch(group, same, dtype) for same in shapes.values()]
    return batches, rests


def _refuse_strange(parameter: Tensor, names: Mapping[Tensor, str]) -> None:
    name = names.get(parameter)
    if name is None:
        shape = tuple(parameter.shape)
        raise ValueError(f"params: one of shape {shape} is not a parameter of the model. Fix: give the model that holds it.")
    if parameter.is_complex() or parameter.layout != torch.strided:
        kind = "complex" if parameter.is_complex() else "sparse"
        raise TypeError(
            f"parameter {name!r} is {kind}, wanted real and dense. Fix: leave it out of params and give it to another optimiser."
        )


SHARED = ("momentum", "damping", "lr_cov", "alpha1", "kl_clip", "update_rms", "structure")
"""Options that weight and bias of a layer have together, since they are one matrix."""


def _refuse_two_curvatures(layer: Layer, weights: Mapping[str, Any], biases: Mapping[str, Any]) -> None:
    for option in SHARED:
        if weights[option] is not biases[option] and weights[option] != biases[option]:
            raise ValueError(
                f"layer {layer.name!r} is split over parameter groups with {option}={weights[option]!r} for its weight and {biases[option]!r} for its bias, "
                f"wanted one: they have one curvature. Fix: give both groups the same {option}, or name the layer in fallback=[{layer.name!r}]."
            )


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


def _batch(group: dict[str, Any], same: list[tuple[Layer, dict[str, Any], Structure, Structure]], dtype: torch.dtype | None) -> LayerBatch:
    layers = [layer for layer, *_ in same]
    first, bias_group, s_k, s_c = same[0]
    batch = sum(layer.blocks for layer in layers)
    like = torch.empty(0, dtype=factor_dtype(first.weight, dtype), device=first.weight.device)
    k = Side.identity(s_k, first.inputs, batch, like, group["alpha1"] > 0)
    c = Side.identity(s_c, first.d, batch, like, group["alpha1"] > 0)
    return LayerBatch(group, layers, k, c, bias_group)


def named_layers(model: nn.Module, params: list[Any] | None, fallback: Collection[str]) -> tuple[list[Layer], dict[Tensor, str]]:
    """List the layers of a model that are to be preconditioned, and the name of each parameter.

    Tensors given by name in ``params`` that are not the model's own stand in for its parameters, in layers and names alike.

    Raises:
        ValueError: a stand-in of another shape, or a name in ``fallback`` that is not in the model.
    """
    own = dict(model.named_parameters())
    plain = {name: uncompiled(name) for name in own}
    given = [one for entry in params or () for one in (entry["params"] if isinstance(entry, dict) else [entry])]
    mine = set(own.values())  # named parameters of a part of the model are not stand-ins
    stand_ins: dict[Tensor, Tensor] = {
        own[one[0]]: one[1] for one in given if isinstance(one, tuple) and one[0] in own and one[1] not in mine
    }
    names = {stand_ins.get(parameter, parameter): plain[name] for name, parameter in own.items()}
    for parameter, tensor in stand_ins.items():
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"params: {names[tensor]!r} has shape {tuple(tensor.shape)}, the model's has {tuple(parameter.shape)}. "
                "Fix: give the model that it belongs to."
            )
    layers = find_layers(model)
    for layer in layers:
        layer.name = uncompiled(layer.name)
        layer.standing = layer.weight in stand_ins
        layer.weight = stand_ins.get(layer.weight, layer.weight)
        layer.bias = None if layer.bias is None else stand_ins.get(layer.bias, layer.bias)
    known = {*plain.values(), *(uncompiled(name) for name, _ in model.named_modules()), *(layer.name for layer in layers)}
    if unknown := sorted(set(fallback) - known):
        raise ValueError(f"fallback names {unknown[0]!r}, which is not a module or parameter of the model. Fix: see model.named_modules().")
    return [layer for layer in layers if not _is_named(layer, names, fallback)], names


def unseen(model: nn.Module, given: Collection[Tensor], fallback: Collection[str]) -> list[str]:
    """List the modules whose matrices are left to the fallback without being named for it, as ``'rnn' (GRU)``."""
    return [
        f"{name!r} ({type(module).__name__})"
        for name, module in ((uncompiled(name), module) for name, module in model.named_modules())
        if isinstance(module, UNSEEN)
        and any(parameter in given for parameter in module.parameters())
        and not any(name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in fallback)
    ]


def _is_named(layer: Layer, names: Mapping[Tensor, str], fallback: Collection[str]) -> bool:
    """Whether a layer, a module around it or a parameter of it is among the names."""
    own = {layer.name, *(names.get(parameter, "") for parameter in layer.parameters())}
    return any(name in own or layer.name.startswith(f"{name}.") for name in fallback)
