"""What SINGD does not accept, each with its fix: replicas, options of the wrong kind, sparse gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from popflow.optim.options import in_range

FACTOR_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16)
"""Those with the range that factors need: entries reach ``damping^-1/2`` times the ratio of both sides."""


def check_model(model: Any) -> nn.Module:
    """Return the module itself, without the DistributedDataParallel or the compiled module around it.

    Raises:
        TypeError: for what is not a module, and for replicas anywhere inside: their calls are not those of the layers that have hooks.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, wanted the nn.Module itself, whose layers get hooks. Fix: SINGD(model, ...).")
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel):
            where = f"module {name!r}" if name else "model"
            raise TypeError(
                f"{where} is nn.DataParallel, whose replicas have no hooks. Fix: use DistributedDataParallel, or the bare module."
            )
    return _bare(model)


def _bare(model: nn.Module) -> nn.Module:
    """The module inside of DistributedDataParallel and `torch.compile`, in any order."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else getattr(model, "_orig_mod", None)
    return _bare(inner) if isinstance(inner, nn.Module) else model


def check_options(*, sharing: Any, averaging: Any, factor_dtype: Any, **numbers: Any) -> None:
    """Raise TypeError for options that are not callable or not a factor dtype, ValueError for integers out of range.

    >>> check_options(sharing="reduce", averaging=None, factor_dtype=None)
    Traceback (most recent call last):
    TypeError: sharing='reduce', wanted a function. Fix: popflow.optim.expand or reduce.
    """
    for name, value in numbers.items():
        in_range(name, value)
    functions = (("sharing", sharing, "expand or reduce"), ("averaging", averaging, "over_data, over_rows or summed"))
    for name, value, fix in functions:
        if not callable(value):
            raise TypeError(f"{name}={value!r}, wanted a function. Fix: popflow.optim.{fix}.")
    if factor_dtype not in FACTOR_DTYPES:
        raise TypeError(
            f"factor_dtype={factor_dtype!r}, wanted torch.float32, torch.float64 or torch.bfloat16. Fix: torch.bfloat16 for half, or None."
        )


def check_gradients(names: Mapping[Tensor, str]) -> None:
    """Raise TypeError for a sparse gradient, before anything has moved."""
    for parameter, name in names.items():
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise TypeError(
                f"parameter {name!r} has a sparse gradient, wanted a dense one. Fix: sparse=False in its embedding, or leave it out of params and "
                "give it to another optimiser."
            )
