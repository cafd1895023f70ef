r"""The forward Laplacian: value, gradient and Laplacian of a network, carried through it together in one pass.

For a function of the coordinates ``x_1 ... x_K`` of a walker, every intermediate ``y`` travels as ``(y, J_k = dy/dx_k, L = sum_k d^2y/dx_k^2)``::

    affine            J -> W J                        L -> W L
    elementwise f     J -> f'(y) J                    L -> f'(y) L + f''(y) sum_k J_k^2
    product a b       J -> J_a b + a J_b              L -> L_a b + a L_b + 2 sum_k J_a,k J_b,k
    softmax s         J -> s c_k                      L -> s (w - <s, w>),  c_k = J_k - <s, J_k>,  w = L + sum_k c_k^2
    log|det M|        J -> tr X_k                     L -> tr(M^-1 L_M) - sum_k tr(X_k X_k),  X_k = M^-1 J_M,k
    log|sum_d D_d|    J -> <w, t>                     L -> <w, L_d + sum_k t_k^2> - sum_k J_k^2,  w = D / sum D,  t = d log|D|

One ordinary reverse pass through these operations gives third derivatives. `torch.func` is not used: differentiating a forward-mode derivative of
``slogdet``, ``det`` or ``solve`` again is silently wrong in torch 2.13 (``tests/electrons/test_forward_laplacian.py`` guards this). `sign_log_det` is right
in every composition.

Before electrons are mixed, what belongs to electron ``i`` depends on its own coordinates alone. Such a *local* jet holds ``d`` derivatives in place
of ``K = N d``. `attend` and `times_local` are the places where jets become dense.

Functions here take a plain tensor or a `Jet`, so a network is written once: ``f(x)`` is its value, ``f(seed(x))`` its jet.

Source: Li et al., *A computational framework for neural network-based variational Monte Carlo with forward Laplacian*, Nat. Mach. Intell. 6, 209 (2024).
"""

# Operations take tensors or jets and give back the same kind, which the checker cannot follow through isinstance.
# pyright: reportReturnType=false, reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Jet:
    """A quantity with its first derivatives and its Laplacian.

    Attributes:
        parts: ``[B, k + 2, *shape]``: the value, ``k`` derivatives, the Laplacian. They lie in one tensor so that a linear layer is one product.
    """

    parts: Tensor

    @staticmethod
    def of(value: Tensor, jacobian: Tensor, laplacian: Tensor) -> Jet:
        """Join ``[B, *s]``, ``[B, k, *s]`` and ``[B, *s]``."""
        return Jet(torch.cat([value.unsqueeze(1), jacobian, laplacian.unsqueeze(1)], 1))

    @property
    def value(self) -> Tensor:
        """``[B, *shape]``."""
        return self.parts[:, 0]

    @property
    def jacobian(self) -> Tensor:
        """``[B, k, *shape]``."""
        return self.parts[:, 1:-1]

    @property
    def laplacian(self) -> Tensor:
        """``[B, *shape]``."""
        return self.parts[:, -1]

    def split(self) -> tuple[Tensor, Tensor, Tensor]:
        """Value, derivatives and Laplacian at once: in reverse they are joined by one copy, where three slices cost three."""
        value, jacobian, laplacian = self.parts.split((1, self.parts.shape[1] - 2, 1), 1)
        return value.squeeze(1), jacobian, laplacian.squeeze(1)

    def __add__(self, other: Jet) -> Jet:
        return Jet(self.parts + other.parts)

    def __mul__(self, other: Jet) -> Jet:
        """Product of two jets of the same derivatives, elementwise; shapes broadcast."""
        (a, a_k, a_l), (b, b_k, b_l) = self.split(), other.split()
        jacobian = a_k * b.unsqueeze(1) + a.unsqueeze(1) * b_k
        return Jet.of(a * b, jacobian, a_l * b + a * b_l + 2 * (a_k * b_k).sum(1))


Quantity = TypeVar("Quantity", Tensor, Jet)
"""A tensor ``[B, *shape]``, or its jet."""


def elementwise(h: Jet, function: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> Jet:
    """Apply the chain rule for a function that gives its value and its first two derivatives."""
    value, jacobian, laplacian = h.split()
    value, first, second = function(value)
    return Jet.of(value, first.unsqueeze(1) * jacobian, first * laplacian + second * jacobian.square().sum(1))


def tanh(h: Quantity) -> Quantity:
    """Hyperbolic tangent, elementwise."""

    def derivatives(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = torch.tanh(y)
        first = 1 - t * t
        return t, first, -2 * t * first

    return torch.tanh(h) if isinstance(h, Tensor) else elementwise(h, derivatives)


def exp(h: Quantity) -> Quantity:
    """Exponential function, elementwise."""
    return torch.exp(h) if isinstance(h, Tensor) else elementwise(h, lambda y: (torch.exp(y),) * 3)


def log1p(h: Quantity) -> Quantity:
    """``log(1 + h)``, elementwise."""
    return torch.log1p(h) if isinstance(h, Tensor) else elementwise(h, lambda y: (torch.log1p(y), 1 / (1 + y), -1 / (1 + y) ** 2))


def reciprocal(h: Quantity, shift: float | Tensor = 0.0) -> Quantity:
    """``1 / (shift + h)``, elementwise."""

    def derivatives(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inverse = 1 / (shift + y)
        return inverse, -inverse * inverse, 2 * inverse * inverse * inverse

    return 1 / (shift + h) if isinstance(h, Tensor) else elementwise(h, derivatives)


def scale(h: Quantity, factor: Tensor | float) -> Quantity:
    """Multiply by a constant; a tensor has the trailing shape of the quantity."""
    return h * factor if isinstance(h, Tensor) else Jet(h.parts * factor)


def join(*parts: Quantity) -> Quantity:
    """Concatenate along the last dimension."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, -1)
    return Jet(torch.cat([part.parts for part in parts if isinstance(part, Jet)], -1))


def rows(h: Quantity, first: int, last: int) -> Quantity:
    """Take electrons ``first`` to ``last - 1`` of a quantity ``[B, N, ...]``."""
    return h[:, first:last] if isinstance(h, Tensor) else Jet(h.parts[:, :, first:last])


def stack_rows(parts: list[Quantity]) -> Quantity:
    """Join quantities ``[B, n, ...]`` along electrons."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, 1)
    return Jet(torch.cat([part.parts for part in parts if isinstance(part, Jet)], 2))


def shaped(h: Quantity, *shape: int) -> Quantity:
    """Give each walker's part of a quantity another shape."""
    return h.reshape(len(h), *shape) if isinstance(h, Tensor) else Jet(h.parts.reshape(*h.parts.shape[:2], *shape))


def total(h: Quantity, dim: int) -> Quantity:
    """Sum over a trailing dimension (``dim < 0``)."""
    return h.sum(dim) if isinstance(h, Tensor) else Jet(h.parts.sum(dim))


def linear(layer: nn.Linear, h: Quantity) -> Quantity:
    """Apply a linear layer to the last dimension; a plain tensor goes through the module, whose hooks then see it."""
    if isinstance(h, Tensor):
        return layer(h)
    out = Jet(nn.functional.linear(h.parts, layer.weight))
    if layer.bias is None:
        return out
    value, jacobian, laplacian = out.split()
    return Jet.of(value + layer.bias, jacobian, laplacian)


def displacements(x: Quantity, centres: Tensor) -> tuple[Quantity, Quantity]:
    """Vectors and distances from every centre to every electron.

    Args:
        x: ``[B, N, d]`` positions, or the local jet of `seed`.
        centres: ``[A, d]``.

    Returns:
        ``a [B, N, A, d]`` and ``r [B, N, A]``, local where ``x`` is: ``J_r = a / r``, ``L_r = (d - 1) / r``.
    """
    position = x if isinstance(x, Tensor) else x.value
    a = position.unsqueeze(2) - centres
    r = a.square().sum(-1).sqrt()
    if isinstance(x, Tensor):
        return a, r
    b, n, count, d = a.shape
    identity = torch.eye(d, dtype=a.dtype, device=a.device)[:, None, None].expand(b, d, n, count, d)
    jet_a = Jet.of(a, identity, torch.zeros_like(a))
    return jet_a, Jet.of(r, (a / r.unsqueeze(-1)).movedim(-1, 1), (d - 1) / r)


def seed(x: Tensor) -> Jet:
    """Make the local jet of the positions ``x [B, N, d]`` of electrons."""
    identity = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)[:, None].expand(len(x), -1, x.shape[1], -1)
    return Jet.of(x, identity, torch.zeros_like(x))


def spread(h: Jet) -> Jet:
    """Make a local jet ``[B, d + 2, N, ...]`` dense: ``[B, N d + 2, N, ...]``."""
    n = h.parts.shape[2]
    own = torch.eye(n, dtype=h.parts.dtype, device=h.parts.device).reshape(1, n, 1, n, *[1] * (h.parts.ndim - 3))
    return Jet.of(h.value, (own * h.jacobian.unsqueeze(1)).flatten(1, 2), h.laplacian)


def times_local(h: Quantity, local: Quantity) -> Quantity:
    """Multiply a dense quantity ``[B, N, ...]`` by a local one of the same shape."""
    if isinstance(h, Tensor) or isinstance(local, Tensor):
        return h * local
    n = h.parts.shape[2]
    own = torch.eye(n, dtype=h.parts.dtype, device=h.parts.device).reshape(1, n, 1, n, *[1] * (h.parts.ndim - 3))
    (a, a_k, a_l), (b, b_k, b_l) = h.split(), local.split()
    mine = a_k.unflatten(1, (n, -1)).diagonal(dim1=1, dim2=3).movedim(-1, 2)  # by each electron's own coordinates: [B, d, N, ...]
    jacobian = a_k * b.unsqueeze(1) + (own * (a.unsqueeze(1) * b_k).unsqueeze(1)).flatten(1, 2)
    return Jet.of(a * b, jacobian, a_l * b + a * b_l + 2 * (mine * b_k).sum(1))


def _softmax(z: Quantity) -> Quantity:
    if isinstance(z, Tensor):
        return z.softmax(-1)
    value, jacobian, laplacian = z.split()
    s = value.softmax(-1)
    c = jacobian - (s.unsqueeze(1) * jacobian).sum(-1, keepdim=True)
    w = laplacian + c.square().sum(1)
    return Jet.of(s, s.unsqueeze(1) * c, s * (w - (s * w).sum(-1, keepdim=True)))


def attend(q: Quantity, k: Quantity, v: Quantity, *, local: bool) -> Quantity:
    """Attention of electrons to one another: ``sum_j softmax_j(q_i . k_j / sqrt(e)) v_j`` for every head.

    Args:
        q: ``[B, N, heads, e]``, as are ``k`` and ``v``.
        k: Keys.
        v: Values.
        local: Whether the jets given are local; the answer is dense. Of no meaning for tensors.
    """
    if isinstance(q, Tensor) or isinstance(k, Tensor) or isinstance(v, Tensor):
        a = _softmax(torch.einsum("bihe,bjhe->bhij", q, k) / math.sqrt(q.shape[-1]))
        return torch.einsum("bhij,bjhe->bihe", a, v)
    return _attend_local(q, k, v) if local else _attend_dense(q, k, v)


def _attend_dense(q: Jet, k: Jet, v: Jet) -> Jet:
    """Both products run over all parts at once; rows of a product are (part, electron). Both hold the value, hence the halves."""
    (q0, q_k, _), (k0, k_k, _), (v0, v_k, _) = q.split(), k.split(), v.split()
    both = torch.einsum("bpihe,bjhe->bhpij", q.parts, k0) + torch.einsum("bihe,bpjhe->bhpij", q0, k.parts)
    z, z_k, z_l = Jet(both.movedim(2, 1)).split()
    cross = 2 * torch.einsum("bpihe,bpjhe->bhij", q_k, k_k)
    a = _softmax(scale(Jet.of(z / 2, z_k, z_l + cross), 1 / math.sqrt(q0.shape[-1])))  # [B, parts, h, i, j]
    a0, a_k, _ = a.split()
    whole = torch.einsum("bphij,bjhe->bpihe", a.parts, v0) + torch.einsum("bhij,bpjhe->bpihe", a0, v.parts)
    y, y_k, y_l = Jet(whole).split()
    return Jet.of(y / 2, y_k, y_l + 2 * torch.einsum("bphij,bpjhe->bihe", a_k, v_k))


def _attend_local(q: Jet, k: Jet, v: Jet) -> Jet:
    """The logit ``(i, j)`` depends on electrons ``i`` (through q) and ``j`` (through k) alone."""
    n = q.parts.shape[2]
    eye = torch.eye(n, dtype=q.parts.dtype, device=q.parts.device)
    (q0, q_k, _), (k0, k_k, _), (v0, v_k, v_l) = q.split(), k.split(), v.split()
    z, by_q, left = Jet(torch.einsum("bpihe,bjhe->bphij", q.parts, k0)).split()
    _, by_k, right = Jet(torch.einsum("bihe,bpjhe->bphij", q0, k.parts)).split()
    by_i = eye[:, None, None, :, None] * by_q[:, None]  # [B, m, c, h, i, j], m = i
    by_j = eye[:, None, None, None, :] * by_k[:, None]
    cross = 2 * torch.einsum("bcihe,bcihe->bhi", q_k, k_k)  # electron i attending to itself
    a = _softmax(scale(Jet.of(z, (by_i + by_j).flatten(1, 2), left + right + torch.diag_embed(cross)), 1 / math.sqrt(q0.shape[-1])))
    a0, a_k, _ = a.split()
    y, first, last = Jet(torch.einsum("bphij,bjhe->bpihe", a.parts, v0)).split()
    second = torch.einsum("bhij,bcjhe->bjcihe", a0, v_k).flatten(1, 2)
    by_own = a_k.unflatten(1, (n, -1)).diagonal(dim1=1, dim2=5)  # [B, c, h, i, j], derivative by electron j
    cross = 2 * torch.einsum("bchij,bcjhe->bihe", by_own, v_k)
    return Jet.of(y, first + second, last + torch.einsum("bhij,bjhe->bihe", a0, v_l) + cross)


def sign_log_det(m: Tensor) -> tuple[Tensor, Tensor]:
    """Sign and ``log|det M|`` of ``[..., N, N]``, whose derivatives of any order and kind (forward in reverse in forward ...) are exact.

    Gaussian elimination with row pivots, in plain operations: nothing is reused that another derivative would need to pass through. A singular
    matrix has sign 0 and ``-inf``.

    >>> m = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> f = lambda t: sign_log_det(m * t)[1]  # 2 log t + log 3
    >>> d = torch.func.grad(torch.func.grad(lambda t: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]))
    >>> round(float(d(torch.tensor(1.0, dtype=torch.float64))), 12)
    4.0
    """
    sign, logarithm = torch.ones_like(m[..., 0, 0]).detach(), torch.zeros_like(m[..., 0, 0])
    for n in range(m.shape[-1], 0, -1):
        largest = m[..., 0].detach().abs().argmax(-1)
        row = m.gather(-2, largest[..., None, None].expand(*largest.shape, 1, n)).squeeze(-2)
        pivot = row[..., 0]
        moved = largest.unsqueeze(-1) == torch.arange(n, device=m.device)  # the first row takes the place of the pivot's
        rest = torch.where(moved.unsqueeze(-1), m[..., :1, :], m)[..., 1:, :]
        sign = sign * pivot.detach().sign() * torch.where(largest == 0, 1.0, -1.0).to(m.dtype)
        logarithm = logarithm + pivot.abs().log()
        safe = torch.where(pivot == 0, torch.ones_like(pivot), pivot)
        m = rest[..., 1:] - (rest[..., :1] / safe[..., None, None]) * row[..., None, 1:]
    return sign, logarithm


def log_sum_det(m: Quantity) -> tuple[Tensor, Quantity]:
    """Sign and ``log|.|`` of ``sum_d det M_d``.

    Args:
        m: ``[B, N, D, N]``: electrons, determinants, orbitals; dense.

    Returns:
        Sign ``[B]`` and ``log|.|``: ``[B]`` or its jet. A sum that is exactly 0 has ``-inf``.
    """
    value = (m if isinstance(m, Tensor) else m.value).transpose(1, 2)  # [B, D, N, N]
    signs, each = sign_log_det(value)
    largest = each.amax(-1, keepdim=True).detach()
    largest = torch.where(largest.isfinite(), largest, torch.zeros_like(largest))
    terms = signs * (each - largest).exp()
    together = terms.sum(-1)
    logarithm = together.abs().log() + largest.squeeze(-1)
    if isinstance(m, Tensor):
        return together.sign(), logarithm
    rest = m.parts[:, 1:].permute(0, 3, 2, 1, 4)  # [B, D, i, parts, o]
    x = (torch.linalg.inv_ex(value).inverse @ rest.flatten(3)).unflatten(
        3, rest.shape[3:]
    )  # M^-1 of every derivative, and of the Laplacian
    traces = x.diagonal(dim1=2, dim2=4).sum(-1)  # [B, D, parts]
    first = x[:, :, :, :-1]
    squares = (first * first.transpose(2, 4)).flatten(2).sum(-1)
    t, laplacian = traces[..., :-1], traces[..., -1] - squares
    w = terms / together.unsqueeze(-1)
    jacobian = (w.unsqueeze(-1) * t).sum(1)
    second = (w * (laplacian + t.square().sum(-1))).sum(-1) - jacobian.square().sum(-1)
    return together.sign(), Jet.of(logarithm, jacobian, second)


def radial(r: Tensor) -> Jet:
    """Make the jet of distances as independent variables: what comes out of it holds ``u``, ``u'`` and ``u''``."""
    return Jet.of(r, torch.ones_like(r).unsqueeze(1), torch.zeros_like(r))


def pair_sum(x: Quantity, pairs: Tensor, function: Callable[[Quantity], Quantity]) -> Quantity:
    """Sum ``u(|x_i - x_j|)`` over pairs: ``grad_i = sum_j u' e_ij``, Laplacian ``sum_pairs 2 (u'' + (d - 1) u' / r)``.

    Args:
        x: ``[B, N, d]`` positions, or the local jet of `seed`.
        pairs: ``[2, P]`` electrons of each pair.
        function: ``u``: takes and returns ``[B, P]`` or its jet.

    Returns:
        ``[B]`` or its dense jet.
    """
    position = x if isinstance(x, Tensor) else x.value
    b, n, d = position.shape
    gap = position[:, pairs[0]] - position[:, pairs[1]]
    r = gap.square().sum(-1).sqrt()
    if isinstance(x, Tensor):
        return function(r).sum(-1)
    u = function(radial(r))
    slope, bend = u.jacobian[:, 0], u.laplacian
    ends = nn.functional.one_hot(pairs, n).to(r.dtype)  # [2, P, N]
    gradient = torch.einsum("pn,bpd->bnd", ends[0] - ends[1], (slope / r).unsqueeze(-1) * gap)
    laplacian = 2 * (bend + (d - 1) * slope / r).sum(-1)
    return Jet.of(u.value.sum(-1), gradient.reshape(b, n * d), laplacian)


def padded(h: Jet, before: int, after: int) -> Jet:
    """Add coordinates that a jet ``[B]`` does not depend on: so many before its own, and so many after."""
    return Jet.of(h.value, nn.functional.pad(h.jacobian, (before, after)), h.laplacian)
