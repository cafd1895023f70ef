"""Population dynamics from snapshots: transport, growth and bridges between samples taken at different times."""

from popflow.transport import closed_forms
from popflow.transport.coupling import exact, independent, sinkhorn
from popflow.transport.evaluate import Flow, Score, evaluate, score
from popflow.transport.fate import Fates, fates, growth_by_type
from popflow.transport.flow_matching import MatchedFlow, match
from popflow.transport.lagrangian import W2, WFR, Harmonic, Lagrangian, Linear, MeanAcceleration, VelocityPrior, residual
from popflow.transport.lagrangian_flow import Certificate, LagrangianFlow
from popflow.transport.snapshots import Snapshots

__all__ = [
    "W2",
    "WFR",
    "Certificate",
    "Fates",
    "Flow",
    "Harmonic",
    "Lagrangian",
    "LagrangianFlow",
    "Linear",
    "MatchedFlow",
    "MeanAcceleration",
    "Score",
    "Snapshots",
    "VelocityPrior",
    "closed_forms",
    "evaluate",
    "exact",
    "fates",
    "growth_by_type",
    "independent",
    "match",
    "residual",
    "score",
    "sinkhorn",
]
