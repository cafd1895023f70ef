from .doob import Action as Action, Fitted as Fitted, action as action, fit as fit
from .flow_path import FlowPath as FlowPath
from .gaussian_path import (
    DiagonalPath as DiagonalPath,
    FullPath as FullPath,
    KinematicPath as KinematicPath,
    bridge as bridge,
    log_linear as log_linear,
    through as through,
)
from .process import Counted as Counted, Overdamped as Overdamped, Potential as Potential, Underdamped as Underdamped, force as force
