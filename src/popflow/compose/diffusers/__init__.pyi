from .expert import PipelineExpert as PipelineExpert, from_pipe as from_pipe, from_pretrained as from_pretrained
from .latents import Latents as Latents
from .loading import load_pipe as load_pipe
from .pipeline import ComposedOutput as ComposedOutput, ComposedPipeline as ComposedPipeline
from .scheduler import read as read
