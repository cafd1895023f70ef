"""Methods and the tasks they serve: built-in ones by dotted name, loaded when used, and those of other packages by entry point.

A package adds a method with a `Method` object and, in its ``pyproject.toml``,

    [project.entry-points."popflow.methods"]
    mine = "my_package.popflow:METHOD"

which gives it ``popflow mine``, ``popflow demo mine``, forms of ``popflow view`` and a line of ``popflow methods``. Importing this module imports no room, no torch and no extra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from popflow import citations

if TYPE_CHECKING:
    from popflow.runs import Report, Run

    Job = Callable[[Any, Run], Report]
    Cite = tuple[str, ...] | Callable[[Any], tuple[str, ...]]

GROUP = "popflow.methods"


class UnknownMethodError(ValueError):
    """No method has that name; the message names the closest one."""


class MethodError(ImportError):
    """A method is registered, but one of its parts cannot be loaded."""


@dataclass(frozen=True, slots=True)
class Task:
    """A configuration and the job that runs it. The verb is made from the configuration.

    Parts are objects, or ``"module:name"`` of objects that are loaded when they are used.

    Attributes:
        config: Frozen dataclass of what ``run`` needs. Its fields are the options, its docstring holds their help texts
            (`popflow.runs.config.options`). The module should import no torch.
        run: ``run(config, run: popflow.runs.Run) -> popflow.runs.Report``: the job.
        cite: BibTeX entries, or a function of the configuration that returns them; those of the method if empty.
        summary: Description in one line of ``popflow --help``; that of the method if empty.
        examples: Command lines, shown by ``--help``.

    Example:
        >>> Task(dict, print).load("run") is print
        True
        >>> Task("absent_module:Config", print).load("config")
        Traceback (most recent call last):
        popflow.registry.MethodError: cannot load absent_module:Config: No module named 'absent_module'.
    """

    config: type | str
    run: Job | str
    cite: Cite | str = ()
    summary: str = ""
    examples: tuple[str, ...] = ()

    def load(self, part: str) -> Any:
        """Return one part (``"config"``, ``"run"``, ``"cite"``) as an object.

        Raises:
            MethodError: when it cannot be imported.
        """
        value: Any = getattr(self, part)
        if not isinstance(value, str):
            return value
        module, _, name = value.partition(":")
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MethodError(f"cannot load {value}: {error}.") from error

    def cited(self, config: Any) -> tuple[str, ...]:
        """Return the BibTeX entries of a configuration."""
        entries: Any = self.load("cite")
        return entries(config) if callable(entries) else entries  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, slots=True)
class Method:
    """A method as the command line and the conformance tests know it.

    Attributes:
        name: Name on the command line; for a method of another package, also the name of its entry point.
        summary: Description in one line.
        cite: BibTeX entries.
        demo: A job with a known answer that needs no input: all fields of its configuration have defaults; a field ``quick: bool``
            asks for a smaller run that takes seconds.
        task: The job on the user's own input: the verb of that name in `TASKS`, or a `Task`, whose verb is then the name of the method.
    """

    name: str
    summary: str
    cite: tuple[str, ...]
    demo: Task
    task: Task | str | None = None


TASKS = {
    "sample": Task(
        summary="Sample from compositions of pretrained diffusion models.",
        config="popflow.compose.config:SampleConfig",
        run="popflow.compose.job:run",
        cite="popflow.compose.config:cite",
        examples=(
            "popflow sample --expert zoo:digits-even --expert zoo:digits-prime --op product",
            "popflow sample --expert zoo:lj13 --temperature 0.8",
            "popflow sample --diffusers DIR --prompt 'a cat' --prompt 'a dog' --op and",
        ),
    ),
    "flow": Task(
        summary="Learn population dynamics from snapshots, or responses of patients, and predict what was held out.",
        config="popflow.transport.config:FlowConfig",
        run="popflow.transport.job:run",
        cite="popflow.transport.config:cite",
        examples=(
            "popflow flow cells.h5ad --time day --rep X_pca --dims 5 --lagrangian unbalanced --hold-out 2",
            "popflow flow cells.h5ad --populations patient --treatment condition --control Ref --rep X --hold-out Patient4",
        ),
    ),
    "path": Task(
        summary="Find transition paths between two states of a potential, and weigh them towards the conditioned process.",
        config="popflow.paths.config:PathConfig",
        run="popflow.paths.job:run",
        examples=(
            "popflow path --potential mueller-brown",
            "popflow path --potential dual-channel --family full --components 2",
            "popflow path --potential surface.py:energy --start=-1,0 --end 1,0 --time 1 --noise 1 --sigma0 0.1 --dt 0.002",
        ),
        cite="popflow.paths.config:cite",
    ),
    "search": Task(
        summary="Find binary networks with a quantum hypernetwork, and compare with the exact optimum and classical search.",
        config="popflow.circuits.config:SearchConfig",
        run="popflow.circuits.job:run",
        cite="popflow.circuits.config:cite",
        examples=("popflow search --data digits:3,7 --net mlp:2 --depth 6 --restarts 64",),
    ),
    "optimize": Task(
        summary="Propose the best rows that could be rows of a table, inside its own unknown feasible set.",
        config="popflow.compose.constrained.config:OptimizeConfig",
        run="popflow.compose.constrained.job:run",
        cite="popflow.compose.constrained.config:cite",
        examples=(
            "popflow optimize data.csv --target y --n 256",
            "popflow optimize data.csv --target y --objective my_module:yield_of --workers 4",
        ),
    ),
    "evolve": Task(
        summary="Breed molecules against an oracle, with an exact budget of calls.",
        config="popflow.evolve.config:EvolveConfig",
        run="popflow.evolve.job:run",
        cite="popflow.evolve.config:cite",
        examples=(
            "popflow evolve seeds.smi --oracle qed --budget 1000",
            "popflow evolve seeds.smi --oracle 'cmd:python score.py' --workers 2 --timeout 60 --out RUN",
            "popflow evolve seeds.smi --oracle jnk3 --minimize sa --goal nsga2",
        ),
    ),
    "ground": Task(
        summary="Find the ground state of a molecule with a neural wave function.",
        config="popflow.electrons.config:GroundConfig",
        run="popflow.electrons.job:run",
        cite="popflow.electrons.config:cite",
        examples=(
            "popflow ground 'H 0 0 0; H 0 0 1.4' --unit bohr --metric wasserstein",
            "popflow ground Be --steps 3000",
            "popflow ground water.xyz --walkers 512",
        ),
    ),
}
"""The built-in verbs."""


BUILT_IN = (
    Method(
        name="fkc",
        summary="Exact annealing, products, guidance and reward tilting of diffusion models by weighted resampling (Feynman-Kac correctors).",
        cite=(citations.FEYNMAN_KAC_CORRECTORS,),
        demo=Task("popflow.compose.config:DemoConfig", "popflow.compose.zoo.demo:demo"),
        task="sample",
    ),
    Method(
        name="superdiff",
        summary="Several diffusion models in superposition: samples that any (OR) or all (AND) of them find likely (SuperDiff).",
        cite=(citations.SUPERDIFF,),
        demo=Task("popflow.compose.config:SuperDiffDemoConfig", "popflow.compose.zoo.demo:superdiff"),
        task="sample",
    ),
    Method(
        name="qhn",
        summary="Binary networks, parameters, hyperparameters and architecture together, from a variational circuit (quantum hypernetworks).",
        cite=(citations.QUANTUM_HYPERNETWORKS,),
        demo=Task("popflow.circuits.config:DemoConfig", "popflow.circuits.demo:demo"),
        task="search",
    ),
    Method(
        name="wlf",
        summary="Population dynamics from snapshots: transport, growth, bridges and potentials by least action (Wasserstein Lagrangian flows).",
        cite=(citations.WASSERSTEIN_LAGRANGIAN_FLOWS,),
        demo=Task("popflow.transport.config:DemoConfig", "popflow.transport.demo:demo"),
        task="flow",
    ),
    Method(
        name="doob",
        summary="Transition paths and rare events: the conditioned process as a variational path, without simulation (Doob's Lagrangian).",
        cite=(citations.DOOBS_LAGRANGIAN,),
        demo=Task("popflow.paths.config:DemoConfig", "popflow.paths.demo:demo"),
        task="path",
    ),
    Method(
        name="diffopt",
        summary="Optimisation inside an unknown feasible set: a diffusion model of the data, tilted by an objective (DiffOPT).",
        cite=(citations.DIFFOPT, citations.SMC_SAMPLERS),
        demo=Task("popflow.compose.constrained.config:DemoConfig", "popflow.compose.constrained.demo:demo"),
        task="optimize",
    ),
    Method(
        name="mfm",
        summary="Responses of populations never seen under treatment: flows that read the whole population (meta flow matching).",
        cite=(citations.META_FLOW_MATCHING,),
        demo=Task("popflow.transport.config:PatientsConfig", "popflow.transport.meta.demo:demo"),
        task="flow",
    ),
    Method(
        name="molleo",
        summary="Molecules bred against a costly oracle: language models and graph moves propose, a Gaussian process chooses (MOLLEO).",
        cite=(citations.MOLLEO, citations.GRAPH_GA),
        demo=Task("popflow.evolve.config:DemoConfig", "popflow.evolve.demo:demo"),
        task="evolve",
    ),
    Method(
        name="wqmc",
        summary="Ground states of electrons by transport and re-weighting of walkers (Wasserstein quantum Monte Carlo).",
        cite=(citations.WASSERSTEIN_QMC,),
        demo=Task("popflow.electrons.config:DemoConfig", "popflow.electrons.demo:demo"),
        task="ground",
    ),
)


@dataclass(frozen=True, slots=True)
class Registry:
    """Registered methods by name, and entry points that could not be loaded with the reason."""

    methods: dict[str, Method]
    broken: dict[str, str]


def methods() -> Registry:
    """Return the built-in methods and those of installed packages; a package that fails to load is reported and does not affect the others."""
    found, broken = {method.name: method for method in BUILT_IN}, {}
    for name, point in plugins().items():
        try:
            found[name] = _load(point)
        except Exception as error:
            broken[f"{point.name} = {point.value}"] = f"{type(error).__name__}: {error}"
    return Registry(found, broken)


def plugins() -> dict[str, Any]:
    """Return the entry points of other packages by name, without loading them.

    They are `importlib.metadata.EntryPoint`, or those of the package importlib_metadata, which takes over once anything imports it.
    """
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))}


def method(name: str) -> Method:
    """Return a method by name; no package is loaded but the one that registers it.

    Raises:
        UnknownMethodError: naming the closest one.

    Example:
        >>> method("fkc").name
        'fkc'
    """
    for one in BUILT_IN:
        if one.name == name:
            return one
    others = plugins()
    if name not in others:
        from popflow.core.errors import unknown

        raise UnknownMethodError(unknown("method", name, [*(one.name for one in BUILT_IN), *others]))
    try:
        return _load(others[name])
    except Exception as error:
        why = f"The plug-in {name} = {others[name].value} could not be loaded: {type(error).__name__}: {error}."
        raise UnknownMethodError(f"there is no method {name!r}. {why}") from error


def task(verb: str) -> Task | None:
    """Return the task of a verb: a built-in one, or that of the method of another package of this name; None when there is none."""
    if verb in TASKS or verb not in plugins():
        return TASKS.get(verb)
    found = method(verb)
    own = found.task
    return replace(own, cite=own.cite or found.cite, summary=own.summary or found.summary) if isinstance(own, Task) else None


def _load(point: Any) -> Method:
    try:
        method = point.load()
    except SystemExit as error:
        raise ImportError(f"importing {point.value} ends the process with code {error.code}") from error
    if not isinstance(method, Method):
        raise TypeError(f"{point.value} is a {type(method).__name__}, wanted a popflow.registry.Method")
    if method.name != point.name:
        raise ValueError(f"the method calls itself {method.name!r} and its entry point {point.name!r}, wanted one name")
    if point.name in RESERVED:
        raise ValueError(f"the name {point.name!r} is taken by a command or a built-in method, wanted another one")
    return method


RESERVED = {*TASKS, *(method.name for method in BUILT_IN), "demo", "methods", "report", "cite", "completion", "doctor", "view"}
"""Names that no other package may take."""
