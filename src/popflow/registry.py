"""The methods: built-in ones by dotted name, loaded when used, and those of other packages by entry point.

A package adds a method with a `Method` object and, in its ``pyproject.toml``,

    [project.entry-points."popflow.methods"]
    mine = "my_package.popflow:METHOD"

Importing this module imports no room, no torch and no extra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from popflow import citations

if TYPE_CHECKING:
    from popflow.runs import Report, Run

    Job = Callable[[Any, Run], Report]

GROUP = "popflow.methods"


class UnknownMethodError(ValueError):
    """No method has that name; the message names the closest one."""


class MethodError(ImportError):
    """A method is registered, but what it is made of cannot be loaded."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method as the command line and the conformance tests know it.

    Parts are objects, or ``"module:name"`` of objects that are loaded when they are used.

    Attributes:
        name: As typed.
        summary: One line.
        cite: BibTeX entries.
        config: Frozen dataclass of what ``run`` needs; its fields are the options. A field ``seed: int`` is set by ``--seed``.
        run: ``run(config, run: popflow.runs.Run) -> popflow.runs.Report``: the job on the user's own input.
        demo: ``demo(config, run) -> Report``: a job with a known answer, that needs no input.
        demo_config: Frozen dataclass of what ``demo`` needs, with defaults for all; a field ``quick: bool`` is set by ``--quick``.

    Example:
        >>> Method("greet", "Says hello.", (), dict, run=print, demo=print, demo_config=dict).load("demo") is print
        True
        >>> Method("broken", "", (), "absent_module:Config", "absent_module:run", "absent_module:demo", "absent_module:D").load("run")
        Traceback (most recent call last):
        popflow.registry.MethodError: method 'broken': cannot load its run, absent_module:run: No module named 'absent_module'.
    """

    name: str
    summary: str
    cite: tuple[str, ...]
    config: type | str
    run: Job | str
    demo: Job | str
    demo_config: type | str

    def load(self, part: str) -> Any:
        """Return one part (``"config"``, ``"run"``, ``"demo"``, ``"demo_config"``) as an object.

        Raises:
            MethodError: when it cannot be imported.
        """
        value = getattr(self, part)
        if not isinstance(value, str):
            return value
        module, _, name = value.partition(":")
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MethodError(f"method {self.name!r}: cannot load its {part}, {value}: {error}.") from error


BUILT_IN = (
    Method(
        name="fkc",
        summary="Exact annealing, products, guidance and reward tilting of diffusion models by weighted resampling (Feynman-Kac correctors).",
        cite=(citations.FEYNMAN_KAC_CORRECTORS,),
        config="popflow.compose.job:SampleConfig",
        run="popflow.compose.job:run",
        demo="popflow.compose.zoo.demo:demo",
        demo_config="popflow.compose.zoo.demo:DemoConfig",
    ),
    Method(
        name="superdiff",
        summary="Several diffusion models in superposition: samples that any (OR) or all (AND) of them find likely (SuperDiff).",
        cite=(citations.SUPERDIFF,),
        config="popflow.compose.job:SampleConfig",
        run="popflow.compose.job:run",
        demo="popflow.compose.zoo.demo:superdiff",
        demo_config="popflow.compose.zoo.demo:DemoConfig",
    ),
    Method(
        name="qhn",
        summary="Binary networks, parameters, hyper-parameters and architecture together, from a variational circuit (quantum hypernetworks).",
        cite=(citations.QUANTUM_HYPERNETWORKS,),
        config="popflow.circuits.job:SearchConfig",
        run="popflow.circuits.job:run",
        demo="popflow.circuits.job:demo",
        demo_config="popflow.circuits.job:DemoConfig",
    ),
    Method(
        name="wlf",
        summary="Population dynamics from snapshots: transport, growth, bridges and potentials by least action (Wasserstein Lagrangian flows).",
        cite=(citations.WASSERSTEIN_LAGRANGIAN_FLOWS,),
        config="popflow.transport.job:FlowConfig",
        run="popflow.transport.job:run",
        demo="popflow.transport.demo:demo",
        demo_config="popflow.transport.demo:DemoConfig",
    ),
)


@dataclass(frozen=True, slots=True)
class Registry:
    """What was found: methods by name, and entry point -> why it could not be used."""

    methods: dict[str, Method]
    broken: dict[str, str]


def methods() -> Registry:
    """Return the built-in methods and those of installed packages; a package that fails is reported and disturbs nothing else."""
    found, broken = {method.name: method for method in BUILT_IN}, {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            method = _load(point)
            if method.name in found:
                raise ValueError(f"the name {method.name!r} is taken")
            found[method.name] = method
        except Exception as error:
            broken[f"{point.name} = {point.value}"] = f"{type(error).__name__}: {error}"
    return Registry(found, broken)


def method(name: str) -> Method:
    """Return a method by name.

    Raises:
        UnknownMethodError: naming the closest one.

    Example:
        >>> method("fkc").name
        'fkc'
    """
    registry = methods()
    if name not in registry.methods:
        from popflow.core.errors import unknown

        message = unknown("method", name, registry.methods)
        for point, why in registry.broken.items():
            message += f" The plug-in {point} could not be loaded: {why}."
        raise UnknownMethodError(message)
    return registry.methods[name]


def _load(point: EntryPoint) -> Method:
    method = point.load()
    if not isinstance(method, Method):
        raise TypeError(f"{point.value} is a {type(method).__name__}, wanted a popflow.registry.Method")
    return method
