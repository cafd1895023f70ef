"""Composition of pretrained diffusion models: annealing, products, guidance, tilts (Feynman-Kac), OR and AND (SuperDiff)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
