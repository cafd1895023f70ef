"""Named random streams: one generator per purpose, created once and saved with the state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
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
