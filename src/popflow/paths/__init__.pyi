from .ase_force import ASEForce as ASEForce, gfn2_xtb as gfn2_xtb
from .coordinates import ZMatrix as ZMatrix, dihedrals as dihedrals, idpp as idpp, kabsch as kabsch, rmsd as rmsd
from .curves import bridge as bridge, clock_grid as clock_grid, log_linear as log_linear, through as through
from .doob import Action as Action, Fitted as Fitted, action as action, fit as fit
from .ensemble import (
    PathEnsemble as PathEnsemble,
    grid as grid,
    guided as guided,
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
from .first_paths import first_paths as first_paths
from .flow_path import FlowPath as FlowPath
from .forcefield import TorchForce as TorchForce
from .gaussian_path import DiagonalPath as DiagonalPath, FullPath as FullPath, KinematicPath as KinematicPath
from .molecule import Molecule as Molecule
from .openmm_force import OpenMMForce as OpenMMForce
from .potentials import POTENTIALS as POTENTIALS, DoubleWell as DoubleWell, DualChannel as DualChannel, MuellerBrown as MuellerBrown
from .process import Counted as Counted, Overdamped as Overdamped, Potential as Potential, Underdamped as Underdamped, force as force
from .rare_events import Probability as Probability, probability as probability
from .rates import committor as committor, rate as rate
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
from .thermal_path import ThermalPath as ThermalPath, thermal_path as thermal_path
from .trajectory import film as film, to_mdtraj as to_mdtraj, write as write
