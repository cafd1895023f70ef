"""The core: weighted populations, the rates that move and weigh them, the steps that follow those rates, and the one loop."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
