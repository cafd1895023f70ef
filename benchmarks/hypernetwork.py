"""Quantum hypernetworks against the exact optimum and against classical search, on instances that can be enumerated.

``--parts depth,joint,noise,classical,wide`` selects parts, ``--instances G2,Dg373`` selects some of the nine instances, and ``--cache DIR``
(default ``runs/bench/hypernetwork``) keeps every finished cell, so that an interrupted benchmark resumes.

depth      success of restarts by three definitions against depth 1 ... 16: Adam, 200 steps, learning rate 0.1, uniform angles
joint      width, activation and alphabet searched in one circuit
noise      depolarising noise, by trajectories, on circuits trained without noise
classical  classical searches on the same tables with the same number of cost calls
wide       8 x 8 digits, 65 qubits by matrix products, against straight-through training and classical searches
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from harness import Row, run
from torch import Tensor

from popflow.circuits.ansatz import Ansatz
from popflow.circuits.cost import Cost, squared_error, truth
from popflow.circuits.data import Dataset, digits, gaussians
from popflow.circuits.hardware import Depolarising, noisy_born, train_shots
from popflow.circuits.hypernetwork import Objective, Trained, energy, success, tail_mean, train_adam
from popflow.circuits.matrix_product import train_score
from popflow.circuits.oracle import Oracle
from popflow.circuits.search import annealing, genetic, local_search, random_search, reinforce, straight_through
from popflow.circuits.space import BinaryMLP, Choice
from popflow.circuits.statevector import sample
from popflow.core import Streams
from popflow.core.checkpoint import write_atomic

ACTIVATION = Choice("activation", (torch.relu, torch.sigmoid))
ALPHABET = Choice("alphabet", ((-1.0, 1.0), (0.0, 1.0), (-2.0, 1.0), (-3.0, 1.0)))

parser = argparse.ArgumentParser(add_help=False)
parser.add_argument("--parts", default="depth,joint,noise,classical,wide")
parser.add_argument("--instances", default="")
parser.add_argument("--depths", default="1,2,4,6,8,12,16")
parser.add_argument("--cache", type=Path, default=Path("runs/bench/hypernetwork"))
OWN, sys.argv[1:] = parser.parse_known_args()
DEPTHS = tuple(map(int, OWN.depths.split(",")))


def gaussian_cost(hidden: int) -> tuple[Cost, Dataset]:
    data = gaussians(10000 if hidden == 4 else 2000)
    return Cost(BinaryMLP(2, (hidden,), activation=ACTIVATION), data.x, data.y, squared_error), data


def digit_cost(first: int, second: int, side: int) -> tuple[Cost, Dataset]:
    data = digits(first, second, side)
    return Cost(BinaryMLP(side * side), data.x, data.y), data


INSTANCES: dict[str, Callable[[], tuple[Cost, Dataset]]] = {
    "G2": lambda: gaussian_cost(2),
    "Dg373": lambda: digit_cost(3, 7, 3),
    "Dg013": lambda: digit_cost(0, 1, 3),
    "Dg363": lambda: digit_cost(3, 6, 3),
    "G3": lambda: gaussian_cost(3),
    "Dg374": lambda: digit_cost(3, 7, 4),
    "Dg014": lambda: digit_cost(0, 1, 4),
    "Dg364": lambda: digit_cost(3, 6, 4),
    "G4": lambda: gaussian_cost(4),
}


def joint_cost() -> tuple[Cost, Dataset]:
    data = gaussians(2000)
    space = BinaryMLP(2, (Choice("width", (1, 2)),), activation=ACTIVATION, alphabet=ALPHABET)
    return Cost(space, data.x, data.y, squared_error), data


@cache
def tabled(name: str) -> tuple[Cost, Dataset, Tensor]:
    cost, data = joint_cost() if name == "joint" else INSTANCES[name]()
    return cost, data, cost.table()


def chosen() -> list[str]:
    names = [name for name in OWN.instances.split(",") if name]
    for name in names:
        if name not in INSTANCES:
            raise SystemExit(f"--instances: {name!r} is none of {', '.join(INSTANCES)}")
    return names or list(INSTANCES)


def cell(make: Callable[[], dict], **key: str | float) -> dict:
    """Return a result that is computed once and kept under the cache folder."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = OWN.cache / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())["result"]
    begin = time.process_time()
    result = make() | {"processor_seconds": time.process_time() - begin}
    write_atomic(path, json.dumps({"key": key, "result": result}))
    print(f"{' '.join(f'{k}={v}' for k, v in key.items())}: {result['processor_seconds']:.0f} s", file=sys.stderr, flush=True)
    return result


def trained(name: str, depth: int, restarts: int, objective: Objective, steps: int = 200) -> Trained:
    """Train restarts in blocks, each a cell."""
    _, _, table = tabled(name)
    ansatz = Ansatz(len(table).bit_length() - 1, depth)
    start = ansatz.random(restarts, Streams(0))
    block = 16 if ansatz.n > 14 else 50
    parts = []
    for first in range(0, restarts, block):

        def make(first: int = first) -> dict:
            found = train_adam(ansatz, table, start[first : first + block], steps=steps, lr=0.1, objective=objective)
            names = ("angles", "energy", "code", "cost", "optimum_mass", "evaluations")
            return {key: getattr(found, key).tolist() for key in names}

        label = getattr(objective, "label", None) or objective.__name__
        parts.append(
            cell(
                make,
                part="depth",
                instance=name,
                depth=depth,
                first=first,
                last=min(first + block, restarts),
                steps=steps,
                objective=label,
            )
        )

    def joined(key: str, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.cat([torch.tensor(part[key], dtype=dtype) for part in parts])

    return Trained(
        ansatz,
        joined("angles", torch.float32),
        joined("energy"),
        joined("code", torch.int64),
        joined("cost"),
        joined("optimum_mass"),
        joined("evaluations", torch.int64),
    )


def interior(shares: dict[int, tuple[float, int]]) -> dict[str, float]:
    """Say whether the best depth is inside the range: differences to the end points in standard errors."""
    best = max(shares, key=lambda d: shares[d][0])
    p, n = shares[best]
    out: dict[str, float] = {"best depth": float(best)}
    for end in (min(shares), max(shares)):
        q, m = shares[end]
        pooled = (p * n + q * m) / (n + m)
        spread = math.sqrt(max(pooled * (1 - pooled) * (1 / n + 1 / m), 1e-12))
        out[f"z against depth {end}"] = (p - q) / spread
    return out


def depth_rows(options: argparse.Namespace) -> list[Row]:
    names, depths = (["Dg373"], (1, 4)) if options.quick else (chosen(), DEPTHS)
    rows = []
    for name in names:
        table, shares, before = tabled(name)[2], {}, time.process_time()
        restarts = 8 if options.quick else 200 if len(table) <= 2**14 else 64
        for depth in depths:
            found = trained(name, depth, restarts, energy, 40 if options.quick else 200)
            s = success(found, table)
            shares[depth] = (s.energy.value, restarts)
            notes = {"instance": name, "depth": depth, "restarts": restarts}
            notes |= {
                k: {"value": r.value, "low": r.low, "high": r.high}
                for k, r in (("energy", s.energy), ("top", s.top), ("sampled", s.sampled))
            }
            notes["median_gap"] = float((found.energy - table.min()).median())
            peers = {"S_top": s.top.value, "S_100 shots": s.sampled.value, "low": s.energy.low, "high": s.energy.high}
            claim = f"{name} (n={found.ansatz.n}) depth {depth}: share of {restarts} restarts within 1 % of the optimum"
            rows.append(Row(claim, s.energy.value, (s.energy.high - s.energy.low) / 2, "", None, ">=", peers, 0.0, notes))
        if name == "Dg373" and 8 in shares:
            rows.append(Row("Dg373: success at depth 8 minus depth 1", shares[8][0] - shares[1][0], None, "", 0.3, ">="))
        test = interior(shares)
        rows.append(
            Row(
                f"{name}: depth of the highest success (z of its difference to both ends beside it)",
                test.pop("best depth"),
                peers=dict(test),
            )
        )
        rows[-1].seconds = time.process_time() - before
    return rows


def joint_rows(options: argparse.Namespace) -> list[Row]:
    cost, _, table = tabled("joint")
    restarts, rows, shares = (8, [], {}) if options.quick else (200, [], {})
    tail = tail_mean(0.1)
    tail.label = "tail mean 0.1"  # type: ignore[attr-defined]
    plan = [(energy, "energy", depth) for depth in ((4,) if options.quick else DEPTHS)] + [
        (tail, "tail mean of the best tenth", d) for d in ((4,) if options.quick else (2, 4, 8))
    ]
    for objective, label, depth in plan:
        found = trained("joint", depth, restarts, objective, 40 if options.quick else 200)
        s = success(found, table)
        shares[label, depth] = s.top
        notes = {
            k: {"value": r.value, "low": r.low, "high": r.high} for k, r in (("energy", s.energy), ("top", s.top), ("sampled", s.sampled))
        }
        claim = f"width, activation, alphabet (n={cost.space.n}) depth {depth}, {label}: share of {restarts} restarts whose top network is the optimum"
        rows.append(
            Row(claim, s.top.value, None, "", None, ">=", {"low": s.top.low, "high": s.top.high, "S_E": s.energy.value}, 0.0, notes)
        )
    for label in ("energy", "tail mean of the best tenth"):
        (_, depth), best = max(((key, rate) for key, rate in shares.items() if key[0] == label), key=lambda item: item[1].value)
        peers = {"depth": depth, "low": best.low, "high": best.high}
        target = None if options.quick else 0.3
        rows.append(Row(f"width, activation, alphabet: best depth <= 16, {label}", best.value, None, "", target, ">=", peers))
    exact = truth(table)
    winner = cost.space.describe(int(exact.codes[0]))
    rows.append(
        Row("width, activation, alphabet: enumerated optimum", exact.optimum, notes={"network": winner, "optima": len(exact.codes)})
    )
    print(f"optimum of the joint search: {winner}", file=sys.stderr)
    return rows


def noise_rows(options: argparse.Namespace) -> list[Row]:
    name, depth, trajectories = "Dg373", 4 if options.quick else 8, 50 if options.quick else 2000
    table = tabled(name)[2]
    found = trained(name, depth, 8 if options.quick else 200, energy, 40 if options.quick else 200)
    angles, best = found.angles[int(found.energy.argmin())].double(), float(table.min())
    rows = []
    for step in (0, 10) if options.quick else range(11):
        scale, rng = step / 5, Streams(step)

        def make(scale: float = scale, rng: Streams = rng) -> dict:
            p = noisy_born(found.ansatz, angles, Depolarising().scaled(scale), trajectories, rng("noise"))
            means = p @ table
            codes = sample(p.mean(0), 1000, rng("shots"))
            good = p[:, table <= best * 1.01].sum(1)
            return {
                "mean": float(means.mean()),
                "error": float(means.std() / math.sqrt(trajectories)),
                "good": float(good.mean()),
                "least": float(table[codes].min()),
            }

        r = cell(make, part="noise", instance=name, depth=depth, scale=scale, trajectories=trajectories)
        peers = {"within 1 % of the optimum": r["good"], "least of 1000 shots - optimum": r["least"] - best}
        rows.append(Row(f"{name} depth {depth}: mean cost at noise scale {scale:g}", r["mean"], r["error"], "", None, "<=", peers))
    return rows


def classical_share(name: str, method: Callable, calls: int, runs: int) -> float:
    """Share of runs of a search that find the optimum."""
    cost, _, table = tabled(name)
    near = float(table.min() + 1e-12 * (table.max() - table.min()))

    def make() -> dict:
        asked = cost if method is straight_through else Oracle.of_table(table)
        found = method(asked, calls=calls, runs=runs, generator=Streams(0)("search"))
        assert int(found.calls.max()) == calls
        return {"share": float((found.cost <= near).double().mean())}

    return cell(make, part="classical", instance=name, calls=calls, runs=runs, method=method.__name__)["share"]


def shots_share(name: str, calls: int, runs: int) -> float:
    """Share of runs in which a circuit trained on shots measures the optimum: depth 2, real, 2 shots a circuit, Adam 0.3."""
    table = tabled(name)[2]
    near = float(table.min() + 1e-12 * (table.max() - table.min()))

    def make() -> dict:
        ansatz, hits = Ansatz(len(table).bit_length() - 1, 2, phases=False), 0
        steps = max(1, calls // (2 * ansatz.parameters * 2))
        for seed in range(runs):
            oracle, rng = Oracle.of_table(table), Streams(seed)
            train_shots(ansatz, oracle, ansatz.random(1, rng)[0], shots=2, steps=steps, lr=0.3, generator=rng("shots"))
            hits += oracle.best_cost <= near
        return {"share": hits / runs}

    return cell(make, part="classical", instance=name, calls=calls, runs=runs, method="shots")["share"]


def classical_rows(options: argparse.Namespace) -> list[Row]:
    names, runs = ["Dg373"] if options.quick else chosen(), 20 if options.quick else 200
    rows = []
    for name in names:
        n = tabled(name)[0].space.n
        for calls in (256,) if options.quick else (256, 1024) if n <= 14 else (256, 1024, 4096):
            methods = (random_search, annealing, genetic, reinforce)
            shares: dict[str, float | str] = {method.__name__: classical_share(name, method, calls, runs) for method in methods}
            few = 20 if n > 14 or options.quick else 50
            if name != "G4" or calls == 256:
                shares[f"straight_through ({few} runs, by gradients)"] = classical_share(name, straight_through, calls, few)
            if n <= 14:
                shares[f"hypernetwork by shots ({few} runs)"] = shots_share(name, calls, few)
            local = classical_share(name, local_search, calls, runs)
            claim = f"{name} (n={n}), {calls} cost calls: share of {runs} runs that find the optimum, restarted local search"
            rows.append(Row(claim, local, None, "", None, ">=", shares))
    return rows


def wide_rows(options: argparse.Namespace) -> list[Row]:
    """8 x 8 digits: 65 bits, no enumeration; the same number of cost calls for all but straight-through training's use of gradients."""
    data = digits(3, 7, 8)
    cost = Cost(BinaryMLP(64), data.x, data.y)
    shots, steps, seeds = (16, 5, 1) if options.quick else (64, 300, 5)
    calls, found = shots * steps, {}

    def one(name: str, seed: int, search: Callable[[], Tensor]) -> None:
        def make() -> dict:
            bits = search().unsqueeze(0)
            return {
                "test": float(cost.accuracy(bits, data.x_test, data.y_test)),
                "train": float(cost.accuracy(bits, data.x, data.y)),
                "cost": float(cost(bits)),
            }

        found.setdefault(name, []).append(cell(make, part="wide", method=name, seed=seed, calls=calls))

    for seed in range(seeds):
        for depth in (1, 2, 4):

            def circuit(depth: int = depth, seed: int = seed) -> Tensor:
                rng, oracle, ansatz = Streams(seed), Oracle(cost, 65), Ansatz(65, depth, phases=False)
                train_score(ansatz, oracle, ansatz.random(1, rng)[0], shots=shots, steps=steps, lr=0.1, generator=rng("shots"))
                assert oracle.calls == calls
                return oracle.best_bits

            one(f"hypernetwork depth {depth}", seed, circuit)
        for search in (local_search, annealing, genetic, reinforce, straight_through):

            def classical(search: Callable = search, seed: int = seed) -> Tensor:
                asked = cost if search is straight_through else Oracle(cost, 65)
                return search(asked, calls=calls, runs=1, generator=Streams(seed)("search")).bits[0]

            one(search.__name__, seed, classical)
    rows = []
    for name, cells in found.items():
        test, train = torch.tensor([c["test"] for c in cells]), torch.tensor([c["cost"] for c in cells])
        error = float(test.std() / math.sqrt(seeds)) if seeds > 1 else None
        peers = {
            "training cost": float(train.mean()),
            "least": float(train.min()),
            "train accuracy": sum(c["train"] for c in cells) / seeds,
        }
        rows.append(
            Row(
                f"8x8 digits 3-vs-7, n=65, {calls} calls, {seeds} seeds: test accuracy, {name}",
                float(test.mean()),
                error,
                "",
                None,
                ">=",
                peers,
            )
        )
    return rows


def main(options: argparse.Namespace) -> list[Row]:
    """Quantum hypernetworks against the exact optimum and against classical search."""
    parts = {"depth": depth_rows, "joint": joint_rows, "noise": noise_rows, "classical": classical_rows, "wide": wide_rows}
    rows = []
    for name in OWN.parts.split(","):
        if name not in parts:
            raise SystemExit(f"--parts: {name!r} is none of {', '.join(parts)}")
        rows += parts[name](options)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    run("hypernetwork", main)
