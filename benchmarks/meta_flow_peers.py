"""Rows beside meta flow matching in its benchmark: other ways to let a velocity know its population."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from popflow.core import Population, Rates, Streams, heun, simulate
from popflow.learn import cosine, fit
from popflow.transport.coupling import Coupling, independent
from popflow.transport.meta import MetaFlow, Pair, Populations, Settings
from popflow.transport.meta.draws import Draws
from popflow.transport.meta.field import Given
from popflow.transport.meta.networks import ContextMLP
from popflow.transport.meta.populations import rows
from popflow.transport.meta.training_set import moments

FIELDS, RIDGE = 16, 1e-3


class BasisFlow:
    """``v = sum_k a_k H_k(t, x)`` with learned fields ``H_k``; the coefficients of a population fit the flow from noise to its own control cells.

    ``a = argmin E |sum_k a_k G_k(t, (1 - t) z + t x) - (x - z)|^2 + ridge |a|^2`` over the control cells ``x`` and noise ``z``, solved within the loss:
    an unseen population needs no treated cells.
    """

    def __init__(self, coupling: Coupling = independent, **settings: int):
        self.settings, self.coupling = Settings(None, **settings), coupling

    def fit(self, training: Populations, *, steps: int, rng: Streams) -> BasisFlow:
        """Learn both families of fields."""
        self.shift, self.scale = moments(training)
        self.treatments, d = training.treatments, training.dim
        draws = Draws(training, self.coupling, self.settings)
        make = partial(ContextMLP, d, out=FIELDS * d, width=self.settings.width, depth=self.settings.depth)
        with rng.layers():
            self.own, self.moved = make(0), make(len(self.treatments))

        def batches(rng: Streams) -> dict[str, Tensor]:
            chosen = draws.chosen(rng)
            ends = [draws.coupled(k, self.settings.pairs, rng) for k in chosen.tolist()]
            x, y = ((torch.stack(side) - self.shift) / self.scale for side in zip(*ends, strict=True))
            cells = torch.stack([draws.cloud(training.pairs[k].source, self.settings.cells, rng)[0] for k in chosen.tolist()])
            return {"x": x, "y": y, "t": rng.uniform("times", x.shape[:2], x.dtype), "drug": draws.treated[chosen]} | self.noised(
                cells, rng
            )

        def loss(params: dict, batch: dict) -> tuple[Tensor, dict]:
            own, moved = ({k[4:]: p for k, p in params.items() if k.startswith(part)} for part in ("own.", "mov."))
            a, residual = self.coefficients(batch, own)
            context = torch.nn.functional.one_hot(batch["drug"], len(self.treatments)).to(a)
            at = torch.lerp(batch["x"], batch["y"], batch["t"][..., None])
            fields = functional_call(self.moved, moved, (at, batch["t"], context)).unflatten(-1, (FIELDS, d))
            return (torch.einsum("pk,pnkd->pnd", a, fields) - (batch["y"] - batch["x"])).square().mean() + residual, {}

        params = {f"own.{k}": p for k, p in self.own.named_parameters()} | {f"mov.{k}": p for k, p in self.moved.named_parameters()}
        adam = partial(torch.optim.AdamW, lr=self.settings.lr)
        schedule = cosine(steps, warmup=min(100, steps // 10))
        done = fit(loss, params, batches, steps=steps, rng=rng, optimizer=adam, schedule=schedule, clip_norm=1.0, ema=0.99, compile=False)
        for module, part in ((self.own, "own."), (self.moved, "mov.")):
            module.load_state_dict({k[4:]: p for k, p in done.ema.items() if k.startswith(part)}, strict=False)
        return self

    def noised(self, cells: Tensor, rng: Streams) -> dict[str, Tensor]:
        """Control cells on the way from noise."""
        cells = (cells - self.shift) / self.scale
        return {"cells": cells, "noise": rng.normal("noise", cells), "when": rng.uniform("when", cells.shape[:2], cells.dtype)}

    def coefficients(self, batch: dict[str, Tensor], own: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Least squares of each population ``[P, FIELDS]``, and its residual."""
        x, z, t = batch["cells"], batch["noise"], batch["when"]
        inputs = torch.lerp(z, x, t[..., None]), t, x.new_zeros(len(x), 0)
        fields = (self.own(*inputs) if own is None else functional_call(self.own, own, inputs)).unflatten(-1, (FIELDS, x.shape[-1]))
        gram = torch.einsum("pnkd,pnld->pkl", fields, fields) / x.shape[1] + RIDGE * torch.eye(FIELDS)
        right = torch.einsum("pnkd,pnd->pk", fields, x - z) / x.shape[1]
        a = torch.linalg.solve(gram, right)
        return a, (torch.einsum("pk,pnkd->pnd", a, fields) - (x - z)).square().mean()

    def predict(self, pair: Pair, test: Populations) -> Population:
        """Treated cells of a held-out pair, from its control cells."""
        x = rows(test.clouds[pair.source])
        with torch.no_grad():
            a = self.coefficients(self.noised(x.repeat(4, 1)[None], Streams(0)))[0]
            drug = torch.nn.functional.one_hot(torch.tensor([self.treatments.index(pair.treatment)]), len(self.treatments)).to(x)

            def process(t: float, pop: Population) -> Rates:
                fields = self.moved(((pop.x - self.shift) / self.scale)[None], torch.full((1, len(pop)), t), drug)
                return Rates(self.scale * torch.einsum("pk,pnkd->pnd", a, fields.unflatten(-1, (FIELDS, x.shape[1])))[0])

            return simulate(heun(process), Population.of(x), torch.linspace(0, 1, 11), rng=Streams(0))


def one_hot(training: Populations, coupling: Coupling, steps: int, rng: Streams, **settings: int):
    """A flow conditioned on the number of its population; one never seen has none."""
    named = training.of_pairs([Pair(p.group, p.group, p.source, p.target) for p in training.pairs])
    flow = MetaFlow(None, coupling=coupling, **settings).fit(named, steps=steps, rng=rng, compile=False)
    field = flow.ready()

    def predict(pair: Pair, test: Populations) -> Population:
        x = rows(test.clouds[pair.source])
        return Given.of(field, x, None, -1, None).push(x, 0.0, 1.0, Streams(0), steps=10)

    return predict


def both_ends(training: Populations, embed, coupling: Coupling, steps: int, rng: Streams, **settings: int):
    """A flow conditioned on the embeddings of its source and its target: with the true target, and with that of a training patient instead."""
    named = training.of_pairs([Pair(p.group, str(p), p.source, p.target) for p in training.pairs])
    flow = MetaFlow(embed, coupling=coupling, by_example=True, **settings).fit(named, steps=steps, rng=rng, compile=False)

    def oracle(pair: Pair, test: Populations) -> Population:
        x = rows(test.clouds[pair.source])
        return flow.predict(x, example=(x, rows(test.clouds[pair.target])), steps=10)

    def honest(pair: Pair, test: Populations) -> Population:
        x = rows(test.clouds[pair.source])
        others = [one for one in training.pairs if one.treatment == pair.treatment]
        near = min(others, key=lambda one: float((rows(training.clouds[one.source]).mean(0) - x.mean(0)).norm()))
        return flow.predict(x, example=(rows(training.clouds[near.source]), rows(training.clouds[near.target])), steps=10)

    return oracle, honest
