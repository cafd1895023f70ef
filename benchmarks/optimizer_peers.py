"""The optimisers that SINGD is compared with: fused AdamW, `torch.optim.Muon`, SOAP and Kron of pytorch_optimizer, KL-Shampoo and KL-SOAP of heavyball,
singd 0.0.5, and a classical KFAC; and SPRING, this library's own, for residuals.

Each is a function ``(model, lr, ...) -> optimiser``; one whose package is not installed raises ImportError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.optim import BlockDiagonal, Dense, Diagonal, Hierarchical, LowerToeplitz, Tap, expand, find_layers, over_data, per_datum
from popflow.optim.capture import Averaging
from popflow.optim.gram import apply, kernel, spring
from popflow.optim.structures.structure import Structure

Make = Callable[[nn.Module], torch.optim.Optimizer]


class KFAC(torch.optim.Optimizer):
    """Classical KFAC: moving averages of both Gram matrices, Cholesky solves every ``interval`` steps, KL clip, AdamW for the rest.

    Curvature is that of the loss (``listen``) or of cotangents that `observe` is given.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        damping: float = 1e-3,
        decay: float = 0.95,
        interval: int | Callable[[int], int] = 10,
        momentum: float = 0.9,
        kl_clip: float = 1e-3,
        listen: bool = True,
        averaging: Averaging = over_data,
        fallback_lr: float = 1e-3,
    ):
        super().__init__(list(model.parameters()), {"lr": lr})
        self.layers, self.damping, self.decay, self.interval, self.momentum, self.kl_clip = (
            find_layers(model),
            damping,
            decay,
            interval,
            momentum,
            kl_clip,
        )
        taken = {parameter for layer in self.layers for parameter in layer.parameters()}
        rest = [parameter for parameter in model.parameters() if parameter not in taken]
        self.adamw = torch.optim.AdamW(rest, lr=fallback_lr, fused=True) if rest else None
        self.tap, self.grams, self.inverses, self.buffers, self.averaging = (
            Tap(self.layers, self.record if listen else None),
            {},
            {},
            {},
            averaging,
        )
        self.steps = self.next_refresh = 0
        self.tap.armed = True

    @torch.no_grad()
    def observe(self, outputs: Tensor, cotangents: Tensor) -> None:
        """Average the Gram matrices of given cotangents."""
        for found in self.tap.pull(outputs, cotangents):
            self.record(found.layer, found.a, found.g, per_datum)

    @torch.no_grad()
    def record(self, layer, a: Tensor, g: Tensor, averaging: Averaging | None = None) -> None:
        """Average the Gram matrices of a layer."""
        data = a.shape[1]
        a, g = expand(a, g)
        if layer.bias is not None:
            a = F.pad(a, (0, 1), value=1.0)
        new = (a.mT @ a / a.shape[1], g.mT @ g * (averaging or self.averaging)(data, g.shape[1]))
        old = self.grams.get(layer)
        self.grams[layer] = new if old is None else tuple(torch.lerp(x, y, 1 - self.decay) for x, y in zip(old, new, strict=True))

    @torch.no_grad()
    def step(self, closure=None):
        """Factorise where due, solve, clip, move."""
        lr = self.param_groups[0]["lr"]
        if self.tap.armed:
            for layer, grams in self.grams.items():
                eyes = [gram + self.damping**0.5 * torch.eye(gram.shape[-1], dtype=gram.dtype) for gram in grams]
                # LAPACK has no bfloat16: the solve is float32, of Gram matrices averaged in the dtype of the network.
                self.inverses[layer] = [torch.cholesky_inverse(torch.linalg.cholesky(eye.float())).to(eye.dtype) for eye in eyes]
        moves, total = {}, 0.0
        for layer, (k, c) in self.inverses.items():
            gradient = torch.cat([layer.view(parameter.grad) for parameter in layer.parameters()], -1)
            moves[layer] = c @ gradient @ k
            total += float((moves[layer] * gradient).sum())
        scale = min(1.0, math.sqrt(self.kl_clip / (lr**2 * total))) if total > 0 else 1.0
        for layer, move in moves.items():
            buffer = self.buffers.setdefault(layer, torch.zeros_like(move)).mul_(self.momentum).add_(move, alpha=scale)
            for parameter, part in zip(layer.parameters(), buffer.split([layer.p, buffer.shape[-1] - layer.p], -1), strict=False):
                rows = parameter[layer.start : layer.start + layer.blocks * layer.d]
                rows.add_(part.reshape(rows.shape), alpha=-lr)
        if self.adamw is not None:
            self.adamw.step()
        if self.steps == self.next_refresh:
            self.next_refresh += self.interval(self.steps + 1) if callable(self.interval) else self.interval
        self.steps += 1
        self.tap.armed = self.steps == self.next_refresh


class Spring(torch.optim.Optimizer):
    """SPRING of `popflow.optim.gram` for a model whose outputs are residuals ``[N]``, of which the loss is half the mean square."""

    def __init__(self, model: nn.Module, lr: float, damping: float, decay: float, norm_bound: float):
        super().__init__(list(model.parameters()), {"lr": lr})
        self.model, self.damping, self.decay, self.norm_bound, self.update = model, damping, decay, norm_bound, {}

    def solve(self, batch: tuple) -> Tensor:
        """Solve for the next update in place of a backward pass; returns the loss."""
        residual, jacobian = kernel(self.model, lambda: self.model(*batch), centred=False)
        self.update = spring(jacobian, residual, self.update, damping=self.damping, decay=self.decay)
        return residual.square().mean() / 2

    def step(self, closure=None):
        """Move."""
        apply(self.model, self.update, self.param_groups[0]["lr"], self.norm_bound)


class Pair(torch.optim.Optimizer):
    """Two optimisers over the parameters of one model, as peers need that take matrices only."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer | None):
        self.both = [one for one in (first, second) if one is not None]
        super().__init__([p for one in self.both for group in one.param_groups for p in group["params"]], {})

    def step(self, closure=None):
        """Step both."""
        for one in self.both:
            one.step()


def adamw(model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, fused=True)


def _rest(model: nn.Module, taken: set[Tensor], lr: float) -> torch.optim.Optimizer | None:
    rest = [parameter for parameter in model.parameters() if parameter not in taken]
    return torch.optim.AdamW(rest, lr=lr, fused=True) if rest else None


def muon(model: nn.Module, lr: float, momentum: float = 0.95) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    first = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    return Pair(first, _rest(model, set(matrices), lr))


def soap(model: nn.Module, lr: float, betas: tuple[float, float] = (0.95, 0.95), frequency: int = 10) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(model.parameters(), lr=lr, betas=betas, weight_decay=0.0, precondition_frequency=frequency)


def heavy(kind: str, model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.95), frequency: int = 2) -> torch.optim.Optimizer:
    """``KLShampoo`` or ``KLSOAP`` of heavyball, not compiled: compiling takes longer than the whole race. Its factors average as long as its squares."""
    import heavyball

    if not hasattr(heavyball, kind):
        raise ImportError(f"heavyball has no {kind}, wanted heavyball >= 3.2")
    heavyball.utils.compile_mode = None
    return getattr(heavyball, kind)(
        model.parameters(), lr=lr, betas=betas, shampoo_beta=betas[1], weight_decay=0.0, precondition_frequency=frequency
    )


def kron(model: nn.Module, lr: float, **options: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import Kron

    return Kron(model.parameters(), lr=lr, weight_decay=0.0, **options)


def reference(
    model: nn.Module, lr: float, structure: str = "dense", interval: int = 10, fallback_lr: float = 1e-3, **options: Any
) -> torch.optim.Optimizer:
    from singd.optim.optimizer import SINGD as Reference

    # By type, not isinstance: singd 0.0.5 raises KeyError on the output projection of nn.MultiheadAttention, a subclass of Linear.
    linear = [p for module in model.modules() if type(module) in (nn.Linear, nn.Conv2d) for p in module.parameters(recurse=False)]
    taken = set(linear)
    return Pair(
        Reference(model, linear, lr=lr, structures=(structure, structure), T=interval, warn_unsupported=False, **options),
        _rest(model, taken, fallback_lr),
    )


STRUCTURES: dict[str, tuple[Structure, str | None]] = {
    "dense": (Dense(), "dense"),
    "block-30": (BlockDiagonal(30), "block30diagonal"),
    "hierarchical 15, 15": (Hierarchical(15, 15), "hierarchical15_15"),
    "Toeplitz": (LowerToeplitz(), "triltoeplitz"),
    "diagonal": (Diagonal(), "diagonal"),
}
