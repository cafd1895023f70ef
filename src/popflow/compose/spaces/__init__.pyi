from .products import ProductSpace as ProductSpace, Proportional as Proportional
from .rotations import Rotations as Rotations
from .space import CentredParticles as CentredParticles, Euclidean as Euclidean, Space as Space
