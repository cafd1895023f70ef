from . import closed_forms as closed_forms
from .coupling import exact as exact, independent as independent, sinkhorn as sinkhorn
from .evaluate import Flow as Flow, Score as Score, evaluate as evaluate, score as score
from .fate import Fates as Fates, fates as fates, growth_by_type as growth_by_type
from .flow_matching import MatchedFlow as MatchedFlow, match as match
from .lagrangian import (
    W2 as W2,
    WFR as WFR,
    Harmonic as Harmonic,
    Lagrangian as Lagrangian,
    Linear as Linear,
    MeanAcceleration as MeanAcceleration,
    VelocityPrior as VelocityPrior,
    residual as residual,
)
from .lagrangian_flow import Certificate as Certificate, LagrangianFlow as LagrangianFlow
from .snapshots import Snapshots as Snapshots
