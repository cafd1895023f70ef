"""Steering by a reward without gradients, for any sampler (Feynman-Kac steering).

Particles are weighed by ``exp(G_k - G_{k-1})`` with ``G_k = gamma(sigma_k) r(x_0(y_k))``, where ``x_0(y)`` is the sampler's own clean prediction. The
increments telescope, and the last one is taken at the finished sample: whatever the potentials on the way, the law that is weighed is that of the
sampler times ``exp(gamma r(x))``. So the reward may be any function, and it need not be evaluated at every level.

Source: Singhal et al., *A general framework for inference-time scaling and steering of diffusion models*, ICML 2025, arXiv:2501.06848 (potential
"difference"); resampling here is systematic, by the effective sample size, and keeps its weights.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from popflow.compose.rewards import Reward, sum_of_rewards
from popflow.compose.sampler import Sampler
from popflow.core import Population, Streams, resample_if


def steer(sampler: Sampler, reward: Reward, *, every: int = 1, ess_below: float = 0.5) -> Sampler:
    """Return a sampler whose particles compete for a reward of their clean predictions.

    Args:
        sampler: From `feynman_kac`, `either`, `both`, `average`, `flow_below`.
        reward: Its ``function`` sees clean samples ``[rows, *event]``, its ``gamma`` the noise level; the gradient is not used.
        every: Steps between two evaluations of the reward; each also evaluates the experts once (except at the finished samples).
        ess_below: Resample a run below this share of effective particles; only where the next step adds noise, elsewhere weights add up.

    Raises:
        ValueError: for ``every`` below 1.

    Example:
        >>> import torch
        >>> from popflow.compose import average, gaussian_mixture, karras, sample
        >>> a, b = (gaussian_mixture(torch.tensor([[m]]), 1.0) for m in (-1.0, 1.0))
        >>> liked = steer(average([a, b]), Reward(lambda x: x[:, 0], 1.0))
        >>> out = sample(liked, karras(100, 0.01, 20.0), particles=2048, rng=Streams(0))
        >>> abs(float(out.population.mean()) - 1) < 0.15  # N(0, 1) exp(x) is N(1, 1)
        True
    """
    if every < 1:
        raise ValueError(f"every={every}, wanted at least 1.")
    resample = resample_if(ess_below)
    latest: list[tuple[Tensor, int]] = []

    def counted(steps: Tensor) -> int:
        """The count of a population; read from the device only where it did not come from the step before, as after resuming."""
        return latest[0][1] if latest and latest[0][0] is steps else int(steps.flatten()[0])

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        before = resample(pop, t0, t1, rng) if t1 > 0 and sampler.separates(math.sqrt(t0)) else pop  # without noise copies never part
        moved = sampler.step(before, t0, t1, rng)
        count, steps = counted(pop.aux["steps"]) + 1, moved.aux["steps"] + 1
        moved, latest[:] = moved.replace(aux={**moved.aux, "steps": steps}), [(steps, count)]
        if t1 > 0 and count % every:
            return moved
        clean = sampler.step(moved, t1, 0.0, rng) if t1 > 0 else moved
        now = sum_of_rewards([reward], clean, math.sqrt(t1))
        weighed = moved.reweight(now - moved.aux["potential"])
        kept = {"ess": weighed.ess().unsqueeze(-1).expand_as(now)} if "ess" in moved.aux else {}  # the weights that decide on resampling
        return weighed.replace(aux={**moved.aux, "potential": now, **kept})

    def start(y: Tensor, sigma: float) -> Population:
        pop = sampler.start(y, sigma)
        aux = {"potential": torch.zeros_like(pop.log_w), "steps": torch.zeros_like(pop.log_w, dtype=torch.long)}
        return pop.replace(aux={**pop.aux, **aux})

    return replace(sampler, step=step, start=start, resamples=True)
