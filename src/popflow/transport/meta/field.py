"""The learned field: networks, scaling, and what of the training populations a prediction is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace as _replace
from typing import Any

import torch
from torch import Tensor

from popflow.core import Ito, Population, Rates, Streams, euler, heun, simulate
from popflow.core.calculus import value_and_grad
from popflow.core.checks import shaped
from popflow.core.errors import PopflowWarning
from popflow.transport.lagrangian import Lagrangian
from popflow.transport.meta.networks import Context, ContextMLP
from popflow.transport.meta.populations import Populations, rows
from popflow.transport.meta.settings import Settings
from popflow.transport.snapshots import dense

EMBEDDED = 1024
"""Most cells of a population that are embedded to predict; of larger ones, evenly spaced cells in the order of their distance from the mean."""
BLOCK = 4096
"""Cells that are moved at once."""


Known = tuple[Tensor, Tensor, Tensor | None]


@dataclass(eq=False)
class Field:
    """Velocity, or potential, of a cell in a population under a treatment.

    Attributes:
        context: Context of a population.
        network: Velocity ``[P, n, d]`` of scaled cells in scaled units, or with a Lagrangian its potential ``[P, n, 1]`` over the scale squared.
        lagrangian: None for flow matching.
        mean_field: Whether the population is embedded anew on its way.
        shift: Mean of the features ``[d]``.
        scale: Their scale ``[1]``.
        features: Their names.
        unit: Their unit.
        treatments: Names of the treatments.
        type_names: Names of the cell types.
        groups: Names of the training pairs.
        embeddings: Embeddings of the training populations ``[pairs, e]``.
        shares: Their shares of cell types ``[pairs, types]``.
    """

    context: Context
    network: ContextMLP
    lagrangian: Lagrangian | None
    mean_field: bool
    shift: Tensor
    scale: Tensor
    features: tuple[str, ...]
    unit: str
    treatments: tuple[str, ...]
    type_names: tuple[str, ...]
    groups: tuple[str, ...] = ()
    embeddings: Tensor | None = None
    shares: Tensor | None = None

    @staticmethod
    def of(settings: Settings, lagrangian: Lagrangian | None, training: Populations, shift: Tensor, scale: Tensor) -> Field:
        """Fresh networks for a flow and the populations that it will learn from."""
        names = training.type_names if settings.see_types else ()
        treatments = training.treatments
        context = Context(settings.embed, training.dim, len(treatments), len(names), settings.cells, settings.by_example).to(shift)
        network = ContextMLP(
            training.dim,
            context.size,
            out=None if lagrangian is None else 1,
            width=settings.width,
            depth=settings.depth,
            frequencies=settings.frequencies,
            nearby=settings.nearby,
        ).to(shift)
        return Field(
            context,
            network,
            lagrangian,
            settings.mean_field,
            shift,
            scale,
            training.features,
            training.unit,
            treatments,
            training.type_names,
        )

    def scaled(self, x: Tensor) -> Tensor:
        """Cells in the coordinates of the networks."""
        return (x - self.shift) / self.scale

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Put learned parameters into the networks."""
        for part, module in (("context.", self.context), ("network.", self.network)):
            module.load_state_dict({name[8:]: p for name, p in params.items() if name.startswith(part)}, strict=False)
            module.requires_grad_(False)

    def remember(self, training: Populations) -> None:
        """Keep the embeddings of the training populations, and their shares of types."""
        self.groups = tuple(map(str, training.pairs))
        if self.context.population is not None:
            sources = sorted({pair.source for pair in training.pairs})
            found = self.shift.new_empty(len(sources), self.context.width)  # one block: small results among large scratch would pin memory
            for i, k in enumerate(sources):
                found[i] = self.embedding(*self._sampled(training, k))
            self.embeddings = found[[sources.index(pair.source) for pair in training.pairs]]
        if training.types is not None:
            self.shares = torch.stack([training.proportions(pair.source) for pair in training.pairs])

    def _sampled(self, training: Populations, k: int) -> tuple[Tensor, Tensor | None]:
        cells = training.sample(k, EMBEDDED).to(self.shift)
        if training.types is None:
            return cells, None
        count = len(training.clouds[k])
        most = min(count, EMBEDDED)
        return cells, rows(training.types[k], torch.arange(most) * count // most).to(cells.device)

    def embedding(self, cells: Tensor, types: Tensor | None = None) -> Tensor:
        """Embedding ``[e]`` of a population ``[n, d]``."""
        if self.context.population is None:
            raise ValueError("this flow does not embed populations (embed=None), wanted one that does.")
        seen = None if types is None or not self.context.sees_types else types[None]
        with torch.no_grad():
            return self.context.population(self.scaled(cells)[None], seen)[0]

    def cells(self, cells: Any, features: Sequence[str] | None = None) -> Tensor:
        """Check cells ``[n, d]`` and bring their columns into the order of training; see `popflow.transport.meta.MetaFlow.given`."""
        x = dense("cells", cells).to(self.shift)
        given = self.features if features is None else tuple(map(str, features))
        if x.ndim != 2 or x.shape[1] != len(given):
            raise ValueError(
                f"cells have shape {tuple(x.shape)}, wanted [cells, {len(given)}], one column for each of {', '.join(given[:6])}"
                f"{', ...' if len(given) > 6 else ''}."
            )
        if len(set(given)) < len(given):
            raise ValueError(
                f"features has {sorted({name for name in given if given.count(name) > 1})} more than once, wanted names that tell columns apart."
            )
        missing, extra = [name for name in self.features if name not in given], [name for name in given if name not in self.features]
        if missing:
            raise ValueError(
                f"features lack {missing}, which the flow was trained on. Fix: measure them, or train on the features that both screens have."
            )
        if extra:
            warnings.warn(f"the features {extra} were not in training and are left out.", PopflowWarning, stacklevel=4)
        if len(x) < 2:
            raise ValueError(f"cells holds {len(x)} cell(s), wanted a population of at least two.")
        if not bool(x.isfinite().all()):
            raise ValueError(
                f"cells hold NaN or infinite values in {int((~x.isfinite()).any(1).sum())} rows, wanted finite ones: drop them."
            )
        return x[:, [given.index(name) for name in self.features]]

    def matched(self, populations: Populations) -> Populations:
        """Populations with the features of this field, in its order, and its numbers of types."""
        missing = [name for name in self.features if name not in populations.features]
        if missing:
            raise ValueError(f"populations lack the features {missing}, which the flow was trained on: measure them, or train anew.")
        if self.context.sees_types and populations.type_names != self.type_names:
            raise ValueError(f"populations have the types {populations.type_names}, wanted {self.type_names}, in this order.")
        if populations.features == self.features:
            return populations
        order = [populations.features.index(name) for name in self.features]
        return _replace(populations, clouds=tuple(rows(cloud)[:, order] for cloud in populations.clouds), features=self.features)

    def extended(self, training: Populations) -> Field:
        """A copy of this field with labels for the treatments of other populations: new ones begin as no treatment does."""
        new = tuple(name for name in training.treatments if name not in self.treatments)
        other = _replace(self, context=deepcopy(self.context), network=deepcopy(self.network), treatments=(*self.treatments, *new))
        if new and other.context.example is None:
            before, after = self.context.treatments, len(other.treatments)
            weight = torch.zeros(2 * self.network.depth * self.network.width, self.context.size - before + after).to(self.shift)
            bias = torch.zeros(len(weight)).to(self.shift)
            if self.network.shift is not None:
                weight[:, : self.context.size] = self.network.shift.weight
                bias = self.network.shift.bias.detach().clone()
            other.network.shift = torch.nn.Linear(weight.shape[1], len(weight)).to(self.shift)
            other.network.shift.load_state_dict({"weight": weight, "bias": bias})
            other.context.treatments, other.context.size = after, weight.shape[1]
        other.context.requires_grad_(True)
        other.network.requires_grad_(True)
        return other


@dataclass(frozen=True, eq=False)
class Given:
    """The flow of one population under one treatment: a `popflow.transport.Flow`.

    Attributes:
        field: The learned field.
        cells: Control cells ``[n, d]``.
        types: Their types, where the field sees types.
        treatment: Number of the treatment.
        example: Scaled example, see `popflow.transport.meta.networks.Context`.
        known: What the network knows of the population: its context ``[1, c]``, scaled cells ``[1, m, d]`` that stand for it, and their weights.
    """

    field: Field
    cells: Tensor
    types: Tensor | None
    treatment: int
    example: tuple[Tensor, Tensor | None, Tensor, Tensor | None] | None
    known: Known

    @staticmethod
    def of(field: Field, cells: Tensor, types: Any, treatment: int, example: tuple[Tensor, ...] | None) -> Given:
        """Embed a population."""
        codes = None if types is None or not field.context.sees_types else types.to(cells.device)
        if field.context.sees_types and (codes is None or len(codes) != len(cells)):
            raise ValueError(f"types holds {'nothing' if codes is None else len(codes)} for {len(cells)} cells, wanted a type for each.")
        shown = None
        if example is not None:
            if field.context.sees_types and len(example) != 4:
                raise ValueError("example has no types, wanted (control cells, their types, treated cells, their types).")
            parts = example if len(example) == 4 else (example[0], None, example[1], None)
            before, after = (embedded(x, None if not field.context.sees_types else code) for x, code in (parts[:2], parts[2:]))
            shown = field.scaled(before[0])[None], before[1], field.scaled(after[0])[None], after[1]
        given = Given(field, cells, codes, treatment, shown, (cells, cells, None))
        return _replace(given, known=given.embedded(cells))

    @property
    def context(self) -> Tensor:
        """Context ``[1, c]`` of the control cells."""
        return self.known[0]

    def embedded(self, cells: Tensor, weights: Tensor | None = None) -> Known:
        """What is known of a population, which may be on its way."""
        x, types = (cells, None) if weights is not None else embedded(cells, self.types)
        number = torch.tensor([self.treatment], device=cells.device)
        scaled, weights = self.field.scaled(x)[None], None if weights is None else weights[None]
        with torch.no_grad():
            return self.field.context(scaled, types, number, self.example, weights), scaled, weights

    def velocity(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Drift ``[n, d]``, in units of the features per time from control to treated."""
        return self._rates(t, x, self.known)[0]

    def growth(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Growth rate ``[n]`` per time from control to treated."""
        return self._rates(t, x, self.known)[1]

    def push(self, pop: Population | Tensor, t0: float, t1: float, rng: Streams, steps: int = 20) -> Population:
        """Move cells along the flow of the population: Heun's method, Euler-Maruyama with noise; with a mean field they are the population."""
        pop = pop if isinstance(pop, Population) else Population.of(pop)
        noise = 0.0 if self.field.lagrangian is None else self.field.lagrangian.noise
        grows = self.field.lagrangian is not None and self.field.lagrangian.lam > 0

        def process(t: float, pop: Population) -> Rates:
            known = self.known
            if self.field.mean_field:
                near = pop.take(_even(pop.x, EMBEDDED))
                known = self.embedded(near.x, near.weights())
            found = [self._rates(t, x, known) for x in pop.x.split(BLOCK)]
            drift, growth = (torch.cat(part) for part in zip(*found, strict=True))
            return Rates(drift, noise or None, Ito(growth) if grows else None)

        count = steps * 4 if noise else steps
        times = torch.linspace(t0, t1, count + 1, dtype=torch.float64)
        return simulate((euler if noise else heun)(process), pop, times, rng=rng)

    def _rates(self, t: Tensor | float, x: Tensor, known: Known) -> tuple[Tensor, Tensor]:
        field = self.field
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        if field.lagrangian is None:
            with torch.no_grad():
                return field.scale * field.network(field.scaled(x)[None], times[None], *known)[0], x.new_zeros(len(x))
        area = field.scale.square().mean()
        with torch.no_grad():
            value, (slope,) = value_and_grad(lambda x: area * field.network(field.scaled(x)[None], times[None], *known).flatten(), x)
            if field.lagrangian.drift is not None:
                slope = slope + shaped("drift", field.lagrangian.drift(times, x), x)
        return slope, field.lagrangian.lam * value


def embedded(cells: Tensor, types: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The cells that stand for a population ``[n, d]``, and their types ``[1, n]``."""
    index = _even(cells, EMBEDDED)
    return cells[index], None if types is None else types[index][None]


def _even(cells: Tensor, most: int) -> Tensor:
    """At most ``most`` cells, evenly spaced in the order of their distance from the mean: another order of the cells picks the same."""
    if len(cells) <= most:
        return torch.arange(len(cells), device=cells.device)
    order = (cells - cells.mean(0)).square().sum(1).argsort(stable=True)
    return order[torch.arange(most, device=cells.device) * len(cells) // most]
