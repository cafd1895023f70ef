"""Triangular Toeplitz factors: polynomials modulo ``z^n``, multiplied by FFT."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from popflow.optim.structures.structure import Factor, Structure

SMALL = 128
"""Up to this side matrices are made; beyond, FFTs take less time, ``K K^T`` aside (measured on one CPU thread, as what follows)."""
MEDIUM = 512
"""Up to this side ``K K^T`` is made where there are many rows, and two vectors of coefficients are multiplied without FFTs."""
STRIP = 48
"""So many columns of ``K`` are multiplied with each other to make ``K K^T``."""
CACHED = 2**17
"""So many numbers at a time are transformed: they and their spectra stay near the processor."""


@dataclass(frozen=True)
class LowerToeplitz(Structure):
    """``K_ij = c_{i-j}`` for ``i >= j``: ``n`` numbers, products by FFT in ``n log n``. For layers whose coordinates have an order.

    The coordinates ``c`` are polynomials modulo ``z^n``, so the set is closed under product.

    >>> LowerToeplitz().dense((torch.tensor([[1.0, 2.0, 3.0]]),), 3)[0].tolist()
    [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 1.0]]
    """

    backwards: ClassVar[bool] = True
    """Whether ``X K`` runs against the order of the coordinates, as `correlate`, rather than with it, as `convolve`."""

    def size(self, n: int) -> int:
        """``n``."""
        return n

    def pack(self, matrix: Tensor) -> Factor:
        """The first column."""
        return (matrix[..., 0],)

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Mean of the diagonal, times the identity."""
        out = torch.zeros_like(diagonal)
        out[:, 0] = diagonal.mean(-1)
        return (out,)

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """The constant diagonal."""
        return factor[0][:, :1].expand(-1, n)

    def shift_(self, factor: Factor, n: int, value: float) -> None:
        """Add to the coefficient of lag 0."""
        factor[0].select(-1, 0).add_(value)

    def multiply(self, left: Factor, right: Factor, n: int) -> Factor:
        """Product of the polynomials modulo ``z^n``."""
        a, b = left[0], right[0]
        if n > MEDIUM:
            return (convolve(a, b),)
        return ((_hankel(torch.nn.functional.pad(a, (n - 1, 0)), n) * b.flip(-1).unsqueeze(-2)).sum(-1),)

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K``: correlation with the coefficients."""
        return self._product(factor, rows, self.backwards)

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K^T``: convolution with the coefficients."""
        return self._product(factor, rows, not self.backwards)

    def _product(self, factor: Factor, rows: Tensor, backwards: bool) -> Tensor:
        n = rows.shape[-1]
        if n <= SMALL:
            matrix = self.dense(factor, n)
            return rows @ (matrix if backwards == self.backwards else matrix.mT)
        return (correlate if backwards else convolve)(rows, factor[0].unsqueeze(-2))

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Projection of ``K^T X^T X K``: summed autocorrelation of the rows of ``X K``, per lag."""
        n = rows.shape[-1]
        if n <= SMALL:
            return (_lag_means(_lag_sums(rows @ self.dense(factor, n))),)
        c = factor[0].unsqueeze(-2)
        spectrum, few = _spectrum(c), max(1, CACHED // (len(rows) * n))
        power = [_power(torch.fft.rfft(_filtered(some, c, spectrum, self.backwards))) for some in rows.split(few, -2)]
        return (_lag_means(_lags(power[0] if len(power) == 1 else torch.stack(power).sum(0), n).to(rows.dtype)),)

    def inner(self, factor: Factor, n: int) -> Factor:
        """Projection of ``K^T K``: ``sum_s c_s c_{s+l} (n - s - l)``, per lag."""
        c = factor[0]
        weighted = c * _counts(n, c.dtype, str(c.device))
        if n > MEDIUM:
            return (_lag_means(correlate(weighted, c)),)
        return (_lag_means((_hankel(_padded(weighted), n) * c.unsqueeze(-2)).sum(-1)),)

    def square(self, factor: Factor, n: int) -> Tensor:
        """``sum_l c_l^2 (n - l)``."""
        c = factor[0]
        return (c.square() * _counts(n, c.dtype, str(c.device))).sum(-1)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """By ``K K^T`` where the rows pay for making it, else by FFT."""
        n, rows = x.shape[dim], x.shape[-3 - dim]
        if n <= SMALL or (n <= MEDIUM and 2 * rows >= n):
            metric = self._metric(factor[0])
            return torch.bmm(x, metric) if dim == -1 else torch.bmm(metric, x)
        if dim == -2:
            return self.precondition(factor, x.mT, -1).mT
        c = factor[0].unsqueeze(-2)
        spectrum = _spectrum(c)
        seen = _filtered(x, c, spectrum, self.backwards)
        return _filtered(seen, c, spectrum, not self.backwards)[..., :n].to(x.dtype)

    def _metric(self, c: Tensor) -> Tensor:
        return outer_sums(c)

    def project(self, matrix: Tensor) -> Factor:
        """Mean of the diagonal; twice the mean of each lower diagonal."""
        n = matrix.shape[-1]
        return (_lag_means(torch.stack([matrix.diagonal(-lag, -2, -1).sum(-1) for lag in range(n)], -1)),)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix."""
        return _hankel(_padded(factor[0].flip(-1)), n).flip(-2)

    def bound(self, factor: Factor, n: int) -> Tensor:
        """``sum |c|``, which bounds row and column sums."""
        return factor[0].abs().sum(-1)


@dataclass(frozen=True)
class UpperToeplitz(LowerToeplitz):
    """``K_ij = c_{j-i}`` for ``j >= i``: the transposes of `LowerToeplitz`.

    >>> UpperToeplitz().dense((torch.tensor([[1.0, 2.0, 3.0]]),), 3)[0].tolist()
    [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]]
    """

    backwards: ClassVar[bool] = False

    def pack(self, matrix: Tensor) -> Factor:
        """The first row."""
        return (matrix[..., 0, :],)

    def _metric(self, c: Tensor) -> Tensor:
        return outer_sums(c).flip(-1, -2)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix."""
        return super().dense(factor, n).mT


def _hankel(values: Tensor, n: int) -> Tensor:
    values = values.contiguous()
    return values.as_strided((len(values), n, n), (values.shape[-1], 1, 1))


def _padded(c: Tensor) -> Tensor:
    return torch.nn.functional.pad(c, (0, c.shape[-1]))


def _lag_sums(rows: Tensor) -> Tensor:
    """``sum_r sum_i x_ri x_r(i+l)`` for every lag ``l`` by the Gram matrix of the rows, whose diagonals are rows of the same memory read with another stride."""
    batch, _, n = rows.shape
    wide = rows.new_zeros(batch, n, 2 * n)
    torch.bmm(rows.mT, rows, out=wide[..., :n])
    return wide.as_strided((batch, n, n), (2 * n * n, 2 * n + 1, 1)).sum(1)


def _lag_means(sums: Tensor) -> Tensor:
    """Mean of the diagonal, and twice the means of the others, from their sums."""
    return sums.mul_(_weights(sums.shape[-1], sums.dtype, str(sums.device)))


@lru_cache(maxsize=256)
def _counts(n: int, dtype: torch.dtype, device: str) -> Tensor:
    """Entries on each diagonal, ``n, n - 1, ..., 1``."""
    return torch.arange(n, 0, -1, dtype=dtype, device=device)


@lru_cache(maxsize=256)
def _weights(n: int, dtype: torch.dtype, device: str) -> Tensor:
    weights = 2 / torch.arange(n, 0, -1, dtype=torch.promote_types(dtype, torch.float32), device=device)
    weights[0] /= 2
    return weights.to(dtype)


def outer_sums(c: Tensor) -> Tensor:
    """``P = K K^T`` of the lower Toeplitz matrices of ``c [B, n]``, ``n^2`` work.

    ``P_{i+b,j+b} = P_ij + Q_{i+b,j+b}`` with ``Q`` the product of the first ``b`` columns of ``K`` with themselves: a product with few
    columns, then sums down the diagonals in steps of ``b``.

    >>> outer_sums(torch.tensor([[1.0, 2.0, 3.0]]))[0].tolist()
    [[1.0, 2.0, 3.0], [2.0, 5.0, 8.0], [3.0, 8.0, 14.0]]
    """
    batch, n = c.shape
    b = min(STRIP, n)
    # c_(i-s) at [i, b - 1 - s]: in reverse, the columns are windows of the same memory.
    strip = torch.nn.functional.pad(_wide(c), (b - 1, 0)).as_strided((batch, n, b), (n + b - 1, 1, 1)).contiguous()
    out = torch.bmm(strip, strip.mT)
    to, by = out.narrow(2, b, n - b), out.narrow(2, 0, n - b)
    for start in range(b, n, b):
        count = min(b, n - start)
        to.narrow(1, start, count).add_(by.narrow(1, start - b, count))
    return out.to(c.dtype)


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


def _wide(c: Tensor) -> Tensor:
    return c if c.dtype in (torch.float32, torch.float64) else c.float()


def _spectrum(c: Tensor) -> Tensor:
    """Spectrum of ``n`` numbers, padded: of the ``2n - 1`` terms of a product at most the last one wraps, onto the first."""
    return torch.fft.rfft(_wide(c), n=fast_length(2 * c.shape[-1] - 2))


def _filtered(x: Tensor, c: Tensor, spectrum: Tensor, backwards: bool) -> Tensor:
    """`correlate` (backwards) or `convolve`, padded with zeros to the length of the FFT; so may ``x`` be. ``spectrum`` is that of ``c``."""
    n = c.shape[-1]
    length = fast_length(2 * n - 2)
    own = _spectrum(x) if x.shape[-1] == n else torch.fft.rfft(x)
    out = torch.fft.irfft(own.mul_(spectrum.conj() if backwards else spectrum), n=length)
    if length == 2 * n - 2:
        first = n - 1 if backwards else 0
        out[..., first].sub_(x[..., n - 1 - first] * c[..., -1])
    out[..., n:].zero_()
    return out


def convolve(x: Tensor, c: Tensor) -> Tensor:
    """First ``n`` terms of ``sum_j x_j c_{i-j}`` along the last dimension; ``c`` broadcasts to ``x``.

    >>> convolve(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 3.0, 5.0])).round().tolist()
    [1.0, 5.0, 11.0]
    """
    return _filtered(x, c, _spectrum(c), False)[..., : x.shape[-1]].to(x.dtype)


def correlate(x: Tensor, c: Tensor) -> Tensor:
    """``sum_{i >= j} x_i c_{i-j}`` along the last dimension; ``c`` broadcasts to ``x``.

    >>> correlate(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 5.0])).round().tolist()
    [27.0, 14.0, 4.0]
    """
    return _filtered(x, c, _spectrum(c), True)[..., : x.shape[-1]].to(x.dtype)


def _power(spectrum: Tensor) -> Tensor:
    """Squared moduli, summed over rows ``[..., m, f]``."""
    sums = torch.view_as_real(spectrum).flatten(-2).square_().sum(-2)
    return sums[..., ::2] + sums[..., 1::2]


def _lags(power: Tensor, n: int) -> Tensor:
    """``sum_r sum_i x_ri x_r(i+l)`` for every lag ``l < n`` from the power spectrum of ``n`` numbers, padded as in `_spectrum`."""
    length = fast_length(2 * n - 2)
    out = torch.fft.irfft(power, n=length)[..., :n]
    if length == 2 * n - 2:
        out[..., n - 1].div_(2)
    return out
