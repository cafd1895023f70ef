"""The search: it finds known ground states from above, leaves exact states alone, resumes bit for bit, and takes back what is not finite."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from popflow.core import CheckpointError, DivergenceError, Streams
from popflow.core.errors import NonFiniteError
from popflow.electrons import (
    Decay,
    LocalEnergy,
    Molecule,
    Objective,
    ParameterSpace,
    PsiFormer,
    SampleSpace,
    SlaterJastrow,
    Trap,
    Walkers,
    WaveFunction,
    equilibrate,
    evaluate,
    exact_state,
    ground_state as module,
    hookes_atom,
    jacobian,
    oscillator,
    place,
    quantum_dot,
    search,
    woodbury,
)  # fmt: skip
from popflow.electrons.demo import verdict
from popflow.electrons.energy import Local
from popflow.electrons.objective import Pull
from popflow.electrons.wavefunctions import System
from popflow.optim import spring
from popflow.runs import Measured

OPTIMISERS = ["minsr", "spring", "singd", "ikfac", "adam"]


def begin(psi: WaveFunction, system: System, count: int = 64, seed: int = 0) -> tuple[Walkers, Streams]:
    """Place walkers and let them equilibrate."""
    rng = Streams(seed)
    dtype = next(psi.parameters()).dtype
    return equilibrate(psi, place(psi, system, count, rng, dtype=dtype), rng, sweeps=10), rng


@pytest.mark.parametrize("optimiser", ["minsr", "spring"])
@pytest.mark.parametrize("objective", [Objective.fisher_rao(), Objective.wasserstein(), Objective.mixed()], ids=["fr", "w", "mixed"])
def test_an_exact_state_stays_as_it_is(optimiser, objective: Objective) -> None:
    for system in (hookes_atom(), Molecule.of("H")):
        psi = exact_state(system)
        before = float(psi.rate.detach())  # pyright: ignore
        walkers, rng = begin(psi, system)
        search(psi, system, walkers, objective=objective, optimiser=optimiser, steps=5, rng=rng)
        assert abs(float(psi.rate.detach()) - before) < 1e-8  # pyright: ignore


def test_spring_forgets_growth_where_there_is_none(points) -> None:
    system = oscillator(dim=1)
    x, u = points(system, 16), torch.ones(16, 1, dtype=torch.float64)
    ends = []
    for grown in (True, False):
        psi = Decay(1.6, 2, dim=1)
        mover = SampleSpace(psi)
        if grown:
            mover.step(x, Pull(LocalEnergy(psi, system)(x).energy, None), 0.01)
            with torch.no_grad():
                psi.rate.fill_(1.6)
        mover.step(x, Pull(torch.zeros(16, dtype=torch.float64), u * x[:, 0]), 0.01)
        ends.append(psi.rate.detach().clone())
    assert torch.equal(*ends)
    assert ends[0] != 1.6


def test_the_oscillator_relaxes_as_imaginary_time_says(points) -> None:
    """``d psi = -(H - E) psi dtau`` gives ``da/dtau = 1 - a^2``, at any walkers: ``E_loc`` is linear in ``d_a log|psi|``."""
    system, psi = oscillator(dim=1), Decay(1.6, 2, dim=1)
    x = points(system, 32)
    update = spring(jacobian(psi, x), LocalEnergy(psi, system)(x).energy, {}, damping=1e-12, decay=0.0)
    assert torch.allclose(-update["rate"], torch.tensor(1 - 1.6**2, dtype=torch.float64), rtol=1e-9)


def test_networks_come_close_to_known_energies_and_stay_above() -> None:
    """Within what a hundred steps of a small network give; never below by more than four error bars."""
    for system, exact, bar in ((quantum_dot(), 3.0, 0.03), (Molecule.of("H"), -0.5, 0.02)):
        psi = SlaterJastrow(system, width=8)
        walkers, rng = begin(psi, system, 64)
        found = search(psi, system, walkers, optimiser="singd", steps=100, rng=rng, moves=4)
        last = evaluate(psi, system, found.walkers, sweeps=20, rng=rng)
        assert exact - 4 * last.energy.error < last.energy.value < exact + bar
        assert found.curve["energy"][0] > found.curve["energy"][-1]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_search_that_was_stopped_ends_with_the_same_bits(optimiser, tmp_path: Path) -> None:
    system = quantum_dot()
    objective = Objective.mixed()

    class Stopped(Exception):
        pass

    def stop(progress) -> None:
        if progress.step == 10:
            raise Stopped

    ends = []
    for name, interrupt in (("whole", False), ("cut", True)):
        for record in [[stop], []] if interrupt else [[]]:
            psi = SlaterJastrow(system, width=4)
            walkers, rng = begin(psi, system, 16)
            run = partial(search, psi, system, walkers, objective=objective, optimiser=optimiser, steps=12, rng=rng, moves=2)
            try:
                found = run(checkpoint=tmp_path / name, checkpoint_every=4, record=record)
            except Stopped:
                continue
            ends.append((dict(psi.named_parameters()), found))
    (a, first), (b, second) = ends
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(first.walkers.x, second.walkers.x)
    assert torch.equal(first.curve["energy"], second.curve["energy"])


def test_a_checkpoint_of_another_wave_function_is_refused(tmp_path: Path) -> None:
    system = quantum_dot()
    for width, said in ((4, ""), (5, "another wave function")):
        psi = SlaterJastrow(system, width=width)
        walkers, rng = begin(psi, system, 8)
        if not said:
            search(psi, system, walkers, steps=2, rng=rng, checkpoint=tmp_path / "c", moves=1)
            continue
        with pytest.raises(CheckpointError, match=said):
            search(psi, system, walkers, steps=2, rng=rng, checkpoint=tmp_path / "c", moves=1)


def test_a_checkpoint_of_another_search_is_refused_by_name(tmp_path: Path) -> None:
    def go(distance: float = 1.4, count: int = 8, **options) -> None:
        system = Molecule.of(f"H 0 0 0; H 0 0 {distance}", unit="bohr")
        psi = SlaterJastrow(system, width=4, dtype=options.pop("dtype", torch.float32))
        walkers, rng = begin(psi, system, count)
        search(psi, system, walkers, rng=rng, checkpoint=tmp_path / "c", **{"steps": 2, "moves": 1, "optimiser": "adam"} | options)

    go()
    go()  # the same: resumed at its end
    others = {
        "centres": {"distance": 3.0},
        "walkers": {"count": 16},
        "dtype": {"dtype": torch.float64},
        "objective": {"objective": Objective.mixed()},
    }
    for name, other in (others | {k: {k: v} for k, v in {"optimiser": "singd", "steps": 3, "moves": 2, "lr": 1e-5}.items()}).items():
        with pytest.raises(CheckpointError, match=f"another search: {name} is"):
            go(**other)


def test_a_step_taken_back_after_a_resume_goes_where_it_would_have_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both roll back to the checkpoint, which the one that goes on has no state before."""
    system, real, ends = quantum_dot(), module.pull, []

    class Stopped(Exception):
        pass

    for name in ("whole", "cut"):
        left = [name == "cut", True]  # still to be stopped at step 5, still to be spoiled at step 6

        def spoiled(objective, local, progress, left=left):
            if left[0] and round(12 * progress) == 5:
                left[0] = False
                raise Stopped
            towards = real(objective, local, progress)
            if left[1] and round(12 * progress) == 6:
                left[1] = False
                return type(towards)(towards.excess * math.nan, None)
            return towards

        monkeypatch.setattr(module, "pull", spoiled)
        while True:
            psi = SlaterJastrow(system, width=4)
            walkers, rng = begin(psi, system, 16)
            try:
                found = search(
                    psi, system, walkers, optimiser="adam", steps=12, rng=rng, moves=2, checkpoint=tmp_path / name, checkpoint_every=4
                )
            except Stopped:
                continue
            break
        assert found.rollbacks == 1
        assert left == [False, False]
        ends.append((dict(psi.named_parameters()), found.walkers.x))
    (a, first), (b, second) = ends
    assert torch.equal(first, second)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_descent_of_ones_own_is_the_named_one_with_the_same_settings(tmp_path: Path) -> None:
    system, ends = quantum_dot(), []
    makers: list = [
        lambda psi: "minsr", lambda psi: SampleSpace(psi, decay=0.0), lambda psi: SampleSpace(psi, decay=0.0, damping=1.0),
        lambda psi: "adam", lambda psi: ParameterSpace(psi, torch.optim.Adam(psi.parameters())),
    ]  # fmt: skip
    for k, make in enumerate(makers):
        psi = SlaterJastrow(system, width=4)
        rng = Streams(0)
        search(
            psi, system, place(psi, system, 8, rng), optimiser=make(psi), lr=0.01, steps=2, rng=rng, moves=1, checkpoint=tmp_path / str(k)
        )
        ends.append(torch.cat([parameter.detach().flatten() for parameter in psi.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert torch.equal(ends[3], ends[4])


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_search_is_refused_by_name() -> None:
    system, psi = quantum_dot(), SlaterJastrow(quantum_dot(), width=4)
    walkers, rng = begin(psi, system, 4)
    other = SlaterJastrow(system, width=4)
    go = partial(search, psi, system, walkers, steps=1, moves=1, rng=rng)
    wrong: list[tuple[dict, type[Exception], str]] = [
        ({"optimiser": SampleSpace(psi)}, ValueError, "lr=None, wanted finite.*give the learning rate of SampleSpace"),
        ({"optimiser": SampleSpace(other), "lr": 0.1}, ValueError, "moves another wave function than psi"),
        ({"optimiser": torch.optim.Adam(psi.parameters())}, TypeError, r"optimiser is a Adam, wanted .*ParameterSpace\(psi"),
        ({"objective": "mixed"}, TypeError, r"objective='mixed', wanted an Objective"),
    ]
    for options, kind, said in wrong:
        with pytest.raises(kind, match=said):
            go(**options)
    helium = Molecule.of("He")
    for run in (partial(search, steps=1), partial(evaluate, sweeps=1)):
        with pytest.raises(ValueError, match=r"walkers.x has the shape \(4, 2, 2\), wanted \(at least 1, 2, 3\) for He"):
            run(psi, helium, walkers, rng=rng)
    with pytest.raises(ValueError, match="burn=-1"):
        evaluate(psi, system, walkers, burn=-1, rng=rng)
    psi.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        go()


def test_a_checkpoint_of_other_attention_heads_is_refused(tmp_path: Path) -> None:
    """Their parameters have the same shapes."""
    system = quantum_dot()
    for heads in (2, 4):
        psi = PsiFormer(system, width=4, layers=1, heads=heads, determinants=1)
        walkers, rng = begin(psi, system, 4)
        go = partial(search, psi, system, walkers, steps=1, moves=1, rng=rng, optimiser="adam", checkpoint=tmp_path / "c")
        if heads == 2:
            go()
        else:
            with pytest.raises(CheckpointError, match=r"network is 'PsiFormer\(heads=2\)' there and 'PsiFormer\(heads=4\)' here"):
                go()


def test_a_step_that_is_not_finite_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    system, calls = quantum_dot(), 0
    real = module.pull

    def poisoned(*given):
        nonlocal calls
        calls += 1
        towards = real(*given)
        return type(towards)(towards.excess * float("nan"), None) if calls in bad else towards

    monkeypatch.setattr(module, "pull", poisoned)
    bad: set[int] = {5}
    psi = SlaterJastrow(system, width=4)
    walkers, rng = begin(psi, system, 16)
    found = search(psi, system, walkers, steps=10, rng=rng, optimiser="adam")
    assert found.rollbacks == 1
    assert all(parameter.isfinite().all() for parameter in psi.parameters())
    bad = set(range(1000))
    with pytest.raises(DivergenceError, match="not finite 6 times"):
        search(psi, system, walkers, steps=10, rng=rng, optimiser="adam")


def test_a_step_that_was_taken_back_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters and walkers are those of before, the moves are not."""
    system, seen = quantum_dot(), []
    real = module.pull

    def poisoned(objective, local, progress):
        seen.append(local.energy)
        towards = real(objective, local, progress)
        return type(towards)(towards.excess * float("nan"), None) if len(seen) <= 2 else towards

    monkeypatch.setattr(module, "pull", poisoned)
    psi = SlaterJastrow(system, width=4)
    walkers, rng = begin(psi, system, 16)
    assert search(psi, system, walkers, steps=1, rng=rng, moves=1, optimiser="adam").rollbacks == 2
    assert not any(torch.equal(seen[i], seen[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    ("means", "taken_back"),
    [([-1.0, -1.0, -1.0, 2.0, 5.0, 8.0], 1), ([8.0, 8.0, 8.0, -2.0], 0), ([8.0, 8.0, 8.0, 900.0], 0), ([8.0, 8.0, 8.0], 0)],
    ids=["slow rise", "one low mean", "one high mean", "level"],
)
def test_a_slow_rise_explodes_and_one_outlier_does_not(means: list[float], taken_back: int) -> None:
    system, psi = oscillator(dim=1), Decay(1.0, 2, dim=1)
    walkers, rng = begin(psi, system, 16)
    state = module._State(psi, walkers, module.descent("adam", psi), rng, {})
    state.rows = [[10.0 * (k + 1), mean, 0.0, 0.0, 0.5] for k, mean in enumerate(means)]

    class Level(LocalEnergy):
        def __call__(self, x: torch.Tensor, *, gradient: bool = False) -> Local:
            known = super().__call__(x, gradient=gradient)
            return known._replace(energy=torch.full_like(known.energy, 8.0))

    advance = partial(module._advance, state, Level(psi, system), Objective.fisher_rao(), 0.01, 100, 1, False)
    if taken_back:
        with pytest.raises(NonFiniteError, match="went to 8 from -1 Hartree"):
            advance()
    else:
        advance()
        assert state.step == 1


def test_an_energy_that_is_not_finite_is_no_result() -> None:
    class Broken(Trap):
        def potential(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(torch.arange(len(x)) == 0, torch.nan, super().potential(x))

    psi = exact_state(quantum_dot())
    walkers, rng = begin(psi, quantum_dot(), 8)
    with pytest.raises(NonFiniteError, match="1 of 8 walkers"):
        evaluate(psi, Broken(1.0, 2, 1, 1), walkers, sweeps=2, burn=0, rng=rng)
    assert verdict([Measured(3.001, 1e-4)]).passed
    assert not verdict([Measured(3.001, 1e-4), Measured(3.1, 1e-4)]).passed
    for bad in (Measured(math.nan, 1e-4), Measured(3.0, math.nan)):
        assert not verdict([Measured(3.001, 1e-4), bad]).passed


def test_one_spin_channel_may_be_empty() -> None:
    system = Molecule.of("He", spin=2)
    psi = PsiFormer(system, width=8, layers=1, heads=2, determinants=2)
    walkers, rng = begin(psi, system, 16)
    assert search(psi, system, walkers, steps=3, rng=rng).walkers.x.isfinite().all()


def test_woodbury_is_the_dense_solve(psiformer, points) -> None:
    system = Molecule.of("He")
    psi, x = psiformer(system, width=2, layers=1, heads=1, determinants=1), points(system, 6)
    rows = jacobian(psi, x)
    names = list(rows.loose)
    dense = torch.cat([rows.loose[name].flatten(1) for name in names], 1)
    by_hand = []
    for k in range(len(x)):
        parts = torch.autograd.grad(
            psi(x[k : k + 1])[0], [dict(psi.named_parameters())[name] for name in names], allow_unused=True, materialize_grads=True
        )
        by_hand.append(torch.cat([part.flatten() for part in parts]))
    assert torch.allclose(dense, torch.stack(by_hand), rtol=1e-9, atol=1e-12)
    dense = (dense - dense.mean(0)) / len(x) ** 0.5
    g = Streams(0).normal("g", dense[0])
    exact = torch.linalg.solve(dense.T @ dense + 0.1 * torch.eye(len(g), dtype=g.dtype), g)
    sizes = [rows.loose[name][0].numel() for name in names]
    split = {name: part.reshape(rows.loose[name].shape[1:]) for name, part in zip(names, g.split(sizes), strict=True)}
    found = woodbury(rows, split, 0.1)
    assert torch.allclose(torch.cat([found[name].flatten() for name in names]), exact, rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match="damping=0"):
        woodbury(rows, split, 0.0)


@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan, math.inf])
def test_a_rate_that_leads_nowhere_is_refused_by_name(lr: float) -> None:
    psi, system = Decay(1.6, power=2, dim=1), oscillator(dim=1)
    walkers, rng = begin(psi, system, 4)
    with pytest.raises(ValueError, match=r"lr=.*wanted finite and above 0.*adam"):
        search(psi, system, walkers, steps=1, rng=rng, optimiser="adam", lr=lr)
