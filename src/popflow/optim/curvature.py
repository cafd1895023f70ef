"""One step of the factors from what the layers recorded since the last refresh: first batches initialise them, non-finite ones are skipped."""

from __future__ import annotations

from typing import Any

from popflow.optim.distributed import average, distributed
from popflow.optim.kronecker import Pair, measure, refresh, warm_start
from popflow.optim.layer_batch import Curvature, LayerBatch
from popflow.optim.options import in_range
from popflow.optim.preconditioner import Preconditioner


def refresh_factors(of: Preconditioner, groups: list[dict[str, Any]], scale: float) -> None:
    """Take one step of all factors from what their layers recorded since the last one; ``scale`` is that of the loss.

    Raises:
        RuntimeError: when there are gradients and no layer recorded curvature.
        ValueError: for an ``lr_cov`` out of its range, as a function may return it.
    """
    recorded = any(record.h_k is not None for batch in of.batches for record in batch.recorded)
    if not recorded and not distributed():
        layer = next((layer for batch in of.batches for layer in batch.layers if layer.weight.grad is not None), None)
        if layer is None:
            return
        raise RuntimeError(
            f"layer {layer.name!r} has a gradient but no layer recorded curvature since the last refresh. Fix: call model.train() and run the "
            "model that the optimiser was made with, outside of torch.func.jvp and vmap and without create_graph=True; with listen=False call "
            "observe(); or call detach() to keep the factors as they are."
        )
    ready = [(batch, batch.collect(scale)) for batch in of.batches]
    if distributed():
        ready = [(batch, average(of.process_group, curvature)) for batch, curvature in ready]
    for batch, curvature in ready:
        _warn_unrecorded(of, batch, curvature)
    ready = [(batch, curvature) for batch, curvature in ready if any(curvature.present)]
    if not ready:
        return
    for group in groups:
        lr_cov = group["lr_cov"](of.refreshes) if callable(group["lr_cov"]) else group["lr_cov"]
        in_range("lr_cov", lr_cov)
        mine = [(batch, curvature) for batch, curvature in ready if batch.group is group]
        pairs = [_pair(batch, curvature) for batch, curvature in mine]
        if not pairs:
            continue
        measure(pairs)
        for (batch, curvature), pair in zip(mine, pairs, strict=True):
            _start(of, batch, curvature, pair)
        moving = [pair for pair in pairs if any(pair.moving)]
        options = {"lr_cov": lr_cov, "damping": group["damping"], "alpha1": group["alpha1"], "adaptive": of.adaptive}
        if moving:
            refresh(moving, rounding=of.rounding, **options)
    of.refreshes += 1


def _pair(batch: LayerBatch, curvature: Curvature) -> Pair:
    batch.metrics = [None, None]
    present = [there for layer, there in zip(batch.layers, curvature.present, strict=True) for _ in range(layer.blocks)]
    return Pair(batch.k, batch.c, curvature.h_k, curvature.h_c, curvature.scale_k, curvature.scale_c, present)


def _start(of: Preconditioner, batch: LayerBatch, curvature: Curvature, pair: Pair) -> None:
    """Initialise the members that see their first batch; the step updates the others whose curvature is within reach."""
    sound = [there and ok for there, ok in zip(pair.moving, pair.within_reach(), strict=True)]
    _count_skipped(of, batch, curvature, sound)
    pair.moving = [ok and not begun and of.warm for ok, begun in zip(sound, batch.started, strict=True)]
    if any(pair.moving):  # the factors are still the identity, so that what was recorded is the curvature itself
        warm_start(pair, curvature.rows, damping=batch.group["damping"], adaptive=of.adaptive)
    pair.moving = [ok and (begun or not of.warm) for ok, begun in zip(sound, batch.started, strict=True)]
    batch.started = [ok or begun for ok, begun in zip(sound, batch.started, strict=True)]


def _count_skipped(of: Preconditioner, batch: LayerBatch, curvature: Curvature, sound: list[bool]) -> None:
    """Count the layers whose curvature is skipped, and warn about the first."""
    layers = zip(batch.layers, batch.slices, curvature.present, strict=True)
    bad = [layer.name for layer, members, there in layers if there and not all(sound[members])]
    of.skipped += len(bad)
    if bad:
        of.warn(
            "not finite",
            f"layer {bad[0]!r}: the recorded curvature is not finite, or too large to be used; its factors keep their values (counted in .skipped, "
            "reported once). Fix: look for overflow in activations or loss, or lower the learning rate.",
        )


def _warn_unrecorded(of: Preconditioner, batch: LayerBatch, curvature: Curvature) -> None:
    """Warn once about a layer that has a gradient but never recorded curvature: its factors are the identity."""
    for layer, members, there in zip(batch.layers, batch.slices, curvature.present, strict=True):
        gradient = layer.weight.grad
        if there or "unrecorded" in of.warned or any(batch.started[members]) or gradient is None or not layer.view(gradient).any():
            continue
        of.warn(
            "unrecorded",
            f"layer {layer.name!r} has a gradient but never recorded curvature, so it is updated without preconditioning (reported once). Fix: put it into training "
            f"mode, call the module and not a function of its weight, or name it in fallback=[{layer.name!r}].",
        )
