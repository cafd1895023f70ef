"""Users' own pretrained pipelines: Stable Diffusion 1, 2 and XL, SD3 and Flux, unconditional and class-conditional ones, as diffusers saves them.

`from_pretrained` and `from_pipe` make experts, which compose like any others. `ComposedPipeline` does the same with the manners of diffusers.
Needs the extra: ``pip install 'popflow[diffusers]'``.
"""

from popflow.compose.diffusers.composition import composition
from popflow.compose.diffusers.expert import PipelineExpert, from_pipe, from_pretrained, load_pipe
from popflow.compose.diffusers.latents import Latents
from popflow.compose.diffusers.pipeline import ComposedOutput, ComposedPipeline
from popflow.compose.diffusers.scheduler import read

__all__ = [
    "ComposedOutput",
    "ComposedPipeline",
    "Latents",
    "PipelineExpert",
    "composition",
    "from_pipe",
    "from_pretrained",
    "load_pipe",
    "read",
]
