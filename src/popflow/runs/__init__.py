"""Runs: the directory a long job leaves behind, what is recorded in it, and the report that comes out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
