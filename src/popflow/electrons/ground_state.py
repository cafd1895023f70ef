r"""The search for the ground state: walkers, local energies, a step of the parameters, again; then an evaluation with frozen parameters.

    sweep walkers from |psi|^2  ->  E_loc (and grad E_loc)  ->  excess and velocity (`objective`)  ->  step (`descent`), lr / (1 + 2 k / steps)

Energies of the search are averages while parameters move. The energy that is reported comes from `evaluate`: frozen parameters, nothing clipped,
error bars from independent walkers and from blocks of sweeps. By the variational principle its expectation is never below the exact energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.core.checks import at_least_one, real
from popflow.core.errors import CheckpointError, DivergenceError, NonFiniteError
from popflow.core.streams import Streams
from popflow.electrons.descent import RATES, Descent, Name, descent
from popflow.electrons.energy import Energy, LocalEnergy, chains_error
from popflow.electrons.objective import Objective, pull
from popflow.electrons.walkers import Walkers, sweep
from popflow.electrons.wavefunctions import System, WaveFunction
from popflow.learn import Progress
from popflow.learn.distributed import processes

EVERY = 10
"""Steps over which metrics are averaged."""
SNAPSHOT = 50
"""Steps between two states to roll back to."""
MAX_ROLLBACKS = 5
EXPLODED = 3.0
"""A median local energy this many times ``1 + |E|`` away from the level ``E`` that the search has held (`_level`) counts as not finite."""


@dataclass(frozen=True)
class Search:
    """What a search left.

    Attributes:
        walkers: The walkers of the last step.
        curve: Averages over `EVERY` steps: ``step, energy, variance, gradient, acceptance``: ``[m]`` each. ``gradient`` is the median of
            ``|grad E_loc|`` (NaN where it was not computed), the energy is not clipped.
        rollbacks: How often a step was not finite and was taken back; each time the learning rate was halved.
    """

    walkers: Walkers
    curve: dict[str, Tensor]
    rollbacks: int


_COLUMNS = ("step", "energy", "variance", "gradient", "acceptance")


class _State:
    """All that changes: parameters, walkers, the descent, streams, the curve."""

    def __init__(self, psi: WaveFunction, walkers: Walkers, mover: Descent, rng: Streams, settings: dict):
        self.psi, self.walkers, self.mover, self.rng, self.settings = psi, walkers, mover, rng, settings
        self.step, self.rollbacks = 0, 0
        self.rows: list[list[float]] = []
        self.sums = torch.zeros(4, dtype=torch.float64)

    def tensors(self) -> tuple[dict[str, Tensor], dict]:
        moved, structure = self.mover.state()
        table = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(_COLUMNS))
        parts = {
            "psi": dict(self.psi.named_parameters()),
            "walkers": self.walkers.tensors(),
            "mover": moved,
            "rng": self.rng.state(),
            "curve": {"rows": table, "sums": self.sums},
        }
        tensors = {f"{part}/{name}": value.detach().clone() for part, found in parts.items() for name, value in found.items()}
        return tensors, {"step": self.step, "rollbacks": self.rollbacks, "mover": structure, "settings": self.settings}

    def resume(self, path: str | Path) -> None:
        """Load a checkpoint of the same search."""
        tensors, about = load_tensors(path)
        there = about.get("settings", {})
        for name, mine in self.settings.items():
            if there.get(name) != mine:
                raise CheckpointError(
                    f"{path} belongs to another search: {name} is {there.get(name)!r} there and {mine!r} here. "
                    "Fix: give the settings it was made with, or another file."
                )
        self.load(tensors, about)

    def load(self, tensors: dict[str, Tensor], about: dict) -> None:
        device = self.walkers.x.device

        def part(name: str, move: bool = True) -> dict[str, Tensor]:
            found = {key.split("/", 1)[1]: value for key, value in tensors.items() if key.startswith(name + "/")}
            return {key: value.to(device) for key, value in found.items()} if move else found

        params, mine = part("psi"), dict(self.psi.named_parameters())
        if {name: value.shape for name, value in params.items()} != {name: value.shape for name, value in mine.items()}:
            raise CheckpointError("the checkpoint holds another wave function. Fix: give the settings it was made with, or another file.")
        with torch.no_grad():
            for name, value in params.items():
                mine[name].copy_(value)
        self.walkers = Walkers.of(part("walkers"))
        self.mover.load(part("mover"), about["mover"])
        self.rng.load(part("rng", move=False))
        curve = part("curve", move=False)
        self.rows, self.sums = curve["rows"].tolist(), curve["sums"].clone()
        self.step, self.rollbacks = int(about["step"]), int(about["rollbacks"])

    def curve(self) -> dict[str, Tensor]:
        table = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(_COLUMNS))
        return {name: table[:, k] for k, name in enumerate(_COLUMNS)}


def search(
    psi: WaveFunction,
    system: System,
    walkers: Walkers,
    *,
    objective: Objective | None = None,
    optimiser: Name | Descent = "minsr",
    steps: int = 1000,
    lr: float | None = None,
    moves: int = 10,
    rng: Streams,
    gradients: bool = False,
    compile: bool = False,
    record: Iterable[Callable[[Progress], None]] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
) -> Search:
    """Lower the energy of a wave function, whose parameters are changed in place.

    Launched by ``torchrun``, all processes search as one: each holds all walkers, evaluates an equal share of them, and gathers what the others found.
    The path is that of one process, to rounding. The first process alone calls recorders and writes checkpoints.

    Args:
        psi: The wave function.
        system: Its potential.
        walkers: Where to begin, from `popflow.electrons.walkers.place`, equilibrated.
        objective: The geometry; None: Fisher-Rao.
        optimiser: ``minsr``, ``spring``, ``singd``, ``ikfac`` or ``adam`` with their usual settings, or a `Descent` of this wave function with your own:
            ``SampleSpace(psi, damping=1e-2)``, ``ParameterSpace(psi, torch.optim.RAdam(psi.parameters()))``.
        steps: Steps in all.
        lr: First learning rate; None: the usual one of an optimiser that was named. It falls to a third.
        moves: Metropolis moves of every walker between two steps.
        rng: Streams.
        gradients: Compute ``|grad E_loc|`` for the curve where the objective does not need it; that doubles the cost of a Fisher-Rao step.
        compile: Compile the local energy; the walkers are then one chunk.
        record: Called every ten steps with the averages since.
        checkpoint: File to resume from where it exists, written every ``checkpoint_every`` steps and at the end. The parameters, walkers and curve of
            a search that was stopped and started again are bit for bit those of one that was not.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        ValueError: unless ``lr`` is finite and above 0, and walkers and wave function are those of the system.
        TypeError: for an optimiser or an objective that is none.
        DivergenceError: when steps were not finite more than five times, although each time the last good state was restored and the rate halved.
        CheckpointError: for a checkpoint of another system, wave function or setting, naming what differs.

    Example:
        >>> from popflow.electrons.exact import Decay
        >>> from popflow.electrons.traps import oscillator
        >>> from popflow.electrons.walkers import place
        >>> system, rng = oscillator(dim=1), Streams(0)
        >>> psi = Decay(1.6, power=2, dim=1)  # exact at a = 1
        >>> walkers = place(psi, system, 256, rng, dtype=torch.float64)
        >>> found = search(psi, system, walkers, steps=100, rng=rng, optimiser="adam", lr=0.03)
        >>> abs(float(psi.rate.detach()) - 1) < 0.02
        True
    """
    at_least_one(steps=steps, moves=moves, checkpoint_every=checkpoint_every)
    objective = Objective.fisher_rao() if objective is None else objective
    if not isinstance(objective, Objective):
        raise TypeError(f"objective={objective!r}, wanted an Objective: Objective.mixed().")
    _match(system, walkers)
    mover, rate = _mover(psi, optimiser, lr)
    name = optimiser if isinstance(optimiser, str) else type(mover).__name__
    chosen = {"optimiser": name, "steps": steps, "lr": rate, "moves": moves, "objective": _weights(objective)}
    chosen |= {"network": f"{type(psi).__name__}({psi.extra_repr()})"}
    these = processes(walkers.x.device)
    these.same(dict(psi.named_parameters()), rng.seed)
    if these.rank:  # the first process keeps what is kept
        record = ()
    state = _State(psi, walkers, mover, rng, _electrons(system, walkers) | chosen)
    if checkpoint and Path(checkpoint).exists():
        state.resume(checkpoint)
    local = LocalEnergy(psi, system, chunk=max(1, len(walkers.x) // these.size) if compile else None, compile=compile)
    good = state.tensors()
    while state.step < steps:
        try:
            _advance(state, local, objective, rate * 0.5**state.rollbacks, steps, moves, gradients)
        except (NonFiniteError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            count = state.rollbacks + 1
            if count > MAX_ROLLBACKS:
                raise DivergenceError(
                    f"the search was not finite {count} times, last at step {state.step}: {error} Fix: a smaller lr, Fisher-Rao first "
                    "(warm), another optimiser, more walkers, or float64."
                ) from error
            state.load(*good)
            state.rollbacks = count
            for _ in range(count):  # the same noise would lead to the same place: pass over some of it
                rng.normal("move", state.walkers.x)
                rng.uniform("accept", (len(state.walkers.x),))
            continue
        if state.step % EVERY == 0 or state.step == steps:
            _record(state, rate, steps, record)
        due = bool(checkpoint) and state.step % checkpoint_every == 0
        if due or state.step % SNAPSHOT == 0:  # one that goes on from a checkpoint has no state before it to roll back to
            good = state.tensors()
        if checkpoint and not these.rank and (due or state.step == steps):
            save_tensors(checkpoint, *state.tensors())
    return Search(state.walkers, state.curve(), state.rollbacks)


def _mover(psi: WaveFunction, optimiser: Name | Descent, lr: float | None) -> tuple[Descent, float]:
    """Return the descent and its first learning rate."""
    if isinstance(optimiser, str):
        mover, usual = descent(optimiser, psi), RATES[optimiser]
        advice = f"leave it out for the usual one, {usual:g} for {optimiser}"
    elif isinstance(optimiser, Descent):
        mover, usual, advice = optimiser, None, f"give the learning rate of {type(optimiser).__name__}"
        if getattr(mover, "psi", psi) is not psi:
            raise ValueError(
                f"optimiser moves another wave function than psi. Fix: {type(mover).__name__}(psi, ...) of the one that is searched."
            )
    else:
        kind = type(optimiser).__name__
        raise TypeError(
            f"optimiser is a {kind}, wanted a name or a Descent. Fix: {', '.join(RATES)}; ParameterSpace(psi, a torch optimizer)."
        )
    rate = usual if lr is None else lr
    real(lr=rate)
    if rate is None or not 0 < rate < math.inf:
        raise ValueError(f"lr={rate!r}, wanted finite and above 0. Fix: {advice}.")
    if not any(parameter.requires_grad for parameter in psi.parameters()):
        raise ValueError("psi has no parameter with requires_grad=True, wanted at least one to search over. Fix: psi.requires_grad_(True).")
    return mover, float(rate)


def _match(system: System, walkers: Walkers) -> None:
    """Refuse walkers of other electrons than those of the system."""
    seen, wanted = tuple(walkers.x.shape[1:]), (system.electrons, system.dim)
    if not len(walkers.x) or seen != wanted:
        raise ValueError(
            f"walkers.x has the shape {tuple(walkers.x.shape)}, wanted (at least 1, {wanted[0]}, {wanted[1]}) for {system.formula}. "
            "Fix: place(psi, system, count, rng)."
        )


def _electrons(system: System, walkers: Walkers) -> dict:
    """Return what tells one system and its walkers from others, in JSON. A trap has a frequency and may lack repulsion, a molecule has not."""
    return {
        "formula": system.formula,
        "centres": system.centres.tolist(),
        "charges": list(system.charges),
        "omega": getattr(system, "omega", None),
        "interacting": getattr(system, "interacting", True),
        "up": system.up,
        "down": system.down,
        "walkers": len(walkers.x),
        "dtype": str(walkers.x.dtype),
    }


def _weights(objective: Objective) -> list:
    """Return the cost and the weights over the search, which may be functions and are compared by their values."""
    return [objective.cost, [list(objective.weights(k / 20)) for k in range(21)]]


def _advance(state: _State, local: LocalEnergy, objective: Objective, rate: float, steps: int, moves: int, gradients: bool) -> None:
    """Make one step, or raise `NonFiniteError` with the state spoiled."""
    progress = state.step / steps
    walkers = sweep(state.psi, state.walkers, state.rng, moves)
    known = local(walkers.x, gradient=gradients or objective.weights(progress)[0] > 0)
    _look(known.energy)
    median = float(known.energy.median())
    level = _level(state.rows)
    if abs(median - level) > EXPLODED * (1 + abs(level)):
        raise NonFiniteError(f"the median local energy went to {median:.4g} from {level:.4g} Hartree.")
    state.mover.step(walkers.x, pull(objective, known, progress), rate / (1 + 2 * progress))
    if not all(bool(parameter.isfinite().all()) for parameter in state.psi.parameters()):
        raise NonFiniteError("a parameter is not finite.")
    slope = known.gradient.norm(dim=1).median().double() if known.gradient is not None else torch.tensor(math.nan)
    energy = known.energy.double()
    new = torch.stack([energy.mean().cpu(), energy.var(correction=0).cpu(), slope.cpu(), walkers.acceptance.double().cpu()])
    state.walkers, state.step, state.sums = walkers, state.step + 1, state.sums + new


def _level(rows: list[list[float]]) -> float:
    """Return the lowest median of three recorded means in a row, which neither a slow rise nor one outlier moves; NaN before there are three."""
    return min((sorted(row[1] for row in rows[k : k + 3])[1] for k in range(len(rows) - 2)), default=math.nan)


def _look(energy: Tensor) -> None:
    lost = int((~energy.isfinite()).sum())
    if lost:
        raise NonFiniteError(
            f"the local energy of {lost} of {len(energy)} walkers is not finite. Fix: float64, or a smaller learning rate."
        )


def _record(state: _State, rate: float, steps: int, record: Iterable[Callable[[Progress], None]]) -> None:
    since = state.step - (int(state.rows[-1][0]) if state.rows else 0)
    means = (state.sums / since).tolist()
    state.rows.append([float(state.step), *means])
    state.sums = torch.zeros_like(state.sums)
    shown = {name: value for name, value in zip(_COLUMNS[1:], means, strict=True) if not math.isnan(value)}
    for one in record:
        one(Progress(state.step, shown, rate * 0.5**state.rollbacks / (1 + 2 * state.step / steps)))


@dataclass(frozen=True)
class Evaluation:
    """The energy of frozen parameters.

    Attributes:
        energy: Mean local energy with its standard error (`chains_error`), and the variance of the local energy, in Hartree.
        gradient: Median of ``|grad E_loc|``, Hartree per bohr.
        series: Mean local energy of each sweep ``[sweeps]``.
        walkers: The walkers of the last sweep.
    """

    energy: Energy
    gradient: float
    series: Tensor
    walkers: Walkers


def evaluate(
    psi: WaveFunction,
    system: System,
    walkers: Walkers,
    *,
    sweeps: int = 200,
    moves: int = 10,
    burn: int = 20,
    rng: Streams,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Average the local energy over ``sweeps`` of the walkers, parameters frozen, nothing clipped.

    Args:
        psi: The wave function.
        system: Its potential.
        walkers: Where to begin.
        sweeps: Sweeps to average over.
        moves: Moves of each walker in a sweep.
        burn: Sweeps before the first that counts; the width of the moves adapts in them alone.
        rng: Streams.
        progress: Called with the sweeps done and their number, every ten.

    Raises:
        ValueError: for walkers of other electrons than those of the system, or a negative ``burn``.
        WalkerError: for walkers that are stuck or not finite.
        NonFiniteError: for a local energy that is not finite.

    Example:
        >>> from popflow.electrons.exact import exact_state
        >>> from popflow.electrons.traps import quantum_dot
        >>> from popflow.electrons.walkers import place
        >>> dot, rng = quantum_dot(), Streams(0)
        >>> psi = exact_state(dot)
        >>> print(evaluate(psi, dot, place(psi, dot, 16, rng, dtype=torch.float64), sweeps=2, burn=2, rng=rng).energy)
        3.0000000 Hartree
    """
    at_least_one(sweeps=sweeps, moves=moves)
    if burn < 0:
        raise ValueError(f"burn={burn!r}, wanted 0 or more.")
    _match(system, walkers)
    local = LocalEnergy(psi, system)
    for _ in range(burn):
        walkers = sweep(psi, walkers, rng, moves)
    width, series, squares, slopes = walkers.width, [], [], []
    each = torch.zeros(len(walkers.x), dtype=torch.float64, device=walkers.x.device)
    for k in range(sweeps):
        walkers = sweep(psi, walkers, rng, moves)
        walkers = Walkers(walkers.x, walkers.log_psi, width, walkers.age, walkers.acceptance)
        known = local(walkers.x, gradient=k % 10 == 0)
        energy = known.energy.double()
        _look(energy)
        each += energy
        series.append(float(energy.mean()))
        squares.append(float(energy.square().mean()))
        if known.gradient is not None:
            slopes.append(known.gradient.norm(dim=1))
        if progress and (k + 1) % 10 == 0:
            progress(k + 1, sweeps)
    means = torch.tensor(series, dtype=torch.float64)
    value = float(means.mean())
    variance = max(0.0, float(torch.tensor(squares, dtype=torch.float64).mean()) - value**2)
    error = chains_error(means, each / sweeps)
    return Evaluation(Energy(value, error, variance), float(torch.cat(slopes).median()), means, walkers)
