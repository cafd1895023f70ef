"""Meta flow matching: one velocity for many populations, conditioned on an embedding of the population that it moves.

    d_t p_t = -div(p_t v(t, x | phi(p_0), c)),      min E_i E_t E_(x_0, x_1) | v(t, (1 - t) x_0 + t x_1 | phi(p_0^i), c^i) - (x_1 - x_0) |^2

with populations ``p_0^i`` before and ``p_1^i`` after the treatments ``c^i``. Time runs from 0 (control) to 1 (treated). With a Lagrangian the same context
conditions its potential, ``s(t, x | phi(p_0), c)``, and the flow also grows and spreads.

Source: Atanackovic, Zhang, Amos, Blanchette, Lee, Bengio, Tong and Neklyudov, *Meta flow matching*, ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from popflow.core import Population, Streams
from popflow.core.checks import at_least_one
from popflow.core.errors import unknown
from popflow.learn import Fit, cosine, fit
from popflow.transport.conditional_paths import Bend
from popflow.transport.coupling import Coupling, exact
from popflow.transport.lagrangian import Lagrangian
from popflow.transport.meta.draws import Batch, Draws
from popflow.transport.meta.embedding import Embedding, Knn
from popflow.transport.meta.field import Field, Given
from popflow.transport.meta.losses import Alternating, action_loss, matching_loss
from popflow.transport.meta.mixture import warn_of_mixture
from popflow.transport.meta.populations import Populations
from popflow.transport.meta.settings import Settings
from popflow.transport.meta.training_set import check_training, moments
from popflow.transport.snapshots import Snapshots


class MetaFlow:
    """A flow that depends on the population: ``MetaFlow().fit(populations, rng=Streams(0))``, then `predict` for populations never seen.

    Args:
        embed: How populations are embedded: `Knn`, `DeepSet`, or None for a flow that does not know its population (plain flow matching).
        lagrangian: None for flow matching; otherwise a Lagrangian of the room, whose growth, noise, potential and drift the flow then has. Its constants
            are in the units of the features, times from 0 to 1.
        coupling: Which cells of a population before and after are paired: `popflow.transport.exact`, ``independent`` (as published), a partial of
            ``sinkhorn`` (on the device of the cells), or `paired`. A Lagrangian has its own.
        **settings: Fields of `popflow.transport.meta.Settings`.

    Attributes:
        settings: All of them.
        learned: The result of `popflow.learn.fit`.

    Raises:
        ValueError: see `Settings`.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> before = [torch.randn(100, 1, generator=g) + k for k in range(-3, 4)]
        >>> populations = Populations.of(before, [x + 1 for x in before])
        >>> flow = MetaFlow(Knn(k=0, width=16, out=4), width=32, cells=64, pairs=32).fit(populations, steps=200, rng=Streams(0))
        >>> new = torch.randn(100, 1, generator=g) + 0.5
        >>> abs(float(flow.predict(new).mean()) - float(new.mean()) - 1) < 0.2
        True
    """

    def __init__(
        self,
        embed: Embedding | None = Knn(),  # noqa: B008  (frozen)
        *,
        lagrangian: Lagrangian | None = None,
        coupling: Coupling = exact,
        **settings: Any,
    ):
        self.settings, self.lagrangian, self.coupling = Settings(embed, **settings), lagrangian, coupling
        self.field: Field | None = None
        self.learned: Fit | None = None

    def fit(self, populations: Populations, *, steps: int = 2000, rng: Streams, **options: Any) -> MetaFlow:
        """Learn from populations with treated cells; others are ignored. Returns the flow itself.

        Args:
            populations: What to learn from: hold patients out first (`Populations.hold_out`).
            steps: Steps of the optimiser.
            rng: Streams for the networks and batches.
            **options: Handed to `popflow.learn.fit`: ``record``, ``checkpoint``, ``compile`` and so on.

        Raises:
            ValueError: for treated cells that are the control cells, constant populations, and types that are asked for and absent.
            DivergenceError: from `popflow.learn.fit`.
        """
        training = check_training(populations, self.settings)
        shift, scale = moments(training)
        with rng.layers():
            self.field = Field.of(self.settings, self.lagrangian, training, shift, scale)
        return self._learn(training, steps, self.settings.lr, rng, options)

    def fine_tune(self, populations: Populations, *, steps: int = 500, lr: float | None = None, rng: Streams, **options: Any) -> MetaFlow:
        """Go on learning on another screen, with the scaling and the features of the first; new treatments get labels of their own.

        Args:
            populations: The other screen; features are matched by name.
            steps: Steps of the optimiser.
            lr: Learning rate; None: a third of that of `fit`.
            rng: Streams for the batches.
            **options: As for `fit`.

        Returns:
            A new flow; this one stays as it is.
        """
        field = self.ready()
        training = check_training(field.matched(populations), self.settings)
        other = copy(self)
        with rng.layers():
            other.field = field.extended(training)
        return other._learn(training, steps, self.settings.lr / 3 if lr is None else lr, rng, options)

    def _learn(self, training: Populations, steps: int, lr: float, rng: Streams, options: dict[str, Any]) -> MetaFlow:
        """Learn, starting from the networks of the field."""
        field = self.ready()
        draws, alternate = Draws(training, self.coupling, self.settings), self.settings.alternate
        draws.treated = torch.tensor([field.treatments.index(pair.treatment) for pair in training.pairs])
        modules = {"context": field.context, "network": field.network}
        if self.lagrangian is None:
            loss, batches = matching_loss(field, alternate=alternate), draws.matching
        else:
            bend = None
            if not self.lagrangian.is_static:
                every = [torch.cat([training.sample(k, 200) for k in side]) for side in zip(*_ends(training), strict=True)]
                with rng.layers("bend"):
                    bend = Bend(self.lagrangian, Snapshots.of(every), width=self.settings.width, depth=2)
                modules["bend"] = bend
            loss = action_loss(self.lagrangian, field, bend, alternate=alternate)
            batches = draws.with_paths(self.lagrangian, rng, slices=4)
        if alternate:
            batches = partial(_with_turn, batches)
        params = {f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()}
        self.learned = fit(
            loss,
            params,
            lambda rng: {name: value.to(field.shift.device) for name, value in batches(rng).items()},
            steps=steps,
            rng=rng,
            optimizer=partial(Alternating if alternate else torch.optim.AdamW, lr=lr),
            schedule=cosine(steps, warmup=min(100, steps // 10)),
            clip_norm=1.0,
            ema=min(0.999, max(0.5, 1 - 10 / steps)),
            **options,
        )
        field.load(self.learned.ema)
        field.remember(training)
        return self

    def ready(self) -> Field:
        """The learned field.

        Raises:
            ValueError: before `fit`.
        """
        if self.field is None:
            raise ValueError("the flow has not been fitted: call fit(populations, rng=Streams(0)) first.")
        return self.field

    def given(
        self,
        cells: Any,
        treatment: str | None = None,
        *,
        types: Any = None,
        example: tuple[Any, ...] | None = None,
        features: Sequence[str] | None = None,
    ) -> Given:
        """The flow of one population under one treatment, which has ``velocity``, ``growth`` and ``push`` like any flow of the room.

        Args:
            cells: Control cells of the population ``[n, d]``, in the units of the features.
            treatment: Name of a treatment seen in training; None where there is only one, or it is given by example.
            types: Type of each cell, by name or by number, where training had types: proportions unseen there are warned of (`mixture`).
            example: Control cells and treated cells of a patient who got the treatment; with their types where the flow sees types.
            features: Names of the columns of all these cells, in any order; None: those of training, in their order. Others are dropped with a warning.

        Raises:
            ValueError: for an unseen treatment, missing features, another number of columns, or fewer than two cells.
        """
        field = self.ready()
        x, example = field.cells(cells, features), None if example is None else tuple(example)
        if self.settings.by_example:
            if treatment is not None or example is None or len(example) not in (2, 4):
                raise ValueError("this flow knows treatments by example, wanted example=(control cells, treated cells) and no treatment.")
            number = -1
        else:
            if example is not None:
                raise ValueError(
                    "example is given to a flow that knows treatments by label, wanted treatment=...: or fit with by_example=True."
                )
            if treatment is None and len(field.treatments) > 1:
                raise ValueError(f"treatment is None, wanted one of {list(field.treatments)}.")
            if treatment is not None and treatment not in field.treatments:
                raise ValueError(
                    unknown("treatment", treatment, field.treatments)
                    + " A flow by example (by_example=True) takes treatments it has not seen."
                )
            number = 0 if treatment is None else field.treatments.index(treatment)
        types = None if types is None else _codes(types, field.type_names)
        given = Given.of(field, x, types, number, None if example is None else tuple(_moved(field, one, features) for one in example))
        if types is not None and field.shares is not None:
            warn_of_mixture(given, types)
        return given

    def predict(self, cells: Any, treatment: str | None = None, *, steps: int = 20, rng: Streams | None = None, **how: Any) -> Population:
        """Predict the cells after the treatment, in the units of the features; growth is in their weights.

        Args:
            cells: Control cells ``[n, d]``.
            treatment: Name of the treatment.
            steps: Steps of the integrator.
            rng: Streams for the noise of a flow that has some.
            **how: As for `given`.
        """
        at_least_one(steps=steps)
        given = self.given(cells, treatment, **how)
        return given.push(given.cells, 0.0, 1.0, rng or Streams(0), steps=steps)


def _with_turn(batches: Callable[[Streams], Batch], rng: Streams) -> Batch:
    """Whose turn it is, drawn at random so that it is part of the streams and of their state: 1 the velocity's, 0 the embedding's."""
    batch = batches(rng)
    return batch | {"turn": torch.full((len(batch["treatment"]),), float(rng.uniform("turn", ()) < 0.5))}


def _codes(types: Any, names: Sequence[str]) -> Tensor:
    """Numbers of cell types that may be given by name."""
    values = types.tolist() if hasattr(types, "tolist") else list(types)
    if not any(isinstance(one, str) for one in values):
        return torch.as_tensor(values).long()
    strange = sorted({str(one) for one in values} - set(names))
    if strange:
        raise ValueError(f"types holds {strange}, which training has not seen, wanted some of {list(names)}.")
    return torch.tensor([names.index(one) for one in values])


def _ends(populations: Populations) -> list[tuple[int, int]]:
    return [(pair.source, pair.target) for pair in populations.pairs if pair.target is not None]


def _moved(field: Field, value: Any, features: Sequence[str] | None) -> Tensor:
    value = torch.as_tensor(value) if not isinstance(value, Tensor) else value
    return field.cells(value, features) if value.ndim == 2 else value.to(field.shift.device)
