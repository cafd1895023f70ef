"""The start pool: 1000 molecules of ZINC-250k that ship with the package, for a first population and for fresh molecules.

They are drawn uniformly by ``benchmarks/draw_start_pool.py``; ``data/start_pool.NOTICE`` holds the licence (MIT).
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

import numpy as np

from popflow.core.checks import at_least_one


@lru_cache(maxsize=1)
def start_pool() -> tuple[str, ...]:
    """Return the 1000 canonical SMILES of the pool.

    >>> len(set(start_pool()))
    1000
    """
    text = (resources.files("popflow.evolve") / "data" / "start_pool.smi").read_text(encoding="utf-8")
    return tuple(text.split())


def draw(count: int, seed: int = 0) -> list[str]:
    """Return ``count`` different molecules of the pool, in random order.

    Args:
        count: At most the size of the pool.
        seed: Of the draw.

    Raises:
        ValueError: when the pool is smaller.

    Example:
        >>> len(set(draw(120, seed=1)))
        120
    """
    at_least_one(count=count)
    pool = start_pool()
    if count > len(pool):
        raise ValueError(f"count={count}, wanted at most {len(pool)}, the size of the start pool. Fix: bring molecules of your own.")
    return [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:count]]
