"""What SINGD does not take, said by name: replicas, sparse gradients, layers that were never heard."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from popflow.optim.layer_batch import Bucket, Taken


def check_model(model: Any) -> None:
    """Raise TypeError for what is no module, and for replicas anywhere inside: their calls are not those of the layers listened to."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}, wanted the nn.Module itself, whose layers are listened to. Fix: SINGD(model, ...)."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel):
            where = f"module {name!r}" if name else "model"
            raise TypeError(
                f"{where} is nn.DataParallel, whose replicas are not listened to. Fix: use DistributedDataParallel, or the bare module."
            )


def check_function(name: str, value: Any, fix: str) -> None:
    """Raise TypeError for what cannot be called.

    >>> check_function("sharing", "reduce", "popflow.optim.expand or reduce")
    Traceback (most recent call last):
    TypeError: sharing='reduce', wanted a function. Fix: popflow.optim.expand or reduce.
    """
    if not callable(value):
        raise TypeError(f"{name}={value!r}, wanted a function. Fix: {fix}.")


def check_factor_dtype(dtype: Any) -> None:
    """Raise TypeError unless None or a dtype with the range that factors need (entries reach ``damping^-1/2`` times the ratio of both sides)."""
    if dtype is not None and dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise TypeError(
            f"factor_dtype={dtype!r}, wanted torch.float32, torch.float64 or torch.bfloat16. Fix: torch.bfloat16 for half, or None."
        )


def check_gradients(names: Mapping[Tensor, str]) -> None:
    """Raise TypeError for a sparse gradient, before anything has moved."""
    for parameter, name in names.items():
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise TypeError(
                f"parameter {name!r} has a sparse gradient, wanted a dense one. Fix: sparse=False in its embedding, or leave it out of params and "
                "give it to another optimiser."
            )


def warn_of_unheard(told: Iterable[tuple[Bucket, Taken]], stacklevel: int) -> bool:
    """Warn of the first layer that has a gradient and was never heard (its factors are the identity); say whether there is one."""
    for bucket, taken in told:
        if all(taken.present):
            continue
        for layer, members, there in zip(bucket.layers, bucket.slices, taken.present, strict=True):
            gradient = layer.weight.grad
            if there or any(bucket.started[members]) or gradient is None or not layer.view(gradient).any():
                continue
            warnings.warn(
                f"layer {layer.name!r} has a gradient but was never heard, so it moves without curvature (said once). Fix: put it into training "
                f"mode, call the module and not a function of its weight, or name it in fallback=[{layer.name!r}].",
                RuntimeWarning,
                stacklevel=stacklevel + 1,
            )
            return True
    return False
