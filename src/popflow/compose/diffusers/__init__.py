"""Your own pretrained diffusers pipelines: Stable Diffusion 1, 2 and XL, SD3, Flux, unconditional and class-conditional ones.

`from_pretrained` and `from_pipe` make experts, which compose like any others. `ComposedPipeline` does the same and is called like a
pipeline of diffusers.
Needs the extra: ``pip install 'popflow[diffusers]'``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
