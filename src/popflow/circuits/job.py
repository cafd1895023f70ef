"""The job behind ``popflow search``: a task, a search space, a circuit; exact truth, depth curve and classical search beside it."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from popflow.circuits import search as classical
from popflow.circuits.ansatz import Ansatz, all_to_all, brick, cx, cz, linear, ring
from popflow.circuits.cost import Cost, Truth, cross_entropy, squared_error, truth
from popflow.circuits.data import Dataset, check_pair, digits, gaussians, mnist
from popflow.circuits.export import draw, qasm3
from popflow.circuits.hypernetwork import Trained, energy, evaluate, free_energy, success, tail_mean, train_adam, train_lbfgs, wilson
from popflow.circuits.oracle import Oracle
from popflow.circuits.space import ACTIVATIONS, BinaryMLP, Choice, bits_of
from popflow.circuits.statevector import born
from popflow.circuits.walsh import quadratic
from popflow.core import Streams
from popflow.core.checkpoint import write_atomic
from popflow.core.errors import unknown
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, figures

_LOSSES = {"cross-entropy": cross_entropy, "squared": squared_error}
_ENTANGLERS = {"brick": brick, "linear": linear, "ring": ring, "all": all_to_all}
_GATES = {"cx": cx, "cz": cz}
_OBJECTIVES = {"energy": energy, "tail": tail_mean(0.1), "free-energy": free_energy(lambda progress: 0.1 * (1 - progress))}
_SEARCHES = {
    "restarted local search": classical.local_search,
    "simulated annealing": classical.annealing,
    "genetic": classical.genetic,
    "REINFORCE, product distribution": classical.reinforce,
    "random": classical.random_search,
}
_COMFORTABLE = 18


@dataclass(frozen=True)
class SearchConfig:
    """What ``popflow search`` takes; every field is an option.

    Attributes:
        data: ``digits:A,B`` or ``digits:A,B:SIDE`` (scikit-learn's 8 x 8 digits, pooled; without a side, the finest of 8, 4, 3, 2 that keeps
            the network within 18 bits), ``gaussians`` or ``gaussians:POINTS``, ``mnist:A,B:FOLDER`` (the user's files, 4 x 4).
        net: ``logistic``, ``mlp:WIDTH``, or ``mlp:W1-W2`` to choose the width.
        activation: Activations to choose from (hidden layers only).
        alphabet: Pairs ``LOW,HIGH`` of values of weights and biases to choose from.
        loss: Of a prediction.
        depth: Layers of the circuit.
        restarts: Trainings from random angles.
        steps: Adam steps, or L-BFGS iterations at most.
        lr: Learning rate of Adam.
        optimiser: ``adam`` in float32, all restarts side by side, or ``lbfgs`` in float64, one after another.
        objective: ``energy``, ``tail`` (mean of the best tenth of the measurements) or ``free-energy`` (annealed from T = 0.1).
        entangler: Pairs that a layer couples.
        gate: Two-qubit gate.
        phases: With R_z; without, amplitudes are real.
        curve: Depths of the depth curve; the depth itself is always one of them.
        calls: Cost calls of each classical run.
        runs: Classical runs.
        seed: Of the random streams.
    """

    data: str = "digits:3,7"
    net: str = "logistic"
    activation: tuple[str, ...] = ("relu", "sigmoid")
    alphabet: tuple[str, ...] = ("-1,1",)
    loss: Literal["cross-entropy", "squared"] = "cross-entropy"
    depth: int = 6
    restarts: int = 64
    steps: int = 200
    lr: float = 0.1
    optimiser: Literal["adam", "lbfgs"] = "adam"
    objective: Literal["energy", "tail", "free-energy"] = "energy"
    entangler: Literal["brick", "linear", "ring", "all"] = "brick"
    gate: Literal["cx", "cz"] = "cx"
    phases: bool = True
    curve: tuple[int, ...] = (1, 2, 4)
    calls: int = 1024
    runs: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("depth", "restarts", "steps", "calls", "runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted at least 1.")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr}: wanted a finite learning rate above 0.")
        if any(depth < 1 for depth in self.curve):
            raise ValueError(f"curve={self.curve}: wanted depths of at least 1.")
        if self.optimiser == "lbfgs" and self.objective == "free-energy":
            raise ValueError("objective='free-energy' is annealed over the steps, which L-BFGS does not count. Fix: optimiser adam.")
        for name in self.activation:
            if name not in ACTIVATIONS:
                raise ValueError(unknown("activation", name, ACTIVATIONS))
        _alphabets(self.alphabet)
        _net(self, 1)
        _data(self.data)


def run(config: SearchConfig, run: Run) -> Report:
    """Search, and compare with the exact optimum and with classical search."""
    cost, data = task(config)
    run.log(f"{data.name}, {cost.space.n} bits")
    table = _table(cost, run)
    exact = truth(table)
    depths = sorted({*config.curve, config.depth})
    trained = {depth: _trained(config, run, table, depth) for depth in depths}
    found = trained[config.depth]
    best = found.best()
    bits = bits_of(found.code[best : best + 1], cost.space.n)
    text = "".join(map(str, bits[0].tolist()))
    network = cost.space.describe(text)
    write_atomic(run.path / "network.json", json.dumps({"bits": text, "names": cost.space.names, **network}, indent=1) + "\n")
    write_atomic(run.path / "circuit.qasm", qasm3(found.ansatz, found.angles[best]) + "\n")
    tolerance = 1e-12 * float(table.max() - table.min())
    reached = float(found.cost[best]) <= exact.optimum + tolerance
    p = born(found.ansatz, found.angles[best].double().to(run.device)).cpu()
    results = {
        "cost of the network": float(found.cost[best]),
        "exact optimum": exact.optimum,
        "least energy of a restart": float(found.energy.min()),
        "training accuracy": float(cost.accuracy(bits, data.x, data.y)),
        "optimum: training accuracy": float(cost.accuracy(bits_of(exact.codes[:1], cost.space.n), data.x, data.y)),
        "bits": cost.space.n,
        "circuit parameters": found.ansatz.parameters,
    }
    if len(data.y_test):
        results["test accuracy"] = float(cost.accuracy(bits, data.x_test, data.y_test))
    gap = float(found.cost[best]) - exact.optimum
    place = int((table < found.cost[best] - tolerance).sum())
    return Report(
        title=f"Binary networks for {data.name}: a quantum hypernetwork of depth {config.depth}",
        summary=(
            f"A circuit on {cost.space.n} qubits, simulated exactly, whose measurement is a binary network ({config.net}; choices: "
            f"{', '.join(choice.name for choice in cost.space.choices) or 'none'}). {config.restarts} trainings from random angles.\n\n"
            f"All 2^{cost.space.n} = {2**cost.space.n:,} networks were enumerated, so that the optimum is known; at this size enumeration "
            "and restarted local search are the practical methods, and the circuit is the object of study: its simulation uses "
            "every cost at every step."
        ),
        verdict=Verdict(
            reached,
            "the most probable network of the best restart is an exact optimum"
            if reached
            else f"the best restart ends {gap:.3g} above the exact optimum; {place} networks are better",
            "the network found costs what the enumerated optimum costs",
        ),
        figure=_histogram(table, found, exact),
        comparison=(_classical(config, cost, table, found, exact), _curve(trained, table), _network_table(network)),
        diagnostics=(_curve_figure(trained, table), _distribution(p, table, cost.space), _landscape(table, exact), _drawing(found.ansatz)),
        results={name: Measured(value) for name, value in results.items()},
        files={
            "network.json": "the network found: choices, weights and biases",
            "circuit.qasm": "its circuit, OpenQASM 3; counts measured elsewhere go to popflow.circuits.evaluate_counts",
            "table.safetensors": "the cost of every network",
            **{f"depth_{depth}.safetensors": f"angles and figures of the restarts at depth {depth}" for depth in depths},
        },
        next=(f"popflow cite {run.path}",),
    )


def task(config: SearchConfig) -> tuple[Cost, Dataset]:
    """Return the cost and the data that a configuration names."""
    make = _data(config.data)
    sides = (8, 4, 3, 2) if make is None else (0,)
    for side in sides:
        if make is None:
            _, pair = config.data.split(":")
            first, second = map(int, pair.split(","))
            data = digits(first, second, side)
        else:
            data = make()
        space = _net(config, data.x.shape[1])
        if make is not None or space.n <= _COMFORTABLE or side == sides[-1]:
            return Cost(space, data.x, data.y, _LOSSES[config.loss]), data
    raise AssertionError("unreachable: the last side always returns")


def _data(text: str) -> Callable[[], Dataset] | None:
    """Return what makes a named data set; None for digits whose side is to be chosen."""
    if found := re.fullmatch(r"digits:(\d),(\d)(?::(\d+))?", text):
        first, second, side = found.groups()
        check_pair(int(first), int(second))
        return None if side is None else lambda: digits(int(first), int(second), int(side))
    if found := re.fullmatch(r"gaussians(?::(\d+))?", text):
        return lambda: gaussians(int(found[1] or 2000))
    if found := re.fullmatch(r"mnist:(\d),(\d):(.+)", text):
        check_pair(int(found[1]), int(found[2]))
        return lambda: mnist(Path(found[3]), int(found[1]), int(found[2]))
    kind = text.split(":", maxsplit=1)[0]
    forms = {"digits": "digits:3,7 or digits:3,7:4", "gaussians": "gaussians:2000", "mnist": "mnist:3,7:FOLDER"}
    if kind in forms:
        raise ValueError(f"data={text!r}, wanted {forms[kind]}.")
    raise ValueError(unknown("data", kind, forms))


def _alphabets(texts: tuple[str, ...]) -> tuple[tuple[float, float], ...]:
    out = []
    for text in texts:
        try:
            low, high = map(float, text.split(","))
        except ValueError:
            raise ValueError(f"alphabet={text!r}, wanted two numbers LOW,HIGH such as -1,1.") from None
        out.append((low, high))
    return tuple(out)


def _net(config: SearchConfig, inputs: int) -> BinaryMLP:
    alphabets = _alphabets(config.alphabet)
    alphabet = alphabets[0] if len(alphabets) == 1 else Choice("alphabet", alphabets)
    if config.net == "logistic":
        return BinaryMLP(inputs, alphabet=alphabet)
    found = re.fullmatch(r"mlp:(\d+)(?:-(\d+))?", config.net)
    if not found:
        raise ValueError(f"net={config.net!r}, wanted logistic, mlp:WIDTH or mlp:NARROWEST-WIDEST, such as mlp:2 or mlp:1-3.")
    low, high = int(found[1]), int(found[2] or found[1])
    if not 1 <= low <= high:
        raise ValueError(f"net={config.net!r}: wanted widths of at least 1, the narrowest first.")
    width = low if low == high else Choice("width", tuple(range(low, high + 1)))
    functions = tuple(ACTIVATIONS[name] for name in config.activation)
    if not functions:
        raise ValueError("activation is empty, wanted at least one of " + ", ".join(ACTIVATIONS))
    activation = functions[0] if len(functions) == 1 else Choice("activation", functions)
    return BinaryMLP(inputs, (width,), activation=activation, alphabet=alphabet)


def _table(cost: Cost, run: Run) -> Tensor:
    if not run.has("table"):
        run.save("table", {"cost": cost.table(run.device).cpu()})
    return run.load("table")[0]["cost"]


def _trained(config: SearchConfig, run: Run, table: Tensor, depth: int) -> Trained:
    """Train the restarts of one depth, or read them where a run before has finished them."""
    stage = f"depth_{depth}"
    ansatz = Ansatz(len(table).bit_length() - 1, depth, _ENTANGLERS[config.entangler], _GATES[config.gate], config.phases)
    if not run.has(stage):
        run.progress(stage, 0, config.restarts)
        start = ansatz.random(config.restarts, Streams(config.seed)).to(run.device)
        costs, objective = table.to(run.device), _OBJECTIVES[config.objective]
        if config.optimiser == "adam":
            found = train_adam(ansatz, costs, start, steps=config.steps, lr=config.lr, objective=objective)
        else:
            found = train_lbfgs(ansatz, costs, start, steps=config.steps, objective=objective)
        run.save(stage, {"angles": found.angles.cpu(), "evaluations": found.evaluations})
        run.progress(stage, config.restarts, config.restarts)
    saved = run.load(stage)[0]
    found = evaluate(ansatz, saved["angles"], table, saved["evaluations"])
    s = success(found, table)
    shares = {"within_1_percent": s.energy.value, "top_is_optimal": s.top.value, "optimal_in_100_shots": s.sampled.value}
    run.metrics.add("depth", depth, {"least_energy": float(found.energy.min()), "median_energy": float(found.energy.median()), **shares})
    return found


def _histogram(table: Tensor, found: Trained, exact: Truth) -> Figure:
    image = figures.histogram({"all networks": table, "energy of the restarts": found.energy}, x_label="cost", bins=60)
    caption = (
        f"Cost of all {len(table):,} networks and energies of the restarts. The exact optimum is {exact.optimum:.6f}, at the left end."
    )
    return Figure(image, caption, "histograms of the cost of all networks and of the energies of the restarts")


def _classical(config: SearchConfig, cost: Cost, table: Tensor, found: Trained, exact: Truth) -> Table:
    near = exact.optimum + 1e-12 * float(table.max() - table.min())
    rows, runs = [], config.runs
    for name, method in _SEARCHES.items():
        r = method(Oracle.of_table(table), calls=config.calls, runs=runs, generator=Streams(config.seed)(name))
        rows.append((name, str(config.calls), str(wilson(int((r.cost <= near).sum()), runs)), float(r.cost.mean())))
    few = min(runs, 20)
    r = classical.straight_through(cost, calls=config.calls, runs=few, generator=Streams(config.seed)("straight-through"))
    rows.append(
        (f"straight-through training ({few} runs)", str(config.calls), str(wilson(int((r.cost <= near).sum()), few)), float(r.cost.mean()))
    )
    top = success(found, table).top
    calls = f"all 2^{cost.space.n} at each of {int(found.evaluations.double().mean())} steps"
    rows.append(("quantum hypernetwork, simulated", calls, str(top), float(found.cost.mean())))
    return Table(
        "Share of runs that find the exact optimum",
        ("search", "cost calls of a run", "share [95 % interval]", "mean cost of the network found"),
        tuple(rows),
        "A call is one network evaluated on the data. Straight-through training needs gradients besides and is one training for each setting of "
        "the choices. A simulated circuit uses the whole table at every step: its figure is not a matter of speed.",
        (len(rows) - 1,),
    )


def _curve(trained: dict[int, Trained], table: Tensor) -> Table:
    rows = []
    for depth, found in trained.items():
        s, gap = success(found, table), found.energy - table.min()
        rows.append((f"{depth}", str(s.energy), str(s.top), str(s.sampled), float(gap.median()), found.ansatz.parameters))
    head = ("depth", "E within 1 % of the optimum", "top network optimal", "optimum among 100 shots", "median E - optimum", "angles")
    note = "Shares of restarts with 95 % Wilson intervals. Depth 1 is a product state: the first entangling gates act on |0...0>."
    return Table("Success against depth", head, tuple(rows), note)


def _curve_figure(trained: dict[int, Trained], table: Tensor) -> Figure:
    rates = [success(found, table).top for found in trained.values()]
    value, low, high = (torch.tensor([getattr(rate, key) for rate in rates]) for key in ("value", "low", "high"))
    name = "top network is an optimum"
    depths = [float(depth) for depth in trained]
    image = figures.lines(depths, {name: value}, x_label="depth", y_label="share of restarts", bands={name: (low, high)})
    return Figure(
        image, "Share of restarts whose most probable network is an exact optimum, with 95 % Wilson intervals.", "success against depth"
    )


def _distribution(p: Tensor, table: Tensor, space: BinaryMLP) -> Table:
    likely, codes = p.topk(min(8, len(p)))
    tolerance = 1e-12 * float(table.max() - table.min())
    rows = [
        ("".join(map(str, bits_of(code, space.n).tolist())), float(q), float(table[code]), int((table < table[code] - tolerance).sum()))
        for q, code in zip(likely, codes, strict=True)
    ]
    return Table(
        "Born distribution of the best restart",
        ("network, parameter 0 first", "probability", "cost", "networks that are better"),
        tuple(rows),
        f"The {len(rows)} most probable of {len(p):,} networks; together {float(likely.sum()):.4f} of the probability.",
    )


def _landscape(table: Tensor, exact: Truth) -> Table:
    rows = (
        ("optimum", exact.optimum),
        ("networks that reach it", len(exact.codes)),
        ("second distinct cost", exact.second),
        ("mean and standard deviation", f"{exact.mean:.4f}, {exact.std:.4f}"),
        ("minima under one flip, under two", f"{exact.minima[0]}, {exact.minima[1]}"),
        ("share of networks from which descent finds the optimum", exact.basin),
        ("variance that pairs of bits do not explain", quadratic(table).residual),
    )
    return Table("The landscape, exactly", ("", "value"), rows, "From the cost of every network.")


def _network_table(network: dict) -> Table:
    return Table(
        "The network", ("part", "value"), tuple((name, str(value)) for name, value in network.items()), "Weights are rows of inputs."
    )


def _drawing(ansatz: Ansatz) -> Figure:
    lines = draw(ansatz, layers=2).splitlines()
    width, height = 8.43 * max(map(len, lines)) + 16, 18 * len(lines) + 16
    rows = "".join(f'<text x="8" y="{22 + 18 * i}" xml:space="preserve">{html.escape(line)}</text>' for i, line in enumerate(lines))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}">'
        f'<g font-family="DejaVu Sans Mono,monospace" font-size="14" fill="#1d1f23">{rows}</g></svg>'
    )
    caption = f"The circuit: {ansatz.n} qubits, {ansatz.depth} layers, {ansatz.parameters} angles. R is R_y{' and R_z' if ansatz.phases else ''}; {'* controls X' if ansatz.gate is cx else 'two * are CZ'}."
    return Figure("data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode(), caption, "circuit diagram")


@dataclass(frozen=True)
class DemoConfig:
    """Settings of ``popflow demo qhn``.

    Attributes:
        seed: Of the random streams.
        quick: Fewer restarts, within seconds.
        restarts: Trainings from random angles.
        depth: Layers of the circuit.
    """

    seed: int = 0
    quick: bool = False
    restarts: int = 64
    depth: int = 8


def demo(config: DemoConfig, run_directory: Run) -> Report:
    """Tell the digits 3 and 7 apart with nine weights of plus or minus one: the optimum of 1024 networks is known."""
    restarts, curve = (8, (1,)) if config.quick else (config.restarts, (1, 2, 4, 16))
    settings = SearchConfig(
        data="digits:3,7:3",
        depth=config.depth,
        restarts=restarts,
        curve=curve,
        calls=256,
        runs=20 if config.quick else 200,
        seed=config.seed,
    )
    return run(settings, run_directory)
