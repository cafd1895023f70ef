"""Named random streams: one generator per purpose, created once and saved with the state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from popflow.core.errors import CheckpointError


class Streams:
    """Independent random generators, one per purpose: ``rng("noise")``, ``rng("resample")``, ``rng("kernel")``.

    A stream is seeded from ``(seed, name)`` on first use and never again, so drawing from one does not affect any other:
    switching resampling off does not change the noise. The state is a dictionary of plain tensors.

    Args:
        seed: Any integer.
        device: Device of the generators and of the tensors they fill.

    Example:
        >>> rng = Streams(0)
        >>> a = rng.normal("noise", torch.zeros(3))
        >>> saved = rng.state()
        >>> b = rng.normal("noise", torch.zeros(3))
        >>> rng.load(saved)
        >>> bool((rng.normal("noise", torch.zeros(3)) == b).all()), bool((a == b).all())
        (True, False)
    """

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu"):
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int, got {seed!r}: pass for example seed=0.")
        self.seed = seed
        self.device = torch.device(device)
        self._generators: dict[str, torch.Generator] = {}

    def __call__(self, name: str) -> torch.Generator:
        """Return the generator for one purpose, created on the first call."""
        generator = self._generators.get(name)
        if generator is None:
            digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
            generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest, "little") >> 1)
            self._generators[name] = generator
        return generator

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Draw standard normal values with the shape, dtype and device of ``like``."""
        return torch.empty_like(like).normal_(generator=self(name))

    def uniform(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw uniform values in [0, 1), in float64 by default."""
        return torch.rand(shape, generator=self(name), dtype=dtype, device=self.device)

    def each(self, name: str, function: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """Return ``function(*given, generator)`` of tensors ``[runs, ...]``: one call for all runs; `StreamsOfRuns` makes one for each."""
        return function(*given, self(name))

    @contextmanager
    def layers(self, name: str = "layers") -> Iterator[None]:
        """Initialise torch layers reproducibly: inside the block the global generator is seeded from this stream; afterwards it is restored.

        >>> with Streams(0).layers():
        ...     a = torch.nn.Linear(2, 1)
        >>> with Streams(0).layers():
        ...     b = torch.nn.Linear(2, 1)
        >>> torch.equal(a.weight, b.weight)
        True
        """
        seed = int(torch.randint(2**62, (), generator=self(name), device=self.device))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield

    def state(self) -> dict[str, Tensor]:
        """Return the state of every stream used so far, as byte tensors."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; streams not named in it start afresh.

        Raises:
            CheckpointError: when a state is damaged or comes from another kind of device; the streams are then unchanged.
        """
        loaded = Streams(self.seed, self.device)
        for name, value in state.items():
            try:
                loaded(name).set_state(value)
            except (RuntimeError, TypeError) as error:
                raise CheckpointError(
                    f"the state of stream {name!r} does not fit a generator on {self.device}: {error} "
                    "Fix: resume on the kind of device where the run began, or start again."
                ) from error
        self._generators = loaded._generators


class StreamsOfRuns(Streams):
    """Streams whose first dimension is independent runs, each with a seed of its own: a run does not depend on how many others there are.

    Args:
        seeds: One for each run.
        device: Device of the generators and of the tensors they fill.

    Example:
        >>> few, many = StreamsOfRuns([5, 6]), StreamsOfRuns([5, 6, 7])
        >>> a, b = (rng.normal("noise", torch.zeros(runs, 3)) for rng, runs in ((few, 2), (many, 3)))
        >>> bool((a == b[:2]).all())
        True
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        if not seeds:
            raise ValueError("seeds is empty, wanted one for each run: StreamsOfRuns([0, 1]).")
        super().__init__(seeds[0], device)
        self.parts = [Streams(seed, device) for seed in seeds]

    @classmethod
    def of(cls, seed: int, runs: int, device: torch.device | str = "cpu") -> StreamsOfRuns:
        """Make the seeds of many runs from one; the first run keeps it."""
        others = (hashlib.blake2b(f"{seed}/run {i}".encode(), digest_size=6).digest() for i in range(1, runs))
        return cls([seed, *(int.from_bytes(one, "little") for one in others)], device)

    def __call__(self, name: str) -> torch.Generator:
        """Return the generator of the first run, for draws that do not belong to one run."""
        return self.parts[0](name)

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Draw standard normal values ``[runs, ...]``."""
        return self.each(name, lambda one, generator: torch.empty_like(one).normal_(generator=generator), like)

    def uniform(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw uniform values ``[runs, ...]`` in [0, 1)."""
        like = torch.empty(shape, dtype=dtype, device=self.device)
        return self.each(name, lambda one, generator: torch.empty_like(one).uniform_(generator=generator), like)

    def each(self, name: str, function: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """Return ``function(*given, generator)``, called for each run with its own generator."""
        if any(len(one) != len(self.parts) for one in given):
            raise ValueError(
                f"tensors of {[len(one) for one in given]} runs for the streams of {len(self.parts)}: wanted one stream for each."
            )
        parts = [function(*(tensor[i : i + 1] for tensor in given), part(name)) for i, part in enumerate(self.parts)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def state(self) -> dict[str, Tensor]:
        """Return the states of every run, as ``RUN/NAME``."""
        return {f"{i}/{name}": value for i, part in enumerate(self.parts) for name, value in part.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            CheckpointError: for a damaged state, or one of another number of runs.
        """
        split = [tuple(name.split("/", 1)) for name in state]
        if any(len(one) != 2 or not one[0].isdigit() or int(one[0]) >= len(self.parts) for one in split):
            raise CheckpointError(
                f"the streams {sorted(state)} are not those of {len(self.parts)} runs: resume with the runs it began with."
            )
        for i, part in enumerate(self.parts):
            part.load({name: state[f"{run}/{name}"] for run, name in split if int(run) == i})
