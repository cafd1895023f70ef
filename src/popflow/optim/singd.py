"""SINGD: structured inverse-free natural gradient descent, as a `torch.optim.Optimizer` for any module.

    dW = C C^T  grad W  K K^T                         every step, with the factors of `popflow.optim.kronecker`
    m  <- momentum m + dW                             heavy ball
    W  <- (1 - lr weight_decay) W - lr m              decoupled weight decay

Every ``interval`` steps hooks listen to one forward and backward pass (training mode only) and the factors take one step.
Layers that are matrices (Linear, convolutions, attention projections) are preconditioned; every other parameter (embeddings,
normalisation, bare ones) goes to a built-in AdamW with its own ``fallback_lr``. Equal shapes are updated as one batch.

Source: Lin et al., ICML 2024, arXiv 2312.05705. KL clip: Ba, Grosse, Martens 2017.

This file is longer than the house's usual: it is one torch protocol (groups, state, scaler, copies) and is read as one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from popflow.optim.capture import Averaging, Layer, Sharing, Tap, expand, find_layers, over_data, per_datum
from popflow.optim.kronecker import Side, refresh, refresh_diagonal, rounded, warm_start
from popflow.optim.structures import Auto, Dense, Diagonal, Factor, Structure

DENSE = Dense()
Structures = Structure | tuple[Structure, Structure] | Auto
"""One structure for both factors, ``(inputs, outputs)``, or `Auto`."""


@dataclass(eq=False)
class Heard:
    """What one layer told since the last step: sums of projected Gram matrices, and how many rows and data made them."""

    h_k: Factor | None = None
    h_c: Factor | None = None
    rows: int = 0
    data: int = 0
    task: int = -1
    scale: Averaging | None = None


@dataclass(eq=False)
class Bucket:
    """Layers of equal shape, options and structures: one batch of Kronecker pairs.

    Attributes:
        group: The parameter group, with its options.
        layers: The layers, each with ``blocks`` members of the batch.
        k: Input factors.
        c: Output factors.
        momentum: ``[B, d, inputs]``, or None before the first step and without momentum.
        started: Whether a member has met its first batch.
        heard: One per layer.
        metric: Cached ``K K^T``, ``C C^T`` where that saves work; not part of the state.
    """

    group: dict[str, Any]
    layers: list[Layer]
    k: Side
    c: Side
    momentum: Tensor | None = None
    started: list[bool] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    metric: list[Factor | None] = field(default_factory=lambda: [None, None])

    def __post_init__(self):
        ends = list(accumulate((layer.blocks for layer in self.layers), initial=0))
        self.slices = [slice(a, b) for a, b in pairwise(ends)]

    def size(self) -> int:
        """Numbers stored."""
        stored = [*self.k.tensors(), *self.c.tensors(), *(part for metric in self.metric for part in metric or ())]
        return sum(part.numel() for part in stored) + (0 if self.momentum is None else self.momentum.numel())


@dataclass(frozen=True)
class Preconditioned:
    """One line of `SINGD.report`: which parameters, by what, with how many numbers of state."""

    name: str
    parameters: int
    inputs: Structure | None
    outputs: Structure | None
    state: int

    def __str__(self) -> str:
        how = "AdamW" if self.inputs is None else f"{self.inputs} x {self.outputs}"
        return f"{self.name}: {self.parameters} parameters, {how}, {self.state / max(self.parameters, 1):.2f} numbers of state each"


class SINGD(torch.optim.Optimizer):
    """Natural gradient with structured Kronecker factors and no inverse anywhere; a drop-in for AdamW.

    Args:
        model: The module (or the DistributedDataParallel around it) whose layers are listened to.
        params: Parameters or groups of them, as for any optimiser; None for all of the model's. Groups may set ``lr, momentum,
            weight_decay, damping, lr_cov, alpha1, kl_clip, update_rms, fallback_lr, structure``.
        lr: Step size; that of AdamW is a good first value, as long as ``update_rms`` is set.
        structure: `Dense`, `Diagonal`, `BlockDiagonal(30)`, ..., a pair (inputs, outputs), or `Auto` / ``"auto"``: the richest within a
            budget of memory.
        momentum: Heavy-ball momentum of the weights; 0 keeps no buffer.
        damping: ``lambda > 0``, added to the Kronecker product (SINGD) or to each factor (IKFAC).
        lr_cov: Step size ``beta`` in (0, 1) of the factors, or a function of the number of refreshes.
        alpha1: Momentum in [0, 1) of the factors; 0 halves their memory.
        weight_decay: Decoupled.
        interval: ``T``: refresh the factors every ``T`` steps; or a function of the step.
        adaptive: SINGD; False for IKFAC (``alpha1`` is then 0).
        update_rms: Scale each layer's momentum to this root mean square (0.2 is about AdamW's, so that its ``lr`` carries over); no step can
            then blow up. None takes the natural step itself, for problems where its length matters (quadratics, wave functions).
        kl_clip: Without ``update_rms``, ``dW`` is scaled by ``min(1, sqrt(kl_clip / (lr^2 <dW, grad W>)))``; None for no clip.
        fallback: Names of modules or parameters that the built-in AdamW shall take although they could be preconditioned.
        fallback_lr: Step size of the built-in AdamW; it follows the schedule of ``lr`` in proportion. None: the same as ``lr``.
        sharing: `expand` or `reduce`.
        averaging: What the loss averages over: `over_data`, `over_rows`, `summed`.
        listen: Take cotangents from ``loss.backward()`` (empirical Fisher); False: from `observe` alone (sampled Fisher, wave functions).
        warm: Start from the diagonal solution of the first batch; False starts from the identity.
        max_rows: Use at most so many rows of each capture, evenly spaced; None uses all.
        factor_dtype: Of the factors; None: that of the parameters, at least float32.
        stochastic_rounding: Round bfloat16 parameters, momentum and factors at random, so that small steps are not lost.
        grad_scaler: The `torch.amp.GradScaler` in use; needed only when gradients are unscaled before the step (clipping).
        process_group: Over which factors are averaged when `torch.distributed` runs; None: all processes.
        seed: Of stochastic rounding.

    Raises:
        TypeError: `nn.DataParallel`, complex or sparse parameters, something that is no structure.
        ValueError: a number out of its range, parameters that are not the model's, one layer split over groups, nothing to precondition.
        RuntimeError: at a step whose refresh is due and no layer was heard.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> optimizer = SINGD(net, lr=0.1, structure=Dense(), interval=1)
        >>> loss = net(torch.ones(4, 3)).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> [line.name for line in optimizer.report()]
        ['0', '2']
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[Any] | None = None,
        lr: float = 3e-3,
        structure: Structures | str = DENSE,
        *,
        momentum: float = 0.9,
        damping: float = 1e-4,
        lr_cov: float | Callable[[int], float] = 0.1,
        alpha1: float = 0.5,
        weight_decay: float = 0.0,
        interval: int | Callable[[int], int] = 10,
        adaptive: bool = True,
        kl_clip: float | None = 1e-3,
        update_rms: float | None = 0.2,
        fallback: Collection[str] = (),
        fallback_lr: float | None = 1e-3,
        sharing: Sharing = expand,
        averaging: Averaging = over_data,
        listen: bool = True,
        warm: bool = True,
        max_rows: int | None = None,
        factor_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = True,
        grad_scaler: Any = None,
        process_group: Any = None,
        seed: int = 0,
    ):
        if isinstance(model, nn.DataParallel):
            raise TypeError(
                "model is nn.DataParallel, whose replicas are not listened to. Fix: use DistributedDataParallel, or the bare module."
            )
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        _in_range("interval", interval, 1, math.inf)
        _in_range("max_rows", max_rows, 1, math.inf)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.interval, self.adaptive, self.sharing, self.averaging, self.warm = interval, adaptive, sharing, averaging, warm
        self.max_rows, self.factor_dtype, self.grad_scaler, self.process_group = max_rows, factor_dtype, grad_scaler, process_group
        self.rounding = torch.Generator().manual_seed(seed) if stochastic_rounding else None
        self.steps = self.refreshes = self.next_refresh = self.skipped = 0
        self.warned = False
        self.buckets: list[Bucket] = []
        self.adamw: list[torch.optim.AdamW | None] = []
        self.layers = [layer for layer in find_layers(model) if not _named(layer, self.names, fallback)]
        self.tap: Tap | None = None
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "damping": damping,
            "lr_cov": lr_cov,
            "alpha1": alpha1 if adaptive else 0.0,
            "weight_decay": weight_decay,
            "kl_clip": kl_clip,
            "update_rms": update_rms,
            "fallback_lr": fallback_lr,
            "structure": structure,
        }
        super().__init__(list(self.names) if params is None else params, defaults)
        if not self.buckets:
            raise ValueError(
                "model: no layer among its parameters can be preconditioned (Linear, Conv1d/2d/3d, MultiheadAttention). Fix: use torch.optim.AdamW."
            )
        self.tap = Tap([layer for bucket in self.buckets for layer in bucket.layers], self._hear if listen else None)
        self.tap.armed = True

    # -- groups ---------------------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as any optimiser; its layers are found and bucketed."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["base_lr"] = group.get("initial_lr", group["lr"])
        names = [self.names.get(parameter, "?") for parameter in group["params"]]
        try:
            self._fill(group, names)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _fill(self, group: dict[str, Any], names: list[str]) -> None:
        _check(group)
        if "?" in names:
            shape = tuple(group["params"][names.index("?")].shape)
            raise ValueError(f"params: one of shape {shape} is not a parameter of the model. Fix: give the model that holds it.")
        for parameter, name in zip(group["params"], names, strict=True):
            if parameter.is_complex() or parameter.is_sparse:
                kind = "complex" if parameter.is_complex() else "sparse"
                raise TypeError(
                    f"parameter {name!r} is {kind}, wanted real and dense. Fix: leave it out of params and give it to another optimiser."
                )
        members = set(group["params"])
        layers = []
        for layer in self.layers:
            inside = [parameter in members for parameter in layer.parameters()]
            if any(inside) and not all(inside):
                raise ValueError(
                    f"layer {layer.name!r} is split over parameter groups: its weight and bias have one curvature. Fix: put both into one group, "
                    f"or name it in fallback=[{layer.name!r}]."
                )
            if all(inside):
                layers.append(layer)
        taken = {parameter for layer in layers for parameter in layer.parameters()}
        rest = [parameter for parameter in group["params"] if parameter not in taken]
        structures = self._structures(group, layers, rest)
        shapes: dict[Any, list[tuple[Layer, Structure, Structure]]] = {}
        for layer, (k, c) in zip(layers, structures, strict=True):
            key = (layer.d, layer.p, layer.bias is None, layer.weight.dtype, layer.weight.device, repr(k), repr(c))
            shapes.setdefault(key, []).append((layer, k, c))
        self.buckets += [self._bucket(group, same) for same in shapes.values()]
        fused = bool(rest) and all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in rest)
        self.adamw.append(torch.optim.AdamW(rest, lr=group["lr"], fused=fused) if rest else None)

    def _structures(self, group: dict[str, Any], layers: list[Layer], rest: list[nn.Parameter]) -> list[tuple[Structure, Structure]]:
        chosen = Auto() if group["structure"] == "auto" else group["structure"]
        if isinstance(chosen, Auto):
            shapes = [(layer.blocks, layer.d, layer.inputs) for layer in layers]
            kept = sum(parameter.numel() for parameter in rest) * 2
            return chosen.choose(shapes, kept, momentum=group["momentum"] > 0, factor_momentum=group["alpha1"] > 0)
        pair = chosen if isinstance(chosen, tuple) else (chosen, chosen)
        for one in pair:
            if not isinstance(one, Structure) or isinstance(one, type) or len(pair) != 2:
                where = f" for layer {layers[0].name!r}" if layers else ""
                raise TypeError(
                    f"structure={chosen!r}{where} is unknown: wanted an object such as Dense(), Diagonal(), BlockDiagonal(30), Hierarchical(15, 15), "
                    "LowerToeplitz(), a pair (inputs, outputs) of them, Auto() or 'auto'."
                )
        return [pair] * len(layers)

    def _bucket(self, group: dict[str, Any], same: list[tuple[Layer, Structure, Structure]]) -> Bucket:
        layers = [layer for layer, _, _ in same]
        first, s_k, s_c = same[0]
        batch = sum(layer.blocks for layer in layers)
        like = torch.empty(0, dtype=self._factor_dtype(first.weight), device=first.weight.device)
        k = Side.identity(s_k, first.inputs, batch, like, group["alpha1"] > 0)
        c = Side.identity(s_c, first.d, batch, like, group["alpha1"] > 0)
        return Bucket(group, layers, k, c, None, [False] * batch, [Heard() for _ in layers])

    def _factor_dtype(self, weight: Tensor) -> torch.dtype:
        return self.factor_dtype or torch.promote_types(weight.dtype, torch.float32)

    # -- curvature ------------------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the coming step refreshes the factors, so that hooks listen now."""
        return self.steps >= self.next_refresh

    def detach(self) -> None:
        """Take the hooks off the model. The factors then stay as they are."""
        if self.tap is not None:
            self.tap.detach()
        self.next_refresh = math.inf

    @torch.no_grad()
    def observe(self, outputs: Tensor, cotangents: Tensor) -> None:
        """Take curvature from cotangents of each datum's own scalar, pulled back through the forward pass just made (``listen=False``).

        ``cotangents`` are shaped like ``outputs``, not averaged over data: ones on ``log psi`` for wave functions, `gaussian_cotangent` or
        `categorical_cotangent` for a sampled Fisher matrix. Call it before ``loss.backward()``; when no refresh is due it does nothing.
        """
        assert self.tap is not None
        if self.tap.sink is not None:
            raise RuntimeError("observe() with listen=True would count the curvature of the loss as well. Fix: SINGD(..., listen=False).")
        for found in self.tap.pull(outputs, cotangents):
            self._hear(found.layer, found.a, found.g, per_datum)

    @torch.no_grad()
    def _hear(self, layer: Layer, a: Tensor, g: Tensor, averaging: Averaging | None = None) -> None:
        bucket, index, members = self._home(layer)
        if a.shape[1] == 0:
            return
        heard, data = bucket.heard[index], a.shape[1]
        task = torch._C._current_graph_task_id()
        if task == -1 or task != heard.task:  # a second call within one backward pass is a second use of the weight, not more data
            heard.data, heard.task = heard.data + data, task
        heard.scale = averaging or self.averaging
        a, g = self.sharing(a, g)
        rows = a.shape[1]
        heard.rows += rows
        keep = 1 if self.max_rows is None else math.ceil(rows / self.max_rows)
        dtype = torch.promote_types(bucket.k.value[0].dtype, torch.float32)
        if keep > 1:
            a, g = a[:, ::keep], g[:, ::keep]
        a, g = a.to(dtype), g.to(dtype)
        if layer.bias is not None:
            a = nn.functional.pad(a, (0, 1), value=1.0)
        share = rows / a.shape[1]
        new = []
        for side, x in ((bucket.k, a), (bucket.c, g)):
            value = side.value if len(bucket.layers) == 1 else tuple(part[members] for part in side.value)
            value = tuple(part.to(dtype) for part in value)
            h = side.structure.gram(value, x)
            new.append(h if keep == 1 else tuple(part * share for part in h))
        if heard.h_k is None or heard.h_c is None:
            heard.h_k, heard.h_c = new
        else:
            for old, more in ((heard.h_k, new[0]), (heard.h_c, new[1])):
                for x, y in zip(old, more, strict=True):
                    x.add_(y)

    def _home(self, layer: Layer) -> tuple[Bucket, int, slice]:
        homes = self.__dict__.get("_homes")
        if homes is None or len(homes) != sum(len(bucket.layers) for bucket in self.buckets):
            homes = {}
            for bucket in self.buckets:
                for index, (one, members) in enumerate(zip(bucket.layers, bucket.slices, strict=True)):
                    homes[one] = (bucket, index, members)
            self._homes = homes
        return homes[layer]

    def _refresh(self, scale: float) -> None:
        spoken = any(heard.h_k is not None for bucket in self.buckets for heard in bucket.heard)
        if not spoken and not _distributed():
            layer = next((b.layers[0] for b in self.buckets if any(la.weight.grad is not None for la in b.layers)), None)
            if layer is None:
                return
            raise RuntimeError(
                f"layer {layer.name!r} has a gradient but no layer was heard since the last refresh. Fix: call model.train() and run the model "
                "that the optimiser was made with; with listen=False call observe(); or call detach() to keep the factors as they are."
            )
        ready = [(bucket, *taken) for bucket in self.buckets if (taken := self._take(bucket, scale)) is not None]
        if not ready:
            return
        traces = torch.cat(
            [side.structure.diagonal(h, side.n).sum(-1) for b, *both, _ in ready for side, h in zip((b.k, b.c), both, strict=True)]
        )
        finite = iter(map(math.isfinite, traces.tolist()))
        for group in self.param_groups:
            diagonal = []
            options = {"damping": group["damping"], "adaptive": self.adaptive}
            lr_cov = group["lr_cov"](self.refreshes) if callable(group["lr_cov"]) else group["lr_cov"]
            moving = options | {"lr_cov": lr_cov, "alpha1": group["alpha1"], "rounding": self.rounding}
            for bucket, h_k, h_c, present in ready:
                if bucket.group is not group:
                    continue
                good = [[next(finite) for _ in bucket.started] for _ in range(2)]
                heard = [there for layer, there in zip(bucket.layers, present, strict=True) for _ in range(layer.blocks)]
                sound = [a and b and there for a, b, there in zip(*good, heard, strict=True)]
                self._count_skipped(bucket, sound, present)
                bucket.metric = [None, None]
                moves = [s and (begun or not self.warm) for s, begun in zip(sound, bucket.started, strict=True)]
                starts = [s and not m for s, m in zip(sound, moves, strict=True)]
                if any(starts):
                    u, g = bucket.k.structure.diagonal(h_k, bucket.k.n), bucket.c.structure.diagonal(h_c, bucket.c.n)
                    warm_start(bucket.k, bucket.c, u, g, valid=_mask(starts, u), **options)
                bucket.started = [s or begun for s, begun in zip(sound, bucket.started, strict=True)]
                if all(moves) and type(bucket.k.structure) is type(bucket.c.structure) is Diagonal:
                    diagonal.append((bucket.k, bucket.c, h_k, h_c))
                elif any(moves):
                    refresh(bucket.k, bucket.c, h_k, h_c, valid=_mask(moves, h_k[0]), **moving)
            if diagonal:
                refresh_diagonal(diagonal, **moving)
        self.refreshes += 1

    def _take(self, bucket: Bucket, scale: float) -> tuple[Factor, Factor, list[bool]] | None:
        """Return what the layers of a bucket told, normalised and joined, and which of them did; None when none did."""
        h_k, h_c = [], []
        for layer, heard in zip(bucket.layers, bucket.heard, strict=True):
            if heard.h_k is None or heard.h_c is None or heard.scale is None:
                h_k.append(_zeros(bucket.k, layer.blocks))
                h_c.append(_zeros(bucket.c, layer.blocks))
            else:
                h_k.append(tuple(part.div_(heard.rows) for part in heard.h_k))
                h_c.append(tuple(part.mul_(heard.scale(heard.data, heard.rows) / scale**2) for part in heard.h_c))
        present = [heard.h_k is not None for heard in bucket.heard]
        if any(present):
            bucket.heard = [Heard() for _ in bucket.layers]
        joined_k, joined_c = _joined(h_k), _joined(h_c)
        if _distributed():
            present = _average(self.process_group, joined_k, joined_c, present)
        return (joined_k, joined_c, present) if any(present) else None

    def _count_skipped(self, bucket: Bucket, sound: list[bool], present: list[bool]) -> None:
        bad = [
            layer.name
            for layer, members, there in zip(bucket.layers, bucket.slices, present, strict=True)
            if there and not all(sound[members])
        ]
        self.skipped += len(bad)
        if bad and not self.warned:
            self.warned = True
            warnings.warn(
                f"layer {bad[0]!r}: the captured curvature is not finite; its factors keep their values (counted in .skipped, said once). "
                "Fix: look for overflow in activations or loss, or lower the learning rate.",
                RuntimeWarning,
                stacklevel=3,
            )

    # -- the step -------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Refresh the factors where due, precondition, and move the weights; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, overflow = self._loss_scale()
        if overflow:
            self._forget()
            return loss
        if getattr(self, "grad_scale", None) is not None:
            grads = [parameter.grad for parameter in self.names if parameter.grad is not None]
            for gradient in grads:
                gradient.mul_(1 / scale)
        self._follow_parameters()
        due = self.due
        if due:
            self._refresh(scale)
        for group, adamw in zip(self.param_groups, self.adamw, strict=True):
            self._move(group, [bucket for bucket in self.buckets if bucket.group is group])
            if adamw is not None:
                ratio = group["lr"] / group["base_lr"] if group["base_lr"] else 0.0
                lr = group["lr"] if group["fallback_lr"] is None else group["fallback_lr"] * ratio
                adamw.param_groups[0].update(lr=lr, weight_decay=group["weight_decay"])
                adamw.step()
        self.steps += 1
        if due:
            gap = self.interval(self.steps) if callable(self.interval) else self.interval
            self.next_refresh = self.steps - 1 + max(1, int(gap)) if self.next_refresh != math.inf else math.inf
        if self.tap is not None:
            self.tap.armed = self.due
            self.tap.tape.clear()
        return loss

    def _loss_scale(self) -> tuple[float, bool]:
        found = getattr(self, "found_inf", None)
        if found is None:
            return (float(self.grad_scaler.get_scale()) if self.grad_scaler is not None else 1.0), False
        if self.grad_scaler is not None:
            scale = float(self.grad_scaler.get_scale())
        elif (given := getattr(self, "grad_scale", None)) is not None:
            scale = float(given)
        elif self.due:
            raise RuntimeError(
                "gradients were unscaled before the step, so the scale of the captured cotangents is not known. Fix: SINGD(..., grad_scaler=scaler)."
            )
        else:
            scale = 1.0
        return scale, bool(found)

    def _forget(self) -> None:
        for bucket in self.buckets:
            bucket.heard = [Heard() for _ in bucket.layers]
        if self.tap is not None:
            self.tap.tape.clear()

    def _follow_parameters(self) -> None:
        for bucket in self.buckets:
            weight = bucket.layers[0].weight
            dtype = self._factor_dtype(weight)
            have = bucket.k.value[0]
            if have.device == weight.device and have.dtype == dtype:
                continue
            bucket.k.to(weight.device, dtype)
            bucket.c.to(weight.device, dtype)
            bucket.metric = [None, None]
            bucket.momentum = None if bucket.momentum is None else bucket.momentum.to(weight.device, weight.dtype)
            for heard in bucket.heard:
                for name in ("h_k", "h_c"):
                    parts = getattr(heard, name)
                    setattr(heard, name, None if parts is None else tuple(part.to(weight.device, dtype) for part in parts))
            for adamw in filter(None, self.adamw):
                for parameter, state in adamw.state.items():
                    state.update({key: value.to(parameter) for key, value in state.items() if key != "step"})

    def _move(self, group: dict[str, Any], buckets: list[Bucket]) -> None:
        work = [(bucket, gradient) for bucket in buckets if (gradient := _gradient(bucket, self.names)) is not None]
        if not work:
            return
        steps = [self._precondition(bucket, gradient) for bucket, gradient in work]
        if group["update_rms"] is None and not self._clipped(group, steps, [gradient for _, gradient in work]):
            return
        moved = [self._with_momentum(bucket, step) for (bucket, _), step in zip(work, steps, strict=True)]
        scales = [1.0] * sum(len(bucket.started) for bucket, _ in work)
        if group["update_rms"] is not None:
            norms = torch.cat([torch.linalg.vector_norm(step.flatten(1), dim=1) for step in moved]).tolist()
            if not all(map(math.isfinite, norms)):
                for bucket, _ in work:
                    bucket.momentum = None
                self._skip_step()
                return
            roots = [group["update_rms"] * math.sqrt(step[0].numel()) for step in moved for _ in range(step.shape[0])]
            scales = [root / norm if norm > 0 else 0.0 for root, norm in zip(roots, norms, strict=True)]
        first = 0
        for (bucket, _), step in zip(work, moved, strict=True):
            for layer, members in zip(bucket.layers, bucket.slices, strict=True):
                part, scale = step if len(bucket.layers) == 1 else step[members], scales[first + members.start]
                if layer.blocks > 1 and group["update_rms"] is not None:
                    part, scale = part * part.new_tensor(scales[first + members.start : first + members.stop])[:, None, None], 1.0
                self._write(layer, part, group["lr"] * scale, 1 - group["lr"] * group["weight_decay"])
            first += len(bucket.started)

    def _clipped(self, group: dict[str, Any], steps: list[Tensor], gradients: list[Tensor]) -> bool:
        """Clip natural steps in place by what they change; False when they are not finite."""
        products = [torch.dot(step.flatten(), gradient.flatten()) for step, gradient in zip(steps, gradients, strict=True)]
        total = float(torch.stack(products).sum())
        if not math.isfinite(total):
            self._skip_step()
            return False
        size = group["lr"] ** 2 * total
        if group["kl_clip"] is not None and size > group["kl_clip"]:
            for step in steps:
                step.mul_(math.sqrt(group["kl_clip"] / size))
        return True

    def _skip_step(self) -> None:
        self.skipped += 1
        if not self.warned:
            self.warned = True
            warnings.warn("a gradient is not finite; the step is skipped (counted in .skipped, said once).", RuntimeWarning, stacklevel=4)

    def _precondition(self, bucket: Bucket, gradient: Tensor) -> Tensor:
        x = _both(bucket.k, bucket.metric, 0, gradient.to(bucket.k.value[0].dtype), bucket.c.n, self.interval)
        x = _both(bucket.c, bucket.metric, 1, x.mT, bucket.k.n, self.interval).mT
        return x.to(gradient.dtype).contiguous()

    def _with_momentum(self, bucket: Bucket, step: Tensor) -> Tensor:
        if bucket.group["momentum"] == 0:
            return step
        dtype = bucket.layers[0].weight.dtype
        if bucket.momentum is None:
            bucket.momentum = rounded(step, dtype, self.rounding)
        elif dtype == step.dtype:
            torch.add(step, bucket.momentum, alpha=bucket.group["momentum"], out=bucket.momentum)
        else:
            step = torch.add(step, bucket.momentum, alpha=bucket.group["momentum"])
            bucket.momentum = rounded(step, dtype, self.rounding)
            return step
        return bucket.momentum

    def _write(self, layer: Layer, step: Tensor, lr: float, decay: float) -> None:
        for parameter, delta in _parts(layer, step):
            if parameter.dtype == delta.dtype:
                if decay != 1:
                    parameter.mul_(decay)
                parameter.add_(delta, alpha=-lr)
            else:
                wide = torch.add(parameter.to(delta.dtype) * decay, delta, alpha=-lr)
                parameter.copy_(rounded(wide, parameter.dtype, self.rounding))

    # -- state ----------------------------------------------------------------------------------------------------------------------

    def report(self) -> list[Preconditioned]:
        """Say what is preconditioned how, one line per layer and per parameter of the fallback."""
        lines = []
        for bucket in self.buckets:
            batch = sum(layer.blocks for layer in bucket.layers)
            for layer in bucket.layers:
                count, state = layer.blocks * layer.d * layer.inputs, bucket.size() * layer.blocks // batch
                lines.append(Preconditioned(layer.name, count, bucket.k.structure, bucket.c.structure, state))
        for adamw in filter(None, self.adamw):
            lines += [Preconditioned(self.names[p], p.numel(), None, None, 2 * p.numel()) for p in adamw.param_groups[0]["params"]]
        return lines

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers alone, keyed by parameter names; `torch.load(weights_only=True)` reads it."""
        state: dict[str, dict[str, Tensor]] = {}
        for bucket in self.buckets:
            for layer, members in zip(bucket.layers, bucket.slices, strict=True):
                entry = state.setdefault(self.names[layer.weight], {})
                for key, tensor in _stored(bucket):
                    entry[_key(layer, key)] = tensor[members].clone()
                entry[_key(layer, "started")] = torch.tensor(bucket.started[members])
        for adamw in filter(None, self.adamw):
            for parameter, values in adamw.state.items():
                state[self.names[parameter]] = {key: value.clone() for key, value in values.items()}
        counters = torch.tensor([self.steps, self.refreshes, -1 if self.next_refresh == math.inf else self.next_refresh, self.skipped])
        state[""] = {"counters": counters}
        if self.rounding is not None:
            state[""]["rounding"] = self.rounding.get_state()
        plain = (int, float, bool, type(None))
        groups = [
            {key: value for key, value in group.items() if isinstance(value, plain)} | {"params": [self.names[p] for p in group["params"]]}
            for group in self.param_groups
        ]
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned; the given dictionary is not changed.

        Raises:
            ValueError: when names or shapes differ from this optimiser's: the model or the structures are not the same.
        """
        state, groups = state_dict["state"], state_dict["param_groups"]
        names = [[self.names[p] for p in group["params"]] for group in self.param_groups]
        if [list(group["params"]) for group in groups] != names:
            raise ValueError(
                "state_dict: the parameter groups hold other parameters than this optimiser's. Fix: build it for the same model and groups."
            )
        for bucket in self.buckets:
            self._load_bucket(bucket, state)
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        for adamw in filter(None, self.adamw):
            adamw.state.clear()
            for p in adamw.param_groups[0]["params"]:
                values = state.get(self.names[p])
                if values:
                    adamw.state[p] = {k: v.clone() if k == "step" else v.to(p.device, p.dtype, copy=True) for k, v in values.items()}
        self.steps, self.refreshes, next_refresh, self.skipped = state[""]["counters"].tolist()
        self.next_refresh = math.inf if next_refresh < 0 else next_refresh
        if self.rounding is not None and "rounding" in state[""]:
            self.rounding.set_state(state[""]["rounding"].cpu())
        self._forget()
        if self.tap is not None:
            self.tap.armed = self.due

    def _load_bucket(self, bucket: Bucket, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        first = bucket.layers[0]
        saved = state.get(self.names[first.weight], {})
        if _key(first, "momentum") not in saved:
            bucket.momentum = None
        elif bucket.momentum is None:
            bucket.momentum = first.weight.new_empty(len(bucket.started), first.d, first.inputs)
        bucket.metric = [None, None]
        for layer, members in zip(bucket.layers, bucket.slices, strict=True):
            name = self.names[layer.weight]
            for key, tensor in _stored(bucket):
                value = state.get(name, {}).get(_key(layer, key))
                if value is None or value.shape != tensor[members].shape:
                    seen = "nothing" if value is None else f"shape {tuple(value.shape)}"
                    raise ValueError(
                        f"state_dict: {seen} for {_key(layer, key)!r} of {name!r}, wanted shape {tuple(tensor[members].shape)}. "
                        "Fix: use the structures, alpha1 and momentum that it was saved with."
                    )
                tensor[members] = value.to(tensor.device, tensor.dtype)
            bucket.started[members] = state[name][_key(layer, "started")].tolist()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("tap", "_homes", "rounding")} | {
            "_listen": self.tap is not None and self.tap.sink is not None,
            "_rounding": None if self.rounding is None else self.rounding.get_state(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        listen, seed = state.pop("_listen"), state.pop("_rounding")
        super().__setstate__(state)
        self.rounding = None
        if seed is not None:
            self.rounding = torch.Generator()
            self.rounding.set_state(seed)
        self.tap = Tap([layer for bucket in self.buckets for layer in bucket.layers], self._hear if listen else None)
        self.tap.armed = self.due


def _both(side: Side, cache: list[Factor | None], index: int, x: Tensor, uses: int, interval: Any) -> Tensor:
    """``X K K^T``, by the cached or the passing ``K K^T`` where that is less work."""
    dense = isinstance(side.structure, Dense)
    metric = cache[index]
    if metric is None:
        gap = interval if dense and isinstance(interval, int) else 1
        metric = side.structure.metric(side.value, uses * gap)
        if dense:
            cache[index] = metric
    if metric is None:
        return side.structure.right_t(side.value, side.structure.right(side.value, x))
    return side.structure.right(metric, x)


def _gradient(bucket: Bucket, names: Mapping[nn.Parameter, str]) -> Tensor | None:
    """Gradients of a bucket's layers as ``[B, d, inputs]``; zeros for a layer without, None when no layer has one."""
    parts = []
    heard = False
    for layer in bucket.layers:
        pieces = []
        for parameter in layer.parameters():
            gradient = parameter.grad
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            elif gradient.is_sparse:
                raise TypeError(f"parameter {names[parameter]!r} of layer {layer.name!r} has a sparse gradient, wanted a dense one.")
            else:
                heard = True
            pieces.append(layer.view(gradient))
        parts.append(pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1))
    if not heard:
        return None
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined.to(torch.promote_types(joined.dtype, torch.float32))


def _parts(layer: Layer, step: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pair the layer's rows of weight and bias with their parts of a step ``[B, d, inputs]``."""
    pairs = []
    for parameter, part in ((layer.weight, step if layer.bias is None else step[..., : layer.p]), (layer.bias, step[..., layer.p :])):
        if parameter is not None and parameter.grad is not None:
            rows = parameter if layer.whole else parameter[layer.start : layer.start + layer.blocks * layer.d]
            pairs.append((rows, part.view(rows.shape) if part.is_contiguous() else part.reshape(rows.shape)))
    return pairs


def _stored(bucket: Bucket) -> list[tuple[str, Tensor]]:
    named = [(f"{side}.{i}", part) for side, of in (("K", bucket.k), ("C", bucket.c)) for i, part in enumerate(of.value)]
    for side, of in (("K", bucket.k), ("C", bucket.c)):
        named += [(f"{side}_momentum.{i}", part) for i, part in enumerate(of.momentum or ())]
    return named if bucket.momentum is None else [*named, ("momentum", bucket.momentum)]


def _key(layer: Layer, key: str) -> str:
    return key if layer.whole else f"rows{layer.start}.{key}"


def _mask(members: list[bool], like: Tensor) -> Tensor | None:
    return None if all(members) else torch.tensor(members, device=like.device)


def _zeros(side: Side, blocks: int) -> Factor:
    return tuple(part.new_zeros(blocks, *part.shape[1:], dtype=torch.promote_types(part.dtype, torch.float32)) for part in side.value)


def _joined(parts: list[Factor]) -> Factor:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(same) for same in zip(*parts, strict=True))


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _average(process_group: Any, h_k: Factor, h_c: Factor, present: list[bool]) -> list[bool]:
    """Average the Gram matrices of all processes, in place; a layer is present where any process heard it."""
    flags = h_k[0].new_tensor([float(there) for there in present])
    flat = torch.cat([flags, *(part.flatten() for part in (*h_k, *h_c))])
    torch.distributed.all_reduce(flat, group=process_group)
    flat /= torch.distributed.get_world_size(process_group)
    at = len(present)
    for part in (*h_k, *h_c):
        part.copy_(flat[at : at + part.numel()].view_as(part))
        at += part.numel()
    return [flag > 0 for flag in flat[: len(present)].tolist()]


def _named(layer: Layer, names: Mapping[nn.Parameter, str], fallback: Collection[str]) -> bool:
    own = {layer.name, *(names.get(parameter, "") for parameter in layer.parameters())}
    return any(name in own or layer.name.startswith(f"{name}.") for name in fallback)


def _in_range(name: str, value: Any, low: float, high: float, low_open: bool = False) -> None:
    if value is None or callable(value):
        return
    good = isinstance(value, int | float) and not isinstance(value, bool) and value <= high and (value > low if low_open else value >= low)
    if not good or (name in ("interval", "max_rows") and not isinstance(value, int)):
        kind = "a whole number" if name in ("interval", "max_rows") else "a number"
        raise ValueError(
            f"{name}={value!r}, wanted {kind} {'above' if low_open else 'at least'} {low:g}"
            + (f" and at most {high:g}." if high < math.inf else ".")
        )


def _check(group: Mapping[str, Any]) -> None:
    below_one = math.nextafter(1.0, 0.0)
    _in_range("lr", group["lr"], 0, math.inf)
    _in_range("damping", group["damping"], 0, math.inf, low_open=True)
    _in_range("momentum", group["momentum"], 0, below_one)
    _in_range("alpha1", group["alpha1"], 0, below_one)
    _in_range("lr_cov", group["lr_cov"], 0, below_one, low_open=True)
    _in_range("weight_decay", group["weight_decay"], 0, math.inf)
    _in_range("kl_clip", group["kl_clip"], 0, math.inf, low_open=True)
    _in_range("update_rms", group["update_rms"], 0, math.inf, low_open=True)
    _in_range("fallback_lr", group["fallback_lr"], 0, math.inf)
