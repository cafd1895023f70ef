"""The layers of a model with their Kronecker factors: curvature is recorded, factors are refreshed when due, and weights move by natural steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor, nn

from popflow.optim.capture import Averaging, Sharing, Tap, accumulates, per_datum
from popflow.optim.groups import batches_of
from popflow.optim.layer_batch import WIDE, LayerBatch
from popflow.optim.layers import Layer
from popflow.optim.options import in_range


class Preconditioner:
    """What `popflow.optim.SINGD` keeps besides the torch protocol; its options are explained there.

    Attributes:
        layers: Layers of one model that may be preconditioned.
        names: Parameter -> name, for all parameters of the model.
        rounding: Rounds bfloat16 tensors at random; None rounds to nearest.
        batches: The layers of all groups, those of equal shape and options together.
        tap: The hooks on the layers, or None before there are any.
        steps: Steps made.
        refreshes: Refreshes made.
        next_refresh: The step of the next refresh; infinite after `detach`.
        gap: Steps from the last refresh to the next.
        refreshed: Whether this step has refreshed the factors.
        heard: Whether anything was recorded since the last step.
        skipped: How often curvature or a gradient was not finite and was therefore skipped.
    """

    def __init__(
        self,
        layers: list[Layer],
        names: Mapping[Tensor, str],
        *,
        interval: int | Callable[[int], int],
        adaptive: bool,
        sharing: Sharing,
        averaging: Averaging,
        warm: bool,
        max_rows: int | None,
        factor_dtype: torch.dtype | None,
        process_group: Any,
        rounding: Generator | None,
    ):
        self.layers, self.names, self.interval, self.adaptive, self.warm = layers, names, interval, adaptive, warm
        self.sharing, self.averaging, self.max_rows = sharing, averaging, max_rows
        self.factor_dtype, self.process_group, self.rounding = factor_dtype, process_group, rounding
        self.batches: list[LayerBatch] = []
        self.places: dict[Layer, tuple[LayerBatch, int]] = {}
        self.tap: Tap | None = None
        self.steps = self.refreshes = self.skipped = self.observations = 0
        self.next_refresh: float = 0
        self.refreshed = self.heard = False
        self.gap = 1
        self.warned: set[str] = set()

    def add(self, groups: Sequence[dict[str, Any]]) -> list[list[Tensor]]:
        """Take the layers of parameter groups; return the parameters of each that belong to none."""
        batches, rests = batches_of(groups, self.layers, self.names, self.factor_dtype)
        self.batches += batches
        if self.tap is not None and self.next_refresh != math.inf:  # a group that comes late is recorded from now on
            self.next_refresh = min(self.next_refresh, self.steps)
            self.tap.detach()
            self.attach(self.tap.sink is not None)
        return rests

    # -- recording ------------------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the coming step refreshes the factors, so that hooks record now."""
        return self.steps >= self.next_refresh

    def attach(self, listen: bool) -> None:
        """Put hooks on the layers of all groups."""
        self.places = {layer: (batch, index) for batch in self.batches for index, layer in enumerate(batch.layers)}
        self.tap = Tap([*self.places], self.record if listen else None)
        self.tap.armed = self.due

    def detach(self) -> None:
        """Take the hooks off. The factors then stay as they are."""
        if self.tap is not None:
            self.tap.detach()
        self.next_refresh = math.inf

    def record(self, layer: Layer, a: Tensor, g: Tensor, averaging: Averaging | None = None, task: int | None = None) -> None:
        """Record the inputs and cotangents of one call of a layer."""
        batch, index = self.places[layer]
        if a.device != batch.k.value[0].device:
            self.follow()
        self.heard = True
        if task is None:
            task = torch._C._current_graph_task_id()
            if not batch.hears(index, not layer.standing and accumulates(layer.weight) is True, task):
                return
        batch.record(index, a, g, averaging or self.averaging, self.sharing, self.max_rows, task)

    def observe(self, outputs: Tensor, cotangents: Tensor) -> None:
        """Record given cotangents of the outputs; see `popflow.optim.SINGD.observe`."""
        assert self.tap is not None
        if self.tap.sink is not None:
            raise RuntimeError("observe() with listen=True would count the curvature of the loss as well. Fix: SINGD(..., listen=False).")
        self.observations += 1
        for found in self.tap.pull(outputs, cotangents):
            self.record(found.layer, found.a, found.g, per_datum, -1 - self.observations)

    def forget(self) -> None:
        """Drop what was recorded."""
        self.heard = False
        for batch in self.batches:
            batch.forget()
        if self.tap is not None:
            self.tap.tape.clear()

    def drop(self) -> None:
        """Drop what backward passes told, as their gradients are dropped; cotangents that `observe` was given stay, and so does the forward pass just made."""
        if self.heard and self.tap is not None and self.tap.sink is not None:
            self.forget()

    def follow(self) -> bool:
        """Follow the weights (device, dtype); return whether they have moved."""
        return any([batch.follow(self.factor_dtype) for batch in self.batches])

    # -- the step -------------------------------------------------------------------------------------------------------------------

    def next_interval(self) -> int:
        """Return the number of steps to the refresh after the one that is due.

        Raises:
            ValueError: when ``interval`` is a function that returns something other than an integer of at least 1.
        """
        return in_range("interval", self.interval(self.steps + 1) if callable(self.interval) else self.interval)

    def finish_step(self) -> None:
        """Count a step, and arm the hooks if the next one is due for a refresh: one that had nothing to refresh from leaves it due."""
        if self.refreshed:
            self.next_refresh, self.refreshed = self.steps + self.gap, False
        self.steps += 1
        if self.heard:  # its gradient is used up
            self.forget()
        if self.tap is not None:
            self.tap.armed = self.due
            self.tap.tape.clear()

    def move(self, groups: Sequence[dict[str, Any]], others: Sequence[Tensor]) -> bool:
        """Move the matrices of all groups. Return False, and leave everything, when a gradient is not finite: theirs or one of ``others``."""
        work = [(batch, gradient) for batch in self.batches if (gradient := batch.gradient(self.names)) is not None]
        steps = [batch.direction(gradient, self.gap) for batch, gradient in work]
        natural = [batch.group["update_rms"] is None for batch, _ in work]
        sizes = [
            torch.dot(step.flatten(), gradient.flatten())[None] if by_length else torch.linalg.vector_norm(step, dim=(-2, -1))
            for (_, gradient), step, by_length in zip(work, steps, natural, strict=True)
        ]
        found = _transferred([*sizes, *_norm(others)])
        if not all(math.isfinite(one if by_length else one * one) for many, by_length in zip(found, natural, strict=False) for one in many):
            return self.skip_step()
        if not all(math.isfinite(one) for many in found[len(work) :] for one in many):
            return self.skip_step()
        for group in groups:
            self._clip(
                group, [(step, product) for (batch, _), step, product in zip(work, steps, sizes, strict=True) if batch.group is group]
            )
        for (batch, _), step, norms, by_length in zip(work, steps, found, natural, strict=False):
            if by_length:
                scales, batch.weight = None, 0.0
            else:
                scales = [batch.group["update_rms"] * scale for scale in batch.scales(norms)]
            batch.write(batch.with_momentum(step, self.rounding), scales, self.rounding)
        return True

    @staticmethod
    def _clip(group: dict[str, Any], natural: list[tuple[Tensor, Tensor]]) -> None:
        """Clip natural steps of a group in place by the change in distribution that they make, given with their products with the gradients."""
        if group["update_rms"] is not None or group["kl_clip"] is None or not natural:
            return
        size = float(group["lr"]) ** 2 * float(torch.cat([product for _, product in natural]).sum())
        if size > group["kl_clip"]:
            for step, _ in natural:
                step.mul_(math.sqrt(group["kl_clip"] / size))

    def skip_step(self) -> bool:
        """Count a step that is skipped because a gradient is not finite, and return False."""
        self.skipped += 1
        self.warn("not finite", "a gradient is not finite; the step is skipped (counted in .skipped, reported once).")
        return False

    def warn(self, kind: str, message: str) -> None:
        """Warn once about each kind of problem."""
        if kind not in self.warned:
            self.warned.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=5)

    # -- copies ---------------------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        rounding = None if self.rounding is None else (self.rounding.device, self.rounding.get_state())
        listen = None if self.tap is None else self.tap.sink is not None
        return self.__dict__ | {"places": {}, "tap": listen, "rounding": rounding}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if (rounding := state["rounding"]) is not None:
            self.rounding = torch.Generator(rounding[0])
            self.rounding.set_state(rounding[1])
        if state["tap"] is not None:
            self.attach(state["tap"])


def _norm(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The norm of tensors together, a vector of one, where there are any; in float32 at least, so that half precision does not overflow."""
    if not tensors:
        return []
    return [nn.utils.get_total_norm([one if one.dtype in WIDE else one.float() for one in tensors])[None]]


def _transferred(parts: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of each vector, all in one transfer from the device."""
    numbers = iter(torch.cat([part.to(parts[0].device) for part in parts]).tolist() if parts else ())
    return [[*islice(numbers, len(part))] for part in parts]
