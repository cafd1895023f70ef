"""The linear projections inside ``nn.MultiheadAttention``, whose modules are never called themselves."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from popflow.optim.layers import Layer

Note = Callable[[Layer, Tensor, Tensor, Callable[[Tensor], Tensor]], None]
"""Remembers a call of a layer: its inputs, its output, and what turns the gradient of the output into cotangents."""


class AttentionCalls(TorchFunctionMode):
    """Replaces the one function that attention modules call, to record the calls of its linear projections."""

    def __init__(self, note: Note, layers: list[Layer], batch: int):
        super().__init__()
        self.note, self.layers, self.batch = note, layers, batch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.multi_head_attention_forward:
            return _recorded(self, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``F.linear``, recorded where the weight belongs to a layer."""
        output = F.linear(x, weight, bias)
        for layer in self.layers:
            whole = layer.weight
            near = weight.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() and weight.shape[1] == whole.shape[1]
            if not near or not output.requires_grad:  # other parameters may be in the same storage
                continue
            first = layer.start - int(weight.storage_offset() - whole.storage_offset()) // whole.shape[1]
            if 0 <= first < len(weight) and (layer.standing or whole.requires_grad):
                self._note(layer, x, output, first)
        return output

    def _note(self, layer: Layer, x: Tensor, output: Tensor, first: int) -> None:
        def by_datum(t: Tensor) -> Tensor:
            return t.reshape(-1, self.batch, t.shape[-1]).transpose(0, 1).unsqueeze(0)

        self.note(layer, by_datum(x.detach()), output, lambda g: by_datum(g[..., first : first + layer.d]))


def _record(calls: AttentionCalls, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run torch's attention with recorded projections. The graph of a compiled model breaks here: a trace takes the copied function for torch's own."""
    return _with_linear(calls.linear)(*args, **kwargs)


_recorded: Any = torch.compiler.disable(_record)


def _with_linear(linear: Callable) -> Callable:
    """Return a copy of torch's attention function with its own ``linear``; nothing global changes."""
    scope = {**vars(F), "linear": linear}

    def copy(function: Any) -> FunctionType:
        clone = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
        clone.__kwdefaults__ = function.__kwdefaults__
        return clone

    for name in ("_in_projection_packed", "_in_projection"):
        scope[name] = copy(getattr(F, name))
    return copy(F.multi_head_attention_forward)
