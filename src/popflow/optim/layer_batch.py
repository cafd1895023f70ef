"""Layers of equal shape and options as one batch of Kronecker pairs: the curvature they record, their gradient, its natural direction, their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn

from popflow.optim.capture import Averaging, Sharing, expand
from popflow.optim.kronecker import Side, rounded
from popflow.optim.layers import Layer
from popflow.optim.structures.structure import Factor

WIDE = (torch.float32, torch.float64)


@dataclass(eq=False)
class Recorded:
    """What one layer recorded since the last refresh: `Structure.gram` of the current factors over ``rows`` rows, of which ``used`` were used.

    ``data`` counts data once per backward pass (``task``), however often the weight was used in it; ``kept`` says whether that pass added to ``.grad``.
    """

    h_k: Factor | None = None
    h_c: Factor | None = None
    rows: int = 0
    used: int = 0
    data: int = 0
    task: int = -1
    kept: bool = False
    averaging: Averaging | None = None

    def add(self, h_k: Factor, h_c: Factor) -> None:
        """Add the sums of one more call."""
        if self.h_k is None or self.h_c is None:
            self.h_k, self.h_c = h_k, h_c
            return
        for old, more in zip((*self.h_k, *self.h_c), (*h_k, *h_c), strict=True):
            old.add_(more)


@dataclass(frozen=True)
class Curvature:
    """What the layers of a batch recorded, joined: sums, the numbers that turn them into means, how many rows were used (one number for each member),
    and which layers recorded anything.
    """

    h_k: Factor
    h_c: Factor
    scale_k: list[float]
    scale_c: list[float]
    rows: list[int]
    present: list[bool]


@dataclass(eq=False)
class LayerBatch:
    """Layers of equal shape, options and structures: one batch of Kronecker pairs.

    Attributes:
        group: The parameter group of the weights, with its options.
        bias_group: That of the biases; its ``lr`` and ``weight_decay`` are theirs.
        layers: The layers, each with ``blocks`` members of the batch.
        k: Input factors.
        c: Output factors.
        momentum: ``[B, d, inputs]``, or None before the first step and without momentum.
        sizes: For each member the sum of ``mean(dW^2)`` over steps, discounted as the momentum is.
        weight: The sum of the discounts; 0 before the first step that was scaled.
        started: Whether a member has met its first batch.
        recorded: One per layer.
        metrics: Cached ``K K^T``, ``C C^T`` where that saves work (`Structure.metric`); not part of the state.
        views: The momentum, and what of it is each parameter's; made anew where needed.
        place: Device and dtype of the weights, and requested dtype of the factors, at the last check.
    """

    group: dict[str, Any]
    layers: list[Layer]
    k: Side
    c: Side
    bias_group: dict[str, Any]
    momentum: Tensor | None = None
    started: list[bool] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)
    metrics: list[Factor | None] = field(default_factory=lambda: [None, None])
    views: tuple[Tensor, list[tuple[Layer, Tensor, slice, Tensor]]] | None = None
    place: tuple[torch.device, torch.dtype, torch.dtype | None] | None = None
    sizes: list[float] = field(default_factory=list)
    weight: float = 0.0

    def __post_init__(self):
        ends = list(accumulate((layer.blocks for layer in self.layers), initial=0))
        self.slices = [slice(a, b) for a, b in pairwise(ends)]
        self.started = [False] * ends[-1]
        self.forget()

    # -- curvature ------------------------------------------------------------------------------------------------------------------

    def hears(self, index: int, kept: bool, task: int) -> bool:
        """Whether a layer records what a backward pass tells; curvature goes with the gradient, so what belongs to a dropped gradient is forgotten.

        ``kept`` says that the pass adds to ``.grad``; others return the gradient (`torch.autograd.grad`) and count where none of those did.
        """
        record, gradient = self.recorded[index], self.layers[index].weight.grad
        if record.task != task and record.h_k is not None:
            if record.kept and not kept:
                return False
            if kept and (gradient is None or not record.kept):
                self.recorded[index] = record = Recorded()
        record.kept = kept
        return True

    def record(self, index: int, a: Tensor, g: Tensor, averaging: Averaging, sharing: Sharing, max_rows: int | None, task: int) -> None:
        """Record the inputs and cotangents ``[B, N, R, ...]`` of one call of a layer; ``task`` is the number of the backward pass."""
        layer, record, data = self.layers[index], self.recorded[index], a.shape[1]
        if data == 0:
            return
        if task != record.task:  # a second call within one backward pass is a second use of the weight, not more data
            record.data, record.task = record.data + data, task
        record.averaging = averaging
        uses = a.shape[2] if sharing is expand else 1
        a, g = sharing(a, g) if not layer.reversed else sharing(g, a)[::-1]
        rows = a.shape[1]
        stride = 1 if max_rows is None else math.ceil(rows / max_rows)
        while stride > 1 and math.gcd(stride, uses) > 1:  # a stride that divides an image would see one of its columns alone
            stride += 1
        if stride > 1:
            a, g = a[:, ::stride], g[:, ::stride]
        record.rows, record.used = record.rows + rows, record.used + a.shape[1]
        h_k, h_c = self._gram(self.k, a, index, layer.bias is not None), self._gram(self.c, g, index)
        if stride > 1:
            share = rows / a.shape[1]
            h_k, h_c = tuple(part * share for part in h_k), tuple(part * share for part in h_c)
        record.add(h_k, h_c)

    def _gram(self, side: Side, x: Tensor, index: int, bias: bool = False) -> Factor:
        """Sums over rows ``[B, rows, n]`` seen by the factors of a layer, with a last column of ones for a bias."""
        dtype = torch.float64 if side.value[0].dtype == torch.float64 else torch.float32
        members = self.slices[index] if len(self.layers) > 1 else slice(None)
        factor = tuple(part[members].to(dtype) for part in side.value)
        x = x.to(dtype)
        return side.structure.gram(factor, nn.functional.pad(x, (0, 1), value=1.0) if bias else x)

    def collect(self, scale: float) -> Curvature:
        """Return what the layers recorded and forget it; ``scale`` is that of the loss."""
        h_k, h_c, scale_k, scale_c, rows, present = [], [], [], [], [], []
        for layer, record in zip(self.layers, self.recorded, strict=True):
            if record.kept and layer.weight.grad is None:
                record = Recorded()
            h_k.append(record.h_k or _zeros(self.k, layer.blocks))
            h_c.append(record.h_c or _zeros(self.c, layer.blocks))
            mean = record.averaging(record.data, record.rows) / scale**2 if record.averaging else 0.0
            by_side = (1 / max(record.rows, 1), mean)
            scale_k += [by_side[layer.reversed]] * layer.blocks
            scale_c += [by_side[not layer.reversed]] * layer.blocks
            rows += [record.used] * layer.blocks
            present.append(record.h_k is not None)
        self.forget()
        return Curvature(_joined(h_k), _joined(h_c), scale_k, scale_c, rows, present)

    def forget(self) -> None:
        """Drop what was recorded."""
        self.recorded = [Recorded() for _ in self.layers]

    # -- the step -------------------------------------------------------------------------------------------------------------------

    def gradient(self, names: Mapping[Tensor, str]) -> Tensor | None:
        """Gradients as ``[B, d, inputs]``, at least float32; zeros for a layer without, None when no layer has one."""
        weights, biases, any_there = [], [], False
        for layer in self.layers:
            for parameter, pieces in ((layer.weight, weights), (layer.bias, biases)):
                if parameter is None:
                    continue
                gradient = parameter.grad
                if gradient is None:
                    gradient = torch.zeros_like(parameter)
                elif gradient.is_sparse:
                    raise TypeError(f"parameter {names[parameter]!r} of layer {layer.name!r} has a sparse gradient, wanted a dense one.")
                else:
                    any_there = True
                pieces.append(layer.view(gradient))
        if not any_there:
            return None
        joined = torch.cat(weights) if len(weights) > 1 else weights[0]
        if biases:
            joined = torch.cat([joined, torch.cat(biases) if len(biases) > 1 else biases[0]], -1)
        return joined if joined.dtype in WIDE else joined.float()

    def direction(self, gradient: Tensor, gap: int) -> Tensor:
        """``C C^T grad K K^T``; products of factors with themselves are kept for the ``gap`` steps to the next refresh where that is less work."""
        x = gradient.to(self.k.value[0].dtype)
        for i, (side, dim) in enumerate(((self.k, -1), (self.c, -2))):
            if self.metrics[i] is None:
                self.metrics[i] = side.structure.metric(side.value, x.shape[-3 - dim] * gap)
            metric = self.metrics[i]
            if metric is None:
                x = side.structure.precondition(side.value, x, dim)
            else:
                x = side.structure.right(metric, x) if dim == -1 else side.structure.left(metric, x)
        return x.to(gradient.dtype).contiguous()

    def scales(self, norms: Sequence[float]) -> list[float]:
        """Take the norms of new steps ``dW``; return for each member what gives its momentum a root mean square of at most 1.

        With ``b = sum mu^k dW_k``, ``w = sum mu^k``, ``u = sum mu^k mean(dW_k^2)``: ``1 / sqrt(w u)``, since ``mean(b^2) <= w u``. The root mean
        square is 1 where steps agree and ``sqrt((1 - mu) / (1 + mu))`` where they are noise, as with Adam, whose ratio this is with one number for
        each matrix in place of one for each entry.
        """
        mu, count = self.group["momentum"], self.layers[0].d * self.k.n
        if self.weight == 0 or self.momentum is None:  # steps that were not scaled are not counted: begin anew
            self.momentum, self.weight, self.sizes = None, 0.0, [0.0] * len(norms)
        self.weight = mu * self.weight + 1
        self.sizes = [mu * size + norm**2 / count for size, norm in zip(self.sizes, norms, strict=True)]
        return [1 / math.sqrt(self.weight * size) if size > 0 else 0.0 for size in self.sizes]

    def with_momentum(self, step: Tensor, rounding: Generator | None) -> Tensor:
        """``m <- momentum m + step``, in its `momentum_dtype`; returns it unrounded."""
        momentum = self.group["momentum"]
        if momentum == 0:
            self.momentum = self.views = None
            return step
        dtype = momentum_dtype(self.layers[0].weight)
        if self.momentum is None:
            self.momentum = rounded(step, dtype, rounding)
            return step
        if dtype == step.dtype:
            return torch.add(step, self.momentum, alpha=momentum, out=self.momentum)
        step = torch.add(step, self.momentum, alpha=momentum)
        self.momentum = rounded(step, dtype, rounding)
        return step

    def write(self, step: Tensor, scales: list[float] | None, rounding: Generator | None) -> None:
        """Move the weights by ``-lr`` times the step, and decay them; ``scales`` are one number for each member."""
        rates = {id(group): (float(group["lr"]), group["weight_decay"]) for group in (self.group, self.bias_group)}
        for layer, parameter, members, part in self._parts(step):
            if parameter.grad is None:
                continue
            lr, decay = rates[id(self.group if parameter is layer.weight else self.bias_group)]
            decay = 1 - lr * decay
            rows = layer.rows(parameter)
            rate = -lr
            if scales is not None and layer.blocks == 1:
                rate = -lr * scales[members.start]
            elif scales is not None:
                part = part * part.new_tensor(scales[members]).repeat_interleave(layer.d).view(-1, *[1] * (part.ndim - 1))
            if rows.dtype == part.dtype:
                if decay != 1:
                    rows.mul_(decay)
                rows.add_(part, alpha=rate)
            else:
                wide = torch.add(rows.to(part.dtype) * decay, part, alpha=rate)
                rows.copy_(rounded(wide, rows.dtype, rounding))

    def _parts(self, step: Tensor) -> list[tuple[Layer, Tensor, slice, Tensor]]:
        """Pair the parameters with their parts of a step ``[B, d, inputs]``; views of the momentum are kept."""
        if self.views is not None and self.views[0] is step:
            return self.views[1]
        parts = []
        for layer, members in zip(self.layers, self.slices, strict=True):
            for parameter, of in ((layer.weight, slice(0, layer.p)), (layer.bias, slice(layer.p, None))):
                if parameter is not None:
                    shape = (layer.blocks * layer.d, *parameter.shape[1:])
                    parts.append((layer, parameter, members, step[members, :, of].view(shape)))
        if step is self.momentum:
            self.views = (step, parts)
        return parts

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"views": None}

    # -- state ----------------------------------------------------------------------------------------------------------------------

    def follow(self, wanted: torch.dtype | None) -> bool:
        """Follow the weights (device, dtype), with factors in the requested dtype; return whether weights have moved since the last call."""
        weight = self.layers[0].weight
        place = (weight.device, weight.dtype, wanted)
        if place == self.place:
            return False
        moved, self.place, have, dtype = self.place is not None, place, self.k.value[0], factor_dtype(weight, wanted)
        if have.dtype != dtype or have.device != weight.device:
            self.k.to(weight.device, dtype)
            self.c.to(weight.device, dtype)
            self.metrics = [None, None]
            wide = torch.promote_types(dtype, torch.float32)
            for record in self.recorded:
                if record.h_k is not None and record.h_c is not None:
                    record.h_k, record.h_c = (tuple(part.to(weight.device, wide) for part in h) for h in (record.h_k, record.h_c))
        self.momentum = None if self.momentum is None else self.momentum.to(weight.device, momentum_dtype(weight))
        return moved

    def stored(self) -> list[tuple[str, Tensor]]:
        """The tensors of the state, by name."""
        named = [*self.k.stored("K"), *self.c.stored("C")]
        return named if self.momentum is None else [*named, ("momentum", self.momentum)]

    def size(self) -> int:
        """Numbers kept between steps, caches among them."""
        return sum(part.numel() for _, part in self.stored()) + sum(part.numel() for metric in self.metrics for part in metric or ())


def factor_dtype(weight: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    """Dtype of the factors of a layer: as requested, or that of the weight and at least float32."""
    return wanted or torch.promote_types(weight.dtype, torch.float32)


def momentum_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of the momentum of a layer: that of the weight, but never float16, whose largest number a natural step may exceed."""
    return torch.float32 if weight.dtype == torch.float16 else weight.dtype


def _zeros(side: Side, blocks: int) -> Factor:
    return tuple(part.new_zeros(blocks, *part.shape[1:], dtype=torch.promote_types(part.dtype, torch.float32)) for part in side.value)


def _joined(parts: list[Factor]) -> Factor:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(same) for same in zip(*parts, strict=True))
