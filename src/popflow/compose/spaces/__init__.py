"""Spaces that samples live in: Euclidean space, particles without their centre of mass, rotations, and products of these."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
