"""Particle systems: energies, ground truth by parallel tempering, a network that respects their symmetries, models, and how to compare."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
