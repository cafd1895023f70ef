"""Settings of a flow that depends on the population: plain values, written beside the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from popflow.core.checks import at_least_one
from popflow.transport.meta.embedding import KINDS, Embedding, Knn


@dataclass(frozen=True, slots=True)
class Settings:
    """How a `MetaFlow` sees populations and learns from them.

    Attributes:
        embed: How populations are embedded: `Knn`, `DeepSet`, or None for a flow that does not know its population (plain flow matching).
        within_types: Couple every cell type with itself alone.
        see_types: Give the embedding the type of each cell.
        by_example: Give treatments by the embedding of another patient's treated and control cells instead of by label.
        mean_field: Embed the population on its way, at every time, instead of at the start alone.
        alternate: Let the velocity and the embedding learn in turn, as published, instead of together.
        width: Hidden width of the velocity.
        depth: Its hidden layers.
        frequencies: Its random Fourier features.
        nearby: Widths at which it sees the surroundings of a cell in its population, see `popflow.transport.meta.networks.Nearby`; 0: not at all.
        populations: Populations in a batch.
        cells: Cells of each that are embedded.
        pairs: Coupled cells of each.
        lr: Learning rate of AdamW, warmed up and lowered along a cosine.

    Raises:
        ValueError: for sizes below 1, and what needs an embedding without one.

    Example:
        >>> Settings.of(Settings(Knn(k=5)).plain()) == Settings(Knn(k=5))
        True
    """

    embed: Embedding | None = Knn()  # noqa: RUF009  (frozen)
    within_types: bool = False
    see_types: bool = False
    by_example: bool = False
    mean_field: bool = False
    alternate: bool = False
    width: int = 128
    depth: int = 3
    frequencies: int = 0
    nearby: int = 0
    populations: int = 8
    cells: int = 256
    pairs: int = 64
    lr: float = 2e-3

    def __post_init__(self) -> None:
        at_least_one(width=self.width, depth=self.depth, populations=self.populations, cells=self.cells, pairs=self.pairs)
        needed = {name: getattr(self, name) for name in ("by_example", "mean_field", "alternate", "see_types", "nearby")}
        if self.embed is None and any(needed.values()):
            asked = [name for name, value in needed.items() if value]
            raise ValueError(f"embed is None with {asked}, which embed populations. Fix: embed=Knn().")
        if self.mean_field and self.see_types:
            raise ValueError("mean_field and see_types, wanted one of them: cells on their way have no measured type.")
        if self.frequencies < 0 or self.nearby < 0 or not self.lr > 0:
            raise ValueError(f"frequencies={self.frequencies}, nearby={self.nearby}, lr={self.lr}: wanted 0 or more, and a rate above 0.")

    def plain(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self) | {"embed": None if self.embed is None else [type(self.embed).__name__, asdict(self.embed)]}

    @staticmethod
    def of(values: Mapping[str, Any]) -> Settings:
        """The inverse of `plain`."""
        embed = values["embed"]
        return Settings(**{**values, "embed": None if embed is None else KINDS[embed[0]](**embed[1])})
