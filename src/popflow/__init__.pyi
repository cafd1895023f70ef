from . import (
    circuits as circuits,
    compose as compose,
    core as core,
    electrons as electrons,
    evolve as evolve,
    learn as learn,
    optim as optim,
    paths as paths,
    runs as runs,
    transport as transport,
)

__version__: str
