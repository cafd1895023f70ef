from .exact import (
    Bridge as Bridge,
    Grid as Grid,
    committor_by_quadrature as committor_by_quadrature,
    mean_first_passage_by_quadrature as mean_first_passage_by_quadrature,
)
from .potentials import POTENTIALS as POTENTIALS, DoubleWell as DoubleWell, DualChannel as DualChannel, MuellerBrown as MuellerBrown
from .process import Counted as Counted, Overdamped as Overdamped, Potential as Potential, Underdamped as Underdamped, force as force
