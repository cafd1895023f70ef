from .config import (
    ConfigError as ConfigError,
    Flag as Flag,
    check as check,
    config_of as config_of,
    options as options,
    plain as plain,
    read_values as read_values,
)
from .metrics import Metrics as Metrics
from .oracle import Oracle as Oracle
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
