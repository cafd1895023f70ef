from .products import ProductSpace as ProductSpace
from .products import Proportional as Proportional
from .rotations import Rotations as Rotations
from .space import CentredParticles as CentredParticles
from .space import Euclidean as Euclidean
from .space import Space as Space
