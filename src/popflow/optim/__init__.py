"""Structured inverse-free natural gradient: curvature capture, structured factors, the SINGD optimiser, and solvers in sample space."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
