"""The core contract: populations, the rates that move and weigh them, the steps that follow, and the one loop."""

from popflow.core.errors import (
    CheckpointError,
    DivergenceError,
    MissingExtraError,
    NonFiniteError,
    PopflowWarning,
    StaleTrackingError,
    ZeroWeightsError,
)
from popflow.core.population import Population
from popflow.core.process import Ito, Process, Rates, advance
from popflow.core.resampling import multinomial, residual, stratified, systematic
from popflow.core.simulate import Recorder, State, Trace, simulate
from popflow.core.steps import Step, chain, euler, heun, langevin, metropolis, resample_if, temper
from popflow.core.streams import Streams

__all__ = [
    "CheckpointError",
    "DivergenceError",
    "Ito",
    "MissingExtraError",
    "NonFiniteError",
    "PopflowWarning",
    "Population",
    "Process",
    "Rates",
    "Recorder",
    "StaleTrackingError",
    "State",
    "Step",
    "Streams",
    "Trace",
    "ZeroWeightsError",
    "advance",
    "chain",
    "euler",
    "heun",
    "langevin",
    "metropolis",
    "multinomial",
    "resample_if",
    "residual",
    "simulate",
    "stratified",
    "systematic",
    "temper",
]
