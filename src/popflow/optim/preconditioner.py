"""The layers of a model with their Kronecker factors: curvature is recorded, factors are refreshed when due, and weights move by natural steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor

from popflow.optim.capture import Averaging, Sharing, Tap, per_datum
from popflow.optim.groups import batches_of
from popflow.optim.layer_batch import LayerBatch
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
        self.gap = 1
        self.warned: set[str] = set()

    def add(self, group: dict[str, Any]) -> list[Tensor]:
        """Take the layers of a parameter group; return the parameters that belong to none."""
        batches, rest = batches_of(group, self.layers, self.names, self.factor_dtype)
        self.batches += batches
        if self.tap is not None and self.next_refresh != math.inf:  # a group that comes late is recorded from now on
            self.next_refresh = min(self.next_refresh, self.steps)
            self.tap.detach()
            self.attach(self.tap.sink is not None)
        return rest

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
        task = torch._C._current_graph_task_id() if task is None else task
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
        for batch in self.batches:
            batch.forget()
        if self.tap is not None:
            self.tap.tape.clear()

    def follow(self) -> bool:
        """Follow the weights (device, dtype); return whether they have moved."""
        return any([batch.follow(self.factor_dtype) for batch in self.batches])

    # -- the step -------------------------------------------------------------------------------------------------------------------

    def next_interval(self) -> int:
        """Return the number of steps to the refresh after the one that is due.

        Raises:
            ValueError: when ``interval`` is a function that returns something other than an integer of at least 1.
        """
        gap = self.interval(self.steps + 1) if callable(self.interval) else self.interval
        in_range("interval", gap)
        return gap

    def finish_step(self) -> None:
        """Count a step, and arm the hooks if the next one is due for a refresh."""
        if self.due:
            self.next_refresh = self.steps + self.gap
        self.steps += 1
        if self.tap is not None:
            self.tap.armed = self.due
            self.tap.tape.clear()

    def move(self, group: dict[str, Any]) -> bool:
        """Move the matrices of a group; return False, and leave them, when a gradient is not finite."""
        work = [
            (batch, gradient) for batch in self.batches if batch.group is group and (gradient := batch.gradient(self.names)) is not None
        ]
        if not work:
            return True
        steps = [batch.direction(gradient, self.gap) for batch, gradient in work]
        scales: list[list[float] | None] = [None] * len(work)
        if group["update_rms"] is None:
            if not self._clip(group, steps, [gradient for _, gradient in work]):
                return False
            for batch, _ in work:
                batch.weight = 0.0
        else:
            norms = torch.cat([torch.linalg.vector_norm(step, dim=(-2, -1)) for step in steps]).tolist()
            if not all(math.isfinite(norm * norm) for norm in norms):
                self.skip_step()
                return False
            numbers = iter(norms)
            for i, (batch, _) in enumerate(work):
                scales[i] = [group["update_rms"] * scale for scale in batch.scales([*islice(numbers, len(steps[i]))])]
        for (batch, _), step, scale in zip(work, steps, scales, strict=True):
            batch.write(batch.with_momentum(step, self.rounding), scale, self.rounding)
        return True

    def _clip(self, group: dict[str, Any], steps: list[Tensor], gradients: list[Tensor]) -> bool:
        """Clip natural steps in place by the change in distribution that they make; return False when they are not finite."""
        products = [torch.dot(step.flatten(), gradient.flatten()) for step, gradient in zip(steps, gradients, strict=True)]
        total = float(torch.stack(products).sum())
        if not math.isfinite(total):
            self.skip_step()
            return False
        size = group["lr"] ** 2 * total
        if group["kl_clip"] is not None and size > group["kl_clip"]:
            for step in steps:
                step.mul_(math.sqrt(group["kl_clip"] / size))
        return True

    def skip_step(self) -> None:
        """Count a step that is skipped because a gradient is not finite."""
        self.skipped += 1
        self.warn("not finite", "a gradient is not finite; the step is skipped (counted in .skipped, reported once).")

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
