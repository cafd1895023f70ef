from .config import (
    ConfigError as ConfigError,
    Flag as Flag,
    check as check,
    config_of as config_of,
    options as options,
    plain as plain,
    read_values as read_values,
)
from .costly import CallError as CallError, CostlyFunction as CostlyFunction
from .ledger import Ledger as Ledger, key_of as key_of
from .metrics import Metrics as Metrics
from .oracle import Oracle as Oracle
from .outcomes import Infeasible as Infeasible, Outcome as Outcome
from .report import (
    Figure as Figure,
    Measured as Measured,
    Report as Report,
    Table as Table,
    Verdict as Verdict,
    read_report as read_report,
    render as render,
    rerender as rerender,
)
from .run import Run as Run, RunBusyError as RunBusyError, cited as cited
from .stages import once as once, simulated as simulated, simulation as simulation, training as training
