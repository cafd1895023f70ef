from .ase_force import ASEForce as ASEForce, gfn2_xtb as gfn2_xtb
from .coordinates import ZMatrix as ZMatrix, dihedrals as dihedrals, idpp as idpp, kabsch as kabsch, rmsd as rmsd
from .doob import Action as Action, Fitted as Fitted, action as action, fit as fit
from .flow_path import FlowPath as FlowPath
from .forcefield import TorchForce as TorchForce
from .gaussian_path import (
    DiagonalPath as DiagonalPath,
    FullPath as FullPath,
    KinematicPath as KinematicPath,
    bridge as bridge,
    log_linear as log_linear,
    through as through,
)
from .molecule import Molecule as Molecule
from .openmm_force import OpenMMForce as OpenMMForce
from .process import Counted as Counted, Overdamped as Overdamped, Potential as Potential, Underdamped as Underdamped, force as force
from .trajectory import film as film, to_mdtraj as to_mdtraj, write as write
