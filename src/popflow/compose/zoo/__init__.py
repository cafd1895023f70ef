"""The zoo: small diffusion models that come with the library, the data they learned, and the demo that they are for."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
