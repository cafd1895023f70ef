from .config import ConfigError as ConfigError
from .config import config_of as config_of
from .config import plain as plain
from .config import read_values as read_values
from .metrics import Metrics as Metrics
from .oracle import Oracle as Oracle
from .recorders import checkpoint as checkpoint
from .recorders import checkpointed as checkpointed
from .recorders import last_checkpoint as last_checkpoint
from .recorders import training as training
from .report import (
    Figure as Figure,
)
from .report import (
    Measured as Measured,
)
from .report import (
    Report as Report,
)
from .report import (
    Table as Table,
)
from .report import (
    Verdict as Verdict,
)
from .report import (
    read_report as read_report,
)
from .report import (
    render as render,
)
from .report import (
    rerender as rerender,
)
from .run import Run as Run
from .run import RunBusyError as RunBusyError
from .run import cited as cited
