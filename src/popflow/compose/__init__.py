"""Composition of pretrained diffusion models: annealing, products, guidance, tilts (Feynman-Kac), OR and AND (SuperDiff)."""

from popflow.compose.corrector import feynman_kac, feynman_kac_process
from popflow.compose.experts import (
    epsilon_output,
    flow_output,
    from_density,
    from_edm,
    from_network,
    gaussian_mixture,
    kernel_mixture,
    score_output,
    stack,
    v_output,
    x0_output,
)
from popflow.compose.flow import flow_below
from popflow.compose.inpainting import keep
from popflow.compose.products import ProductSpace, Proportional, from_scores
from popflow.compose.rotations import Rotations, igso3_mixture
from popflow.compose.sample import Sample, Sampler, sample
from popflow.compose.schedule import (
    DDPM,
    EDM,
    VE,
    VP,
    RectifiedFlow,
    alphas_cumprod,
    geometric,
    karras,
    levels_of,
    linear,
    linear_betas,
    scaled_linear_betas,
)
from popflow.compose.spaces import CentredParticles, Euclidean, Space
from popflow.compose.steering import steer
from popflow.compose.superpose import Guidance, average, both, either
from popflow.compose.target import Expert, Reward, Target, cfg, scores, tilt

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "CentredParticles",
    "Euclidean",
    "Expert",
    "Guidance",
    "ProductSpace",
    "Proportional",
    "RectifiedFlow",
    "Reward",
    "Rotations",
    "Sample",
    "Sampler",
    "Space",
    "Target",
    "alphas_cumprod",
    "average",
    "both",
    "cfg",
    "either",
    "epsilon_output",
    "feynman_kac",
    "feynman_kac_process",
    "flow_below",
    "flow_output",
    "from_density",
    "from_edm",
    "from_network",
    "from_scores",
    "gaussian_mixture",
    "geometric",
    "igso3_mixture",
    "karras",
    "keep",
    "kernel_mixture",
    "levels_of",
    "linear",
    "linear_betas",
    "sample",
    "scaled_linear_betas",
    "score_output",
    "scores",
    "stack",
    "steer",
    "tilt",
    "v_output",
    "x0_output",
]
