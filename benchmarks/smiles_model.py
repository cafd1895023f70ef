"""The SMILES model that comes with the library: its size, and what its raw samples are worth.

10 000 texts are drawn from nothing, at temperature 1 and at the lower one 0.7, without any filter. Validity: the share that RDKit reads as one molecule.
Uniqueness: the share of different molecules among the valid ones. Novelty: the share of the different ones that ZINC-250k does not hold
(``POPFLOW_DATA``), compared as canonical SMILES. Bars belong to temperature 1. Then how many tries of each operator give a child, on molecules of the
start pool, and what one try costs.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import time

import numpy as np
import torch
from harness import Row, dataset, run

from popflow.core.checkpoint import load_tensors
from popflow.evolve.infilling import FillGap, LearnFirst, LinkFragments
from popflow.evolve.molecules import canonical_or_none
from popflow.evolve.operators import Parent
from popflow.evolve.smiles_model import DATA, sample, shipped

POOL = [
    "CC(=O)Nc1ccc(O)cc1",
    "CC(C)Cc1ccc([C@H](C)C(=O)O)cc1",
    "Cc1ccc(-c2cc(C(F)(F)F)nn2-c2ccc(S(N)(=O)=O)cc2)cc1",
    "COc1ccc2[nH]cc(CCN(C)C)c2c1",
]


def known(quick: bool) -> set[str] | None:
    """The molecules of ZINC-250k, canonical; None without the data."""
    file = dataset("chem", "zinc250k.smiles.gz")
    if file is None:
        return None
    lines = gzip.decompress(file.read_bytes()).decode().split()
    return {smiles for line in (lines[:1000] if quick else lines) if (smiles := canonical_or_none(line)) is not None}


def samples(n: int, seeds: int, temperature: float, zinc: set[str] | None) -> list[Row]:
    found: dict[str, list[float]] = {"valid": [], "unique": [], "novel": []}
    start, cpu = time.perf_counter(), time.process_time()
    for seed in range(seeds):
        texts = sample(shipped(), n, torch.Generator().manual_seed(seed), temperature=temperature)
        valid = [smiles for text in texts if (smiles := canonical_or_none(text)) is not None]
        found["valid"].append(len(valid) / n)
        found["unique"].append(len(set(valid)) / max(1, len(valid)))
        if zinc is not None:
            found["novel"].append(len(set(valid) - zinc) / max(1, len(set(valid))))
    notes = {
        "samples": n,
        "seeds": seeds,
        "temperature": temperature,
        "milliseconds a sample": round(1e3 * (time.process_time() - cpu) / n / seeds, 3),
    }
    bars = {"valid": 0.90, "unique": 0.99} if temperature == 1 else {}
    rows = []
    for name, values in found.items():
        if values:
            error = statistics.stdev(values) if len(values) > 1 else None
            claim = f"share of {n} raw samples: {name}, temperature {temperature:g}"
            seconds = time.perf_counter() - start
            rows.append(Row(claim, statistics.mean(values), error, target=bars.get(name), direction=">=", seconds=seconds, notes=notes))
    return rows


def operators(n: int) -> list[Row]:
    parents, rows = [Parent(smiles, 1.0) for smiles in POOL], []
    for operator in (FillGap(), LinkFragments(), LearnFirst(FillGap())):
        name = operator.name if not isinstance(operator, LearnFirst) else "learn first, fill gap"
        start, cpu = time.perf_counter(), time.process_time()
        kids = operator(parents, n, np.random.default_rng(0))
        cost = 1e3 * (time.process_time() - cpu) / n
        notes = {"tries": n, "different": len({kid.smiles for kid in kids}), "milliseconds a try": round(cost, 3)}
        rows.append(Row(f"children a try, {name}", len(kids) / n, seconds=time.perf_counter() - start, notes=notes))
    return rows


def main(options: argparse.Namespace) -> list[Row]:
    """Measure the SMILES model that comes with the library."""
    n, tries = (200, 10) if options.quick else (10_000, 500)
    about = load_tensors(DATA / "smiles.safetensors")[1]
    parameters = sum(p.numel() for p in shipped().parameters())
    rows = [
        Row("parameters of the SMILES model", parameters, target=2.4e6, notes=about),
        Row("bytes of its file", (DATA / "smiles.safetensors").stat().st_size, target=5e6),
    ]
    zinc = known(options.quick)
    for temperature in (1.0, 0.7):
        rows += samples(n, options.seeds, temperature, zinc)
    return rows + operators(tries)


if __name__ == "__main__":
    run("smiles_model", main, seeds=1)
