"""AND with survival: particles that come to where no move makes the experts agree give way to copies of others.

The surface on which M log-densities agree moves as sigma falls, and pieces of it shrink to points and vanish. What was on them is stranded: a gap opens that no step
closes. Each step of AND closes a share ``f`` of the gap ``g = centred(log q_i - bias_i)`` that it finds, so of the gap at the start ``(1 - f)^k g_0`` is left
after k steps, and the rest, ``u = g - (1 - f)^k g_0``, was opened on the way. Particles carry the weight

    log w  =  -|u|^2 / (2 tolerance^2)

and are resampled by it: what comes out is the law of the paths of AND, weighed by how well they ended.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from popflow.compose.sampler import Sampler
from popflow.core import Population, Streams, chain, resample_if

_OPEN, _POTENTIAL = "gap_at_start", "potential"
"""Companions: what is left of the gap of the start, and the log weight that the present gap is worth."""


def without_stranded(sampler: Sampler, tolerance: float, feedback: float, offset: Tensor | None) -> Sampler:
    """Sampler that weighs the particles of another by the gaps that opened on their way, and resamples them before each step.

    Args:
        sampler: AND; its particles carry ``aux["log_q"]``.
        tolerance: In nats.
        feedback: Share of a gap that each of its steps closes.
        offset: Wanted differences of the log-densities, ``[M]``; None for none.
    """

    def gap(pop: Population) -> Tensor:
        log_q = pop.aux["log_q"]
        log_q = log_q if offset is None else log_q - offset.to(log_q)
        return log_q - log_q.mean(-1, keepdim=True)

    def start(y: Tensor, sigma: float) -> Population:
        pop = sampler.start(y, sigma)
        return pop.replace(aux={**pop.aux, _OPEN: gap(pop), _POTENTIAL: pop.log_w.new_zeros(pop.log_w.shape)})

    def weigh(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        left = (1 - feedback) * pop.aux[_OPEN]
        now = ((gap(pop) - left).square().sum(-1) / (-2 * tolerance**2)).to(pop.log_w)
        return pop.reweight(now - pop.aux[_POTENTIAL]).replace(aux={**pop.aux, _OPEN: left, _POTENTIAL: now})

    return replace(sampler, step=chain(resample_if(), sampler.step, weigh), start=start, resamples=True)
