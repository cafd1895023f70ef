"""Oracles of molecules: the objectives of PMO, predicted activities, commands of the user's, and docking."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
