"""An oracle: a function of a batch that is evaluated at most once for each input, in memory, and counts its calls.

Searches differ in how many evaluations they spend, so the oracle is where evaluations are counted. Inputs are identified by hashable keys:
text, tuples, or bytes of rows of a tensor. A function whose calls are costly one by one goes through `popflow.runs.costly.CostlyFunction`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Items = TypeVar("Items", bound=Sequence[Any] | Tensor)

REPEAT_EVERY = 100
"""One evaluation in this many is repeated."""


class Oracle(Generic[Items]):
    """A memoised function of a batch of inputs, ``oracle(items) -> values [len(items)]`` in float64.

    Only new inputs are evaluated, all at once and each once. One evaluation in a hundred is repeated, which exposes a
    function whose answers change; repetitions are not counted.

    Args:
        function: ``items -> values``: one finite number for each of a batch of inputs, as a tensor or a sequence of numbers.
        keys: ``items -> keys``: a hashable key for each input. The default takes the inputs themselves.

    Attributes:
        calls: Inputs requested, those that were requested before included.
        known: The value of every key evaluated so far, in the order of evaluation.

    Raises:
        ValueError: when the function returns another number of values, values that are not finite, or another value the second time.

    Example:
        >>> oracle = Oracle(lambda names: [float(len(name)) for name in names])
        >>> oracle(["CCO", "C", "CCO"]).tolist()
        [3.0, 1.0, 3.0]
        >>> oracle.calls, oracle.evaluations, oracle.known
        (3, 2, {'CCO': 3.0, 'C': 1.0})
    """

    def __init__(self, function: Callable[[Items], Tensor | Sequence[float]], keys: Callable[[Items], Iterable[Hashable]] = list[Hashable]):
        self.function, self.keys = function, keys
        self.calls = 0
        self.known: dict[Any, float] = {}
        self._unrepeated = 0

    @property
    def evaluations(self) -> int:
        """Different inputs evaluated."""
        return len(self.known)

    def __call__(self, items: Items) -> Tensor:
        """Return the values ``[len(items)]`` of a batch of inputs."""
        keys = list(self.keys(items))
        fresh: dict[Hashable, int] = {}
        for place, key in enumerate(keys):
            if key not in self.known:
                fresh.setdefault(key, place)
        places = list(fresh.values())
        if places:
            values = self._ask(_take(items, places))
            self.known.update(zip(fresh, values, strict=True))
            self._repeat(items, keys, places)
        self.calls += len(keys)
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float64)

    def _ask(self, items: Items) -> list[float]:
        values = torch.as_tensor(self.function(items), dtype=torch.float64, device="cpu").detach()
        if tuple(values.shape) != (len(items),):
            raise ValueError(
                f"the oracle returned shape {tuple(values.shape)} for {len(items)} inputs, wanted [{len(items)}]: one value each."
            )
        bad = int((~values.isfinite()).sum())
        if bad:
            raise ValueError(f"the oracle returned {bad} values that are NaN or infinite for {len(items)} inputs, wanted finite ones.")
        return values.tolist()

    def _repeat(self, items: Items, keys: list[Hashable], places: list[int]) -> None:
        """Evaluate the last of the new inputs again, one for every hundred evaluations."""
        count, self._unrepeated = divmod(self._unrepeated + len(places), REPEAT_EVERY)
        again = places[len(places) - count :]
        for place, value in zip(again, self._ask(_take(items, again)) if again else (), strict=True):
            known = self.known[keys[place]]
            if abs(value - known) > 1e-9 * max(1.0, abs(known)):
                raise ValueError(
                    f"the oracle is not deterministic: {_show(items[place])} gave {known:g} first and {value:g} again. Fix: seed it."
                )


def _take(items: Any, places: list[int]) -> Any:
    return items[places] if isinstance(items, Tensor) else [items[i] for i in places]


def _show(item: Any) -> str:
    return "input " + ("".join(map(str, item.tolist())) if isinstance(item, Tensor) else repr(item))
