"""Lower temperatures by annealing: a diffusion model of one temperature, raised to a power and corrected, against ground truth at another.

GMM-40: the exact score of a mixture of 40 Gaussians in the plane, at both published widths, to the power 3. Truth by quadrature.

DW-4 and LJ-13: the models that come with the library, learned at T = 2. Truth by parallel-tempered Hamiltonian Monte Carlo, two independent runs: one is
the truth, the other one gives the floor (as many exact samples as there are particles). "target" follows the score of the power with the noise of the
reverse diffusion (zeta = 1), "tempered" with less of it (zeta^2 = T_S/T_L); "on" and "off" are with and without weights and resampling, "langevin" is "on" with one
Langevin step at each level (twice the calls of the model), which lets the descendants of one particle part.

Energies are clipped at 1000 in W1 and W2, as the codes of that family do; raw and trimmed distances stand beside. Published numbers are those of
Skreta et al. (2025), table 3, for a model trained by iDEM, not by score matching, with other numbers of particles and steps: they are shown, not met.

Runs are kept as files in the folder POPFLOW_PARTS (default runs/annealing), so that a stopped benchmark goes on, and
``python benchmarks/annealing.py --cell NAME`` makes one of them alone.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from harness import Row, run
from torch import Tensor
from train_zoo import truth

from popflow.compose import feynman_kac, gaussian_mixture, geometric, sample, zoo
from popflow.compose.particles import Comparison, compare, models
from popflow.core import Population, Streams
from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.core.metrics import distinct_ancestors, effective_number, total_variation, wasserstein_1d

PARTS = Path(os.environ.get("POPFLOW_PARTS", "runs/annealing"))
KEYS = ("distance_w2", "energy_w1", "energy_w2", "raw_w1", "trimmed_w1", "overlaps", "median")
PUBLISHED = {  # T_S, form -> distance W2, energy W1, energy W2: off, on
    (0.8, "target"): ((0.189, 14.730, 15.556), (0.048, 6.252, 6.356)),
    (0.8, "tempered"): ((0.108, 6.487, 8.501), (0.047, 7.016, 7.111)),
    (1.5, "target"): ((0.168, 5.340, 6.210), (0.083, 3.366, 3.386)),
    (1.5, "tempered"): ((0.095, 2.154, 3.920), (0.066, 0.765, 0.939)),
}
COLDER = {"lj13": (0.8, 1.5), "dw4": (1.0,)}
MIXED = {"lj13": ("tempered",), "dw4": ("tempered", "target")}
"""Forms that are also run with a Langevin step a level."""
CORRECTED = {"on": "corrected", "langevin": "corrected, a Langevin step a level"}
"""Modes with weights, and what rows call them."""


def part(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read a part of the benchmark, or make and keep it."""
    path = PARTS / f"{name}.safetensors"
    if not path.exists():
        begin = time.process_time()
        tensors = make()
        save_tensors(path, tensors | {"seconds": torch.tensor(time.process_time() - begin)})
        print(f"{name}: {time.process_time() - begin:.0f} s of processor", file=sys.stderr, flush=True)
    return load_tensors(path)[0]


def reference(system: str, seed: int, quick: bool) -> dict[str, Tensor]:
    sweeps = (150, 50) if quick else (6000, 600)
    return part(f"{system}-truth-{seed}{'-quick' * quick}", lambda: truth(system, seed, *sweeps))


def cell(system: str, temperature: float, form: str, mode: str, seed: int, particles: int, steps: int) -> dict[str, Tensor]:
    """One run: particles, weights, and the courses of effective sample size and ancestors."""
    model = models.find(system)
    beta = model.temperature / temperature
    name = f"{system}-{temperature}-{form}-{mode}-{seed}-{particles}-{steps}"

    def make() -> dict[str, Tensor]:
        zeta = 1.0 if form == "target" else beta**-0.5
        low, high = model.sampled
        mixing = int(mode == "langevin")
        target, step_size = zoo.load(system) ** beta, partial(model.langevin_step, beta=beta)
        sampler = feynman_kac(target, zeta=zeta, correct=mode != "off", kernel_steps=mixing, step_size=step_size)
        out = sample(sampler, geometric(steps, low, high), particles=particles, rng=Streams(seed))
        pop = out.population
        courses = {"ess": out.trace["ess"][:, 0], "ancestors": out.trace["ancestors"][:, 0]}
        return {"x": pop.x[0], "log_w": pop.log_w[0], "ancestor": pop.aux["ancestor"][0].contiguous(), **courses}

    return part(name, make)


def found(system: str, temperature: float, cells: list[dict[str, Tensor]], quick: bool) -> list[Comparison]:
    exact = reference(system, 100, quick)
    cluster = models.find(system).system
    distances = cluster.distances(exact[f"x.{temperature}"].double())
    return [compare(cluster, c["x"], c["log_w"].double().softmax(0), exact[f"energy.{temperature}"], distances) for c in cells]


def mean(values: list[float]) -> tuple[float, float | None]:
    each = torch.tensor(values, dtype=torch.float64)
    return float(each.mean()), float(each.std() / math.sqrt(len(each))) if len(each) > 1 else None


def floors(system: str, temperature: float, particles: int, seeds: int, quick: bool) -> list[Comparison]:
    """Exact samples of the second run, as many as particles, against the first."""
    other = reference(system, 101, quick)[f"x.{temperature}"]
    draws = [torch.randint(len(other), (particles,), generator=torch.Generator().manual_seed(seed)) for seed in range(seeds)]
    return found(system, temperature, [{"x": other[d], "log_w": torch.zeros(particles)} for d in draws], quick)


def own_law(system: str, options: argparse.Namespace) -> list[Row]:
    """Exact samples drift to what the model believes: Langevin dynamics with its score at a level below which it hardly changes."""
    model, expert, rows, quick = models.find(system), zoo.load(system), [], options.quick
    particles, span = (32, 4) if quick else (500, 400)
    level = 0.1 * model.stiff
    for t in (model.temperature, *COLDER[system]):
        beta, results = model.temperature / t, {}
        for split in (1, 2):

            def make(t: float = t, beta: float = beta, split: int = split) -> dict[str, Tensor]:
                other, rng = reference(system, 101, quick)[f"x.{t}"], Streams(0)
                x = other[rng.uniform("draw", (len(other),)).argsort()[:particles]]
                h = model.langevin_step(model.stiff / 3, beta) / split
                for _ in range(span * split):
                    noise = rng.normal("langevin", x)
                    x = x + h * beta * expert.score(x, level) + math.sqrt(2 * h) * (noise - noise.mean(1, keepdim=True))
                return {"x": x, "log_w": torch.zeros(particles)}

            results[split] = found(system, t, [part(f"{system}-{t}-own-{split}-{particles}-{span}", make)], quick)[0]
        start = floors(system, t, particles, 1, quick)[0]
        peers = {"steps of half the size": results[2].energy_w1, "median": results[1].median, "at the start": start.energy_w1}
        claim = f"{system}, exact samples at T = {t:g} after {span} Langevin steps with the model's score: energy_w1"
        rows.append(Row(claim, results[1].energy_w1, None, "", None, "<=", peers, 0.0, {"each": [asdict(one) for one in results.values()]}))
    return rows


def notes_of(cells: list[dict[str, Tensor]], comparisons: list[Comparison], temperature: float) -> dict:
    kept = [asdict(c) for c in comparisons]
    reduced = {
        f"{key} / T": mean([getattr(c, key) / temperature for c in comparisons])[0] for key in ("energy_w1", "energy_w2", "trimmed_w1")
    }
    ess = [float(c["ess"][-1]) for c in cells]
    smallest = [float(c["ess"].min()) for c in cells]
    alive = [int(distinct_ancestors(c["ancestor"])) for c in cells]
    seconds = sum(float(c["seconds"]) for c in cells)
    return {
        "each": kept,
        "ess_at_the_end": ess,
        "smallest_ess": smallest,
        "ancestors": alive,
        "seconds of processor": seconds,
        **reduced,
    }


def truth_rows(system: str, options: argparse.Namespace) -> list[Row]:
    """Two independent runs of parallel tempering must agree."""
    a, b = (reference(system, seed, options.quick) for seed in (100, 101))
    cluster, rows = models.find(system).system, []
    for t in models.find(system).tables:
        ea, eb = a[f"energy.{t}"].double().flatten(), b[f"energy.{t}"].double().flatten()
        da, db = (cluster.distances(part[f"x.{t}"].double()).flatten() for part in (a, b))
        gap, w1 = float((ea.mean() - eb.mean()).abs()), float(wasserstein_1d(ea, eb))
        peers = {"mean energy": float(ea.mean()), "sd": float(ea.std())}
        rows.append(Row(f"{system} truth, T = {t}: |difference of mean energies| of two runs", gap, None, "", 0.5, "<=", peers))
        rows.append(Row(f"{system} truth, T = {t}: energy W1 of two runs", w1, None, "", 0.6, "<="))
        rows.append(Row(f"{system} truth, T = {t}: distance W2 of two runs", float(wasserstein_1d(da, db, order=2)), None, "", 0.02, "<="))
    return rows


def cells_of(system: str, options: argparse.Namespace) -> dict[tuple[float, str, str], list[dict[str, Tensor]]]:
    particles, steps, seeds = (64, 20, 1) if options.quick else (2000, 500, options.seeds)
    plan = [(t, form, mode) for t in COLDER[system] for form in ("tempered", "target") for mode in ("on", "off")]
    plan = [(models.find(system).temperature, "target", "off"), *plan]
    plan += [(t, form, "langevin") for t in COLDER[system] for form in MIXED[system]]
    return {key: [cell(system, *key, seed, particles, steps) for seed in range(seeds)] for key in plan}


def particles_rows(system: str, options: argparse.Namespace) -> list[Row]:
    rows, cells, quick = truth_rows(system, options) + own_law(system, options), cells_of(system, options), options.quick
    learned = models.find(system).temperature
    gate = found(system, learned, cells.pop((learned, "target", "off")), quick)
    particles = 64 if quick else 2000
    floor = floors(system, learned, particles, options.seeds, quick)
    bars = {"energy_w1": 3.5, "median": 3.0, "distance_w2": 0.08} if system == "lj13" else {}
    stricter = {"energy_w1": 3.0, "median": 1.5, "distance_w2": 0.05}
    for key in ("energy_w1", "median", "distance_w2"):
        value, error = mean([abs(getattr(c, key)) for c in gate])
        peers = {"floor": mean([abs(getattr(c, key)) for c in floor])[0]} | ({"stricter gate": stricter[key]} if bars else {})
        notes = {"each": [asdict(c) for c in gate], "particles": particles}
        claim = f"{system}, the model itself, T = {learned:g}: {'|median energy error|' if key == 'median' else key}"
        rows.append(Row(claim, value, error, "", bars.get(key), "<=", peers, 0.0, notes))
    holds = all(row.holds for row in rows[-3:]) if bars else True
    limited = "" if holds else "model-limited (the gate at T = 2 is not held): "
    for t in COLDER[system]:
        floor = floors(system, t, particles, options.seeds, quick)
        for form in ("tempered", "target"):
            both = {mode: found(system, t, made, quick) for (at, of, mode), made in cells.items() if (at, of) == (t, form)}
            for key in KEYS:
                figures = {mode: mean([abs(getattr(c, key)) for c in made]) for mode, made in both.items()}
                on, off = figures["on"][0], figures["off"][0]
                notes = {mode: notes_of(cells[t, form, mode], made, t) for mode, made in both.items()} if key == "distance_w2" else {}
                bar, ratio = lj13_bars(system, t, form, key)
                for mode, what in CORRECTED.items():
                    if mode not in both:
                        continue
                    value, error = figures[mode]
                    peers: dict[str, float | str] = {"off": off, "floor": mean([abs(getattr(c, key)) for c in floor])[0]}
                    if mode == "langevin":
                        peers["without Langevin steps"] = on
                    if key in KEYS[1:5]:
                        peers |= {"this / T": value / t, "off / T": off / t}
                    if system == "lj13" and key in KEYS[:3]:
                        k = KEYS.index(key)
                        peers |= {"published off": PUBLISHED[t, form][0][k], "published on": PUBLISHED[t, form][1][k]}
                    if key == "distance_w2":
                        peers |= {"ESS at the end": mean(notes[mode]["ess_at_the_end"])[0], "ancestors": mean(notes[mode]["ancestors"])[0]}
                    claim = f"{limited}{system}, T = {learned:g} to {t:g}, {form}, {what}: {key}"
                    rows.append(Row(claim, value, error, "", bar, "<=", peers, 0.0, notes if mode == "on" else {}))
                    if ratio is not None:
                        rows.append(Row(f"{claim}, over that without weights", value / off, None, "", ratio, "<="))
                    if system == "dw4" and key in ("distance_w2", "energy_w1"):
                        gain, sd = mean([getattr(b, key) - getattr(a, key) for a, b in zip(both[mode], both["off"], strict=True)])
                        score = gain / sd if sd else math.nan
                        rows.append(Row(f"{claim}, gain in standard errors", score, None, "", 2.0, ">=", {"gain": gain}))
    return rows


def lj13_bars(system: str, t: float, form: str, key: str) -> tuple[float | None, float | None]:
    """Bar on a figure, and bar on its ratio to the one without weights."""
    if system != "lj13" or form != "tempered":
        return None, None
    return {
        (0.8, "distance_w2"): (0.08, None),
        (0.8, "energy_w1"): (5.0, 0.3),
        (1.5, "distance_w2"): (0.06, 0.6),
        (1.5, "trimmed_w1"): (3.0, None),
    }.get((t, key), (None, None))


WIDTHS = {"1.313": math.log1p(math.exp(1.0)), "2.127": math.log1p(math.exp(2.0))}
"""softplus(1) (iDEM, FAB) and softplus(2) (annealing notebook of FKC), as standard deviations."""
LEVELS = (0.5, 500.0)
BETA = 3.0
ESS_BELOW = 0.9
"""At one half, one run in eight at the larger width fell to the descendants of a few particles (total variation 0.80)."""


def gmm40() -> Tensor:
    """The 40 means of the published mixture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ((torch.rand(40, 2) - 0.5) * 2 * 40).double()


def gmm40_law(means: Tensor, std: float, sigma: float) -> tuple[Tensor, float, Tensor]:
    """Masses of the nearest means, log Z and mean of ``q^3`` at a noise level, on a grid of 1601 x 1601 points in [-56, 56]^2."""
    axis = torch.linspace(-56, 56, 1601, dtype=torch.float64)
    log_prob = gaussian_mixture(means, std).log_prob
    assert log_prob is not None
    masses, total, first = torch.zeros(40, dtype=torch.float64), 0.0, torch.zeros(2, dtype=torch.float64)
    for row in axis.split(100):
        points = torch.cartesian_prod(row, axis)
        p = (BETA * log_prob(points, sigma)).exp()
        masses.index_add_(0, torch.cdist(points, means).argmin(1), p)
        total, first = total + float(p.sum()), first + p @ points
    cell_area = float(axis[1] - axis[0]) ** 2
    return masses / masses.sum(), math.log(total * cell_area), first / total


def gmm_rows(options: argparse.Namespace) -> list[Row]:
    particles, steps, seeds = (500, 30, 1) if options.quick else (10_000, 500, 2 * options.seeds)  # seconds each: twice the seeds
    means, rows = gmm40(), []
    for name, std in WIDTHS.items():
        masses, log_z, _ = gmm40_law(means, std, LEVELS[0])
        generator = torch.Generator().manual_seed(0)
        draws = torch.multinomial(masses, particles * seeds, replacement=True, generator=generator).reshape(seeds, particles)
        floor = mean([float(total_variation(torch.bincount(d, minlength=40).double(), masses)) for d in draws])[0]
        results: dict[tuple[float, bool], list[dict[str, float]]] = {}
        for square, correct in ((1.0, True), (1.0, False), (2.0, True), (1 / BETA, True)):
            for seed in range(seeds):

                def make(square: float = square, correct: bool = correct, seed: int = seed, std: float = std) -> dict[str, Tensor]:
                    sampler = feynman_kac(
                        gaussian_mixture(means, std) ** BETA, zeta=math.sqrt(square), correct=correct, ess_below=ESS_BELOW
                    )
                    grid = geometric(steps, *LEVELS)
                    pop = sample(sampler, grid, particles=particles, rng=Streams(seed), dtype=torch.float64).population
                    return {"x": pop.x[0], "log_w": pop.log_w[0], "log_z": pop.log_z[0], "ancestor": pop.aux["ancestor"][0].contiguous()}

                kept = part(f"gmm40-{name}-{square:.3f}-{'on' if correct else 'off'}-{seed}-{particles}-{steps}-{ESS_BELOW}", make)
                pop = Population(kept["x"], kept["log_w"], kept["log_z"], {})
                nearest = torch.cdist(kept["x"], means).argmin(1)
                share = torch.zeros(40, dtype=torch.float64).index_add_(0, nearest, pop.weights())
                one = {"tv": float(total_variation(share, masses)), "log_z": float(pop.log_normalizer()) - log_z}
                one |= {
                    "ess": float(pop.ess()),
                    "ancestors": int(distinct_ancestors(kept["ancestor"])),
                    "modes": float(effective_number(share)),
                }
                results.setdefault((square, correct), []).append(one)

        def figure(square: float, correct: bool, key: str, results=results) -> tuple[float, float | None]:
            return mean([one[key] for one in results[square, correct]])

        for square, what, bar in ((1.0, "target score", 0.20), (2.0, "zeta^2 = 2", 0.15), (1 / BETA, "tempered", None)):
            (on, error), (off, _) = figure(square, True, "tv"), figure(1.0, False, "tv")
            peers = {
                "off (target score)": off,
                "floor": floor,
                "ancestors": figure(square, True, "ancestors")[0],
                "ESS": figure(square, True, "ess")[0],
            }
            peers |= {"effective modes": figure(square, True, "modes")[0], "true": float(effective_number(masses))}
            notes = {"each": results[square, True], "off": results[1.0, False], "std": std, "particles": particles, "steps": steps}
            claim = f"GMM-40, std {name}, beta 3, {what}: total variation of mode masses"
            rows.append(Row(claim, on, error, "", bar, "<=", peers, 0.0, notes))
            if square == 1.0:
                rows.append(Row(f"{claim}, over that without weights", on / off, None, "", 0.55, "<="))
            wrong, spread = figure(square, True, "log_z")
            claim = f"GMM-40, std {name}, beta 3, {what}: |mean error of log Z|"
            rows.append(Row(claim, abs(wrong), spread, "", 0.5 if square == 1.0 else None, "<=", {"exact log Z": log_z}))
    return rows


def main(options: argparse.Namespace) -> list[Row]:
    """Annealing of diffusion models against ground truth: GMM-40, DW-4, LJ-13."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    if "gmm40" in options.only:
        rows += gmm_rows(options)
    for system in ("dw4", "lj13"):
        if system in options.only:
            rows += particles_rows(system, options)
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "--cell":  # SYSTEM-T-FORM-on|off|langevin-SEED, at full size
        for one in sys.argv[2:]:
            system, t, form, mode, seed = one.split("-")
            cell(system, float(t), form, mode, int(seed), 2000, 500)
    else:
        run("annealing", main, seeds=3, parts=("gmm40", "dw4", "lj13"))
