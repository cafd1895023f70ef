from .doob import Action as Action, Fitted as Fitted, action as action, fit as fit
from .ensemble import (
    PathEnsemble as PathEnsemble,
    Probability as Probability,
    grid as grid,
    guided as guided,
    probability as probability,
    probability_flow as probability_flow,
    simulate as simulate,
    simulate_exactly as simulate_exactly,
)
from .exact import (
    Bridge as Bridge,
    Grid as Grid,
    committor_by_quadrature as committor_by_quadrature,
    mean_first_passage_by_quadrature as mean_first_passage_by_quadrature,
)
from .flow_path import FlowPath as FlowPath
from .gaussian_path import (
    DiagonalPath as DiagonalPath,
    FullPath as FullPath,
    KinematicPath as KinematicPath,
    bridge as bridge,
    clock_grid as clock_grid,
    log_linear as log_linear,
    through as through,
)
from .potentials import POTENTIALS as POTENTIALS, DoubleWell as DoubleWell, DualChannel as DualChannel, MuellerBrown as MuellerBrown
from .process import Counted as Counted, Overdamped as Overdamped, Potential as Potential, Underdamped as Underdamped, force as force
from .shooting import (
    Always as Always,
    Paths as Paths,
    Shooter as Shooter,
    Shots as Shots,
    one_way as one_way,
    shoot as shoot,
    transitions as transitions,
    two_way as two_way,
)
