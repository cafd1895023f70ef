"""Molecules bred against an oracle: chemistry-aware language models and graph moves vary, few costly calls select."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
