"""The settings of ``popflow search`` and of its demo."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from popflow import citations
from popflow.core.errors import unknown
from popflow.runs.config import Flag, check

_DATA = {
    "digits": (r"digits:(?P<first>\d),(?P<second>\d)(?::(?P<side>\d+))?", "two digits from 0 to 9: digits:3,7 or digits:3,7:4"),
    "gaussians": (r"gaussians(?::(?P<points>\d+))?", "a number of points: gaussians:2000"),
    "mnist": (r"mnist:(?P<first>\d),(?P<second>\d):(?P<folder>.+)", "two digits and a folder: mnist:3,7:FOLDER"),
}
_WIDEST = 26
SIDES = (2, 3, 4, 8)
"""Sides of the images of digits."""


@dataclass(frozen=True)
class SearchConfig:
    """Find binary networks with a quantum hypernetwork; compare with the exact optimum and with classical search.

    Attributes:
        data: Data set: digits:A,B, digits:A,B:SIDE, gaussians:POINTS or mnist:A,B:FOLDER. The digits are scikit-learn's 8 x 8 images, averaged
            down to SIDE x SIDE; without a side, to the finest of 8, 4, 3 and 2 that keeps the network within 18 bits. MNIST is read from the
            four files in FOLDER and sampled at 4 x 4 pixels.
        net: Network: logistic, mlp:WIDTH, or mlp:NARROWEST-WIDEST to have the search choose the width.
        activation: Activation of the hidden layer; repeat the option to have the search choose.
        alphabet: The two values of weights and biases; repeat the option to have the search choose.
        loss: Training loss.
        depth: Layers of the circuit; depth 1 is a product state.
        restarts: Training restarts from random angles.
        steps: Adam steps, or the maximum number of L-BFGS iterations.
        lr: Learning rate of Adam.
        optimiser: Adam in float32 on all restarts in parallel, or L-BFGS in float64 on one restart at a time.
        objective: Objective: the mean cost of a measurement, the mean of the best tenth, or a free energy annealed to temperature 0.
        entangler: Which pairs of qubits each layer entangles.
        gate: Two-qubit gate.
        phases: Complex amplitudes (with R_z rotations), or real ones, which are faster.
        curve: A depth to include in the depth curve. The depth of the search is always on the curve.
        calls: Cost evaluations per classical run.
        runs: Runs of each classical search.
        seed: Random seed.
    """

    data: Annotated[str, Flag(metavar="DATA")] = "digits:3,7"
    net: Annotated[str, Flag(metavar="NET")] = "logistic"
    activation: tuple[Literal["relu", "sigmoid", "tanh"], ...] = ("relu", "sigmoid")
    alphabet: Annotated[tuple[str, ...], Flag(metavar="LOW,HIGH")] = ("-1,1",)
    loss: Literal["cross-entropy", "squared"] = "cross-entropy"
    depth: Annotated[int, Flag(ge=1)] = 6
    restarts: Annotated[int, Flag(ge=1)] = 64
    steps: Annotated[int, Flag(ge=1)] = 200
    lr: Annotated[float, Flag(gt=0)] = 0.1
    optimiser: Literal["adam", "lbfgs"] = "adam"
    objective: Literal["energy", "tail", "free-energy"] = "energy"
    entangler: Literal["brick", "linear", "ring", "all"] = "brick"
    gate: Literal["cx", "cz"] = "cx"
    phases: Annotated[bool, Flag("--phases/--real")] = True
    curve: Annotated[tuple[int, ...], Flag(ge=1, metavar="DEPTH")] = (1, 2, 4)
    calls: Annotated[int, Flag(ge=1)] = 1024
    runs: Annotated[int, Flag(ge=1)] = 100
    seed: Annotated[int, Flag(ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        if self.optimiser == "lbfgs" and self.objective == "free-energy":
            raise ValueError(
                "objective='free-energy' is annealed over the steps of Adam; L-BFGS has no such schedule. Fix: optimiser='adam'."
            )
        if self.optimiser == "lbfgs" and self.lr != type(self).lr:
            raise ValueError(f"lr={self.lr!r} has no effect with optimiser='lbfgs': it belongs to 'adam'.")
        if not self.activation:
            raise ValueError("activation is empty, wanted at least one of relu, sigmoid, tanh.")
        if self.net == "logistic" and self.activation != type(self).activation:
            raise ValueError(f"activation={self.activation!r} has no effect with net='logistic', which has no hidden layer.")
        self.alphabets()
        self.widths()
        self.data_set()

    def data_set(self) -> tuple[str, dict[str, Any]]:
        """Return the kind of data and the arguments of the function that makes it."""
        kind = self.data.split(":", maxsplit=1)[0]
        if kind not in _DATA:
            raise ValueError(unknown("data", kind, _DATA))
        pattern, form = _DATA[kind]
        found = re.fullmatch(pattern, self.data)
        if not found:
            raise ValueError(f"data={self.data!r}, wanted {form}.")
        given = {name: value for name, value in found.groupdict().items() if value is not None}
        folder = {"folder": Path(given.pop("folder"))} if "folder" in given else {}
        numbers = {name: int(value) for name, value in given.items()}
        if numbers.get("side", 8) not in SIDES:
            raise ValueError(f"data={self.data!r}, wanted a side of {', '.join(map(str, SIDES))}: 8 x 8 images are averaged down to it.")
        if numbers.get("points", 2) < 2:
            raise ValueError(f"data={self.data!r}, wanted at least 2 points.")
        if "first" in numbers and numbers["first"] == numbers["second"]:
            raise ValueError(f"data={self.data!r}, wanted two different digits.")
        return kind, {**numbers, **folder}

    def alphabets(self) -> tuple[tuple[float, float], ...]:
        """Return the pairs of values to choose from."""
        pairs = []
        for text in self.alphabet:
            try:
                low, high = map(float, text.split(","))
            except ValueError:
                raise ValueError(f"alphabet={text!r}, wanted two numbers LOW,HIGH such as -1,1.") from None
            pairs.append((low, high))
        return tuple(pairs)

    def widths(self) -> tuple[int, ...]:
        """Return the widths of the hidden layer to choose from; none for a network without one."""
        if self.net == "logistic":
            return ()
        found = re.fullmatch(r"mlp:(\d+)(?:-(\d+))?", self.net)
        if not found:
            raise ValueError(f"net={self.net!r}, wanted logistic, mlp:WIDTH or mlp:NARROWEST-WIDEST, such as mlp:2 or mlp:1-3.")
        low, high = int(found[1]), int(found[2] or found[1])
        if not 1 <= low <= high <= _WIDEST:
            raise ValueError(
                f"net={self.net!r}: wanted widths from 1 to {_WIDEST}, the narrowest first; wider networks have too many bits to enumerate."
            )
        return tuple(range(low, high + 1))

    def inputs(self) -> Iterable[Path]:
        """Return the files of MNIST, if that is the data."""
        folders = (value for value in self.data_set()[1].values() if isinstance(value, Path))
        return (path for folder in folders for path in sorted(folder.glob("*-idx?-ubyte*")))


@dataclass(frozen=True)
class DemoConfig:
    """Tell the digits 3 and 7 apart with nine weights of plus or minus one; the optimum among 1024 networks is known.

    Attributes:
        seed: Random seed.
        quick: Run a smaller version in seconds: at most 8 restarts, and fewer depths and classical runs.
        restarts: Training restarts from random angles.
        depth: Layers of the circuit.
    """

    seed: Annotated[int, Flag(ge=0)] = 0
    quick: bool = False
    restarts: Annotated[int, Flag(ge=1)] = 64
    depth: Annotated[int, Flag(ge=1)] = 8

    def __post_init__(self) -> None:
        check(self)


def cite(config: SearchConfig) -> tuple[str, ...]:
    """Return the BibTeX entries of what a search builds on; the free energy has its own paper."""
    free_energy = (citations.QUANTUM_HYPERNETWORKS_VARIATIONAL,) if config.objective == "free-energy" else ()
    return (citations.QUANTUM_HYPERNETWORKS, *free_energy)
