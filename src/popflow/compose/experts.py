"""Turn models into experts: networks of every output convention, mixtures with known densities, data sets.

Conversions, with ``x = alpha x_0 + s eps`` and ``sigma = s / alpha`` (all are affine in epsilon at the same x, but sums of exponents other than
one do not commute with them: experts are therefore always combined as scores):

======== =======================================  =====================================
output   what the network predicts                epsilon
======== =======================================  =====================================
epsilon  the noise                                the output
x0       the clean sample                         ``(x - alpha x0) / s``
v        ``alpha eps - s x_0`` (VP)               ``s x + alpha v``
flow     ``eps - x_0`` (rectified flow)           ``(x + alpha v) / (alpha + s)``
score    ``grad_x log q``                         ``-s score``
======== =======================================  =====================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from popflow.compose.backward_kernel import loss_of_mixture
from popflow.compose.schedule import Schedule
from popflow.compose.target import Expert
from popflow.core.checks import untouched

Output = Callable[[Tensor, Tensor, float, float], Tensor]
"""``output(network_output, x, alpha, s) -> epsilon``."""


def epsilon_output(out: Tensor, x: Tensor, alpha: float, s: float) -> Tensor:
    """Noise prediction, returned as it is."""
    return out


def x0_output(out: Tensor, x: Tensor, alpha: float, s: float) -> Tensor:
    """Clean-sample prediction (``prediction_type="sample"``)."""
    return (x - alpha * out) / s


def v_output(out: Tensor, x: Tensor, alpha: float, s: float) -> Tensor:
    """Velocity of variance-preserving models, ``v = alpha eps - s x_0`` (Salimans and Ho 2022)."""
    return (s * x + alpha * out) / (alpha**2 + s**2)


def flow_output(out: Tensor, x: Tensor, alpha: float, s: float) -> Tensor:
    """Velocity of rectified flow, ``v = eps - x_0`` (Liu et al. 2023; the sign of diffusers)."""
    return (x + alpha * out) / (alpha + s)


def score_output(out: Tensor, x: Tensor, alpha: float, s: float) -> Tensor:
    """Gradient of the log-density of ``x``."""
    return -s * out


def from_network(
    network: Callable[..., Tensor],
    schedule: Schedule,
    event: Sequence[int],
    *,
    output: Output = epsilon_output,
    cond: Tensor | None = None,
    name: str = "network",
    space: str = "data",
    chunk: int | None = None,
) -> Expert:
    """Wrap ``network(x [rows, *event], time [rows], cond)`` trained under a schedule; a module is evaluated in its own precision.

    Args:
        network: A module, which is put into evaluation mode, or any function.
        schedule: Its noising process, for the scale of ``x`` and the value of time.
        event: Shape of one sample.
        output: How its output becomes epsilon: one of the functions of this module, or your own.
        cond: Condition handed to the network; None calls ``network(x, time)``.
        name: Name in errors and reports.
        space: Label of the latent space.
        chunk: Rows per call.

    Example:
        >>> from popflow.compose import VP, from_network
        >>> gaussian = from_network(lambda x, t: x * 0.0, VP(), (2,), name="flat")
        >>> gaussian.score(torch.ones(1, 2), 1.0).tolist()
        [[-0.0, -0.0]]
    """
    if isinstance(network, nn.Module):
        network.eval()

    def model(y: Tensor, sigma: float, c: Tensor | None) -> Tensor:
        alpha = schedule.alpha(sigma)
        x = alpha * y
        time = torch.full((len(y),), schedule.time(sigma), dtype=y.dtype, device=y.device)
        return output(_call(network, x, time, c), x, alpha, alpha * sigma)

    return Expert(model, tuple(event), cond, name, space, None, chunk)


def from_edm(
    network: Callable[..., Tensor],
    event: Sequence[int],
    *,
    sigma_data: float = 0.5,
    cond: Tensor | None = None,
    name: str = "edm",
    space: str = "data",
    chunk: int | None = None,
) -> Expert:
    """Wrap the raw network ``F`` of Karras et al. (2022), table 1: ``D = c_skip y + c_out F(c_in y, log(sigma)/4)``.

    ``c_skip = sd^2/(sigma^2 + sd^2)``, ``c_out = sigma sd/sqrt(sigma^2 + sd^2)``, ``c_in = 1/sqrt(sigma^2 + sd^2)``, ``eps = (y - D)/sigma``.
    """
    if isinstance(network, nn.Module):
        network.eval()

    def model(y: Tensor, sigma: float, c: Tensor | None) -> Tensor:
        total = sigma**2 + sigma_data**2
        time = torch.full((len(y),), math.log(sigma) / 4, dtype=y.dtype, device=y.device)
        raw = _call(network, y / math.sqrt(total), time, c)
        return y * (sigma / total) - raw * (sigma_data / math.sqrt(total))

    return Expert(model, tuple(event), cond, name, space, None, chunk)


def _call(network: Callable[..., Tensor], x: Tensor, time: Tensor, cond: Tensor | None) -> Tensor:
    """Evaluate a network in the precision of its parameters; the answer is in that of ``x``."""
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    own = next((p.dtype for p in parameters if p.is_floating_point()), x.dtype)
    given = (x.to(own), time.to(own)) if cond is None else (x.to(own), time.to(own), cond)
    out = untouched("the network", network, *given)  # its output is turned into epsilon with the x that it saw
    if not isinstance(out, Tensor):
        raise TypeError(f"the network returned a {type(out).__name__}, wanted a tensor: pass a function that extracts it.")
    return out.to(x.dtype)


def from_density(
    log_prob: Callable[[Tensor, float], Tensor], event: Sequence[int], *, name: str = "density", space: str = "data"
) -> Expert:
    """Make an expert from a differentiable log-density ``log_prob(y [rows, *event], sigma) -> [rows]``; its score by autograd."""

    def model(y: Tensor, sigma: float, c: Tensor | None) -> Tensor:
        return -sigma * torch.func.grad(lambda point: log_prob(point, sigma).sum())(y)

    return Expert(model, tuple(event), None, name, space, log_prob)


def gaussian_mixture(
    means: Tensor,
    std: float | Tensor,
    weights: Tensor | None = None,
    *,
    name: str = "mixture",
    space: str = "data",
    chunk: int | None = None,
) -> Expert:
    """Isotropic Gaussian mixture with exact score and density at every noise level.

    ``q(y, sigma) = sum_k w_k N(y; m_k, (c_k^2 + sigma^2) I)``. Evaluated in the dtype of ``y``.

    Args:
        means: ``[K, *event]``.
        std: ``c_k``, one number or ``[K]``.
        weights: ``[K]``, non-negative, normalised here; None for equal ones.
        name: Name in errors and reports.
        space: Label of the latent space.
        chunk: Rows per call: memory is rows x K.

    Raises:
        ValueError: for no components, negative weights or standard deviations, or a number of either that differs from that of the means.

    Example:
        >>> q = gaussian_mixture(torch.zeros(1, 2), std=1.0)
        >>> q.score(torch.ones(1, 2), sigma=1.0).tolist()
        [[-0.5, -0.5]]
    """
    if means.ndim < 2 or not means.numel():
        raise ValueError(f"means has shape {tuple(means.shape)}, wanted [K, *event], e.g. [K, 1] for mixtures on the line.")
    count, event = len(means), tuple(means.shape[1:])
    if torch.as_tensor(std).shape not in ((), (count,)):
        raise ValueError(f"std has shape {tuple(torch.as_tensor(std).shape)}, wanted one number, or one for each of {count} components.")
    centres = means.reshape(count, -1).double()
    variance = torch.as_tensor(std, dtype=torch.float64, device=means.device).expand(count).square()
    if not bool((torch.as_tensor(std) >= 0).all()):
        raise ValueError(f"std={std}, wanted standard deviations >= 0.")
    log_prior, origin = log_shares(weights, count).to(means.device), centres.mean(0)
    centres = centres - origin
    norms, dim = centres.square().sum(1), centres.shape[1]

    def parts(y: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points, ``1/T_k``, ``m_k/T_k`` and ``log w_k N(y; m_k, T_k)``, with ``T_k = c_k^2 + sigma^2``; few passes over ``[rows, K]``."""
        point, precision = y.flatten(1) - origin.to(y), 1 / (variance + sigma**2)
        pull = (centres * precision[:, None]).to(y)
        level = log_prior + dim / 2 * (precision / (2 * math.pi)).log() - norms * precision / 2
        log_parts = torch.addr(torch.addmm(level.to(y), point, pull.T), point.square().sum(1) / -2, precision.to(y))
        return point, precision.to(y), pull, log_parts

    def model(y: Tensor, sigma: float, c: Tensor | None) -> Tensor:
        point, precision, pull, log_parts = parts(y, sigma)
        share = log_parts.softmax(1)
        return (sigma * (point * (share @ precision).unsqueeze(1) - share @ pull)).reshape(y.shape)

    def log_prob(y: Tensor, sigma: float) -> Tensor:
        return parts(y, sigma)[3].logsumexp(1)

    stds = variance.sqrt()
    loss = loss_of_mixture(lambda y, sigma: model(y, sigma, None), centres + origin, stds, log_prior.exp())
    return Expert(model, event, None, name, space, log_prob, chunk, loss)


def log_shares(weights: Tensor | None, count: int) -> Tensor:
    """Log of normalised weights ``[count]``, equal ones for None; float64."""
    prior = torch.ones(count, dtype=torch.float64) if weights is None else weights.double()
    if prior.shape != (count,) or not bool((prior >= 0).all()) or not bool(prior.sum() > 0):
        raise ValueError(f"weights of shape {tuple(prior.shape)} must be {count} non-negative numbers, not all zero.")
    return (prior / prior.sum()).log()


def kernel_mixture(data: Tensor, bandwidth: float, *, name: str = "data", space: str = "data", chunk: int | None = None) -> Expert:
    """Gaussian kernel density of a data set ``[N, *event]``: an expert without training, with exact score and density."""
    if bandwidth <= 0:
        raise ValueError(f"bandwidth={bandwidth}, wanted a positive kernel width in the units of the data.")
    return gaussian_mixture(data, bandwidth, name=name, space=space, chunk=chunk)
