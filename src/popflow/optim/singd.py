"""SINGD: structured inverse-free natural gradient descent, as a `torch.optim.Optimizer` for any module.

    dW = C C^T  grad W  K K^T                         every step, with the factors of `popflow.optim.kronecker`
    m  <- momentum m + dW                             heavy ball
    s  =  1 / sqrt(w u)                               w, u: sums of 1 and mean(dW^2), discounted as m is; 1 without ``update_rms``
    W  <- (1 - lr weight_decay) W - lr update_rms s m     decoupled weight decay

Every ``interval`` steps hooks listen to one forward and backward pass (training mode only) and the factors take one step.
Layers that are matrices (Linear, convolutions, attention projections) are preconditioned; every other parameter (embeddings,
normalisation, bare ones) goes to a built-in AdamW with its own ``fallback_lr``. Equal shapes are updated as one batch.

Source: Lin et al., ICML 2024, arXiv 2312.05705. KL clip: Ba, Grosse, Martens 2017.

One torch protocol in one place: groups, scalers, copies. The batches of layers that it drives are in `popflow.optim.layer_batch`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from popflow.optim.auto import Auto
from popflow.optim.capture import Averaging, Layer, Sharing, Tap, expand, find_layers, over_data, per_datum
from popflow.optim.checks import check_factor_dtype, check_function, check_gradients, check_model
from popflow.optim.curvature import refresh_factors
from popflow.optim.diagonals import Diagonals
from popflow.optim.groups import buckets_of, listed, named, put_in, stand_ins
from popflow.optim.layer_batch import Bucket
from popflow.optim.options import growing, in_range
from popflow.optim.report import Preconditioned, lines_of
from popflow.optim.state import pack, unpack
from popflow.optim.structures.blocks import Dense
from popflow.optim.structures.structure import Structure

DENSE = Dense()
GROWING = growing(10)
LEFT_OUT = ("tap", "_homes", "diagonals", "rounding", "step")
"""Attributes that a copy makes anew. A scheduler's ``step`` is one: it is bound to the optimiser that the scheduler was made for."""
Structures = Structure | tuple[Structure, Structure] | Auto
"""One structure for both factors, ``(inputs, outputs)``, or `Auto`."""


class SINGD(torch.optim.Optimizer):
    """Natural gradient with structured Kronecker factors that follow by products alone, without inverses; a drop-in for AdamW.

    Args:
        model: The module (or the DistributedDataParallel around it) whose layers are listened to.
        params: Parameters or groups of them, as for any optimiser; None for all of the model's. Pairs (name, tensor) may bring tensors that stand
            in for parameters of the model, as `torch.func.functional_call` takes them: ``popflow.learn.fit`` does. Groups may set ``lr, momentum,
            weight_decay, damping, lr_cov, alpha1, kl_clip, update_rms, fallback_lr, structure``.
        lr: Step size; that of AdamW is a good first value, as long as ``update_rms`` is set.
        structure: `Dense`, `Diagonal`, `BlockDiagonal(30)`, ..., a pair (inputs, outputs), or `Auto` / ``"auto"``: the richest within a
            budget of memory.
        momentum: Heavy-ball momentum of the weights; 0 keeps no buffer.
        damping: ``lambda > 0``, added to the Kronecker product (SINGD) or to each factor (IKFAC).
        lr_cov: Step size ``beta`` in (0, 1) of the factors, or a function of the number of refreshes.
        alpha1: Momentum in [0, 1) of the factors, the paper's 0.5 for instance; above 0 it doubles their memory.
        weight_decay: Decoupled.
        interval: ``T``: refresh the factors every ``T`` steps; or a function from the number of steps made to the next ``T``, as `growing`.
        adaptive: SINGD; False for IKFAC (``alpha1`` is then 0).
        update_rms: Divide each matrix's momentum by the root of its steps' mean squares, so that its root mean square is at most this: reached where
            gradients agree, 0.23 of it where they are noise (at momentum 0.9). 1 is Adam's own rule, so that AdamW's ``lr`` carries over; no step can
            blow up. None takes the natural step itself, for problems where its length matters (quadratics, wave functions).
        kl_clip: Without ``update_rms``, ``dW`` is scaled by ``min(1, sqrt(kl_clip / (lr^2 <dW, grad W>)))``; None for no clip.
        fallback: Names of modules or parameters that the built-in AdamW shall take although they could be preconditioned.
        fallback_lr: Step size of the built-in AdamW; it follows the schedule of ``lr`` in proportion. None: the same as ``lr``.
        sharing: `expand` or `reduce`.
        averaging: What the loss averages over: `over_data`, `over_rows`, `summed`.
        listen: Take cotangents from ``loss.backward()`` (empirical Fisher); False: from `observe` alone (sampled Fisher, wave functions).
        warm: Start from the solution of the first batch: of dense factors and blocks by one Cholesky factorisation, of others the diagonal one. False
            starts from the identity, and nothing is ever factorised.
        max_rows: Use at most so many rows of each capture, evenly spaced; None uses all.
        factor_dtype: Of the factors; None: that of the parameters, at least float32.
        stochastic_rounding: Round bfloat16 parameters, momentum and factors at random, so that small steps are not lost.
        grad_scaler: The `torch.amp.GradScaler` in use; needed only when gradients are unscaled before the step (clipping).
        process_group: Over which factors are averaged when `torch.distributed` runs; None: all processes.
        seed: Of stochastic rounding.

    Raises:
        TypeError: no module, `nn.DataParallel`, complex or sparse parameters, something that is no structure.
        ValueError: a number out of its range, parameters that are not the model's, a name that is not in it, one layer split over groups, nothing to
            precondition.
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
    listens = True
    """Forward and backward passes must run the modules: a compiled graph of them would leave the hooks out."""

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[Any] | None = None,
        lr: float = 3e-3,
        structure: Structures | str = DENSE,
        *,
        momentum: float = 0.9,
        damping: float = 1e-4,
        lr_cov: float | Callable[[int], float] = 0.3,
        alpha1: float = 0.0,
        weight_decay: float = 0.0,
        interval: int | Callable[[int], int] = GROWING,
        adaptive: bool = True,
        kl_clip: float | None = 1e-3,
        update_rms: float | None = 1.0,
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
        check_model(model)
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        in_range("interval", interval, 1, math.inf, whole=True)
        in_range("max_rows", max_rows, 1, math.inf, whole=True)
        in_range("seed", seed, 0, math.inf, whole=True)
        check_function("sharing", sharing, "popflow.optim.expand or reduce")
        check_function("averaging", averaging, "popflow.optim.over_data, over_rows or summed")
        check_factor_dtype(factor_dtype)
        params = None if params is None else listed(params)
        own = dict(model.named_parameters())
        standing = stand_ins(params, own)
        self.names = {standing.get(name, parameter): name for name, parameter in own.items()}
        self.interval, self.adaptive, self.sharing, self.averaging, self.warm = interval, adaptive, sharing, averaging, warm
        self.max_rows, self.factor_dtype, self.grad_scaler, self.process_group = max_rows, factor_dtype, grad_scaler, process_group
        self.rounding = torch.Generator(next(iter(self.names)).device).manual_seed(seed) if stochastic_rounding else None
        self.steps = self.refreshes = self.next_refresh = self.skipped = self.pulls = 0
        self.gap = 1
        self.warned = self.warned_of_unheard = False
        self.buckets: list[Bucket] = []
        self._homes: dict[Layer, tuple[Bucket, int]] | None = None
        self.diagonals: dict[int, Diagonals] = {}
        self.adamw: list[torch.optim.AdamW | None] = []
        layers = find_layers(model)
        if standing:
            put_in(layers, {own[name]: tensor for name, tensor in standing.items()})
        known = {*self.names.values(), *(name for name, _ in model.named_modules()), *(layer.name for layer in layers)}
        if strange := sorted(set(fallback) - known):
            raise ValueError(
                f"fallback names {strange[0]!r}, which is no module and no parameter of the model. Fix: see model.named_modules()."
            )
        self.layers = [layer for layer in layers if not named(layer, self.names, fallback)]
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
        self._listen(listen)

    # -- groups ---------------------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as any optimiser; its layers are found and bucketed."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["base_lr"] = group.get("initial_lr", group["lr"])
        group["from_zero"] = group["base_lr"] == 0
        try:
            buckets, rest = buckets_of(group, self.layers, self.names, self.factor_dtype)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self.buckets += buckets
        self._homes = None
        fused = bool(rest) and all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in rest)
        self.adamw.append(torch.optim.AdamW(rest, lr=group["lr"], fused=fused) if rest else None)
        if self.tap is not None and self.next_refresh != math.inf:  # a group that comes late is listened to from now on
            self.next_refresh = min(self.next_refresh, self.steps)
            self.tap.detach()
            self._listen(self.tap.sink is not None)

    # -- curvature ------------------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the coming step refreshes the factors, so that hooks listen now."""
        return self.steps >= self.next_refresh

    def _listen(self, listen: bool) -> None:
        """Put hooks on the layers of all groups."""
        self.tap = Tap([layer for bucket in self.buckets for layer in bucket.layers], self._hear if listen else None)
        self.tap.armed = self.due

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
        pulled = self.tap.pull(outputs, cotangents)
        self.pulls += 1
        for found in pulled:
            self._hear(found.layer, found.a, found.g, per_datum, -1 - self.pulls)

    def _hear(self, layer: Layer, a: Tensor, g: Tensor, averaging: Averaging | None = None, task: int | None = None) -> None:
        bucket, index = self._home(layer)
        if a.device != bucket.k.value[0].device:
            self._follow_parameters()
        task = torch._C._current_graph_task_id() if task is None else task
        bucket.hear(index, a, g, averaging or self.averaging, self.sharing, self.max_rows, task)

    def _home(self, layer: Layer) -> tuple[Bucket, int]:
        if self._homes is None:
            self._homes = {one: (bucket, index) for bucket in self.buckets for index, one in enumerate(bucket.layers)}
        return self._homes[layer]

    # -- the step -------------------------------------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, as every optimiser does; without the profiler's range around it, which takes longer than the work."""
        if not set_to_none:
            super().zero_grad(set_to_none)
        for group in self.param_groups if set_to_none else ():
            for parameter in group["params"]:
                parameter.grad = None

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
            check_gradients(self.names)
            gap = self.interval(self.steps + 1) if callable(self.interval) else self.interval
            in_range("interval", gap, 1, math.inf, whole=True)
            self.gap = gap
            refresh_factors(self, scale)
        sound = [self._move(group, [bucket for bucket in self.buckets if bucket.group is group]) for group in self.param_groups]
        for group, adamw in zip(self.param_groups, self.adamw, strict=True):
            if adamw is not None and all(sound):  # what makes matrices stay would spoil the averages of AdamW
                if group["from_zero"]:  # a schedule that was not there when the rate was given: in proportion to its highest
                    group["base_lr"] = max(group["base_lr"], group["lr"])
                ratio = group["lr"] / group["base_lr"] if group["base_lr"] else 0.0
                lr = group["lr"] if group["fallback_lr"] is None else group["fallback_lr"] * ratio
                adamw.param_groups[0].update(lr=lr, weight_decay=group["weight_decay"])
                adamw.step()
        if due:
            self.next_refresh = self.steps + self.gap if self.next_refresh != math.inf else math.inf
        self.steps += 1
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
            bucket.forget()
        if self.tap is not None:
            self.tap.tape.clear()

    def _follow_parameters(self) -> None:
        if any([bucket.follow(self.factor_dtype) for bucket in self.buckets]):
            for adamw in filter(None, self.adamw):
                for parameter, state in adamw.state.items():
                    state.update({key: value.to(parameter) for key, value in state.items() if key != "step"})

    def _move(self, group: dict[str, Any], buckets: list[Bucket]) -> bool:
        """Move the matrices of a group; False when a gradient is not finite and they stay."""
        work = [(bucket, gradient) for bucket in buckets if (gradient := bucket.gradient(self.names)) is not None]
        if not work:
            return True
        steps = [bucket.direction(gradient, self.gap) for bucket, gradient in work]
        scales: list[list[float] | None] = [None] * len(work)
        if group["update_rms"] is None:
            if not self._clipped(group, steps, [gradient for _, gradient in work]):
                return False
            for bucket, _ in work:
                bucket.weight = 0.0
        else:
            norms = torch.cat([torch.linalg.vector_norm(step, dim=(-2, -1)) for step in steps]).tolist()
            if not all(math.isfinite(norm * norm) for norm in norms):
                self._skip_step()
                return False
            told = iter(norms)
            scales = [
                [group["update_rms"] * one for one in b.scales([*islice(told, len(step))])]
                for (b, _), step in zip(work, steps, strict=True)
            ]
        for (bucket, _), step, scale in zip(work, steps, scales, strict=True):
            bucket.write(bucket.with_momentum(step, self.rounding), scale, self.rounding)
        return True

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

    # -- state ----------------------------------------------------------------------------------------------------------------------

    def report(self) -> list[Preconditioned]:
        """Say what is preconditioned how, one line per layer and per parameter of the fallback."""
        return lines_of(self)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers alone, keyed by parameter names; `torch.load(weights_only=True)` reads it."""
        return pack(self)

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned; the given dictionary is not changed.

        Raises:
            ValueError: when names or shapes differ from this optimiser's: the model or the structures are not the same.
        """
        unpack(self, state_dict)
        self._forget()
        if self.tap is not None:
            self.tap.armed = self.due

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in LEFT_OUT} | {
            "_listen": self.tap is not None and self.tap.sink is not None,
            "_rounding": None if self.rounding is None else (self.rounding.device, self.rounding.get_state()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        listen, rounding = state.pop("_listen"), state.pop("_rounding")
        super().__setstate__(state)
        self.rounding = self._homes = None
        self.diagonals = {}
        if rounding is not None:
            self.rounding = torch.Generator(rounding[0])
            self.rounding.set_state(rounding[1])
        self._listen(listen)
