from .comparison import Comparison as Comparison, compare as compare
from .energies import (
    Cluster as Cluster,
    apart as apart,
    double_well as double_well,
    icosahedron as icosahedron,
    lennard_jones as lennard_jones,
)
from .hmc import Reference as Reference, autocorrelation_time as autocorrelation_time, tempered as tempered
from .network import PairNetwork as PairNetwork
