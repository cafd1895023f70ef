"""Train the SMILES model that comes with the library, on ZINC-250k: ``python benchmarks/train_smiles_model.py --steps 6000 --checkpoint F``.

One thread of a CPU is enough. The learning rate falls over the last ``--decay`` steps. The same command resumes from the checkpoint; a checkpoint from before
the fall is continued with any larger number of ``--steps``. ``--ship`` writes the parameters into the package, in half precision.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from pathlib import Path

import torch
from harness import dataset

from popflow.core.checkpoint import save_tensors
from popflow.core.streams import Streams
from popflow.evolve.smiles_model import DATA, SmilesModel
from popflow.evolve.smiles_training import batches_of, loss_of, train
from popflow.learn import Progress

HELD_OUT = 5000


def zinc() -> tuple[list[str], list[str]]:
    """Molecules to train on, and those held out."""
    file = dataset("chem", "zinc250k.smiles.gz")
    if file is None:
        sys.exit("chem/zinc250k.smiles.gz is missing: set POPFLOW_DATA to the folder of the data sets.")
    smiles = gzip.decompress(file.read_bytes()).decode().split()
    random.Random(0).shuffle(smiles)
    return smiles[HELD_OUT:], smiles[:HELD_OUT]


def held_out_loss(model: SmilesModel, smiles: list[str], batches: int = 8) -> float:
    """Negative log-likelihood of a token of held-out molecules, in nats, in float32."""
    loss, draw, rng, params = loss_of(model), batches_of(smiles, 32), Streams(1), dict(model.named_parameters())
    with torch.no_grad():
        return sum(float(loss(params, draw(rng))[0]) for _ in range(batches)) / batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--decay", type=int, default=600)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--low-precision", action="store_true", help="products of matrices in bfloat16")
    parser.add_argument("--ship", action="store_true", help="write the parameters into the package when done")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    learned, held_out = zinc()
    with Streams(0).layers():
        model = SmilesModel()
    curve = options.checkpoint.with_suffix(".jsonl")
    wall, cpu = time.perf_counter(), time.process_time()

    def record(progress: Progress) -> None:
        row = {
            "step": progress.step,
            **progress.metrics,
            "lr": progress.lr,
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
        }
        with curve.open("a") as file:
            file.write(json.dumps(row) + "\n")

    fitted = train(
        model,
        learned,
        steps=options.steps,
        decay=options.decay,
        rows=options.rows,
        record=[record],
        checkpoint=options.checkpoint,
        low_precision=options.low_precision,
    )
    model.load_state_dict(fitted.params)
    found = held_out_loss(model, held_out)
    print(f"{options.steps} steps, held-out loss {found:.4f} nats a token")
    if options.ship:
        about = {"steps": options.steps, "rows": options.rows, "held_out_loss": round(found, 4), "data": "ZINC-250k without 5000 held out"}
        print(save_tensors(DATA / "smiles.safetensors", {name: value.half() for name, value in fitted.params.items()}, about))


if __name__ == "__main__":
    main()
