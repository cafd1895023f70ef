"""The report of ``popflow search``: the network found beside the exact optimum, the depth curve and classical search."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.circuits.ansatz import Ansatz, cx
from popflow.circuits.config import SearchConfig
from popflow.circuits.cost import Cost, Truth, idle_bits, resolution
from popflow.circuits.data import Dataset
from popflow.circuits.export import draw
from popflow.circuits.hypernetwork import Trained, success
from popflow.circuits.search import Found
from popflow.circuits.space import bits_of
from popflow.circuits.statevector import born
from popflow.circuits.walsh import walsh_weights
from popflow.core import wilson
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, figures


@dataclass(frozen=True)
class SearchResult:
    """The results of a search.

    Attributes:
        config: The settings.
        cost: Cost of a network.
        data: What the networks classify.
        table: ``[2^n]`` cost of every network.
        exact: Exact properties of the table.
        trained: Restarts by depth.
        classical: Runs of each classical search by name.
    """

    config: SearchConfig
    cost: Cost
    data: Dataset
    table: Tensor
    exact: Truth
    trained: dict[int, Trained]
    classical: dict[str, Found]

    @property
    def found(self) -> Trained:
        """The restarts at the depth of the search."""
        return self.trained[self.config.depth]

    @property
    def code(self) -> int:
        """The network found, the most probable one of the best restart."""
        return int(self.found.code[self.found.best()])

    @property
    def angles(self) -> Tensor:
        """Angles ``[depth, n, r]`` of the best restart."""
        return self.found.angles[self.found.best()]


def report(result: SearchResult, run: Run) -> Report:
    """Return the report of a search."""
    config, space = result.config, result.cost.space
    return Report(
        title=f"Binary networks for {result.data.name}: a quantum hypernetwork of depth {config.depth}",
        summary=(
            f"A circuit on {space.n} qubits, simulated exactly, whose measurement is a binary network ({config.net}; choices: "
            f"{', '.join(choice.name for choice in space.choices) or 'none'}). It was trained {config.restarts} times from random angles.\n\n"
            f"All 2^{space.n} = {2**space.n:,} networks were enumerated, so the optimum is known. At this size enumeration and restarted local "
            "search are the practical methods, and the circuit is the object of study: its simulation uses every cost at every step."
        ),
        verdict=_verdict(result),
        figure=_histogram(result),
        comparison=(_classical(result), _depth_curve(result), _network(result)),
        diagnostics=(_depth_figure(result), _born_distribution(result, run), _landscape(result), _drawing(result.found.ansatz)),
        results={name: Measured(value) for name, value in _results(result).items()},
        files={
            "network.json": "the network found: choices, weights and biases",
            "circuit.qasm": "its circuit in OpenQASM 3; counts measured elsewhere go to popflow.circuits.evaluate_counts",
            "table.safetensors": "the cost of every network",
            **{f"depth_{depth}.safetensors": f"angles of the restarts at depth {depth}" for depth in result.trained},
        },
    )


def _verdict(result: SearchResult) -> Verdict:
    gap = float(result.found.cost.min()) - result.exact.optimum
    better = int((result.table < result.found.cost.min() - resolution(result.table)).sum())
    reached = gap <= resolution(result.table)
    statement = (
        "the most probable network of the best restart is an exact optimum"
        if reached
        else f"the best restart ends {gap:.3g} above the exact optimum; {better} networks are better"
    )
    return Verdict(reached, statement, "the cost of the network found equals the enumerated optimum")


def _results(result: SearchResult) -> dict[str, float]:
    cost, data, found = result.cost, result.data, result.found
    network, optimum = bits_of(torch.tensor([[result.code], [int(result.exact.codes[0])]]), cost.space.n)
    results = {
        "cost of the network": float(found.cost.min()),
        "exact optimum": result.exact.optimum,
        "least energy of a restart": float(found.energy.min()),
        "training accuracy": float(cost.accuracy(network, data.x, data.y)),
        "optimum: training accuracy": float(cost.accuracy(optimum, data.x, data.y)),
        "bits": cost.space.n,
        "circuit parameters": found.ansatz.parameters,
    }
    if len(data.y_test):
        results["test accuracy"] = float(cost.accuracy(network, data.x_test, data.y_test))
    return results


def _histogram(result: SearchResult) -> Figure:
    image = figures.histogram({"all networks": result.table, "energy of the restarts": result.found.energy}, x_label="cost", bins=60)
    caption = (
        f"Cost of all {len(result.table):,} networks, and energies of the restarts. The exact optimum, {result.exact.optimum:.6f}, is the "
        "left end."
    )
    return Figure(image, caption, "histograms of the cost of all networks and of the energies of the restarts")


def _classical(result: SearchResult) -> Table:
    near, rows = result.exact.optimum + resolution(result.table), []
    for name, one in result.classical.items():
        runs = len(one.cost)
        label = name if runs == result.config.runs else f"{name} ({runs} runs)"
        rows.append((label, str(result.config.calls), str(wilson(int((one.cost <= near).sum()), runs)), float(one.cost.mean())))
    found = result.found
    calls = f"all 2^{result.cost.space.n} at each of {int(found.evaluations.double().mean())} steps"
    rows.append(("quantum hypernetwork, simulated", calls, str(success(found, result.table).top), float(found.cost.mean())))
    return Table(
        "Share of runs that find the exact optimum",
        ("search", "cost calls of a run", "share [95 % interval]", "mean cost of the network found"),
        tuple(rows),
        "A call evaluates one network on the data. Straight-through training also needs gradients, and trains once for each setting of the "
        "choices. A simulated circuit uses the whole table at every step, so its share says nothing about speed.",
        (len(rows) - 1,),
    )


def _depth_curve(result: SearchResult) -> Table:
    rows = []
    for depth, found in result.trained.items():
        s, gap = success(found, result.table), found.energy - result.table.min()
        rows.append((f"{depth}", str(s.energy), str(s.top), str(s.sampled), float(gap.median()), found.ansatz.parameters))
    head = ("depth", "E within 1 % of the optimum", "top network optimal", "optimum among 100 shots", "median E - optimum", "angles")
    note = "Shares of restarts with 95 % Wilson intervals. Depth 1 is a product state: the first entangling gates act on |0...0>."
    return Table("Success against depth", head, tuple(rows), note)


def _depth_figure(result: SearchResult) -> Figure:
    rates = [success(found, result.table).top for found in result.trained.values()]
    value, low, high = (torch.tensor([getattr(rate, key) for rate in rates]) for key in ("value", "low", "high"))
    name = "top network is an optimum"
    depths = [float(depth) for depth in result.trained]
    image = figures.lines(depths, {name: value}, x_label="depth", y_label="share of restarts", bands={name: (low, high)})
    caption = "Share of restarts whose most probable network is an exact optimum, with 95 % Wilson intervals."
    return Figure(image, caption, "success against depth")


def _network(result: SearchResult) -> Table:
    rows = tuple((name, str(value)) for name, value in result.cost.space.describe(result.code).items())
    return Table("The network", ("part", "value"), rows, "A row of weights belongs to one input.")


def _born_distribution(result: SearchResult, run: Run) -> Table:
    table, n = result.table, result.cost.space.n
    p = born(result.found.ansatz, result.angles.double().to(run.device)).cpu()
    likely, codes = p.topk(min(8, len(p)))
    rows = [
        (f"{code:0{n}b}", float(q), float(table[code]), int((table < table[code] - resolution(table)).sum()))
        for q, code in zip(likely, codes.tolist(), strict=True)
    ]
    return Table(
        "Born distribution of the best restart",
        ("network, parameter 0 first", "probability", "cost", "networks that are better"),
        tuple(rows),
        f"The {len(rows)} most probable of {len(p):,} networks; together they have probability {float(likely.sum()):.4f}.",
    )


def _landscape(result: SearchResult) -> Table:
    exact = result.exact
    rows = (
        ("optimum", exact.optimum),
        ("networks that reach it", len(exact.codes)),
        ("second distinct cost", exact.second),
        ("mean and standard deviation", f"{exact.mean:.4f}, {exact.std:.4f}"),
        ("minima under one flip, under two", f"{exact.minima[0]}, {exact.minima[1]}"),
        ("share of networks from which descent finds the optimum", exact.basin),
        ("variance that pairs of bits do not explain", float(walsh_weights(result.table)[3:].sum())),
        ("bits that never change the cost", len(idle_bits(result.table, resolution(result.table)))),
    )
    return Table("The landscape, exactly", ("", "value"), rows, "From the cost of every network.")


def _drawing(ansatz: Ansatz) -> Figure:
    lines = draw(ansatz, layers=2).splitlines()
    width, height = 8.43 * max(map(len, lines)) + 16, 18 * len(lines) + 16
    rows = "".join(f'<text x="8" y="{22 + 18 * i}" xml:space="preserve">{html.escape(line)}</text>' for i, line in enumerate(lines))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}">'
        f'<g font-family="DejaVu Sans Mono,monospace" font-size="14" fill="#1d1f23">{rows}</g></svg>'
    )
    rotation, gate = "R_y and R_z" if ansatz.phases else "R_y", "* controls X" if ansatz.gate is cx else "two * are CZ"
    caption = f"The circuit: {ansatz.n} qubits, {ansatz.depth} layers, {ansatz.parameters} angles. R is {rotation}; {gate}."
    return Figure("data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode(), caption, "circuit diagram")
