"""Log-densities tracked along a sample's path (SuperDiff) against exact ones, and what they cost.

1. The Ito estimator on two-dimensional mixtures, on paths driven by a third mixture: bias, spread, their fall with the number of steps; the
   same integral in x-coordinates of the VP time, the ODE form, and the sign error of the published code beside it; the same paths tracked by Bayes' rule with
   the width of each expert's backward kernel.
2. AND in its published form: tracked densities of 2 to 4 models in 16 dimensions as the ridge falls, the spread of the true ones, shares against the closed form;
   AND by Bayes' rule: the *true* gap for experts of unequal widths (`density_gaps.py`); OR: shares of four modes.
3. A step with Ito tracking against a step of the ODE with one Jacobian-vector product, on a U-Net: time and peak memory.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import replace

import torch
from density_gaps import gaps
from harness import Row, run
from memory import peak_megabytes
from torch import Tensor

from popflow.compose import VP, Expert, Guidance, average, both, either, from_network, gaussian_mixture, karras, levels_of, sample, scores
from popflow.compose.backward_kernel import Variance
from popflow.core import Ito, Population, Process, Rates, Streams, euler, simulate

F64 = torch.float64
SCHEDULE, LAST = VP(), 1e-3


def mixture(means: list[list[float]], stds: list[float], weights: list[float], name: str) -> Expert:
    return gaussian_mixture(*(torch.tensor(v, dtype=F64) for v in (means, stds, weights)), name=name)


MODELS = [
    mixture([[-1.5, 0.5], [1.0, 1.5], [0.5, -1.5]], [0.6, 0.4, 0.5], [0.3, 0.3, 0.4], "q1"),
    mixture([[0.0, 0.0], [2.0, -0.5]], [0.5, 0.7], [0.6, 0.4], "q2"),
]
DRIVER = mixture([[-1.0, 0.0], [1.0, 1.0], [1.0, -1.0]], [0.6, 0.6, 0.6], [0.4, 0.3, 0.3], "driver")


def exact(pop: Population, sigma: float) -> Tensor:
    """Exact log-densities of the models in sigma coordinates, ``[*batch, n, M]``."""
    rows = pop.x.flatten(0, len(pop.batch))
    return torch.stack([e.log_prob(rows, sigma) for e in MODELS if e.log_prob is not None], -1).reshape(*pop.log_w.shape, len(MODELS))


def in_sigma(levels: Tensor, particles: int, seed: int, deterministic: bool = False, variance: Variance = "euler") -> Tensor:
    """Error of the library's estimator, ``[particles, M]``; guidance of weight 0 lets the driver alone move the particles."""
    sampler = average(
        MODELS, guidance=Guidance(DRIVER, 0.0), deterministic=deterministic, probes=None, variance="optimal" if deterministic else variance
    )
    out = sample(sampler, levels, particles=particles, rng=Streams(seed), dtype=F64).population
    return (out.aux["log_q"] - exact(out, float(levels[-1])))[0]


def in_time() -> Process:
    """Theorem 1 in x-coordinates of the VP time: ``d log q = <dx, s> + [div f + <f - g^2 s/2, s>] dtau``, tau = 1 - t; and with a wrong sign."""

    def process(t: float, pop: Population) -> Rates:
        beta = SCHEDULE.beta_min + t * (SCHEDULE.beta_max - SCHEDULE.beta_min)
        sigma = SCHEDULE.sigma(t)
        alpha = SCHEDULE.alpha(sigma)
        s, driver = scores(MODELS, pop.x / alpha, sigma) / alpha, DRIVER.score(pop.x / alpha, sigma) / alpha
        f, each = -beta / 2 * pop.x, s.movedim(0, len(pop.batch) + 1)
        dims, square = tuple(range(-len(pop.event), 0)), beta / 2 * each.square().flatten(len(pop.batch) + 2).sum(-1)
        linear = -beta / 2 * math.prod(pop.event) + (f.unsqueeze(len(pop.batch) + 1) * each).sum(dims)
        # rates are per unit of t, which runs down
        track = {"log_q": Ito(-(linear - square), each), "flipped": Ito(-(linear + square), each)}
        return Rates(f - beta * driver, beta**0.5, None, track)

    return process


def in_vp_time(levels: Tensor, particles: int, seed: int) -> dict[str, Tensor]:
    """Errors ``[particles, M]`` on the same Euler paths in x-coordinates of the VP time: textbook, sign flipped, detailed balance.

    Detailed balance is the log-ratio of one denoising and one noising kernel, ``d log rho + <rho x' - x, s> - S^2 |s|^2 / 2`` with
    ``rho = alpha / alpha'`` and ``S^2 = s^2 - rho^2 s'^2``.
    """
    rng, move = Streams(seed), euler(in_time())
    first, last = float(levels[0]), float(levels[-1])
    pop = Population.of(rng.normal("start", torch.empty(1, particles, 2, dtype=F64)) * first, batch=1)
    log_q = exact(pop, first) - 2 * math.log(SCHEDULE.alpha(first))
    pop = pop.replace(x=pop.x * SCHEDULE.alpha(first), aux=dict.fromkeys(("log_q", "flipped", "balance"), log_q))

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        (sigma0, alpha0), (sigma1, alpha1) = ((SCHEDULE.sigma(t), SCHEDULE.alpha(SCHEDULE.sigma(t))) for t in (t0, t1))
        after, s = move(pop, t0, t1, rng), scores(MODELS, pop.x / alpha0, sigma0) / alpha0
        rho, S2 = alpha0 / alpha1, alpha0**2 * (sigma0**2 - sigma1**2)
        ratio = 2 * math.log(rho) + ((rho * after.x - pop.x) * s).sum(-1) - S2 / 2 * s.square().sum(-1)
        return after.replace(aux={**after.aux, "balance": pop.aux["balance"] + ratio.movedim(0, -1)})

    pop = simulate(step, pop, SCHEDULE.time(levels), rng=rng)
    truth = exact(pop.replace(x=pop.x / SCHEDULE.alpha(last)), last) - 2 * math.log(SCHEDULE.alpha(last))
    return {name: (pop.aux[name] - truth)[0] for name in ("log_q", "flipped", "balance")}


def bias(error: Tensor) -> tuple[float, float]:
    """Mean of errors ``[particles, M]`` and its standard error; the models of one particle count once."""
    return float(error.mean()), float(error.mean(1).std() / len(error) ** 0.5)


def plus_minus(error: Tensor) -> str:
    return "{:.4f} ± {:.4f}".format(*bias(error))


def ito(options: argparse.Namespace) -> list[Row]:
    begin, particles, seeds = time.perf_counter(), *((128, 1) if options.quick else (8192, options.seeds))
    counts = (6, 12) if options.quick else (250, 500, 1000)
    low, high = counts[0], counts[-1]
    ours = {n: torch.cat([in_sigma(karras(n, 0.01, 10.0), particles, seed) for seed in range(seeds)]) for n in counts}
    in_vp_levels = in_sigma(levels_of(SCHEDULE, high, 1.0, LAST), particles, 0)
    ode = {n: in_sigma(karras(n, 0.01, 10.0), particles // 8, 0, True) for n in (low, high)}
    on_paths = {n: [in_vp_time(levels_of(SCHEDULE, n, 1.0, LAST), particles, seed) for seed in range(seeds)] for n in counts}
    textbook, flipped, balance = ({n: torch.cat([e[k] for e in on_paths[n]]) for n in counts} for k in ("log_q", "flipped", "balance"))
    (value, error), std = bias(ours[high]), {n: float(e.std()) for n, e in ours.items()}
    peers = {
        "std": std[high],
        f"bias at {low} steps": plus_minus(ours[low]),
        "on levels equally spaced in VP time, from sigma 152": plus_minus(in_vp_levels),
        "with the sign flipped": plus_minus(flipped[high]),
    }
    notes = {"particles": particles * seeds, "levels": "karras(steps, 0.01, 10)", "std": std}
    claim = f"|bias| of log q tracked in sigma (Ito = detailed balance), {high} steps"
    rows = [
        Row(claim, abs(value), error, "nats", 0.08, "<=", peers, time.perf_counter() - begin, notes),
        Row(f"std of that error, {low} over {high} steps (2 for the inverse square root)", std[low] / std[high], None, "", 1.6, ">="),
        Row(f"std of that error, {low} over {high} steps, upper bar", std[low] / std[high], None, "", 2.5, "<="),
    ]
    for n in counts:
        peers = {"detailed balance": plus_minus(balance[n]), "Ito sum": plus_minus(textbook[n])}
        peers |= {"difference": plus_minus(balance[n] - textbook[n]), "std": f"{balance[n].std():.3f} and {textbook[n].std():.3f}"}
        ratio = abs(bias(balance[n])[0] / bias(textbook[n])[0])
        rows.append(
            Row(f"|bias| of detailed balance over the Ito sum, same paths in VP time, {n} steps", ratio, None, "", 1.0, "<=", peers)
        )
    value, error = bias(ode[high])
    peers = {"std": float(ode[high].std()), f"bias at {low} steps": plus_minus(ode[low])}
    rows.append(Row(f"|bias| of log q by the ODE, exact divergence, {high} steps", abs(value), error, "nats", 0.01, "<=", peers))
    return rows


def bayes(options: argparse.Namespace) -> list[Row]:
    """Tracked by Bayes' rule: the width of the kernels from the denoising loss, or from the curvature at each particle."""
    particles, seeds = (128, 1) if options.quick else (8192, options.seeds)
    rows: list[Row] = []
    for n in (6, 12) if options.quick else (60, 250, 1000):
        grid = karras(n, 0.01, 10.0)
        begin, error = time.perf_counter(), {}
        kinds: tuple[Variance, ...] = ("euler", "optimal", "local")
        for kind in kinds:
            each = [in_sigma(grid, particles if kind != "local" else particles // 4, seed, variance=kind) for seed in range(seeds)]
            error[kind] = torch.cat(each)
        peers = {"Ito": plus_minus(error["euler"]), "std, Ito": float(error["euler"].std())}
        for kind, name in (("optimal", "table"), ("local", "curvature of each particle")):
            value, spread = bias(error[kind]), float(error[kind].std())
            bar = 0.02 if n == 250 else None
            claim = f"|bias| of log q tracked by Bayes' rule, {name}, {n} steps"
            rows.append(Row(claim, abs(value[0]), value[1], "nats", bar, "<=", {"std": spread, **peers}, time.perf_counter() - begin))
            ratio = spread / peers["std, Ito"]
            rows.append(Row(f"std of that error over that of the Ito sum, {name}, {n} steps", ratio, None, "", 1.0, "<="))
    return rows


def high_dimensional(count: int, dim: int = 16) -> list[Expert]:
    rng = torch.Generator().manual_seed(7)
    out = []
    for i in range(count):
        means = torch.randn(4, dim, generator=rng, dtype=F64)
        out.append(gaussian_mixture(means, 0.5 + 0.5 * torch.rand(4, generator=rng, dtype=F64), name=f"q{i}"))
    return out


def spread(log_q: Tensor) -> Tensor:
    return (log_q.amax(-1) - log_q.amin(-1)).flatten()


def conjunction(options: argparse.Namespace) -> list[Row]:
    particles, grid, rows = *((32, karras(6, 0.02, 20.0)) if options.quick else (1024, karras(400, 0.02, 20.0))), []
    for m in (2, 3, 4):
        known = high_dimensional(m)
        blind = [replace(e, log_prob=None) for e in known]
        for ridge in (1e-4, 1e-6, 0.0):
            begin = time.perf_counter()
            out = sample(
                both(blind, ridge=ridge, feedback=0.0, variance="euler"), grid, particles=particles, rng=Streams(0), dtype=F64
            ).population
            fed = sample(
                both(known, ridge=ridge, feedback=1.0, variance="euler"), grid, particles=particles, rng=Streams(0), dtype=F64
            ).population
            plain = sample(average(known), grid, particles=particles, rng=Streams(0), dtype=F64).population

            def true(pop: Population, known: list[Expert] = known) -> Tensor:
                return torch.stack([e.log_prob(pop.x[0], 0.02) for e in known if e.log_prob is not None], -1)

            peers = {
                "median spread of the true log q": float(spread(true(out)).median()),
                "the same with feedback 1 from exact starts": float(spread(true(fed)).median()),
                "at equal shares": float(spread(true(plain)).median()),
                "largest |kappa|, median": float(out.aux["kappa"].abs().amax(-1).median()),
            }
            claim = f"AND of {m} in 16 dimensions, published form, ridge {ridge:g}: largest spread of tracked log q"
            bar, seconds = 1e-4 if ridge == 0 else None, time.perf_counter() - begin
            rows.append(Row(claim, float(spread(out.aux["log_q"]).max()), None, "nats", bar, "<=", peers, seconds))
    return [*rows, closed_form(particles, grid)]


def closed_form(particles: int, grid: Tensor) -> Row:
    """Shares of two models at every step of a path against the published formula (guidance 3, common noise), relative to their size."""
    first, second, null = high_dimensional(3)
    w, rng, worst, begin = 3.0, Streams(0), 0.0, time.perf_counter()
    sampler = both([first, second], ridge=0.0, feedback=0.0, guidance=Guidance(null, w), variance="euler")
    pop = sampler.start(rng.normal("start", torch.empty(1, particles, 16, dtype=F64)) * float(grid[0]), float(grid[0]))
    for s0, s1 in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        same = Streams(0)
        same.load(rng.state())
        z, S2, x = same.normal("noise", pop.x), s0**2 - s1**2, pop.x
        pop = sampler.step(pop, s0**2, s1**2, rng)
        b, o, u = -s0 * scores([first, second, null], x, s0)
        alone = -S2 / s0 * (u + w * (b - u)) + math.sqrt(S2) * z
        above = ((o - b) * alone).sum(-1) / s0 + S2 / (2 * s0**2) * (o.square().sum(-1) - b.square().sum(-1))
        kappa = above / (w * S2 / s0**2 * (o - b).square().sum(-1))
        worst = max(worst, float(((pop.aux["kappa"][..., 1] - kappa).abs() / (1 + kappa.abs())).max()))
    claim = "AND of 2, published form, guided: largest relative distance of kappa from the closed form over a path"
    return Row(claim, worst, None, "", 1e-6, "<=", {}, time.perf_counter() - begin)


MODES = torch.tensor([[[-1.5, 1.5], [1.5, 1.5]], [[-1.5, -1.5], [1.5, -1.5]]], dtype=F64)


def disjunction(options: argparse.Namespace) -> list[Row]:
    particles, grid, rows = *((256, karras(12, 0.01, 20.0)) if options.quick else (16384, karras(500, 0.01, 20.0))), []
    pair = [gaussian_mixture(m, 0.4, name=n) for m, n in zip(MODES, "ab", strict=True)]
    cases = {"T = 1": {}, "T = 100": {"temperature": 100.0}, "the ODE, exact divergence": {"deterministic": True, "probes": None}}
    for name, settings in cases.items():
        begin = time.perf_counter()
        out = sample(either(pair, **settings), grid, particles=particles, rng=Streams(0), dtype=F64).x[0]
        near, owner = torch.cdist(out, MODES.reshape(4, 2)).min(1)
        share = owner.bincount(minlength=4) / len(out)
        inside, std = float((near < 3.15 * 0.4).double().mean()), [float(out[owner == k].std(0).mean()) for k in range(4)]
        peers = {"within 3.15 std": inside, "std of modes (0.4)": f"{min(std):.3f} to {max(std):.3f}"}
        claim = f"OR of two pairs of modes, {name}: largest distance of a mode's share from .25"
        rows.append(Row(claim, float((share - 0.25).abs().max()), None, "", 0.01, "<=", peers, time.perf_counter() - begin))
    return rows


def step_of(kind: str, width: int, rows: int):
    """One step of a superposition of two conditions of one U-Net, as a call without arguments."""
    from unet import UNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(3, width=width, levels=(1, 2, 2), classes=10)
    base = from_network(network, VP(), (3, 32, 32))
    experts = [base.given(torch.tensor(label), f"class {label}") for label in (3, 7)]
    samplers = {
        "ito": lambda: either(experts, variance="euler"),
        "ode": lambda: either(experts, deterministic=True, probes=1),
        "table": lambda: either(experts),
        "AND, published": lambda: both(experts, variance="euler"),
        "AND, table": lambda: both(experts, variance="optimal"),
        "AND, curvature": lambda: both(experts, variance="local"),
    }
    sampler, rng = samplers[kind](), Streams(0)
    pop = sampler.start(rng.normal("start", torch.empty(1, rows, 3, 32, 32)) * 5.0, 5.0)
    return lambda: sampler.step(pop, 5.0**2, 4.5**2, rng)


def cost(options: argparse.Namespace) -> list[Row]:
    width, rows, repeats = (16, 2, 2) if options.quick else (32, 16, 15)
    kinds = ("ito", "ode", "table", "AND, published", "AND, table", "AND, curvature")
    calls = {kind: step_of(kind, width, rows) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in calls}
    for repeat in range(repeats + 1):
        for kind, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat:
                seconds[kind].append(time.perf_counter() - start)
    out = []
    for kind, base, claim, bar in (
        (
            "ode",
            "ito",
            f"time of an ODE step with one Jacobian-vector product over a step with Ito tracking (U-Net 3x32x32, batch {rows})",
            None,
        ),
        ("table", "ito", "the same network: time of an OR step with the table of widths over one with Ito tracking", 1.01),
        ("AND, table", "AND, published", "the same network: time of an AND step with the table of widths over the published form", 1.01),
        (
            "AND, curvature",
            "AND, published",
            "the same network: time of an AND step with three Jacobian-vector products over the published form",
            None,
        ),
    ):
        ratios = [a / b for a, b in zip(seconds[kind], seconds[base], strict=True)]
        notes = {"rows": rows, "width": width, "repeats": repeats, "threads": torch.get_num_threads(), "ratios": ratios}
        peers = {f"{one}, seconds": statistics.median(seconds[one]) for one in (base, kind)}
        error = statistics.stdev(ratios) / len(ratios) ** 0.5
        out.append(Row(claim, statistics.median(ratios), error, "", bar, "<=" if bar else ">=", peers, sum(seconds[kind]), notes))
    peak = {} if options.quick else {kind: peak_megabytes("density", "step_of", kind, width, rows) for kind in ("ito", "ode")}
    if peak and all(peak.values()):
        out.append(
            Row("peak memory of the same", peak["ode"] / peak["ito"], None, "", None, ">=", {f"{k}, MB": v for k, v in peak.items()})
        )
    return out


def main(options: argparse.Namespace) -> list[Row]:
    """Tracked log-densities: accuracy, AND and OR, and cost."""
    torch.set_num_threads(1)
    return [*ito(options), *bayes(options), *conjunction(options), *gaps(options), *disjunction(options), *cost(options)]


if __name__ == "__main__":
    run("density", main, seeds=2)
