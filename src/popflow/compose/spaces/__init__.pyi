from .products import ProductSpace as ProductSpace, Proportional as Proportional, from_scores as from_scores
from .rotations import Rotations as Rotations, igso3_mixture as igso3_mixture
from .space import CentredParticles as CentredParticles, Euclidean as Euclidean, Space as Space
