"""Flows that depend on the whole population: how the cells of a patient never seen under treatment will respond to it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
