from .errors import (
    CheckpointError as CheckpointError,
    DivergenceError as DivergenceError,
    MissingExtraError as MissingExtraError,
    NonFiniteError as NonFiniteError,
    PopflowWarning as PopflowWarning,
    RunDirectoryError as RunDirectoryError,
    StaleTrackingError as StaleTrackingError,
    ZeroWeightsError as ZeroWeightsError,
)
from .hmc import Tempered as Tempered, autocorrelation_time as autocorrelation_time, parallel_tempering as parallel_tempering
from .kernels import langevin as langevin, metropolis as metropolis
from .population import Population as Population
from .process import Ito as Ito, Process as Process, Rates as Rates, advance as advance
from .resampling import multinomial as multinomial, systematic as systematic
from .simulate import Recorder as Recorder, State as State, Trace as Trace, simulate as simulate
from .statistics import Proportion as Proportion, wilson as wilson
from .steps import Step as Step, chain as chain, euler as euler, heun as heun, resample_if as resample_if, temper as temper
from .streams import Streams as Streams, StreamsOfRuns as StreamsOfRuns
