"""Triangular Toeplitz factors: polynomials modulo ``z^n``, multiplied by FFT."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from popflow.optim.structures import Factor, by_products

SMALL = 128
"""Up to this side a Toeplitz product with many rows is one matrix product; beyond, FFTs take less time (measured on one CPU thread)."""
MEDIUM = 512
"""Up to this side two products in a row, with ``K`` and its transpose, are one with the matrix ``K K^T``."""


@dataclass(frozen=True)
class LowerToeplitz:
    """``K_ij = c_{i-j}`` for ``i >= j``: ``n`` numbers, products by FFT in ``n log n``. For layers whose coordinates have an order.

    The coordinates ``c`` are polynomials modulo ``z^n``, so the set is closed under product.

    >>> LowerToeplitz().dense((torch.tensor([[1.0, 2.0, 3.0]]),), 3)[0].tolist()
    [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 1.0]]
    """

    def size(self, n: int) -> int:
        """``n``."""
        return n

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Mean of the diagonal, times the identity."""
        out = torch.zeros_like(diagonal)
        out[:, 0] = diagonal.mean(-1)
        return (out,)

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """The constant diagonal."""
        return factor[0][:, :1].expand(-1, n)

    def shift_(self, factor: Factor, value: float) -> None:
        """Add to the coefficient of lag 0."""
        factor[0][:, 0] += value

    def multiply(self, left: Factor, right: Factor) -> Factor:
        """Product of the polynomials modulo ``z^n``."""
        return (convolve(left[0], right[0]),)

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K``: correlation with the coefficients."""
        n = rows.shape[-1]
        return rows @ self.dense(factor, n) if n <= SMALL else correlate(rows, factor[0].unsqueeze(-2))

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K^T``: convolution with the coefficients."""
        n = rows.shape[-1]
        return rows @ self.dense(factor, n).mT if n <= SMALL else convolve(rows, factor[0].unsqueeze(-2))

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Projection of ``K^T X^T X K``: summed autocorrelation of the rows of ``X K``, per lag."""
        return (_lag_means(autocorrelation(self.right(factor, rows))),)

    def inner(self, factor: Factor) -> Factor:
        """Projection of ``K^T K``: ``sum_s c_s c_{s+l} (n - s - l)``, per lag."""
        c = factor[0]
        return (_lag_means(correlate(c * _counts(c.shape[-1], c), c)),)

    def square(self, factor: Factor, n: int) -> Tensor:
        """``sum_l c_l^2 (n - l)``."""
        return (factor[0].square() * _counts(n, factor[0])).sum(-1)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """By ``K K^T``, which costs ``n^2``, for sides up to a few hundred; by FFT beyond."""
        if factor[0].shape[-1] > MEDIUM:
            return by_products(self, factor, x, dim)
        return x @ self._metric(factor[0]) if dim == -1 else self._metric(factor[0]) @ x

    def _metric(self, c: Tensor) -> Tensor:
        return outer_sums(c)

    def project(self, matrix: Tensor) -> Factor:
        """Mean of the diagonal; twice the mean of each lower diagonal."""
        n = matrix.shape[-1]
        return (_lag_means(torch.stack([matrix.diagonal(-lag, -2, -1).sum(-1) for lag in range(n)], -1)),)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix."""
        return _hankel(torch.cat([factor[0].flip(-1), torch.zeros_like(factor[0])], -1), n).flip(-2)

    def bound(self, factor: Factor) -> Tensor:
        """``sum |c|``, which bounds row and column sums."""
        return factor[0].abs().sum(-1)


@dataclass(frozen=True)
class UpperToeplitz(LowerToeplitz):
    """``K_ij = c_{j-i}`` for ``j >= i``: the transposes of `LowerToeplitz`.

    >>> UpperToeplitz().dense((torch.tensor([[1.0, 2.0, 3.0]]),), 3)[0].tolist()
    [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]]
    """

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K``: convolution with the coefficients."""
        n = rows.shape[-1]
        return rows @ self.dense(factor, n) if n <= SMALL else convolve(rows, factor[0].unsqueeze(-2))

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K^T``: correlation with the coefficients."""
        n = rows.shape[-1]
        return rows @ self.dense(factor, n).mT if n <= SMALL else correlate(rows, factor[0].unsqueeze(-2))

    def _metric(self, c: Tensor) -> Tensor:
        return outer_sums(c).flip(-1, -2)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix."""
        return super().dense(factor, n).mT


def _hankel(values: Tensor, n: int) -> Tensor:
    values = values.contiguous()
    return values.as_strided((len(values), n, n), (values.shape[-1], 1, 1))


def _lag_means(sums: Tensor) -> Tensor:
    means = sums * (2 / _counts(sums.shape[-1], sums))
    means[..., 0] /= 2
    return means


def _counts(n: int, like: Tensor) -> Tensor:
    """Entries on each diagonal, ``n, n - 1, ..., 1``."""
    return _descending(n, like.dtype, str(like.device))


@lru_cache(maxsize=256)
def _descending(n: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.arange(n, 0, -1, dtype=dtype, device=device)


def outer_sums(c: Tensor) -> Tensor:
    """``K K^T`` of the lower Toeplitz matrices of ``c [B, n]``: running sums of ``c_i c_j`` down every diagonal, ``n^2`` work.

    >>> outer_sums(torch.tensor([[1.0, 2.0, 3.0]]))[0].tolist()
    [[1.0, 2.0, 3.0], [2.0, 5.0, 8.0], [3.0, 8.0, 14.0]]
    """
    batch, n = c.shape
    # lags [B, l, s] = c_s c_(s+l), summed over s; entry (s, s + l) of the matrix. Where s + l >= n the sums land below the diagonal.
    ahead = _hankel(torch.cat([c, torch.zeros_like(c)], -1), n)
    lags = (ahead * c.unsqueeze(-2)).cumsum(-1)
    out = c.new_empty(batch, n * n + n)
    out.as_strided((batch, n, n), (n * n + n, 1, n + 1)).copy_(lags)
    upper = out[:, : n * n].view(batch, n, n).triu_()
    return upper + upper.triu(1).mT


@lru_cache(maxsize=1024)
def fast_length(n: int) -> int:
    """Smallest even ``2^a 3^b 5^c >= n``: FFTs of that length are fast.

    >>> fast_length(513), fast_length(512)
    (540, 512)
    """
    length = max(n + n % 2, 2)
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def _spectrum(x: Tensor, length: int) -> Tensor:
    return torch.fft.rfft(x if x.dtype in (torch.float32, torch.float64) else x.float(), n=length)


def convolve(x: Tensor, c: Tensor) -> Tensor:
    """First ``n`` terms of ``sum_j x_j c_{i-j}`` along the last dimension.

    The FFT has length ``2n - 2`` or more: of the ``2n - 1`` terms at most the last one wraps, onto term 0, where it is taken off.

    >>> convolve(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 3.0, 5.0])).round().tolist()
    [1.0, 5.0, 11.0]
    """
    n = x.shape[-1]
    length = fast_length(2 * n - 2)
    out = torch.fft.irfft(_spectrum(x, length) * _spectrum(c, length), n=length)[..., :n]
    if length == 2 * n - 2:
        out[..., 0] -= x[..., -1] * c[..., -1]
    return out.to(x.dtype)


def correlate(x: Tensor, c: Tensor) -> Tensor:
    """``sum_{i >= j} x_i c_{i-j}`` along the last dimension.

    >>> correlate(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 5.0])).round().tolist()
    [27.0, 14.0, 4.0]
    """
    n = x.shape[-1]
    length = fast_length(2 * n - 2)
    out = torch.fft.irfft(_spectrum(x, length) * _spectrum(c, length).conj(), n=length)[..., :n]
    if length == 2 * n - 2:
        out[..., n - 1] -= x[..., 0] * c[..., -1]
    return out.to(x.dtype)


def autocorrelation(rows: Tensor) -> Tensor:
    """``sum_r sum_i x_ri x_r(i+l)`` for every lag ``l < n``; rows ``[..., m, n]`` to ``[..., n]``.

    >>> autocorrelation(torch.tensor([[1.0, 2.0, 4.0]])).round().tolist()
    [21.0, 10.0, 4.0]
    """
    n = rows.shape[-1]
    length = fast_length(2 * n - 2)
    spectrum = torch.view_as_real(_spectrum(rows, length)).flatten(-2)
    power = spectrum.square().sum(-2).unflatten(-1, (-1, 2)).sum(-1)
    out = torch.fft.irfft(power, n=length)[..., :n]
    if length == 2 * n - 2:
        out[..., n - 1] /= 2
    return out.to(rows.dtype)
