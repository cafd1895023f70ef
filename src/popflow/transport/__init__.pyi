from . import closed_forms as closed_forms
from .coupling import exact as exact
from .coupling import independent as independent
from .coupling import sinkhorn as sinkhorn
from .evaluate import Flow as Flow
from .evaluate import Score as Score
from .evaluate import evaluate as evaluate
from .evaluate import score as score
from .fate import Fates as Fates
from .fate import fates as fates
from .fate import growth_by_type as growth_by_type
from .flow_matching import MatchedFlow as MatchedFlow
from .flow_matching import match as match
from .lagrangian import (
    W2 as W2,
)
from .lagrangian import (
    WFR as WFR,
)
from .lagrangian import (
    Harmonic as Harmonic,
)
from .lagrangian import (
    Lagrangian as Lagrangian,
)
from .lagrangian import (
    Linear as Linear,
)
from .lagrangian import (
    MeanAcceleration as MeanAcceleration,
)
from .lagrangian import (
    VelocityPrior as VelocityPrior,
)
from .lagrangian import (
    residual as residual,
)
from .lagrangian_flow import Certificate as Certificate
from .lagrangian_flow import LagrangianFlow as LagrangianFlow
from .snapshots import Snapshots as Snapshots
