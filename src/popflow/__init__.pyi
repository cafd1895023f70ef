from . import circuits as circuits
from . import compose as compose
from . import core as core
from . import learn as learn
from . import optim as optim
from . import runs as runs
from . import transport as transport

__version__: str
