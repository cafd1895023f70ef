"""What layers told since the last refresh becomes one step of their factors: first batches start them, broken ones are left out."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from popflow.optim.checks import warn_of_unheard
from popflow.optim.diagonals import Diagonals
from popflow.optim.distributed import average, distributed
from popflow.optim.grouped import fits, has_frames, refresh_together
from popflow.optim.kronecker import Pair, Side, measures, refresh_all, warm_start, within_reach
from popflow.optim.layer_batch import WIDE, Bucket, Taken
from popflow.optim.options import RANGES, in_range
from popflow.optim.structures.blocks import Diagonal
from popflow.optim.structures.structure import Factor, Structure

if TYPE_CHECKING:
    from popflow.optim.singd import SINGD


def refresh_factors(optimizer: SINGD, scale: float) -> None:
    """Take one step of all factors by what their layers told since the last; ``scale`` is that of the loss.

    Raises:
        RuntimeError: when there are gradients and no layer was heard.
        ValueError: for an ``lr_cov`` out of its range, as a function may return it.
    """
    spoken = any(heard.h_k is not None for bucket in optimizer.buckets for heard in bucket.heard)
    several = distributed()
    if not spoken and not several:
        layer = next((b.layers[0] for b in optimizer.buckets if any(la.weight.grad is not None for la in b.layers)), None)
        if layer is None:
            return
        raise RuntimeError(
            f"layer {layer.name!r} has a gradient but no layer was heard since the last refresh. Fix: call model.train() and run the model "
            "that the optimiser was made with, outside of torch.func.jvp and vmap and without create_graph=True; with listen=False call observe(); or call detach() to keep "
            "the factors as they are."
        )
    ready = [(bucket, bucket.take(scale)) for bucket in optimizer.buckets]
    if several:
        ready = [(bucket, _shared(optimizer, taken)) for bucket, taken in ready]
    optimizer.warned_of_unheard = optimizer.warned_of_unheard or warn_of_unheard(ready, stacklevel=3)
    ready = [(bucket, taken) for bucket, taken in ready if any(taken.present)]
    if not ready:
        return
    for i, group in enumerate(optimizer.param_groups):
        lr_cov = group["lr_cov"](optimizer.refreshes) if callable(group["lr_cov"]) else group["lr_cov"]
        in_range("lr_cov", lr_cov, *RANGES["lr_cov"])
        options = {"damping": group["damping"], "adaptive": optimizer.adaptive}
        moving = options | {"lr_cov": lr_cov, "alpha1": group["alpha1"]}
        mine = [(bucket, taken) for bucket, taken in ready if bucket.group is group]
        for bucket, _ in mine:
            bucket.metric = [None, None]
        flat: list[tuple[Bucket, Taken]] = []
        slow: list[tuple[Bucket, Taken]] = []
        framed: dict[Structure, list[tuple[Bucket, Taken]]] = {}
        for bucket, taken in mine:
            if _only_diagonal(bucket, taken):
                flat.append((bucket, taken))
            elif _shares_a_frame(bucket, taken):
                framed.setdefault(bucket.k.structure, []).append((bucket, taken))
            else:
                slow.append((bucket, taken))
        if flat and not _refresh_diagonals(optimizer.diagonals, i, flat, moving):
            slow += flat
        for pairs in framed.values():
            if not _refresh_framed(pairs, moving):
                slow += pairs
        if slow:
            numbers = [measures(b.k, b.c, _seen(b.k, taken.h_k), _seen(b.c, taken.h_c)) for b, taken in slow]
            told = iter(torch.cat([one for four in numbers for one in four]).tolist())
            pairs = [_start(optimizer, *one, [list(islice(told, len(one[0].started))) for _ in range(4)], options) for one in slow]
            if moved := [pair for pair in pairs if pair is not None]:
                refresh_all(moved, rounding=optimizer.rounding, **moving)
    optimizer.refreshes += 1


def _start(optimizer: SINGD, bucket: Bucket, taken: Taken, measured: list[list[float]], options: dict[str, Any]) -> Pair | None:
    """Start the members that meet their first batch; return the others whose curvature is within reach, to be moved."""
    heard = [there for layer, there in zip(bucket.layers, taken.present, strict=True) for _ in range(layer.blocks)]
    means = [
        [scale * total / side.n for scale, total in zip(scales, totals, strict=True)]
        for side, scales, totals in ((bucket.k, taken.scale_k, measured[0]), (bucket.c, taken.scale_c, measured[1]))
    ]
    dtype = bucket.k.value[0].dtype
    sound = [there and within_reach(a, b, dtype) for a, b, there in zip(*means, heard, strict=True)]
    _count_skipped(optimizer, bucket, sound, taken.present)
    moves = [s and (begun or not optimizer.warm) for s, begun in zip(sound, bucket.started, strict=True)]
    starts = [s and not m for s, m in zip(sound, moves, strict=True)]
    bucket.started = [s or begun for s, begun in zip(sound, bucket.started, strict=True)]
    if any(starts):  # the factors are still the identity, so that what was heard is the curvature itself
        scales = (taken.scale_k, taken.scale_c)
        warm_start(bucket.k, bucket.c, taken.h_k, taken.h_c, scales=scales, rows=taken.rows, valid=_mask(starts, taken.h_k[0]), **options)
    if not any(moves):
        return None
    h_k, h_c = _seen(bucket.k, taken.h_k), _seen(bucket.c, taken.h_c)
    return Pair(bucket.k, bucket.c, h_k, h_c, (taken.scale_k, taken.scale_c), measured, _mask(moves, h_k[0]))


def _refresh_diagonals(all_kept: dict[int, Diagonals], of: int, pairs: list[tuple[Bucket, Taken]], moving: dict[str, Any]) -> bool:
    """Move all diagonal factors of a group, the one of this number, together; False, and nothing moves, when some curvature is not within reach."""
    sides, kept = [side for bucket, _ in pairs for side in (bucket.k, bucket.c)], all_kept.get(of)
    if kept is None or not kept.hold(sides):
        kept = all_kept[of] = Diagonals(sides)
    heard = [part for _, taken in pairs for part in (taken.h_k[0], taken.h_c[0])]
    scales = [scale for _, taken in pairs for both in (taken.scale_k, taken.scale_c) for scale in both]
    sound = kept.refresh(heard, scales, **moving)
    for i, (bucket, _) in enumerate(pairs if sound else ()):
        bucket.metric = [*kept.metrics[2 * i : 2 * i + 2]]
    return sound


def _refresh_framed(pairs: list[tuple[Bucket, Taken]], moving: dict[str, Any]) -> bool:
    """Move all factors of one structure together; False, and nothing moves, when they do not fit or some curvature is not within reach."""
    sides = [side for bucket, _ in pairs for side in (bucket.k, bucket.c)]
    heard = [part for _, taken in pairs for part in (taken.h_k, taken.h_c)]
    scales = [scale for _, taken in pairs for both in (taken.scale_k, taken.scale_c) for scale in both]
    return fits(sides) and refresh_together(sides, heard, scales, **moving)


def _shared(optimizer: SINGD, taken: Taken) -> Taken:
    """Average what was heard over all processes."""
    for parts, scales in ((taken.h_k, taken.scale_k), (taken.h_c, taken.scale_c)):
        for part in parts:
            part.mul_(part.new_tensor(scales).view(-1, *[1] * (part.ndim - 1)))
    present, rows = average(optimizer.process_group, taken.h_k, taken.h_c, taken.present, taken.rows)
    ones = [1.0] * len(taken.scale_k)
    return Taken(taken.h_k, taken.h_c, ones, ones, rows, present)


def _count_skipped(optimizer: SINGD, bucket: Bucket, sound: list[bool], present: list[bool]) -> None:
    bad = [
        layer.name for layer, members, there in zip(bucket.layers, bucket.slices, present, strict=True) if there and not all(sound[members])
    ]
    optimizer.skipped += len(bad)
    if bad and not optimizer.warned:
        optimizer.warned = True
        warnings.warn(
            f"layer {bad[0]!r}: the captured curvature is not finite, or too large to be used; its factors keep their values (counted in .skipped, said once). "
            "Fix: look for overflow in activations or loss, or lower the learning rate.",
            RuntimeWarning,
            stacklevel=3,
        )


def _only_diagonal(bucket: Bucket, taken: Taken) -> bool:
    kinds = type(bucket.k.structure) is type(bucket.c.structure) is Diagonal
    return kinds and bucket.k.value[0].dtype in WIDE and all(bucket.started) and all(taken.present)


def _shares_a_frame(bucket: Bucket, taken: Taken) -> bool:
    structure = bucket.k.structure
    return has_frames(type(structure)) and structure == bucket.c.structure and all(bucket.started) and all(taken.present)


def _seen(side: Side, h: Factor) -> Factor:
    """What a layer told, as its factor sees it: `Diagonal` sums are told of the rows themselves."""
    return (h[0] * side.value[0].to(h[0].dtype).square(),) if type(side.structure) is Diagonal else h


def _mask(members: list[bool], like: Tensor) -> Tensor | None:
    return None if all(members) else torch.tensor(members, device=like.device)
