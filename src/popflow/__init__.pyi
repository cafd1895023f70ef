from . import (
    circuits as circuits,
    compose as compose,
    core as core,
    electrons as electrons,
    learn as learn,
    optim as optim,
    runs as runs,
    transport as transport,
)

__version__: str
