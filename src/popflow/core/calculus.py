"""Derivatives with respect to inputs: value and gradient, divergence, Laplacian.

Everything rests on one reverse-mode vector-Jacobian product of a pure function, in two forms with equal results: `torch.func.vjp` inside
`torch.compile`, inside other `torch.func` transforms and in inference mode (a training step with input gradients then compiles as one
graph, which `autograd.grad(create_graph=True)` does not); `torch.autograd.grad` otherwise, where it is about 1.4 times faster.

**Rows must be independent.** One product with ones gives the gradients of all rows at once because ``d/dx_i sum_j f_j = df_i/dx_i``,
which holds only if row ``j`` does not depend on ``x_i``. For a network that couples rows (batch normalisation, attention over the
population, a population embedding) the functions below return derivatives of the *sum*, not of each row.

Results can be differentiated again, in parameters or inputs; Laplacians are therefore reverse over reverse, because differentiating
through forward mode of ``det``, ``slogdet``, ``solve`` or ``layer_norm`` is silently wrong in torch 2.13. The exception is
`values_and_divergences`, which uses forward mode and returns detached results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack


def value_and_grad(f: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Value and gradients of a function of independent rows: ``f(x, t)_i``, ``df_i/dx_i``, ``df_i/dt_i``.

    Args:
        f: Pure function of the inputs that returns one number per row, ``[*rows]``; rows must be independent (see the module).
        inputs: Each ``[*rows, *event]``; a time is ``[*rows]``, one number per row (a shared scalar would collect the sum).

    Returns:
        ``f(*inputs)``, ``[*rows]``, and one gradient per input, shaped like it.

    Raises:
        ValueError: when the shape of an input does not start with that of the value.

    Example:
        >>> x, t = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 1.0])
        >>> value, (dx, dt) = value_and_grad(lambda x, t: t * x.square().sum(-1), x, t)
        >>> value.tolist(), dx.tolist(), dt.tolist()
        ([2.5, 25.0], [[1.0, 2.0], [6.0, 8.0]], [5.0, 25.0])
    """
    value, back, _ = _vjp(lambda *inputs: (f(*inputs), ()), *inputs)
    for k, x in enumerate(inputs):
        if x.shape[: value.ndim] != value.shape:
            raise ValueError(
                f"f returned shape {list(value.shape)} and input {k} has shape {list(x.shape)}, wanted one value per row and inputs "
                "[*rows, *event]: make f return [*rows], and expand a shared time to one per row."
            )
    return value, back(torch.ones_like(value))


def values_and_divergences(f: Callable[[Tensor], Tensor], x: Tensor, probes: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Values and divergences of several vector fields at the same points, by one forward-mode Jacobian-vector product per probe.

    One product serves all fields, gives their values too, and keeps no graph in memory. Results are detached. Without ``probes`` the
    divergence is exact and takes one product per dimension. With probes it is the mean of Hutchinson's estimates ``<e, J e>``, unbiased if
    ``E[e e^T] = 1``; Rademacher probes have less variance than Gaussian ones, and none where the Jacobian is diagonal.

    Args:
        f: Vector fields ``[rows, *event] -> [M, rows, *event]`` of independent rows.
        x: ``[rows, *event]``.
        probes: Random directions shaped like ``x``, drawn by the caller; None for the exact divergence.

    Raises:
        ValueError: when ``probes`` is empty, or a shape does not fit.

    Returns:
        ``f(x)`` and divergences ``[M, rows]``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> values, divergences = values_and_divergences(lambda x: torch.stack([x**2, -x]), x)
        >>> values.tolist(), divergences.tolist()
        ([[[1.0, 4.0]], [[-1.0, -2.0]]], [[6.0], [-2.0]])

    Source: Hutchinson, Commun. Stat. Simul. 18 (1989); Grathwohl et al., FFJORD (2019), eq. 7.
    """
    directions = [one.contiguous() for one in _basis(x)] if probes is None else list(probes)
    if not directions:
        raise ValueError("probes is empty, wanted at least one direction, or None for the exact divergence.")
    values, total = None, None
    with torch.no_grad():
        for direction in directions:
            _like("probe", direction, x)
            values, slope = torch.func.jvp(f, (x,), (direction,))  # pyright: ignore[reportAssignmentType]
            if slope.shape[1:] != x.shape:
                raise ValueError(
                    f"f(x) has shape {list(slope.shape)}, wanted [M, *x.shape] with x.shape {list(x.shape)}: stack the fields."
                )
            part = (slope * direction).reshape(len(slope), len(x), -1).sum(2)
            total = part if total is None else total + part
    assert values is not None
    assert total is not None
    return values, total if probes is None else total / len(directions)


def value_grad_and_laplacian(f: Callable[[Tensor], Tensor], x: Tensor, probe: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and Laplacian ``sum_k d^2 f/dx_k^2`` of a function of independent rows.

    Args:
        f: ``[rows, *event] -> [rows]``, twice differentiable (SiLU or tanh, not ReLU, whose second derivative is zero).
        x: ``[rows, *event]``.
        probe: Random directions shaped like ``x`` for Hutchinson's estimate, as in `values_and_divergences`; None for the exact Laplacian.

    Example:
        >>> value, gradient, laplacian = value_grad_and_laplacian(lambda x: (x**3).sum(-1), torch.tensor([[1.0, 2.0]]))
        >>> value.tolist(), gradient.tolist(), laplacian.tolist()
        ([9.0], [[3.0, 12.0]], [18.0])
    """

    def slope(x: Tensor) -> tuple[Tensor, Tensor]:
        value, (gradient,) = value_and_grad(f, x)
        return gradient, value

    gradient, back, value = _vjp(slope, x)
    if probe is not None:
        _like("probe", probe, x)
        return value, gradient, (back(probe)[0] * probe).reshape(len(x), -1).sum(1)
    laplacian = x.new_zeros(len(x))
    for direction in _basis(x):
        laplacian = laplacian + (back(direction)[0] * direction).reshape(len(x), -1).sum(1)
    return value, gradient, laplacian


def _basis(x: Tensor) -> list[Tensor]:
    """Unit vectors of one row, each expanded to all rows."""
    size = math.prod(x.shape[1:])
    return [one.expand_as(x) for one in torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])]


def _like(name: str, value: Tensor, x: Tensor) -> None:
    if value.shape != x.shape:
        raise ValueError(f"{name} has shape {list(value.shape)}, wanted that of x, {list(x.shape)}.")


def _vjp(f: Callable[..., tuple[Tensor, Any]], *inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]], Any]:
    """``(value, back, aux)`` of ``f(*inputs) -> (value, aux)``; ``back(v)`` is ``v^T J``, one entry per input."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or peek_interpreter_stack() is not None:
        value, back, aux = torch.func.vjp(f, *inputs, has_aux=True)  # pyright: ignore[reportAssignmentType]
        return value, back, aux
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # One alias per input: gradients are partial even where one input was computed from another.
        aliases = tuple(x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs)
        value, aux = f(*aliases)

    def back(v: Tensor) -> tuple[Tensor, ...]:
        if not value.requires_grad:
            return tuple(torch.zeros_like(x) for x in inputs)
        return torch.autograd.grad(value, aliases, v, retain_graph=True, create_graph=differentiable, materialize_grads=True)

    if not differentiable:
        aux = aux.detach() if isinstance(aux, Tensor) else aux
        return value.detach(), back, aux
    return value, back, aux
