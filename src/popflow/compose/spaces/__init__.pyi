from .products import ProductSpace as ProductSpace
from .products import Proportional as Proportional
from .products import from_scores as from_scores
from .rotations import Rotations as Rotations
from .rotations import igso3_mixture as igso3_mixture
from .space import CentredParticles as CentredParticles
from .space import Euclidean as Euclidean
from .space import Space as Space
