from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .energies import (
    Cluster as Cluster,
)
from .energies import (
    apart as apart,
)
from .energies import (
    double_well as double_well,
)
from .energies import (
    icosahedron as icosahedron,
)
from .energies import (
    lennard_jones as lennard_jones,
)
from .monte_carlo import tempered as tempered
from .network import PairNetwork as PairNetwork
