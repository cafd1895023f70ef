"""The layers of a model that act as matrices: linear layers, convolutions and their transposes, the four projections of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
UNSEEN = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
"""Modules with matrices whose inputs and cotangents hooks cannot see: one fused call holds all steps and gates, or a product of two inputs."""


@dataclass(eq=False)
class Layer:
    """A block of rows of a weight that acts as a matrix: ``blocks`` matrices ``d x p``, and their bias if any.

    Attributes:
        name: Dotted name of the module, with the projection for attention.
        modules: The modules whose calls are recorded: one, or those that share the weight.
        weight: Parameter that holds the rows ``start : start + blocks * d``.
        bias: Parameter with the same rows, or None.
        blocks: Number of independent matrices (groups of a convolution).
        d: Outputs of one matrix.
        p: Inputs of one matrix, without the one for the bias.
        start: First row.
        standing: Whether weight and bias stand in for those of the module (`torch.func.functional_call`) and require no gradients themselves.
        reversed: Whether the rows of the weight are inputs and its columns outputs, as a transposed convolution stores it: ``d`` then counts inputs and ``p``
            outputs. Its bias, which belongs to outputs, is not part of the layer.
    """

    name: str
    modules: list[nn.Module]
    weight: Tensor
    bias: Tensor | None
    blocks: int
    d: int
    p: int
    start: int = 0
    standing: bool = False
    reversed: bool = False

    def __post_init__(self):
        self.whole = self.blocks * self.d == len(self.weight)

    def view(self, tensor: Tensor) -> Tensor:
        """Return the layer's rows of something shaped like the weight or the bias, as ``[B, d, p]`` or ``[B, d, 1]``."""
        return self.rows(tensor).reshape(self.blocks, self.d, -1)

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the layer's rows of something shaped like the weight or the bias."""
        return tensor if self.whole else tensor.narrow(0, self.start, self.blocks * self.d)

    def parameters(self) -> list[Tensor]:
        """Weight and bias."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def inputs(self) -> int:
        """Inputs of one matrix, the one for the bias among them."""
        return self.p + (self.bias is not None)


def find_layers(model: nn.Module) -> list[Layer]:
    """List the layers of a model that have Kronecker factors; shared weights are listed once.

    >>> [(layer.name, layer.d, layer.inputs) for layer in find_layers(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)))]
    [('0', 2, 4)]
    """
    layers: list[Layer] = []
    skipped: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            skipped.add(module.out_proj)
            layers += _attention_layers(name, module)
        elif isinstance(module, nn.Linear) and module not in skipped:
            layers += _whole(name, module, 1)
        elif isinstance(module, CONVOLUTIONS):
            layers += _whole(name, module, module.groups)
        elif isinstance(module, TRANSPOSED):
            for layer in _whole(name, module, module.groups):
                layer.bias, layer.reversed = None, True
                layers.append(layer)
    kept: dict[tuple[int, int], Layer] = {}
    biases: dict[int, nn.Module] = {}
    for layer in layers:
        first = kept.setdefault((id(layer.weight), layer.start), layer)
        if first is not layer:
            first.modules += (
                layer.modules if first.reversed == layer.reversed else []
            )  # of a use and a transposed one, the first is recorded
        elif layer.bias is not None and biases.setdefault(id(layer.bias), layer.modules[0]) is not layer.modules[0]:
            layer.bias = None
    return list(kept.values())


def _whole(name: str, module: nn.Module, blocks: int) -> list[Layer]:
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None:
        return []
    if isinstance(weight, nn.UninitializedParameter):
        raise ValueError(f"layer {name!r} is lazy and has no shape yet. Fix: run one forward pass before you make the optimiser.")
    if weight.numel() == 0:
        return []
    return [Layer(name, [module], weight, bias, blocks, len(weight) // blocks, weight[0].numel())]


def _attention_layers(name: str, module: nn.MultiheadAttention) -> list[Layer]:
    width, packed, bias = module.embed_dim, module.in_proj_weight, module.in_proj_bias
    found = []
    for i, part in enumerate("qkv"):
        weight: Any = packed if packed is not None else getattr(module, f"{part}_proj_weight")
        start = i * width if packed is not None else 0
        # Three weights with one packed bias: the bias has no layer of its own and is left to the fallback.
        own_bias = None if packed is None else bias
        found.append(Layer(f"{name}.{part}", [module], weight, own_bias, 1, width, weight.shape[1], start))
    out: Any = module.out_proj
    return [*found, Layer(f"{name}.out_proj", [module], out.weight, out.bias, 1, width, width)]
