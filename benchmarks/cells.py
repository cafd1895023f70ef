"""Leave one time point out on three published sets of cells: the weighted Wasserstein-1 distance of the predicted from the true cells.

    embryoid       human embryoid bodies, 5 principal components, 5 times; held out k = 1, 2, 3; W1 in units of the standard deviations of all cells
    hematopoiesis  mouse, 2 dimensions, 3 times, mass grows fourfold; held out k = 1
    genes          simulated gene network with growth, 2 dimensions, 5 times; held out k = 1, 2, 3
    cost           seconds to a result of embryoid against torchcfm, and its distance
    scale          50 000 cells in 50 coordinates: peak memory of a fit and a push

Models see the training marginals alone, standardised by them. Ours predict in two ways: cells of the learned path at the held-out time
(`LagrangianFlow.interpolate`; the value of a row), and all cells of the training marginal before pushed along the learned velocity, with noise from
four copies of each ("pushed" in the notes, which is also how the peers that learn a velocity predict). Compared with at most 1500 true cells. Beside
it: previous marginal, exact-OT midpoint, midpoint of random pairs, sampling floor; torchcfm's OT-CFM and SF2M with networks, batches and steps like
ours (our bridges take half the steps); ott-jax: the midpoint of its entropic plan.

The row "chosen" takes for each held-out time the row of ours that is best on average when another inner marginal is left out besides: the held-out
marginal has no say in it. "best" is the row with the least mean on the held-out times themselves, as tables in the literature take it.

torchcfm is not in the extra `bench`, because what its demonstrations need (torchdyn, torchvision) clashes with torch for processors alone:
``pip install --no-deps torchcfm``.

Errors are standard errors over seeds. ``POPFLOW_CELLS_CACHE`` names a folder that keeps each result, so that a run may be done in pieces.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from harness import Row, dataset, run

from popflow.core import Population, Streams
from popflow.core.metrics import wasserstein
from popflow.transport import Snapshots
from popflow.transport.coupling import exact
from popflow.transport.evaluate import FLOOR, PREVIOUS, RANDOM, TRANSPORT, baselines, merged, neighbours, some
from popflow.transport.flow_matching import match
from popflow.transport.lagrangian import W2, WFR, Lagrangian, MeanAcceleration, VelocityPrior
from popflow.transport.lagrangian_flow import LagrangianFlow

PARTS = ("embryoid", "hematopoiesis", "genes", "cost", "scale")
DATA = dataset("cells")
STEPS, BATCH, WIDTH, CELLS = 500, 128, 64, 1500
SIGMA, COPIES = 0.2, 4  # noise in units of the standardised coordinates and the given times; copies of each cell that noise spreads
OT_CFM, CHOSEN = "OT-CFM", "chosen"


@dataclass(frozen=True)
class Model:
    """The action of a row."""

    lam: float = 0.0
    masses: bool = False
    noise: float = 0.0
    acceleration: bool = False
    velocity: bool = False
    smooth: bool = False  # velocities that the training marginals imply


MODELS = {
    "W2": Model(),
    "SB": Model(noise=SIGMA),
    "WFR": Model(lam=1.0),
    "WFR, lam 0.1": Model(lam=0.1),
    "WFR, masses from counts": Model(lam=1.0, masses=True),
    "WFR + acceleration": Model(lam=1.0, acceleration=True),
    "SB + acceleration": Model(noise=SIGMA, acceleration=True),
    "SB + velocity": Model(noise=SIGMA, velocity=True),
    "SB + smooth": Model(noise=SIGMA, smooth=True),
    "W2 + smooth": Model(smooth=True),
}


@dataclass(frozen=True)
class Task:
    """What is held out, and which rows are run."""

    held_out: tuple[int, ...]
    rows: tuple[str, ...]


TASKS = {
    "embryoid": Task((1, 2, 3), ("W2", "SB", "WFR, lam 0.1", "SB + acceleration", "SB + velocity", "SB + smooth")),
    "hematopoiesis": Task((1,), ("W2", "WFR", "WFR, masses from counts")),
    "genes": Task((1, 2, 3), ("W2", "W2 + smooth", "WFR", "WFR, lam 0.1", "WFR, masses from counts", "WFR + acceleration")),
}
PEERS = ("torchcfm OT-CFM", "torchcfm SF2M", "ott-jax")


def cells(part: str, most: int | None = None) -> Snapshots:
    """The published cells; embryoid bodies in units of the standard deviations of all of them, as reported in the literature.

    With ``most``, at most this many of each time, or generated ones where the files are absent: enough to show that the benchmark runs.
    """
    v = None
    if DATA is None:
        if most is None:
            raise SystemExit("no data: set POPFLOW_DATA to the folder of the data sets.")
        d = 5 if part == "embryoid" else 2
        t = np.arange(5).repeat(most)
        x = np.random.default_rng(0).normal(size=(len(t), d)) + t[:, None]
        v = np.ones_like(x)
    elif part == "embryoid":
        files = [np.load(DATA / f"embryoid_body_{name}.npz") for name in "ab"]
        x, t, v = (np.concatenate([file[key] for file in files]) for key in ("X", "ts", "v"))
        x, v = x[:, :5], v[:, :5]
        shift, scale = x.mean(0), x.std(0)
        x, v = (x - shift) / scale, v / scale
    else:
        name = {"hematopoiesis": "mouse_hematopoiesis.csv", "genes": "gene_network_growth.csv"}[part]
        columns = np.loadtxt(DATA / name, delimiter=",", skiprows=1)
        x, t = columns[:, 1:], columns[:, 0]
    if most is not None:
        keep = np.concatenate([np.flatnonzero(t == one)[:most] for one in np.unique(t)])
        x, t, v = x[keep], t[keep], None if v is None else v[keep]
    return Snapshots.of(torch.tensor(x).float(), t, masses="counts", velocity=None if v is None else torch.tensor(v).float())


def lagrangian(model: Model, snapshots: Snapshots) -> Lagrangian:
    """Return the Lagrangian of a row."""
    drift = None
    if model.velocity:  # RNA velocity knows directions; its speed is set so that it moves as far as the means do
        training = snapshots.training
        moved = torch.stack([x.mean(0) for x in training.x]).diff(dim=0).norm(dim=1).sum() / (training.times[-1] - training.times[0])
        speed = torch.cat(training.velocity).norm(dim=1).mean()
        drift = VelocityPrior.of(snapshots, bandwidth=1.0, strength=float(moved / speed))
    if model.smooth:
        drift = VelocityPrior.between(snapshots, bandwidth=1.0)
    kinetic = WFR(model.lam, normalized=not model.masses) if model.lam else W2()
    return Lagrangian(kinetic, noise=model.noise, potential=MeanAcceleration.of(snapshots) if model.acceleration else None, drift=drift)


def ours(row: str, snapshots: Snapshots, k: int, seed: int, steps: int, path_alone: bool) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Cells and weights predicted in either way, in the units of the snapshots that were given."""
    scaled, rng = snapshots.standardised(), Streams(seed)
    before, _ = neighbours(scaled, k)
    start, t0, t1 = scaled.x[before], float(scaled.times[before]), float(scaled.times[k])
    if row == OT_CFM:
        flow = match(scaled, rng=rng, coupling=exact, steps=steps, batch=BATCH, width=WIDTH, compile=False)
        found = {"w1": flow.push(Population.of(start), t0, t1, rng)}
    else:
        model = MODELS[row]
        if not model.masses:
            scaled = replace(scaled, mass=torch.ones_like(scaled.mass))
        sought = lagrangian(model, scaled)
        # a path in closed form needs no training
        steps = 1 if path_alone and sought.is_static else steps // 2 if model.noise else steps
        flow = LagrangianFlow(sought, width=WIDTH).fit(scaled, steps=steps, rng=rng, compile=False)
        found = {"w1": flow.interpolate(t1, 3 * CELLS, rng)}
        if not path_alone:
            found["pushed"] = flow.push(Population.of(start.repeat(COPIES if model.noise else 1, 1)), t0, t1, rng)
    return {name: (scaled.raw(pop.x), pop.weights()) for name, pop in found.items()}


def torchcfm(row: str, snapshots: Snapshots, k: int, seed: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The peer's samplers, with the loop, network, optimiser and integrator that ours has."""
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher, SchrodingerBridgeConditionalFlowMatcher

    from popflow.learn import MLP

    model = snapshots.standardised()
    training = model.training
    noisy = row == "torchcfm SF2M"
    np.random.seed(seed)  # noqa: NPY002  (torchcfm draws its pairs from numpy's global generator)
    torch.manual_seed(seed)
    d, spacing = training.dim, training.times.diff().tolist()
    first, span = float(training.times[0]), float(training.times[-1] - training.times[0])
    network = MLP(d, out=2 * d if noisy else d, width=WIDTH, depth=3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = torch.zeros(())
        for i, length in enumerate(spacing):
            x0, x1 = (x[torch.randint(len(x), (BATCH,))] for x in (training.x[i], training.x[i + 1]))
            if noisy:
                matcher = SchrodingerBridgeConditionalFlowMatcher(sigma=SIGMA * math.sqrt(length), ot_method="exact")
                t, xt, ut, eps = matcher.sample_location_and_conditional_flow(x0, x1, return_noise=True)
            else:
                matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
                t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
            out = network(xt, (float(training.times[i]) + t * length - first) / span)
            loss = loss + (out[:, :d] - ut / length).square().mean()
            if noisy:
                weight = matcher.compute_lambda(t)[:, None]
                loss = loss + (weight * out[:, d:] + eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    x = model.x[k - 1].repeat(COPIES if noisy else 1, 1)
    t0, t1 = float(model.times[k - 1]), float(model.times[k])
    count = 100
    step = (t1 - t0) / count
    with torch.no_grad():
        for i in range(count):
            out = network(x, (t0 + i * step - first) / span)
            # Drift of the bridge: flow plus sigma^2 / 2 score; their network scales the score so that it comes out as the drift's share.
            drift = out[:, :d] + (out[:, d:] / length_of(training, t0) if noisy else 0.0)
            x = x + step * drift + (SIGMA * math.sqrt(step) * torch.randn_like(x) if noisy else 0.0)
    return model.raw(x), torch.ones(len(x))


def length_of(training: Snapshots, t: float) -> float:
    """Length of the training interval that holds a time."""
    k = int(torch.searchsorted(training.times, torch.tensor(t, dtype=torch.float64), right=True)) - 1
    return float(training.times[k + 1] - training.times[k])


def ott(snapshots: Snapshots, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs drawn from the entropic plan of ott-jax (its own epsilon), interpolated at the fraction of time; growth is not modelled."""
    import jax
    from ott.geometry import pointcloud
    from ott.solvers import linear

    jax.config.update("jax_platforms", "cpu")
    model = snapshots.standardised()
    rng = Streams(seed)
    left, right = (some(model.x[i], CELLS, rng) for i in (k - 1, k + 1))
    plan = np.array(linear.solve(pointcloud.PointCloud(left.numpy(), right.numpy())).matrix)
    pair = torch.multinomial(torch.tensor(plan).flatten().double(), 2 * CELLS, replacement=True, generator=rng("pairs"))
    share = float((model.times[k] - model.times[k - 1]) / (model.times[k + 1] - model.times[k - 1]))
    at = (1 - share) * left[pair // len(right)] + share * right[pair % len(right)]
    return model.raw(at), torch.ones(len(at))


def distance(part: str, row: str, k: int, seed: int, steps: int, most: int | None = None, besides: int | None = None) -> dict:
    """W1 of one prediction, and the seconds it took, with another marginal left out ``besides``; kept in the cache."""

    def measure() -> dict:
        snapshots = cells(part, most).hold_out(k, *([] if besides is None else [besides]))
        begin = time.perf_counter(), time.process_time()
        if row == "ott-jax":
            found = {"w1": ott(snapshots, k, seed)}
        elif row.startswith("torchcfm"):
            found = {"w1": torchcfm(row, snapshots, k, seed, steps)}
        else:
            found = ours(row, snapshots, k, seed, steps, path_alone=besides is not None)
        spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
        rng = Streams(0)
        truth = some(snapshots.x[k], CELLS, rng)
        value = {"seconds": spent[0], "processor_seconds": spent[1]}
        for name, (x, weights) in found.items():
            if len(x) > 3 * CELLS:
                keep = rng.uniform("predicted", (len(x),)).argsort()[: 3 * CELLS]
                x, weights = x[keep], weights[keep]
            places, mass = merged(x, weights)
            value |= {name: float(wasserstein(places, truth, mass)), f"{name}, ess": float(weights.sum().square() / weights.square().sum())}
        return value

    return cached(measure, "w1", part, row, MODELS.get(row, SIGMA), k, besides, seed, steps, most)


def chosen(part: str, k: int, steps: int, most: int | None) -> str:
    """The row that is best, without marginal ``k``, at the other inner marginals, each left out in turn (seed 0)."""
    inner = [j for j in range(1, len(cells(part, most)) - 1) if j != k]
    inner = inner[:1] if most is not None else inner
    score = {row: statistics.mean(distance(part, row, j, 0, steps, most, k)["w1"] for j in inner) for row in TASKS[part].rows}
    return min(score, key=score.__getitem__)


def trivial(part: str, k: int, most: int | None = None) -> dict:
    """The baselines of one held-out time."""

    def measure() -> dict:
        return {name: one.w1 for name, one in baselines(cells(part, most).hold_out(k), k, rng=Streams(0), cells=CELLS)[2].items()}

    return cached(measure, "trivial", part, k, most)


def cached(measure: Callable[[], dict], *key: object) -> dict:
    """Measure, or read what an earlier piece of the run measured with the same settings."""
    folder = os.environ.get("POPFLOW_CELLS_CACHE")
    if not folder:
        return measure()
    file = Path(folder) / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.json"
    if not file.exists():
        value = measure()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"key": [str(one) for one in key], "value": value}))
        print(*key, {name: round(v, 4) for name, v in value.items()}, file=sys.stderr, flush=True)
    return json.loads(file.read_text())["value"]


def mean_error(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard error."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def table(part: str, seeds: int, steps: int, most: int | None) -> list[Row]:
    """Every row of one data set, ours and the peers', and the claims."""
    task = TASKS[part]
    held_out = task.held_out if most is None else task.held_out[:1]
    known = {k: trivial(part, k, most) for k in held_out}
    found: dict[str, dict[int, list[dict]]] = {}
    absent: dict[str, float | str] = {}
    for row in (*task.rows, OT_CFM, *PEERS):
        try:
            found[row] = {k: [distance(part, row, k, seed, steps, most) for seed in range(seeds)] for k in held_out}
        except ImportError as error:
            absent[row] = f"absent: {error}"
    picked = {k: chosen(part, k, steps, most) for k in held_out} if len(task.held_out) > 1 else {}
    if picked:
        found[CHOSEN] = {k: found[row][k] for k, row in picked.items()}

    def over(row: str, times: tuple[int, ...], way: str = "w1") -> tuple[float, float | None]:
        return mean_error([statistics.mean(found[row][k][seed][way] for k in times) for seed in range(seeds)])

    rows = []
    for row, by_time in found.items():
        notes = {"by time": {str(k): over(row, (k,)) for k in held_out}, "seeds": seeds, "steps": steps}
        if "pushed" in by_time[held_out[0]][0]:
            notes |= {"pushed": over(row, held_out, "pushed"), "pushed, by time": {str(k): over(row, (k,), "pushed") for k in held_out}}
        notes |= {"processor seconds of one": statistics.median(one["processor_seconds"] for k in held_out for one in by_time[k])}
        notes |= {"chosen": {str(k): name for k, name in picked.items()}} if row == CHOSEN else {}
        rows.append(Row(f"{part}: {row}, mean W1 over k = {', '.join(map(str, held_out))}", *over(row, held_out), notes=notes))

    def claim(name: str, row: str, way: str, times: tuple[int, ...], target: float) -> Row:
        peers: dict[str, float | str] = {n: statistics.mean(known[k][n] for k in times) for n in (PREVIOUS, TRANSPORT, RANDOM, FLOOR)}
        peers |= {peer: over(peer, times)[0] for peer in (*PEERS, OT_CFM) if peer in found} | absent
        return Row(f"{part}: {name} ({row}{', pushed' if way == 'pushed' else ''})", *over(row, times, way), target=target, peers=peers)

    def best(times: tuple[int, ...], among: tuple[str, ...]) -> tuple[str, str]:
        return min(((row, way) for row in among for way in ("w1", "pushed")), key=lambda pair: over(pair[0], times, pair[1])[0])

    if part == "embryoid":
        rows += [claim("mean W1, rows chosen by inner times", CHOSEN, "w1", held_out, 0.85)]
        rows += [claim("mean W1, best single row", *best(held_out, task.rows), held_out, 0.85)]
    elif part == "hematopoiesis":
        rows.append(claim("unbalanced, W1 at k = 1", *best(held_out, task.rows[1:]), held_out, 0.30))
    else:
        targets = {1: 0.163, 2: 0.261, 3: 0.260}
        rows += [claim(f"W1 at k = {k}, row chosen by inner times", CHOSEN, "w1", (k,), targets[k]) for k in held_out]
        rows += [claim(f"W1 at k = {k}, best row", *best((k,), task.rows), (k,), targets[k]) for k in held_out]
    return rows


def cost(seeds: int, steps: int, most: int | None) -> list[Row]:
    """Processor time to a held-out distance on embryoid bodies, ours and torchcfm's, at several numbers of steps."""
    rows, k = [], 2
    for row in ("W2", OT_CFM, "torchcfm OT-CFM"):
        for count in (steps // 4, steps):
            try:
                one = [distance("embryoid", row, k, seed, count, most) for seed in range(seeds)]
            except ImportError as error:
                rows.append(Row(f"cost: {row}", float("nan"), notes={"absent": str(error)}))
                break
            seconds, error = mean_error([value["processor_seconds"] for value in one])
            w1 = mean_error([value.get("pushed", value["w1"]) for value in one])
            rows.append(Row(f"cost: {row}, {count} steps, training and push", seconds, error, "s of one core", notes={"W1 at k = 2": w1}))
    return rows


SCALE = f"""
import sys, time, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from memory import read
from popflow.core import Streams
from popflow.transport import Snapshots
from popflow.transport.lagrangian import Lagrangian
from popflow.transport.lagrangian_flow import LagrangianFlow
torch.set_num_threads(1)
for n in map(int, sys.argv[1:]):
    begin, g = time.perf_counter(), torch.Generator().manual_seed(0)
    s = Snapshots.of([torch.randn(n // 5, 50, generator=g) + i for i in range(5)])
    flow = LagrangianFlow(Lagrangian()).fit(s, steps=20, rng=Streams(0), compile=False)
    for x in s.x[0].split(8192):
        flow.push(x, 0.0, 1.0, Streams(0), steps=5)
    print(read("VmHWM"), time.perf_counter() - begin)  # ru_maxrss would count the process that started this one
"""


def scale(quick: bool) -> list[Row]:
    """Peak memory of a fit and a push at 50 coordinates, with few cells and with 50 000."""
    sizes = (100, 200) if quick else (2000, 50_000)
    done = subprocess.run([sys.executable, "-c", SCALE, *map(str, sizes)], capture_output=True, text=True, check=True)
    (few, _), (many, seconds) = (map(float, line.split()) for line in done.stdout.splitlines())
    notes = {"cells": sizes, "peak with the few, MiB": few}
    return [Row(f"scale: memory that {max(sizes)} cells in 50 coordinates add", many - few, None, "MiB", seconds=seconds, notes=notes)]


def main(options: argparse.Namespace) -> list[Row]:
    """Leave-one-time-point-out distances on published cells."""
    torch.set_num_threads(1)
    seeds, steps, most = (1, 4, 40) if options.quick else (options.seeds, STEPS, None)
    rows = []
    for part in options.only:
        if part in TASKS:
            rows += table(part, seeds, steps, most)
        else:
            rows += cost(seeds, steps, most) if part == "cost" else scale(options.quick)
    return rows


if __name__ == "__main__":
    run("cells", main, seeds=5, parts=PARTS)
