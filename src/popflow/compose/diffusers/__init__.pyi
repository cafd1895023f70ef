from .expert import PipelineExpert as PipelineExpert
from .expert import from_pipe as from_pipe
from .expert import from_pretrained as from_pretrained
from .expert import load_pipe as load_pipe
from .latents import Latents as Latents
from .pipeline import ComposedOutput as ComposedOutput
from .pipeline import ComposedPipeline as ComposedPipeline
from .scheduler import read as read
