"""Natural gradients in sample space: minimum-norm stochastic reconfiguration (MinSR) and SPRING, on the rows of `capture`.

For per-datum scalars ``f_n(theta)`` (``log psi`` of a wave function, a residual of a physics-informed network) with Jacobian
``O [N, P]``, scaled ``J = O / sqrt(N)`` (rows centred where the norm of psi is free) and target ``e [N]`` (scaled alike)::

    MinSR:   phi = J^T (J J^T + damping I)^{-1} e                            = (J^T J + damping I)^{-1} J^T e
    SPRING:  phi_k = argmin |J phi - e|^2 + damping |phi - mu phi_{k-1}|^2
                   = mu phi_{k-1} + J^T (J J^T + damping I)^{-1} (e - mu J phi_{k-1})
    step:    theta <- theta - min(lr, sqrt(norm_bound) / |phi|) phi

The kernel ``J J^T`` is a sum over layers, ``(A A^T) * (G G^T)`` for one use per datum, so that ``O`` is never made for captured layers;
other parameters (embeddings, normalisation, bare ones) bring their rows of ``O`` by one pull-back for each datum.

Sources: Chen and Heyl 2023 (arXiv 2302.01941); Rende et al. 2023 (arXiv 2310.05715); SPRING: Goldshlager, Abrahamsen, Lin 2024 (arXiv 2401.10190).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from popflow.optim.capture import Rows, rows

Update = dict[str, Tensor]
"""A direction in parameter space, by parameter name."""


@dataclass(frozen=True)
class Kernel:
    """The Jacobian of ``N`` per-datum scalars, as rows of layers, and rows of ``O`` for parameters outside any layer.

    Attributes:
        names: Parameter -> name.
        found: Captured rows.
        loose: Name -> ``[N, *shape]`` derivatives of the other parameters.
        data: ``N``.
        centred: Whether the mean over data is subtracted.
    """

    names: Mapping[Tensor, str]
    found: list[Rows]
    loose: dict[str, Tensor]
    data: int
    centred: bool

    def gram(self) -> Tensor:
        """``J J^T [N, N]``, symmetric."""
        like = self.found[0].a if self.found else next(iter(self.loose.values()))
        total = like.new_zeros(self.data, self.data)
        for calls in _by_layer(self.found).values():
            a, g = _uses(calls)
            if a.shape[2] == 1:
                total += ((a[:, :, 0] @ a[:, :, 0].mT) * (g[:, :, 0] @ g[:, :, 0].mT)).sum(0)
            else:
                flat = torch.einsum("bnrd,bnrp->nbdp", g, a).flatten(1)
                total += flat @ flat.T
        for part in self.loose.values():
            total += part.reshape(self.data, -1) @ part.reshape(self.data, -1).T
        total = total / self.data
        return self._centre(self._centre(total).T) if self.centred else total

    def times(self, update: Update) -> Tensor:
        """``J phi [N]``."""
        total = 0.0
        for layer, calls in _by_layer(self.found).items():
            a, g = _uses(calls)
            parts = [layer.view(update[self.names[parameter]]) for parameter in layer.parameters()]
            total = total + torch.einsum("bnrd,bdp,bnrp->n", g, torch.cat(parts, -1), a)
        for name, part in self.loose.items():
            total = total + part.reshape(self.data, -1) @ update[name].flatten()
        assert isinstance(total, Tensor)
        total = total / self.data**0.5
        return self._centre(total)

    def transposed(self, zeta: Tensor) -> Update:
        """``J^T zeta``, by parameter name."""
        zeta = self._centre(zeta) / self.data**0.5
        update = {self.names[parameter]: torch.zeros_like(parameter) for one in self.found for parameter in one.layer.parameters()}
        for layer, calls in _by_layer(self.found).items():
            a, g = _uses(calls)
            joint = torch.einsum("n,bnrd,bnrp->bdp", zeta, g, a)
            for parameter, part in zip(layer.parameters(), joint.split([layer.p, joint.shape[-1] - layer.p], -1), strict=False):
                count = layer.blocks * layer.d
                whole = update[self.names[parameter]]
                whole[layer.start : layer.start + count] += part.reshape(count, *whole.shape[1:])
        return update | {name: torch.einsum("n,n...->...", zeta, part) for name, part in self.loose.items()}

    def _centre(self, value: Tensor) -> Tensor:
        return value - value.mean(0) if self.centred else value


def _by_layer(found: list[Rows]) -> dict:
    calls: dict = {}
    for one in found:
        calls.setdefault(one.layer, []).append(one)
    return calls


def _uses(calls: list[Rows]) -> tuple[Tensor, Tensor]:
    """Inputs (with the one for the bias) and cotangents of all calls of a layer, joined along uses."""
    a, g = (torch.cat(parts, 2) for parts in ([one.a for one in calls], [one.g for one in calls]))
    return (a if calls[0].layer.bias is None else nn.functional.pad(a, (0, 1), value=1.0)), g


def kernel(model: nn.Module, forward: Callable[[], Tensor], *, centred: bool = True) -> tuple[Tensor, Kernel]:
    """Capture the Jacobian of per-datum scalars ``forward() -> [N]``.

    Args:
        model: Holds the parameters. It must not couple data (no batch normalisation in training mode).
        forward: Runs it.
        centred: Take the mean over data off every column of ``O``: for unnormalised wave functions; False for residuals.

    Returns:
        The scalars ``[N]`` and the kernel.

    Raises:
        ValueError: when ``forward`` returns anything but one real scalar per datum.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    values, found = rows(model, forward, torch.ones_like)
    if values.ndim != 1 or values.is_complex():
        raise ValueError(f"forward() returned shape {tuple(values.shape)}, {values.dtype}, wanted one real scalar per datum: [N].")
    # A layer with a frozen weight or bias is not a layer: what is left of it is a loose parameter.
    found = [one for one in found if all(parameter in names for parameter in one.layer.parameters())]
    covered = {parameter for one in found for parameter in one.layer.parameters()}
    outside = [parameter for parameter in names if parameter not in covered]
    loose: dict[str, Tensor] = {}
    if outside:
        columns = [torch.autograd.grad(value, outside, retain_graph=True, allow_unused=True, materialize_grads=True) for value in values]
        loose = {names[parameter]: torch.stack(same).detach() for parameter, same in zip(outside, zip(*columns, strict=True), strict=True)}
    return values.detach(), Kernel(names, found, loose, len(values), centred)


def minsr(jacobian: Kernel, target: Tensor, *, damping: float = 1e-3) -> Update:
    """Solve ``phi = J^T (J J^T + damping I)^{-1} e``.

    Args:
        jacobian: The Jacobian, from `kernel`.
        target: ``[N]``: the local energy (centred and scaled here), or the residual.
        damping: ``lambda > 0``.

    Raises:
        ValueError: for a target of another length or not finite, or ``damping <= 0``.

    Example:
        >>> net = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        >>> with torch.no_grad():
        ...     net.weight.zero_()
        Parameter containing:
        tensor([[0., 0.]], dtype=torch.float64, requires_grad=True)
        >>> _, jacobian = kernel(net, lambda: net(x)[:, 0], centred=False)
        >>> minsr(jacobian, torch.tensor([1.0, 4.0], dtype=torch.float64), damping=1e-12)["weight"].round(decimals=6).tolist()
        [[1.0, 2.0]]
    """
    return spring(jacobian, target, {}, damping=damping, decay=0.0)


def spring(jacobian: Kernel, target: Tensor, previous: Update, *, damping: float = 1e-3, decay: float = 0.99) -> Update:
    """Solve ``argmin |J phi - e|^2 + damping |phi - decay phi_previous|^2`` in sample space.

    Args:
        jacobian: The Jacobian, from `kernel`.
        target: ``[N]``.
        previous: ``phi_{k-1}``; an empty one at the first step.
        damping: ``lambda > 0``.
        decay: ``mu`` in [0, 1); 0 is MinSR. At 1 the iteration can diverge.

    Raises:
        ValueError: for a target of another length or not finite, an update of another model, ``damping <= 0`` or ``decay`` outside [0, 1).
    """
    if target.shape != (jacobian.data,):
        raise ValueError(f"target has shape {tuple(target.shape)}, wanted ({jacobian.data},): one value per datum.")
    if not target.isfinite().all():
        raise ValueError(
            f"target has {int((~target.isfinite()).sum())} values that are not finite. Fix: clip local energies, or leave those data out."
        )
    if not 0 < damping < float("inf"):
        raise ValueError(f"damping={damping!r}, wanted finite and above 0: 1e-3 is usual.")
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay!r}, wanted in [0, 1): 0.99 is usual, 0 is MinSR.")
    if previous and previous.keys() != set(jacobian.names.values()):
        odd = sorted(previous.keys() ^ set(jacobian.names.values()))
        raise ValueError(f"previous: {odd[0]!r} is in only one of update and model. Fix: the last update of the same model, or {{}}.")
    target = (target - target.mean() if jacobian.centred else target) / jacobian.data**0.5
    matrix = jacobian.gram()
    if jacobian.centred:  # the constant vector is in the kernel of J J^T: lift it, and centre what is pulled back
        matrix = matrix + 1 / jacobian.data
    if previous and decay:
        target = target - decay * jacobian.times(previous)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    zeta = vectors @ ((vectors.T @ target) / (values.clamp(min=0) + damping))
    update = jacobian.transposed(zeta)
    if not previous or not decay:
        return update
    return {name: part + decay * previous[name] for name, part in update.items()}


@torch.no_grad()
def apply(model: nn.Module, update: Update, lr: float, norm_bound: float | None = 1e-3) -> float:
    """Step ``theta <- theta - min(lr, sqrt(norm_bound) / |phi|) phi``; returns the step size taken.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> round(apply(net, {"weight": torch.tensor([[2.0]])}, lr=0.1, norm_bound=1e-2), 6)
    0.05
    """
    norm = torch.stack([part.square().sum() for part in update.values()]).sum().sqrt()
    size = lr if norm_bound is None else min(lr, norm_bound**0.5 / max(float(norm), torch.finfo(norm.dtype).tiny))
    parameters = dict(model.named_parameters())
    for name, part in update.items():
        parameters[name].add_(part, alpha=-size)
    return size
