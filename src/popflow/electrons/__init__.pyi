from .forward_laplacian import Jet as Jet, sign_log_det as sign_log_det
from .molecule import Molecule as Molecule, MoleculeError as MoleculeError
from .traps import Trap as Trap, hookes_atom as hookes_atom, oscillator as oscillator, quantum_dot as quantum_dot
from .wavefunctions import PsiFormer as PsiFormer, SlaterJastrow as SlaterJastrow, System as System, WaveFunction as WaveFunction
