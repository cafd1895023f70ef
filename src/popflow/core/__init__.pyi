from .errors import (
    CheckpointError as CheckpointError,
)
from .errors import (
    DivergenceError as DivergenceError,
)
from .errors import (
    MissingExtraError as MissingExtraError,
)
from .errors import (
    NonFiniteError as NonFiniteError,
)
from .errors import (
    PopflowWarning as PopflowWarning,
)
from .errors import (
    StaleTrackingError as StaleTrackingError,
)
from .errors import (
    ZeroWeightsError as ZeroWeightsError,
)
from .population import Population as Population
from .process import Ito as Ito
from .process import Process as Process
from .process import Rates as Rates
from .process import advance as advance
from .resampling import multinomial as multinomial
from .resampling import residual as residual
from .resampling import stratified as stratified
from .resampling import systematic as systematic
from .simulate import Recorder as Recorder
from .simulate import State as State
from .simulate import Trace as Trace
from .simulate import simulate as simulate
from .statistics import Proportion as Proportion
from .statistics import wilson as wilson
from .steps import (
    Step as Step,
)
from .steps import (
    chain as chain,
)
from .steps import (
    euler as euler,
)
from .steps import (
    heun as heun,
)
from .steps import (
    langevin as langevin,
)
from .steps import (
    metropolis as metropolis,
)
from .steps import (
    resample_if as resample_if,
)
from .steps import (
    temper as temper,
)
from .streams import Streams as Streams
