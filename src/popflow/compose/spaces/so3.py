"""Rotation matrices: exponential, quaternions, and the rotation nearest to a matrix.

The metric is the bi-invariant one in which the distance between two rotations is the angle between them. Tangent vectors are written in the body frame:
``R' = R Exp(xi)``, with ``xi`` in radians. Matrices are ``[..., 3, 3]``, vectors ``[..., 3]``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hat(v: Tensor) -> Tensor:
    """Skew matrix ``[..., 3, 3]`` of a vector: ``hat(v) w = v x w``."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def vee(a: Tensor) -> Tensor:
    """``(a_32 - a_23, a_13 - a_31, a_21 - a_12)`` of matrices ``[..., 3, 3]``: twice the vector of the skew part."""
    return torch.stack([a[..., 2, 1] - a[..., 1, 2], a[..., 0, 2] - a[..., 2, 0], a[..., 1, 0] - a[..., 0, 1]], -1)


def exp(v: Tensor) -> Tensor:
    """Rotation by ``|v|`` radians about ``v``: ``1 + sin(a)/a hat(v) + (1 - cos a)/a^2 hat(v)^2``; differentiable at zero.

    >>> exp(torch.tensor([0.0, 0.0, torch.pi / 2])).round().int().tolist()
    [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    """
    square = v.square().sum(-1)
    small = square < 1e-4
    angle = torch.where(small, 1.0, square).sqrt()
    first = torch.where(small, 1 - square / 6 + square.square() / 120, angle.sin() / angle)
    second = torch.where(small, 0.5 - square / 24 + square.square() / 720, 2 * ((angle / 2).sin() / angle).square())
    skew = hat(v)
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    outer = v.unsqueeze(-1) * v.unsqueeze(-2)  # hat(v)^2 = v v^T - |v|^2
    return eye + first[..., None, None] * skew + second[..., None, None] * (outer - square[..., None, None] * eye)


def from_quaternion(q: Tensor) -> Tensor:
    """Rotations of quaternions ``(w, x, y, z)`` of any length above zero; normal values give uniform rotations."""
    q = q / q.norm(dim=-1, keepdim=True)
    w, v = q[..., 0], q[..., 1:]
    eye = torch.eye(3, dtype=q.dtype, device=q.device)
    scale = w.square() - v.square().sum(-1)
    return scale[..., None, None] * eye + 2 * v.unsqueeze(-1) * v.unsqueeze(-2) + 2 * w[..., None, None] * hat(v)


def nearest(a: Tensor) -> Tensor:
    """Rotations nearest to matrices ``[..., 3, 3]`` (by singular values): repairs matrices that rounding or a file has spoilt."""
    u, _, vh = torch.linalg.svd(a)
    sign = torch.linalg.det(u @ vh)
    return torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1) @ vh
