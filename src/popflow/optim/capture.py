"""One curvature capture for several consumers: what enters each layer, and the cotangent of what leaves it.

For a layer that computes ``z = W a`` (bias folded in as a last input of 1) on ``N`` data with ``R`` shared uses of the weight per datum
(sequence positions, output pixels, nodes), the capture is the pair of rows

    a: [B, N, R, p]        g = d(scalar)/dz: [B, N, R, d]

with ``B`` independent blocks of one weight (the groups of a convolution). SINGD makes Kronecker factors of them, `popflow.optim.gram`
makes kernels in sample space. Convolutions are exact for stride, padding and its modes, dilation and groups; the four
projections of ``nn.MultiheadAttention`` are four layers.

Of a transposed convolution, whose weight is stored as ``[inputs, outputs]``, ``a`` are the cotangents and ``g`` the inputs: the layer is reversed.

Two ways in: a `Tap` records while ``loss.backward()`` runs, and `rows` pulls user-given cotangents through a forward pass
(wave functions: ``d log psi``; sampled Fisher: `gaussian_cotangent`, `categorical_cotangent`).

Sources: Martens and Grosse 2015 (arXiv 1503.05671); expand and reduce: Eschenhagen, Immer, Turner, Schneider, Hennig 2023 (arXiv 2311.00636).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.optim.attention import AttentionCalls
from popflow.optim.layers import Layer, find_layers


@dataclass(frozen=True)
class Rows:
    """Inputs ``a [B, N, R, p]`` and cotangents ``g [B, N, R, d]`` of one call of a layer."""

    layer: Layer
    a: Tensor
    g: Tensor


Sharing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""How the uses of a shared weight become rows: `expand` or `reduce`."""
Averaging = Callable[[int, int], float]
"""What ``sum g g^T`` is multiplied by, from the numbers of data and of rows: `over_data`, `over_rows`, `summed`, `per_datum`."""


def expand(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Every use is a row: exact when the loss sums over positions (language models, segmentation)."""
    return a.flatten(1, 2), g.flatten(1, 2)


def reduce(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """One row per datum, inputs averaged and cotangents summed over uses: exact when positions are pooled before the loss."""
    return a.mean(2), g.sum(2)


def over_data(data: int, rows: int) -> float:
    """For losses averaged over data (one term each): cotangents carry ``1 / N``."""
    return data


def over_rows(data: int, rows: int) -> float:
    """For losses averaged over data and positions: cotangents carry ``1 / (N R)``."""
    return rows


def summed(data: int, rows: int) -> float:
    """For losses summed over data: the Fisher matrix of the sum."""
    return 1.0


def per_datum(data: int, rows: int) -> float:
    """For cotangents of each datum's own scalar, not averaged (user-given ones): their mean."""
    return 1 / data


Sink = Callable[[Layer, Tensor, Tensor], None]
"""Receives the inputs ``a`` and cotangents ``g`` of one call of a layer."""


class Tap:
    """Forward hooks on layers; while ``armed`` they record inputs, and cotangents as the backward pass meets them.

    A ``sink`` receives each (layer, a, g) during ``backward()``; without one the calls wait on ``tape`` for `pull`, and keep their graphs alive until then.
    Passes that build a graph of derivatives (``create_graph=True``) are not recorded, nor those that end at inputs (`torch.autograd.grad`).

    Args:
        layers: Layers of one model, from `find_layers`.
        sink: Receives rows during backward passes, or None.
        always: Without a sink, record in evaluation mode too.
    """

    def __init__(self, layers: Sequence[Layer], sink: Sink | None = None, always: bool = False):
        self.sink, self.always, self.armed = sink, always, False
        self.tape: list[tuple[Layer, Any, Callable[[Tensor], Rows]]] = []
        self.layers = list(layers)
        self._handles: list[Any] = []
        by_module: dict[nn.Module, list[Layer]] = {}
        for layer in self.layers:
            for module in layer.modules:
                by_module.setdefault(module, []).append(layer)
        for module, own in by_module.items():
            if isinstance(module, nn.MultiheadAttention):
                hook = _AttentionHook(self, module, own)
                self._handles.append(module.register_forward_pre_hook(hook.before, with_kwargs=True))
                self._handles.append(module.register_forward_hook(hook.after, always_call=True))
            else:
                self._handles.append(module.register_forward_hook(_LayerHook(self, module, own[0]), with_kwargs=True))

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def listens_to(self, module: nn.Module) -> bool:
        """Whether calls of a module are recorded now: what a backward pass will meet in any mode, what waits on the tape in training mode."""
        return self.armed and (self.sink is not None or self.always or module.training)

    def note(self, layer: Layer, a: Tensor, output: Tensor, cotangent: Callable[[Tensor], Tensor]) -> None:
        """Record a call; ``cotangent`` turns the gradient of ``output`` into ``[B, N, R, d]``."""
        shape, whole = output.shape, _whole_base(output)
        if whole.grad_fn is None:
            return

        def found(g: Tensor) -> Rows:
            g = cotangent(g.reshape(shape))
            return Rows(layer, g, a) if layer.reversed else Rows(layer, a, g)

        if self.sink is None:
            self.tape.append((layer, torch.autograd.graph.get_gradient_edge(whole), found))
            return
        sink, number = self.sink, whole.output_nr

        def record(gradients: tuple[Tensor | None, ...]) -> None:
            g = gradients[number]
            if g is not None and not torch.is_grad_enabled() and (layer.standing or is_reached(layer.weight)):
                one = found(g)
                sink(layer, one.a, one.g)

        whole.grad_fn.register_prehook(record)  # on the node: an operation in place on the output comes after it

    def pull(self, outputs: Tensor, cotangents: Tensor) -> list[Rows]:
        """Pull cotangents of ``outputs`` back to every recorded call; empties the tape. Parameters' ``.grad`` stay as they are."""
        tape, self.tape = self.tape, []
        if not tape:
            return []
        gradients = torch.autograd.grad(outputs, [edge for _, edge, _ in tape], cotangents, retain_graph=True, allow_unused=True)
        return [found(g.detach()) for (_, _, found), g in zip(tape, gradients, strict=True) if g is not None]


class _LayerHook:
    """Forward hook of a layer. A copy of it, deep or pickled along with its module, is a stranger's and does nothing."""

    def __init__(self, tap: Tap, owner: nn.Module, layer: Layer):
        self.tap, self.owner, self.layer = tap, owner, layer

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        if module is self.owner and self.tap.listens_to(module):
            # the graph of a compiled model breaks here, only on the steps that record
            note = _note_apart if torch.compiler.is_compiling() else _note_call
            note(self.tap, self.layer, module, args[0] if args else kwargs["input"], output)

    def __reduce__(self) -> tuple:
        return _silence, ()


class _AttentionHook:
    """Forward hooks before and after a call of ``nn.MultiheadAttention``; copies are silent, as those of `_LayerHook`."""

    def __init__(self, tap: Tap, owner: nn.Module, layers: list[Layer]):
        self.tap, self.owner, self.layers = tap, owner, layers
        self.open_calls: list[AttentionCalls] = []

    def before(self, module: Any, args: tuple, kwargs: dict) -> None:
        if module is self.owner and self.tap.listens_to(module) and torch.is_grad_enabled():
            query = args[0] if args else kwargs["query"]
            batch = 1 if query.ndim == 2 else query.shape[0 if module.batch_first else 1]
            self.open_calls.append(AttentionCalls(self.tap.note, self.layers, batch))
            self.open_calls[-1].__enter__()

    def after(self, module: nn.Module, args: tuple, output: Any) -> None:
        if module is self.owner and self.open_calls:
            self.open_calls.pop().__exit__(None, None, None)

    def __reduce__(self) -> tuple:
        return _Silent, ()


class _Silent:
    """What a copied hook is: it records nothing."""

    def before(self, *call: Any) -> None: ...

    def after(self, *call: Any) -> None: ...


def _nothing(*call: Any) -> None: ...


def _silence() -> Callable[..., None]:
    return _nothing


def _whole_base(output: Tensor) -> Tensor:
    """The base of an output that is a view of all its elements in order, else the output itself: in-place operations on a view change the graph of its base."""
    base = output._base
    if base is None or base.numel() != output.numel() or not (base.is_contiguous() and output.is_contiguous()):
        return output
    return base


def is_reached(weight: Tensor) -> bool:
    """Whether the current backward pass computes the gradient of this parameter, not only gradients of inputs."""
    return accumulates(weight) is not False


def accumulates(weight: Tensor) -> bool | None:
    """Whether the current backward pass adds to ``weight.grad``; None for one of `torch.autograd.grad` that returns the gradient instead."""
    node: Any = torch.autograd.graph.get_gradient_edge(weight).node
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch does not answer for a parameter that is itself an input of torch.autograd.grad
        return None


def _note_call(tap: Tap, layer: Layer, module: nn.Module, x: Tensor, output: Tensor) -> None:
    if not (torch.is_grad_enabled() and output.requires_grad and (layer.standing or layer.weight.requires_grad)):
        return
    x = x.detach()
    if isinstance(module, nn.Linear):
        tap.note(layer, _sequence(x), output, _sequence)
    elif layer.reversed:
        tap.note(layer, _pixels(module, x), output, lambda g: _met(module, g, x))
    else:
        tap.note(layer, patches(module, x), output, lambda g: _pixels(module, g))


_note_apart: Any = torch.compiler.disable(_note_call)


def _sequence(x: Tensor) -> Tensor:
    if x.ndim == 1:
        return x.reshape(1, 1, 1, -1)
    data = x.shape[0]
    return x.reshape(1, data, 1 if x.ndim == 2 else -1, x.shape[-1]) if data else x.new_zeros(1, 0, 1, x.shape[-1])


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """Return what each output pixel of a convolution sees, ``[groups, N, pixels, channels / groups * kernel]``, ordered as its weight.

    >>> patches(nn.Conv1d(1, 1, 2), torch.tensor([[[1.0, 2.0, 3.0]]])).tolist()
    [[[[1.0, 2.0], [2.0, 3.0]]]]
    """
    conv: Any = module
    space = len(conv.kernel_size)
    if x.ndim == space + 1:
        x = x.unsqueeze(0)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return windows(F.pad(x, conv._reversed_padding_repeated_twice, mode=mode), conv)


def windows(x: Tensor, conv: Any) -> Tensor:
    """Every window of a padded batch that the kernel of a convolution sees, ``[groups, N, windows, channels / groups * kernel]``."""
    space = len(conv.kernel_size)
    for i, (size, step, gap) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        x = x.unfold(2 + i, gap * (size - 1) + 1, step)[..., ::gap]
    x = x.unflatten(1, (conv.groups, -1)).movedim(1, 0)  # [G, N, C / G, *pixels, *kernel]
    x = x.movedim(2, 2 + space)
    return x.reshape(*x.shape[:2], x.shape[2 : -space - 1].numel(), x.shape[-space - 1 :].numel())


def _pixels(module: nn.Module, g: Tensor) -> Tensor:
    conv: Any = module
    if g.ndim == len(conv.kernel_size) + 1:
        g = g.unsqueeze(0)
    return g.flatten(2).unflatten(1, (conv.groups, -1)).permute(1, 0, 3, 2)


def _met(module: nn.Module, g: Tensor, x: Tensor) -> Tensor:
    """What each input pixel of a transposed convolution meets of the cotangents of its output: the patches of the convolution that it transposes."""
    conv: Any = module
    space = len(conv.kernel_size)
    if g.ndim == space + 1:
        g = g.unsqueeze(0)
    inputs, outputs = x.shape[-space:], g.shape[-space:]
    sizes = zip(inputs, outputs, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    reach = [((n - 1) * step + gap * (size - 1) + 1, whole, pad) for n, whole, size, step, pad, gap in sizes]
    # what a window of the convolution sees lies in [-pad, reach - pad); pixels beyond are those of output_padding
    around = [pair for need, whole, pad in reversed(reach) for pair in (pad, need - pad - whole)]
    return windows(F.pad(g, around), conv)


def rows(model: nn.Module, forward: Callable[[], Tensor], cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Rows]]:
    """Run ``outputs = forward()`` and pull ``cotangent(outputs)`` back to the layers of ``model``: the functional form.

    Nothing is accumulated in ``.grad``; evaluation mode is recorded as well. With one scalar per datum and ``torch.ones_like`` as the
    cotangent, ``g`` are the per-datum derivatives, as long as the network does not couple the data.

    Args:
        model: Holds the layers.
        forward: Runs the model.
        cotangent: From the outputs, what is pulled back; shaped like the outputs.

    Returns:
        The outputs, and the rows of every call in order of the calls.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> _, [found] = rows(net, lambda: net(x), torch.ones_like)
        >>> found.a[0, :, 0].tolist(), found.g[0, :, 0].tolist()
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0], [1.0]])
    """
    tap = Tap(find_layers(model), always=True)
    try:
        tap.armed = True
        with torch.enable_grad():
            outputs = forward()
        tap.armed = False
        return outputs, tap.pull(outputs, cotangent(outputs.detach()))
    finally:
        tap.detach()


def gaussian_cotangent(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw cotangents whose Gram matrix is that of ``1/2 |y - f|^2``: standard normal. An unbiased sample of ``J^T J``."""
    return torch.empty_like(outputs).normal_(generator=generator)


def categorical_cotangent(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ``softmax(logits) - onehot(y)`` with ``y`` from the model itself: the Fisher matrix of a classifier, by Monte Carlo."""
    p = logits.softmax(-1)
    y = torch.multinomial(p.flatten(0, -2), 1, generator=generator).reshape(p.shape[:-1])
    return p - F.one_hot(y, p.shape[-1]).to(p.dtype)
