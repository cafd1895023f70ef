"""Optimisation inside an unknown feasible set (DiffOPT): a diffusion model of the data, tilted by an objective, sampled exactly."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
