"""Transition paths and rare events: from two states and a potential to an ensemble of paths, and how close it is to the conditioned process."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
