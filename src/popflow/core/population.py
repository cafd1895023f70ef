"""A weighted population: samples, log weights, and companions that travel with each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace as _replace
from typing import Any

import torch
from torch import Tensor

from popflow.core.checks import refuse, untouched
from popflow.core.errors import ZeroWeightsError


@dataclass(frozen=True, slots=True)
class Population:
    """Particles ``x_k`` with unnormalised log weights: ``p(dx) = sum_k W_k delta(x_k)``, ``W = softmax(log_w)``.

    Leading ``*batch`` dimensions are independent populations in one tensor; no operation mixes them.

    Attributes:
        x: ``[*batch, n, *event]``, or a plain sequence (molecules, strings); then ``batch == ()``.
        log_w: ``[*batch, n]`` unnormalised log weights, zeros when unweighted; at least float32, even for half-precision ``x``.
        log_z: ``[*batch]`` log normaliser accumulated by resampling.
        aux: per-particle companions ``[*batch, n, *k]``, gathered together with ``x``.

    Raises:
        ZeroWeightsError: from `weights`, `ess` and `mean`, when a population has no weight left.

    Example:
        >>> pop = Population.of(torch.tensor([[0.0], [1.0], [2.0]])).reweight(torch.tensor([0.0, 0.0, math.log(2.0)]))
        >>> round(float(pop.ess()), 3), float(pop.mean())
        (2.667, 1.25)
    """

    x: Any
    log_w: Tensor
    log_z: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(x: Any, batch: int = 0, **aux: Tensor) -> Population:
        """Make an unweighted population from samples; the first ``batch`` dimensions of ``x`` are independent populations.

        Raises:
            ValueError: when shapes do not fit or there is no particle.
            TypeError: when ``x`` is neither a tensor nor a sequence.
        """
        if not isinstance(x, Tensor):
            if batch:
                raise ValueError(f"batch={batch} with a plain sequence x: only tensors can hold several populations; pass batch=0.")
            if not isinstance(x, Sequence) or isinstance(x, str):
                raise TypeError(f"x must be a tensor or a sequence of samples, got {type(x).__name__}.")
            shape, log_w = (len(x),), torch.zeros(len(x))
        else:
            if x.ndim < batch + 1:
                raise ValueError(
                    f"x has shape {tuple(x.shape)}, wanted [*batch, n, *event] with {batch} batch dimensions: add the missing dimensions."
                )
            shape = tuple(x.shape[: batch + 1])
            log_w = x.new_zeros(shape, dtype=_wide(x.dtype) if x.is_floating_point() else torch.get_default_dtype())
        if shape[-1] == 0:
            raise ValueError("x holds no particle: the population dimension has size 0, wanted at least 1.")
        for name, value in aux.items():
            if tuple(value.shape[: len(shape)]) != shape:
                raise ValueError(f"aux {name!r} has shape {tuple(value.shape)}, wanted {list(shape)} first: one row per particle.")
        return Population(x, log_w, log_w.new_zeros(shape[:-1]), dict(aux))

    def __len__(self) -> int:
        return self.log_w.shape[-1]

    @property
    def batch(self) -> torch.Size:
        """Shape of the independent populations."""
        return self.log_w.shape[:-1]

    @property
    def event(self) -> torch.Size:
        """Shape of one sample (tensors only)."""
        return self.x.shape[self.log_w.ndim :]

    def replace(self, **changes: Any) -> Population:
        """Return a copy with some fields replaced."""
        return _replace(self, **changes)

    def weights(self) -> Tensor:
        """Normalised weights ``[*batch, n]``, computed on demand."""
        log_w = self.log_w
        weights = log_w.softmax(-1)
        if not torch.compiler.is_compiling():
            refuse(weights.isnan().any(), lambda lost: _no_weight(log_w))
        return weights

    def ess(self) -> Tensor:
        """Effective sample size ``1 / sum W^2``, in [1, n], one per population."""
        return 1 / self.weights().square().sum(-1)

    def mean(self, f: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Weighted mean of ``f(x)`` (of ``x`` when ``f`` is None), one per population."""
        value = self.x if f is None else untouched("f", f, self.x)
        weights = self.weights()
        extra = value.ndim - weights.ndim
        return (weights.reshape(*weights.shape, *[1] * extra) * value).sum(weights.ndim - 1)

    def reweight(self, delta: Tensor) -> Population:
        """Return the population with ``delta`` ``[*batch, n]`` added to the log weights.

        Raises:
            ValueError: when adding ``delta`` would change the shape of the weights.
        """
        return Population(self.x, add("delta", self.log_w, delta), self.log_z, self.aux)

    def log_normalizer(self) -> Tensor:
        """Log of the total mass, ``log_z + logmeanexp(log_w)``: the log Z that reports show."""
        return self.log_z + self.log_w.logsumexp(-1) - math.log(len(self))

    def take(self, idx: Tensor) -> Population:
        """Gather particles with their weights and companions by index ``[*batch, m]``, within each population."""
        if not isinstance(self.x, Tensor):
            order = idx.tolist()
            aux = {name: value[idx] for name, value in self.aux.items()}
            return Population([self.x[i] for i in order], self.log_w[idx], self.log_z, aux)
        flat = idx
        if len(self.batch):
            rows = math.prod(self.batch)
            offset = torch.arange(rows, device=idx.device).reshape(*self.batch, 1) * len(self)
            flat = (idx + offset).reshape(-1)

        def gather(value: Tensor) -> Tensor:
            return value.flatten(0, len(self.batch)).index_select(0, flat).unflatten(0, idx.shape)

        aux = {name: gather(value) for name, value in self.aux.items()}
        return Population(gather(self.x), gather(self.log_w), self.log_z, aux)

    def to(self, *args: Any, **kwargs: Any) -> Population:
        """Move or cast like `torch.Tensor.to`; integer and complex tensors keep their dtype, log weights at least float32."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return (
                value.to(*args, **kwargs) if value.is_floating_point() else value.to(value.new_empty(0).bool().to(*args, **kwargs).device)
            )

        like = self.log_w.new_empty(0).to(*args, **kwargs)
        log_w, log_z = (value.to(like.device, _wide(like.dtype)) for value in (self.log_w, self.log_z))
        return Population(move(self.x), log_w, log_z, {name: move(value) for name, value in self.aux.items()})


def add(name: str, value: Tensor, increment: Tensor | float) -> Tensor:
    """Add without changing shape or dtype: an increment ``[n, 1]`` to ``[n]`` is an error rather than an ``[n, n]``."""
    total = value + increment
    if total.dtype != value.dtype:
        if not value.is_floating_point() or total.is_complex():
            raise ValueError(
                f"{name} turns {value.dtype} into {total.dtype}, wanted the dtype to stay the same: start from floating-point values."
            )
        total = total.to(value.dtype)
    if total.shape != value.shape:
        seen = tuple(increment.shape) if isinstance(increment, Tensor) else ()
        raise ValueError(
            f"{name} has shape {seen}, wanted {tuple(value.shape)} or a shape that broadcasts to it: reshape it to one entry per particle."
        )
    return total


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Dtype of log weights: half precision cannot hold the sum of squares of a hundred thousand weights."""
    return torch.promote_types(dtype, torch.float32)


def _no_weight(log_w: Tensor) -> ZeroWeightsError:
    rows = log_w.reshape(-1, log_w.shape[-1])
    bad = int(rows.softmax(-1).isnan().any(-1).nonzero()[0])
    where = f"population {bad} of {len(rows)}" if len(rows) > 1 else "the population"
    count = int((~rows[bad].isfinite() & (rows[bad] != -math.inf)).sum())
    if count:
        seen = f"{count} of {log_w.shape[-1]} log weights are NaN or +inf"
        fix = "a growth term is not finite: check the expert or reward that computed it"
    else:
        seen = "all log weights are -inf"
        fix = "the growth or reward rules out every particle: start closer to the target, soften it, or use more particles"
    return ZeroWeightsError(f"log_w: in {where} {seen}, wanted at least one finite log weight and none NaN. Fix: {fix}.")
