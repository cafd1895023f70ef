from . import constrained as constrained, diffusers as diffusers, particles as particles, proteins as proteins, zoo as zoo
from .backward_kernel import LossTable as LossTable, measure as measure, measure_alone as measure_alone
from .composition import composition as composition
from .curved_experts import from_scores as from_scores, igso3_mixture as igso3_mixture
from .discretisation import auto_levels as auto_levels
from .experts import (
    epsilon_output as epsilon_output,
    flow_output as flow_output,
    from_density as from_density,
    from_edm as from_edm,
    from_network as from_network,
    gaussian_mixture as gaussian_mixture,
    kernel_mixture as kernel_mixture,
    score_output as score_output,
    v_output as v_output,
    x0_output as x0_output,
)
from .feynman_kac import feynman_kac as feynman_kac
from .inpainting import keep as keep
from .probability_flow import flow_below as flow_below
from .rewards import Reward as Reward
from .sampler import Sample as Sample, Sampler as Sampler, diagnostics as diagnostics, sample as sample
from .schedule import (
    DDPM as DDPM,
    EDM as EDM,
    VE as VE,
    VP as VP,
    RectifiedFlow as RectifiedFlow,
    alphas_cumprod as alphas_cumprod,
    geometric as geometric,
    karras as karras,
    levels_of as levels_of,
    linear as linear,
    linear_betas as linear_betas,
    scaled_linear_betas as scaled_linear_betas,
)
from .spaces.products import ProductSpace as ProductSpace, Proportional as Proportional
from .spaces.rotations import Rotations as Rotations
from .spaces.space import CentredParticles as CentredParticles, Euclidean as Euclidean, Space as Space
from .steering import steer as steer
from .superpose import average as average, both as both, either as either
from .superposition import Guidance as Guidance
from .target import Expert as Expert, Target as Target, cfg as cfg, scores as scores, tilt as tilt
