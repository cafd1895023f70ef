"""Ground states of electrons: wave functions with a forward Laplacian, and descent of the energy in the Fisher-Rao, Wasserstein or mixed geometry."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
