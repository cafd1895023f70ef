from . import diffusers as diffusers
from . import particles as particles
from . import proteins as proteins
from . import zoo as zoo
from .experts import (
    epsilon_output as epsilon_output,
)
from .experts import (
    flow_output as flow_output,
)
from .experts import (
    from_density as from_density,
)
from .experts import (
    from_edm as from_edm,
)
from .experts import (
    from_network as from_network,
)
from .experts import (
    gaussian_mixture as gaussian_mixture,
)
from .experts import (
    kernel_mixture as kernel_mixture,
)
from .experts import (
    score_output as score_output,
)
from .experts import (
    stack as stack,
)
from .experts import (
    v_output as v_output,
)
from .experts import (
    x0_output as x0_output,
)
from .feynman_kac import feynman_kac as feynman_kac
from .feynman_kac import feynman_kac_process as feynman_kac_process
from .inpainting import keep as keep
from .probability_flow import flow_below as flow_below
from .sampler import Sample as Sample
from .sampler import Sampler as Sampler
from .sampler import sample as sample
from .schedule import (
    DDPM as DDPM,
)
from .schedule import (
    EDM as EDM,
)
from .schedule import (
    VE as VE,
)
from .schedule import (
    VP as VP,
)
from .schedule import (
    RectifiedFlow as RectifiedFlow,
)
from .schedule import (
    alphas_cumprod as alphas_cumprod,
)
from .schedule import (
    geometric as geometric,
)
from .schedule import (
    karras as karras,
)
from .schedule import (
    levels_of as levels_of,
)
from .schedule import (
    linear as linear,
)
from .schedule import (
    linear_betas as linear_betas,
)
from .schedule import (
    scaled_linear_betas as scaled_linear_betas,
)
from .spaces.products import ProductSpace as ProductSpace
from .spaces.products import Proportional as Proportional
from .spaces.products import from_scores as from_scores
from .spaces.rotations import Rotations as Rotations
from .spaces.rotations import igso3_mixture as igso3_mixture
from .spaces.space import CentredParticles as CentredParticles
from .spaces.space import Euclidean as Euclidean
from .spaces.space import Space as Space
from .steering import steer as steer
from .superpose import Guidance as Guidance
from .superpose import average as average
from .superpose import both as both
from .superpose import either as either
from .target import Expert as Expert
from .target import Reward as Reward
from .target import Target as Target
from .target import cfg as cfg
from .target import scores as scores
from .target import tilt as tilt
