"""Pure losses for `popflow.learn.fit`: flow matching, and the dual of a Lagrangian, both conditioned on populations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from popflow.transport.conditional_paths import Bend, follow
from popflow.transport.lagrangian import Lagrangian
from popflow.transport.meta.field import Field
from popflow.transport.saddle import dual, path_energy

Loss = Callable[[Mapping[str, Tensor], dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


class Alternating(torch.optim.AdamW):
    """AdamW that leaves parameters alone whose gradients are zero throughout: those of the part that is not in turn."""

    def step(self, closure: Any = None) -> Any:
        """Step the parameters in turn."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not bool(p.grad.any()):
                    p.grad = None
        return super().step(closure)


def matching_loss(field: Field, *, alternate: bool = False) -> Loss:
    """``E |v(t, x | context) - (x_1 - x_0)|^2``, in scaled coordinates, a mean over populations, cells and features.

    A batch holds what `popflow.transport.meta.draws.Draws.matching` draws. With ``alternate`` its entry ``turn`` is 1 where the velocity learns and
    0 where the embedding does.
    """

    def loss(params: Mapping[str, Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        network, *known = _parts(field, params, batch, alternate, batch["x"])
        out = functional_call(field.network, network, (field.scaled(batch["x"]), batch["t"], *known))
        return (out - batch["velocity"] / field.scale).square().mean(), {}

    return loss


def action_loss(lagrangian: Lagrangian, field: Field, bend: Bend | None, *, alternate: bool = False) -> Loss:
    """``-D(s)`` of `popflow.transport.saddle` over the conditional paths of several populations, ``s = s(t, x | context)``; over scale squared.

    Where the paths need a bend, it descends on the energy of the conditional paths (``anchor = 1`` there).
    """
    area = float(field.scale.square().mean())

    def loss(params: Mapping[str, Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        paths = {name[5:]: value.flatten(0, 1) for name, value in batch.items() if name.startswith("path.")}
        t = paths["t"].flatten()
        theirs = {name[5:]: p for name, p in params.items() if name.startswith("bend.")}
        point = follow(lagrangian, paths, None if bend is None else lambda *ends, module=bend: functional_call(module, theirs, ends))
        still = type(point)(*(value.detach() for value in point))
        count = len(batch["treatment"])
        here = still.x.reshape(count, -1, still.x.shape[-1])
        mass = still.mass.reshape(count, -1)
        network, *known = _parts(field, params, batch, alternate, here, mass / mass.sum(1, keepdim=True))

        def s(t: Tensor, x: Tensor) -> Tensor:
            inputs = field.scaled(x.reshape(count, -1, x.shape[-1])), t.reshape(count, -1), *known
            return area * functional_call(field.network, network, inputs).flatten()

        probe = paths["probe"].flatten(0, 1) if "probe" in paths else None
        lower = dual(lagrangian, s, t, still, probe).mean()
        if bend is None:
            return -lower / area, {"dual": lower}
        upper = path_energy(lagrangian, t, point).mean()
        return (upper - lower) / area, {"dual": lower, "path energy": upper}

    return loss


def _parts(
    field: Field, params: Mapping[str, Tensor], batch: dict[str, Tensor], alternate: bool, here: Tensor, weights: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor | None]:
    """Parameters of the network, the context of the populations, their cells and weights; what is not in turn is held."""
    mine = {name[8:]: p for name, p in params.items() if name.startswith("context.")}
    network = {name[8:]: p for name, p in params.items() if name.startswith("network.")}
    on_the_way = "cells" not in batch
    cells, example = batch.get("cells", here), None
    if "before" in batch:
        before, after = (field.scaled(batch[name]) for name in ("before", "after"))
        seen = tuple(batch.get(f"{name}.types") if field.context.sees_types else None for name in ("before", "after"))
        example = before, seen[0], after, seen[1]
    types = batch.get("cells.types") if field.context.sees_types else None
    scaled, weights = field.scaled(cells), weights if on_the_way else None
    inputs = scaled, types, batch["treatment"], example, weights
    context = functional_call(field.context, mine, inputs)
    if alternate:
        turn = batch["turn"][0]
        context = turn * context.detach() + (1 - turn) * context
        network = {name: turn * p + (1 - turn) * p.detach() for name, p in network.items()}
    return network, context, scaled, weights
