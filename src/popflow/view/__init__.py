"""The local page: runs and their metrics as they go, populations over time, and a form that starts, stops and resumes runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
