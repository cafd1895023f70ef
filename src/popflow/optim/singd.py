"""SINGD: structured inverse-free natural gradient descent, as a `torch.optim.Optimizer` for any module.

    dW = C C^T  grad W  K K^T                         every step, with the factors of `popflow.optim.kronecker`
    m  <- momentum m + dW                             heavy ball
    s  =  1 / sqrt(w u)                               w, u: sums of 1 and mean(dW^2), discounted as m is; 1 without ``update_rms``
    W  <- (1 - lr weight_decay) W - lr update_rms s m     decoupled weight decay

Every ``interval`` steps hooks record one forward and backward pass and the factors take one step. What was recorded goes with the gradient:
`step` uses it, `zero_grad` drops it, and so does whatever sets ``.grad`` to None.
Layers that are matrices (Linear, convolutions and their transposes, attention projections) are preconditioned; every other parameter (embeddings,
normalisation, recurrent modules, bare ones) goes to a built-in AdamW. Layers of equal shape are updated as one batch.

This file holds the torch protocol: groups, closures, gradient scalers, state, copies. The layers are in `popflow.optim.preconditioner`.

Source: Lin et al., ICML 2024, arXiv 2312.05705. KL clip: Ba, Grosse, Martens 2017.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from popflow.optim.auto import Auto
from popflow.optim.capture import Averaging, Sharing, expand, over_data
from popflow.optim.checks import check_gradients, check_model, check_options
from popflow.optim.curvature import refresh_factors
from popflow.optim.groups import listed, named_layers, unseen
from popflow.optim.options import growing
from popflow.optim.preconditioner import Preconditioner
from popflow.optim.report import Preconditioned, lines_of
from popflow.optim.state import entries, pack, unpack
from popflow.optim.structures.structure import Structure

BOUNDED = Auto(max_state_ratio=2.5, max_side=513, spare=2**22)
"""Dense factors wherever that is cheap: on sides of at most 512 and a bias, and while the state is at most 2.5 times AdamW's, or 16 MiB in float32."""
GROWING = growing(10)
Structures = Structure | tuple[Structure, Structure] | Auto
"""One structure for both factors, ``(inputs, outputs)``, or `Auto`."""


class SINGD(torch.optim.Optimizer):
    """Natural gradient with structured Kronecker factors, updated by matrix products alone, without inverses; a drop-in replacement for AdamW.

    Args:
        model: The module (or the DistributedDataParallel around it) whose layers are preconditioned.
        params: Parameters or groups of them, as for any optimiser; None for all of the model's. Pairs (name, tensor) may bring tensors that stand
            in for parameters of the model, as `torch.func.functional_call` takes them: ``popflow.learn.fit`` does. Groups may set ``lr, momentum,
            weight_decay, damping, lr_cov, alpha1, kl_clip, update_rms, fallback_lr, structure``; weight and bias of a layer may be in two groups, for
            instance with and without ``weight_decay``, that share the options of their curvature.
        lr: Step size; that of AdamW is a good first value, as long as ``update_rms`` is set. A tensor is read at every step.
        structure: `Dense`, `Diagonal`, `BlockDiagonal(30)`, ..., a pair (inputs, outputs), or `Auto` / ``"auto"``: the richest within a
            budget of memory. By default dense on sides of at most 512 and hierarchical on wider ones, as long as the state is at most 2.5 times
            AdamW's (5 numbers per parameter: a square layer with two dense factors), or 16 MiB; `report` says what was chosen.
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
        fallback: Names of modules or parameters for the built-in AdamW, although they could be preconditioned.
        fallback_lr: Step size of the built-in AdamW; it follows the schedule of ``lr`` in proportion. None: ``lr`` itself.
        sharing: `expand` or `reduce`.
        averaging: What the loss averages over: `over_data`, `over_rows`, `summed`.
        listen: Record cotangents during ``loss.backward()`` (empirical Fisher); False: those given to `observe` alone (sampled Fisher, wave functions).
        warm: Start from the solution of the first batch: of dense factors and blocks by one Cholesky factorisation, of others the diagonal one. False
            starts from the identity, and nothing is ever factorised.
        max_rows: Most rows used of each call of a layer, evenly spaced; None uses all.
        factor_dtype: Dtype of the factors; None: that of the parameters, at least float32.
        stochastic_rounding: Round bfloat16 parameters, momentum and factors at random, so that small steps are not lost.
        grad_scaler: The `torch.amp.GradScaler` in use; needed only when gradients are unscaled before the step (clipping).
        process_group: Processes over which curvature is averaged when `torch.distributed` runs; None: all.
        seed: Random seed of stochastic rounding.

    Raises:
        TypeError: an object that is not a module, `nn.DataParallel`, complex or sparse parameters, an object that is not a structure.
        ValueError: a number out of its range, parameters or names that are not the model's, a layer split over groups that disagree, nothing to precondition.

    Warns:
        UserWarning: for recurrent and bilinear modules, whose matrices hooks cannot see; not for those named in ``fallback``.
        RuntimeWarning: once, for a layer with a gradient that never recorded curvature, and for curvature or gradients that are not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> optimizer = SINGD(net, lr=0.1, interval=1)
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
        lr: float | Tensor = 3e-3,
        structure: Structures | str = BOUNDED,
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
        fallback_lr: float | None = None,
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
        model = check_model(model)
        check_options(interval=interval, max_rows=max_rows, seed=seed, sharing=sharing, averaging=averaging, factor_dtype=factor_dtype)
        params = None if params is None else listed(params)
        layers, names = named_layers(model, params, fallback)
        rounding = torch.Generator(next(iter(names)).device).manual_seed(seed) if stochastic_rounding else None
        self.preconditioner = Preconditioner(
            layers, names, interval=interval, adaptive=adaptive, sharing=sharing, averaging=averaging, warm=warm, max_rows=max_rows,
            factor_dtype=factor_dtype, process_group=process_group, rounding=rounding,
        )  # fmt: skip
        self.grad_scaler = grad_scaler
        self.adamw: list[torch.optim.AdamW | None] = []
        defaults = {
            "lr": lr, "momentum": momentum, "damping": damping, "lr_cov": lr_cov, "alpha1": alpha1 if adaptive else 0.0,
            "weight_decay": weight_decay, "kl_clip": kl_clip, "update_rms": update_rms, "fallback_lr": fallback_lr, "structure": structure,
        }  # fmt: skip
        super().__init__(list(names) if params is None else params, defaults)
        self._take(self.param_groups)
        if not self.preconditioner.batches:
            raise ValueError(
                "model: no layer among its parameters can be preconditioned (Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, MultiheadAttention). "
                "Fix: use torch.optim.AdamW."
            )
        if left := unseen(model, {parameter for group in self.param_groups for parameter in group["params"]}, fallback):
            warnings.warn(
                f"module {left[0]} is left to the built-in AdamW, {len(left)} of such modules in all: hooks cannot see what its matrices are multiplied "
                f"with. Fix: none is needed; name it in fallback=[{left[0].split()[0]}] to say that this is meant.",
                UserWarning,
                stacklevel=2,
            )
        self.preconditioner.attach(listen)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as for any optimiser; its layers are found and batched."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["base_lr"] = float(group.get("initial_lr", group["lr"])) if isinstance(group["lr"], int | float | Tensor) else group["lr"]
        group["from_zero"] = group["base_lr"] == 0
        if self.preconditioner.tap is None:  # the first groups are taken together: one may hold the weights of layers, another their biases
            return
        try:
            self._take([group])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _take(self, groups: list[dict[str, Any]]) -> None:
        for group, rest in zip(groups, self.preconditioner.add(groups), strict=True):
            fused = bool(rest) and all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in rest)
            self.adamw.append(torch.optim.AdamW(rest, lr=float(group["lr"]), fused=fused) if rest else None)

    @property
    def skipped(self) -> int:
        """How often curvature or a gradient was not finite and was therefore skipped."""
        return self.preconditioner.skipped

    @property
    def due(self) -> bool:
        """Whether the coming step refreshes the factors, so that hooks record now."""
        return self.preconditioner.due

    def detach(self) -> None:
        """Take the hooks off the model. The factors then stay as they are."""
        self.preconditioner.detach()

    @torch.no_grad()
    def observe(self, outputs: Tensor, cotangents: Tensor) -> None:
        """Take curvature from cotangents of each datum's own scalar, pulled back through the forward pass just made (``listen=False``).

        ``cotangents`` are shaped like ``outputs``, not averaged over data: ones on ``log psi`` for wave functions, `gaussian_cotangent` or
        `categorical_cotangent` for a sampled Fisher matrix. Call it before ``loss.backward()``; when no refresh is due it does nothing.

        Raises:
            RuntimeError: with ``listen=True``.
        """
        self.preconditioner.observe(outputs, cotangents)

    # -- the step -------------------------------------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, as every optimiser does, and the curvature that was heard with them.

        It goes without torch's profiler range, which takes longer than the work itself.
        """
        self.preconditioner.drop()
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
        of = self.preconditioner
        if overflow:
            of.forget()
            return loss
        if getattr(self, "grad_scale", None) is not None:
            for parameter in of.names:
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / scale)
        self._follow_parameters()
        if of.due:
            check_gradients(of.names)
            of.gap = of.next_interval()
            of.refreshed = refresh_factors(of, self.param_groups, scale)
        others = [
            p.grad
            for adamw in filter(None, self.adamw)
            for p in adamw.param_groups[0]["params"]
            if p.grad is not None and not p.grad.is_sparse
        ]
        if of.move(self.param_groups, others):  # what makes matrices stay would spoil the averages of AdamW
            self._step_fallback()
        of.finish_step()
        return loss

    def _step_fallback(self) -> None:
        """Let AdamW move the other parameters; its learning rate follows the schedule of ``lr`` in proportion."""
        for group, adamw in zip(self.param_groups, self.adamw, strict=True):
            if adamw is None:
                continue
            lr = float(group["lr"])
            if group["from_zero"]:  # a schedule that was not there when the rate was given: in proportion to its highest
                group["base_lr"] = max(group["base_lr"], lr)
            if group["fallback_lr"] is not None:
                lr = group["fallback_lr"] * (lr / group["base_lr"] if group["base_lr"] else 0.0)
            adamw.param_groups[0].update(lr=lr, weight_decay=group["weight_decay"])
            adamw.step()

    def _loss_scale(self) -> tuple[float, bool]:
        """The factor by which a `torch.amp.GradScaler` has multiplied the loss, and whether it overflowed."""
        overflow = getattr(self, "found_inf", None)
        if self.grad_scaler is not None:
            return float(self.grad_scaler.get_scale()), bool(overflow)
        if overflow is None:
            return 1.0, False
        if (scale := getattr(self, "grad_scale", None)) is not None:
            return float(scale), bool(overflow)
        if self.due:
            raise RuntimeError(
                "gradients were unscaled before the step, so the scale of the captured cotangents is not known. Fix: SINGD(..., grad_scaler=scaler)."
            )
        return 1.0, bool(overflow)

    def _follow_parameters(self) -> None:
        """Move the state to where the parameters have gone (device, dtype)."""
        if self.preconditioner.follow():
            for adamw in filter(None, self.adamw):
                for parameter, state in adamw.state.items():
                    state.update({key: value.to(parameter) for key, value in state.items() if key != "step"})

    # -- state ----------------------------------------------------------------------------------------------------------------------

    def report(self) -> list[Preconditioned]:
        """Say how each parameter is treated, one line per layer and per parameter of the fallback."""
        return lines_of(self.preconditioner, self.adamw)

    @property
    def state(self) -> defaultdict[Tensor, dict[str, Tensor]]:
        """The state of each parameter, as for any optimiser, empty before the first step.

        The tensors are those in use; entries put in or taken out change nothing (`load_state_dict` does).

        Raises:
            AttributeError: when it is assigned.
        """
        found = entries(self.preconditioner, self.adamw, self.param_groups) if self.preconditioner.steps else {}
        return defaultdict(dict, found)

    @state.setter
    def state(self, value: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if value or self.preconditioner.steps:  # torch's own constructor assigns an empty one
            raise AttributeError(
                "state is put together from the factors when it is read, and cannot be assigned. Fix: load_state_dict(...), or a new SINGD to begin anew."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, plain numbers and text alone, in torch's form; `torch.load(weights_only=True)` reads it.

        It is a copy. Groups also hold ``param_names``, against which `load_state_dict` checks.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = pack(self.preconditioner, self.adamw, self.param_groups)
        for after in self._optimizer_state_dict_post_hooks.values():
            if (changed := after(self, state_dict)) is not None:
                state_dict = changed
        return state_dict

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, or `torch.distributed.checkpoint.state_dict.get_state_dict`; the given dictionary is not changed.

        Raises:
            ValueError: when names or shapes differ from this optimiser's: the model or the structures are not the same.
        """
        given = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            if (changed := before(self, given)) is not None:
                given = changed
        unpack(self.preconditioner, self.adamw, self.param_groups, given)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler's ``step`` is bound to the optimiser that the scheduler was made for: a copy steps itself. Hooks are not copied, as in torch.
        return {key: value for key, value in self.__dict__.items() if key != "step" and not key.startswith("_optimizer_")}
