"""Quantum hypernetworks: binary networks from a variational circuit, exact truths, and classical search on the same space."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
