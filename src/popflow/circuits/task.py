"""The task of a search: the data, networks and loss of a configuration."""

from __future__ import annotations

from typing import Any

from popflow.circuits.config import SearchConfig
from popflow.circuits.cost import Cost, cross_entropy, squared_error
from popflow.circuits.data import Dataset, digits, gaussians, mnist
from popflow.circuits.space import ACTIVATIONS, BinaryMLP, Choice

DATA_SETS = {"digits": digits, "gaussians": gaussians, "mnist": mnist}
LOSSES = {"cross-entropy": cross_entropy, "squared": squared_error}


def task(config: SearchConfig) -> tuple[Cost, Dataset]:
    """Return the cost and the data of a configuration; digits without a side are as fine as 18 bits allow."""
    kind, arguments = config.data_set()
    if kind == "digits" and "side" not in arguments:
        arguments["side"] = next((side for side in (8, 4, 3) if networks(config, side * side).n <= 18), 2)
    data = DATA_SETS[kind](**arguments)
    return Cost(networks(config, data.x.shape[1]), data.x, data.y, LOSSES[config.loss]), data


def networks(config: SearchConfig, inputs: int) -> BinaryMLP:
    """Return the space of networks on a number of inputs."""
    widths, activations = config.widths(), tuple(ACTIVATIONS[name] for name in config.activation)
    alphabet = _choice("alphabet", config.alphabets())
    if not widths:
        return BinaryMLP(inputs, alphabet=alphabet)
    return BinaryMLP(inputs, (_choice("width", widths),), activation=_choice("activation", activations), alphabet=alphabet)


def _choice(name: str, options: tuple[Any, ...]) -> Any:
    return options[0] if len(options) == 1 else Choice(name, options)
