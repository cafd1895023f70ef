from .descent import (
    Descent as Descent,
    ParameterSpace as ParameterSpace,
    SampleSpace as SampleSpace,
    jacobian as jacobian,
    woodbury as woodbury,
)
from .energy import Energy as Energy, Local as Local, LocalEnergy as LocalEnergy, blocked_error as blocked_error, clip as clip
from .exact import Decay as Decay, exact_state as exact_state
from .forward_laplacian import Jet as Jet, sign_log_det as sign_log_det
from .ground_state import Evaluation as Evaluation, Search as Search, evaluate as evaluate, search as search
from .molecule import Molecule as Molecule, MoleculeError as MoleculeError
from .objective import Objective as Objective, Pull as Pull, after as after, pull as pull, surrogate as surrogate
from .pretrain import HartreeFock as HartreeFock, pretrain as pretrain
from .traps import Trap as Trap, hookes_atom as hookes_atom, oscillator as oscillator, quantum_dot as quantum_dot
from .walkers import WalkerError as WalkerError, Walkers as Walkers, equilibrate as equilibrate, place as place, sweep as sweep
from .wavefunctions import PsiFormer as PsiFormer, SlaterJastrow as SlaterJastrow, System as System, WaveFunction as WaveFunction
