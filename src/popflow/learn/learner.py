"""What changes during learning (parameters, optimiser, average), and the step that changes it: eager, or compiled as one graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from popflow.core.errors import CheckpointError
from popflow.learn.ema import ema_update

Params = dict[str, Tensor]
Loss = Callable[[Params, Any], tuple[Tensor, Mapping[str, Tensor]]]
"""A pure ``loss(params, batch) -> (scalar, metrics)``; it draws nothing at random, the batch brings that along."""
MakeOptimizer = Callable[[list[tuple[str, Tensor]]], torch.optim.Optimizer]
"""A class of `torch.optim`, or a partial of one: called with pairs (name, tensor), as of ``module.named_parameters()``.

An optimiser whose attribute ``listens`` is true has hooks on the modules (``partial(popflow.optim.SINGD, module)``): it is never
compiled, its state is put back by ``load_state_dict``, and ``detach`` takes its hooks off at the end.
"""


class Learner:
    """Parameters, optimiser and average, and the step ``learner(batch)`` that changes them in place.

    The step returns ``[loss, *metrics]`` as one vector without waiting for it; `names` says what the entries are. It starts eager;
    `compile` replaces it. ``average`` is what several processes do with their gradients before they apply them.
    """

    def __init__(
        self,
        loss: Loss,
        params: Mapping[str, Tensor],
        optimizer: MakeOptimizer,
        ema: bool,
        clip_norm: float | None,
        average: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] | None = None,
    ):
        self.loss, self.clip_norm, self.average = loss, clip_norm, average
        # No leaf requires gradients: eager steps differentiate aliases, compiled ones are functional, and the update is in place.
        self.params: Params = {name: p.detach().clone() for name, p in params.items()}
        self.ema: Params | None = {name: p.clone() for name, p in self.params.items()} if ema else None
        self.optimizer = optimizer(list(self.params.items()))
        self.listens = bool(getattr(self.optimizer, "listens", False))
        self.device = next(iter(self.params.values())).device
        self.base_lr = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.names: tuple[str, ...] = ()
        self.compiled = False
        self._ema_weight: Tensor | float = 1.0
        self._set = (1.0, 1.0)
        self._step = self._eager

    def __call__(self, batch: Any) -> Tensor:
        """Take one step; return ``[loss, *metrics]``."""
        return self._step(batch)

    def set(self, lr_factor: float, ema_weight: float) -> None:
        """Set the learning rates, as multiples of those the optimiser was made with, and the weight of the newest parameters."""
        if self._set == (lr_factor, ema_weight):
            return
        self._set = (lr_factor, ema_weight)
        for group, base in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * lr_factor)
            else:
                group["lr"] = base * lr_factor
        if isinstance(self._ema_weight, Tensor):
            self._ema_weight.fill_(ema_weight)
        else:
            self._ema_weight = ema_weight

    def compile(self, batch: Any) -> Tensor:
        """Take one step with everything in one graph; where the optimiser does not compile, with the gradients in one graph.

        Raises:
            RuntimeError: when the loss does not compile; nothing has changed then.
        """
        if self.listens:
            raise RuntimeError(
                f"{type(self.optimizer).__name__} records through module hooks, which a compiled graph skips. Fix: compile=False."
            )
        errors = []
        for make in (self._whole_graph, self._gradient_graph) if self.average is None else (self._gradient_graph,):
            step = make()
            try:
                values = step(batch)
            except Exception as error:  # whatever the compiler raises: the same step has just worked eagerly
                errors.append(error)
                continue
            self._step, self.compiled = step, True
            return values
        self._back_to_numbers()
        raise RuntimeError(
            f"the loss does not compile as one graph: {_first_line(errors[-1])}. Fix: take input gradients with popflow.core.calculus, draw "
            "random numbers in batches(rng), call no .item(); or pass compile=False."
        ) from errors[-1]

    def _eager(self, batch: Any) -> Tensor:
        leaves = {name: p.detach().requires_grad_() for name, p in self.params.items()}
        value, metrics = _checked(self.loss(leaves, batch))
        self.names = ("loss", *metrics, *(["grad_norm"] if self.clip_norm is not None else []))
        grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        values = torch.stack([value.detach(), *(m.detach().to(value.dtype) for m in metrics.values())])
        return self._update(values, grads)

    def _update(self, values: Tensor, grads: tuple[Tensor, ...]) -> Tensor:
        """Let the optimiser, outside of any graph, apply the gradients."""
        with torch.no_grad():
            if self.average is not None:
                grads = self.average(grads)
            if self.clip_norm is not None:
                values, grads = _clip(values, grads, self.clip_norm)
            for p, g in zip(self.params.values(), grads, strict=True):
                p.grad = g
            self.optimizer.step()
            if self.ema is not None:
                ema_update(self.ema, self.params, self._ema_weight)
        return values

    def _gradient_graph(self) -> Callable[[Any], Tensor]:
        self._back_to_numbers()
        gradient = _compiled(_gradient(self.loss), self.device)
        return lambda batch: self._update(*gradient(self.params, batch))

    def _whole_graph(self) -> Callable[[Any], Tensor]:
        """Gradients, clipping, optimiser and average in one graph; rates and weights are tensors, so that they may change."""
        params, optimizer, ema, clip_norm = self.params, self.optimizer, self.ema, self.clip_norm
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
        weight = self._ema_weight = torch.tensor(float(self._ema_weight), device=self.device)
        for p in params.values():
            p.grad = torch.zeros_like(p)
        gradient, optimizer_step = _gradient(self.loss), inspect.unwrap(type(optimizer).step)

        def step(batch: Any) -> Tensor:
            values, grads = gradient(params, batch)
            with torch.no_grad():
                if clip_norm is not None:
                    values, grads = _clip(values, grads, clip_norm)
                for p, g in zip(params.values(), grads, strict=True):
                    p.grad.copy_(g)  # pyright: ignore[reportOptionalMemberAccess]
                optimizer_step(optimizer)
                if ema is not None:
                    ema_update(ema, params, weight)
            return values

        return _compiled(step, self.device)

    def _back_to_numbers(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"])
        self._ema_weight = float(self._ema_weight)

    def close(self) -> None:
        """Remove the hooks of an optimiser from its modules."""
        if self.listens:
            self.optimizer.detach()  # pyright: ignore[reportAttributeAccessIssue]

    def finite(self) -> bool:
        """Whether every parameter is finite; waits for the device."""
        return bool(torch.stack([p.isfinite().all() for p in self.params.values()]).all())

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Everything as plain named tensors, not copied, and the structure of the optimiser's state around them."""
        tensors = {f"param.{name}": p for name, p in self.params.items()}
        tensors |= {f"ema.{name}": p for name, p in (self.ema or {}).items()}
        return tensors, pack(self.optimizer.state_dict()["state"], tensors, "opt")

    def load(self, tensors: Mapping[str, Tensor], structure: Any) -> None:
        """Restore what `state` returned, by copying.

        Raises:
            CheckpointError: when names or shapes are those of another model.
        """
        mine, now = self.state()
        wanted = {name: tuple(p.shape) for name, p in mine.items() if not name.startswith("opt")}
        found = {name: tuple(p.shape) for name, p in tensors.items() if name.startswith(("param.", "ema."))}
        if wanted != found:
            wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise CheckpointError(
                f"the checkpoint holds {wrong[0]} with shape {found.get(wrong[0])}, wanted {wanted.get(wrong[0])} ({len(wrong)} of "
                f"{len(wanted)} differ): it belongs to another model. Fix: give another file, or the model it was written for."
            )
        in_place = structure == now and not self.listens  # keeps the tensors that a compiled step has bound
        for name, value in mine.items():
            if in_place or not name.startswith("opt"):
                value.copy_(tensors[name])
        if not in_place:
            self._step, self.compiled = self._eager, False  # a compiled step is bound to the tensors that are replaced now
            groups = self.optimizer.state_dict()["param_groups"]
            copies = {name: value.clone() for name, value in tensors.items() if name.startswith("opt")}
            self.optimizer.load_state_dict({"state": unpack(structure, copies), "param_groups": groups})


def _gradient(loss: Loss) -> FunctionType:
    """``(params, batch) -> ([loss, *metrics], gradients)``, functional."""

    def gradient(params: Params, batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        grads, (value, metrics) = grad_and_value(loss, has_aux=True)(params, batch)
        values = torch.stack([value.detach(), *(m.detach().to(value.dtype) for m in metrics.values())])
        return values, tuple(grads.values())

    return gradient


def _compiled(f: FunctionType, device: torch.device) -> Callable:
    from popflow.learn.compiling import compile_graph  # torch's compiler takes as long to import as torch itself

    return compile_graph(f, device)


def _clip(values: Tensor, grads: tuple[Tensor, ...], clip_norm: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Shorten the joint gradient to norm ``clip_norm``; its original norm is added to the values."""
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    shorten = (clip_norm / norm.clamp_min(1e-12)).clamp_max(1.0)
    return torch.cat([values, norm.to(values.dtype)[None]]), tuple(g * shorten for g in grads)


def _checked(result: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Check what the loss returned."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor) and isinstance(result[1], Mapping)):
        raise TypeError(f"loss returned {type(result).__name__}, wanted (scalar tensor, mapping of scalar tensors): return value, {{}}.")
    value, metrics = result
    for name, scalar in {"the loss": value, **metrics}.items():
        if not isinstance(scalar, Tensor) or scalar.ndim:
            seen = list(scalar.shape) if isinstance(scalar, Tensor) else type(scalar).__name__
            raise TypeError(f"{name}: loss returned {seen}, wanted a tensor without dimensions: take a mean, but keep it a tensor.")
    return value, metrics


def pack(tree: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Move the tensors of a nested structure into ``tensors``; return the rest in a JSON-compatible form."""
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[key, pack(value, tensors, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [pack(value, tensors, f"{name}.{k}") for k, value in enumerate(tree)]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise CheckpointError(f"the optimiser keeps a {type(tree).__name__} in its state ({name}), wanted tensors, numbers, lists, mappings.")


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put the tensors back; the inverse of `pack`."""
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "dict" in tree:
        return {key: unpack(value, tensors) for key, value in tree["dict"]}
    return [unpack(value, tensors) for value in tree["list"]]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next((line for line in str(error).splitlines() if line.strip()), '')}"
