"""One step of the factors from what the layers recorded since the last refresh: first batches initialise them, non-finite ones are skipped."""

from __future__ import annotations

from typing import Any

from popflow.optim.distributed import average, distributed
from popflow.optim.kronecker import Pair, measure, refresh, warm_start
from popflow.optim.layer_batch import Curvature, LayerBatch
from popflow.optim.options import in_range
from popflow.optim.preconditioner import Preconditioner


def refresh_factors(of: Preconditioner, groups: list[dict[str, Any]], scale: float) -> bool:
    """Take one step of all factors from what their layers recorded since the last one; ``scale`` is that of the loss.

    Returns:
        Whether any layer recorded something. Without, the factors stay and the refresh is still due (no data, or nothing that hooks could see).

    Raises:
        ValueError: for an ``lr_cov`` out of its range, as a function may return it.
    """
    ready = [(batch, batch.collect(scale)) for batch in of.batches]
    if distributed():
        ready = [(batch, average(of.process_group, curvature)) for batch, curvature in ready]
    silent = not any(any(curvature.present) for _, curvature in ready)
    for batch, curvature in ready:
        _warn_unrecorded(of, batch, curvature, silent)
    ready = [(batch, curvature) for batch, curvature in ready if any(curvature.present)]
    if not ready:
        return False
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
    return True


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


def _warn_unrecorded(of: Preconditioner, batch: LayerBatch, curvature: Curvature, silent: bool) -> None:
    """Warn once about a layer that has a gradient but never recorded curvature, so that its factors are the identity; or, where no layer recorded any, none now."""
    for layer, members, there in zip(batch.layers, batch.slices, curvature.present, strict=True):
        gradient = layer.weight.grad
        if there or "unrecorded" in of.warned or gradient is None or (any(batch.started[members]) and not silent):
            continue
        if not layer.view(gradient).any():
            continue
        before = any(batch.started[members])
        of.warn(
            "unrecorded",
            f"layer {layer.name!r} has a gradient but {'recorded no curvature for this refresh, so its factors stay' if before else ''}"
            f"{'' if before else 'never recorded curvature, so it is updated without preconditioning'} (reported once). Fix: run the module "
            "that the optimiser was made with, not a function of its weight, outside of torch.func.jvp and vmap and without create_graph=True; with "
            f"listen=False call observe() in training mode; or name it in fallback=[{layer.name!r}].",
        )
