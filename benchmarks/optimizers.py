"""SINGD against its peers: time per step, state, robustness, time to a target loss, half precision.

    python benchmarks/optimizers.py --only speed robustness loss precision flow --json FILE

Peers, in the same process and with the same measure: fused AdamW, `torch.optim.Muon`, singd 0.0.5, SOAP and Kron of pytorch_optimizer, and a
classical KFAC (moving averages and Cholesky, below). Times are process CPU time on one thread. Competitors take turns in blocks of ten steps,
and a number is the median over blocks, so that a busy machine slows all of them alike.

This file is long because the tasks, the peers and five parts of one claim are read together.
"""

from __future__ import annotations

import argparse
import inspect
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from harness import Row, run
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.optim import SINGD, BlockDiagonal, Dense, Diagonal, Hierarchical, LowerToeplitz, Tap, expand, find_layers, over_data
from popflow.optim.structures import Structure

PARTS = ("speed", "robustness", "loss", "precision", "flow")
Make = Callable[[nn.Module], torch.optim.Optimizer]


# -- peers ------------------------------------------------------------------------------------------------------------------------------


class KFAC(torch.optim.Optimizer):
    """Classical KFAC: moving averages of both Gram matrices, Cholesky solves every ``interval`` steps, KL clip, AdamW for the rest."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        damping: float = 1e-3,
        decay: float = 0.95,
        interval: int = 10,
        momentum: float = 0.9,
        kl_clip: float = 1e-3,
    ):
        super().__init__(list(model.parameters()), {"lr": lr})
        self.layers, self.damping, self.decay, self.interval, self.momentum, self.kl_clip = (
            find_layers(model),
            damping,
            decay,
            interval,
            momentum,
            kl_clip,
        )
        taken = {parameter for layer in self.layers for parameter in layer.parameters()}
        rest = [parameter for parameter in model.parameters() if parameter not in taken]
        self.adamw = torch.optim.AdamW(rest, lr=1e-3, fused=True) if rest else None
        self.tap, self.grams, self.inverses, self.buffers, self.steps = Tap(self.layers, self.hear), {}, {}, {}, 0
        self.tap.armed = True

    @torch.no_grad()
    def hear(self, layer, a: Tensor, g: Tensor) -> None:
        """Average the Gram matrices of a layer."""
        data = a.shape[1]
        a, g = expand(a, g)
        if layer.bias is not None:
            a = F.pad(a, (0, 1), value=1.0)
        new = (a.mT @ a / a.shape[1], g.mT @ g * over_data(data, g.shape[1]))
        old = self.grams.get(layer)
        self.grams[layer] = new if old is None else tuple(torch.lerp(x, y, 1 - self.decay) for x, y in zip(old, new, strict=True))

    @torch.no_grad()
    def step(self, closure=None):
        """Factorise where due, solve, clip, move."""
        lr = self.param_groups[0]["lr"]
        if self.tap.armed:
            for layer, grams in self.grams.items():
                eyes = [gram + self.damping**0.5 * torch.eye(gram.shape[-1], dtype=gram.dtype) for gram in grams]
                # LAPACK has no bfloat16: the solve is float32, of Gram matrices averaged in the dtype of the network.
                self.inverses[layer] = [torch.cholesky_inverse(torch.linalg.cholesky(eye.float())).to(eye.dtype) for eye in eyes]
        moves, total = {}, 0.0
        for layer, (k, c) in self.inverses.items():
            gradient = torch.cat([layer.view(parameter.grad) for parameter in layer.parameters()], -1)
            moves[layer] = c @ gradient @ k
            total += float((moves[layer] * gradient).sum())
        scale = min(1.0, math.sqrt(self.kl_clip / (lr**2 * total))) if total > 0 else 1.0
        for layer, move in moves.items():
            buffer = self.buffers.setdefault(layer, torch.zeros_like(move)).mul_(self.momentum).add_(move, alpha=scale)
            for parameter, part in zip(layer.parameters(), buffer.split([layer.p, buffer.shape[-1] - layer.p], -1), strict=False):
                rows = parameter[layer.start : layer.start + layer.blocks * layer.d]
                rows.add_(part.reshape(rows.shape), alpha=-lr)
        if self.adamw is not None:
            self.adamw.step()
        self.steps += 1
        self.tap.armed = self.steps % self.interval == 0


class Pair(torch.optim.Optimizer):
    """Two optimisers over the parameters of one model, as peers need that take matrices only."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer | None):
        self.both = [one for one in (first, second) if one is not None]
        super().__init__([p for one in self.both for group in one.param_groups for p in group["params"]], {})

    def step(self, closure=None):
        """Step both."""
        for one in self.both:
            one.step()


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def _rest(model: nn.Module, taken: set[Tensor], lr: float) -> torch.optim.Optimizer | None:
    rest = [parameter for parameter in model.parameters() if parameter not in taken]
    return torch.optim.AdamW(rest, lr=lr, fused=True) if rest else None


def muon(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    return Pair(torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), _rest(model, set(matrices), lr))


def soap(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(model.parameters(), lr=lr, weight_decay=0.0, precondition_frequency=10)


def kron(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import Kron

    return Kron(model.parameters(), lr=lr, weight_decay=0.0)


def reference(model: nn.Module, lr: float, structure: str = "dense", interval: int = 10, **options: Any) -> torch.optim.Optimizer:
    from singd.optim.optimizer import SINGD as Reference

    linear = [p for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d) for p in module.parameters(recurse=False)]
    taken = set(linear)
    return Pair(
        Reference(model, linear, lr=lr, structures=(structure, structure), T=interval, warn_unsupported=False, **options),
        _rest(model, taken, 1e-3),
    )


STRUCTURES: dict[str, tuple[Structure, str | None]] = {
    "dense": (Dense(), "dense"),
    "block-30": (BlockDiagonal(30), "block30diagonal"),
    "hierarchical 15, 15": (Hierarchical(15, 15), "hierarchical15_15"),
    "Toeplitz": (LowerToeplitz(), "triltoeplitz"),
    "diagonal": (Diagonal(), "diagonal"),
}


# -- tasks ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A problem: a model, a batch for each step, a loss, and the loss that counts as reached."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple]
    loss: Callable[..., Tensor]
    target: float
    steps: int


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def mlp(width: int = 256) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


class Transformer(nn.Module):
    """Character transformer (causal) or, with ``patch``, a vision transformer on 8 x 8 images."""

    def __init__(self, vocabulary: int, length: int, width: int = 64, depth: int = 2, patch: int = 0):
        super().__init__()
        self.embed = nn.Linear(patch, width) if patch else nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layer = partial(nn.TransformerEncoderLayer, width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
        self.blocks = nn.ModuleList(layer() for _ in range(depth))
        self.norm, self.head, self.patch = nn.LayerNorm(width), nn.Linear(width, vocabulary), patch
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.embed(x) + self.place
        for block in self.blocks:
            h = block(h) if self.patch else block(h, src_mask=self.mask.to(h.dtype), is_causal=True)
        h = self.norm(h)
        return self.head(h.mean(1) if self.patch else h)


def text() -> tuple[Tensor, int]:
    """A file of the standard library, as character numbers."""
    source = inspect.getsource(argparse)
    letters = sorted(set(source))
    return torch.tensor([letters.index(letter) for letter in source]), len(letters)


def characters(width: int = 64, length: int = 64, batch: int = 16, target: float = 2.3, steps: int = 300) -> Task:
    stream, vocabulary = text()

    def draw(rng: torch.Generator) -> tuple:
        at = torch.randint(0, len(stream) - length - 1, (batch, 1), generator=rng) + torch.arange(length + 1)
        return stream[at[:, :-1]], stream[at[:, 1:]]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())

    return Task("char transformer", lambda: Transformer(vocabulary, length, width), draw, loss, target, steps)


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).float(), y)


def digits_task(name: str, model: Callable[[], nn.Module], shape: tuple[int, ...], target: float, steps: int) -> Task:
    images, labels = digits()

    def draw(rng: torch.Generator) -> tuple:
        at = torch.randint(0, len(images), (128,), generator=rng)
        return images[at].reshape(-1, *shape), labels[at]

    return Task(name, model, draw, classify, target, steps)


def vision(steps: int = 300) -> Task:
    images, labels = digits()
    tiles = images.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)

    def draw(rng: torch.Generator) -> tuple:
        at = torch.randint(0, len(tiles), (64,), generator=rng)
        return tiles[at], labels[at]

    return Task("ViT on digits", lambda: Transformer(10, 16, 32, 2, patch=4), draw, classify, 0.1, steps)


def regression() -> Task:
    rng = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(32, 32, generator=rng))
    mix = q * torch.logspace(0, -3, 32)  # condition of the covariance: 1e6
    truth = torch.randn(4, 32, generator=rng) @ torch.diag(torch.logspace(0, 3, 32)) @ q.T / 32

    def draw(rng: torch.Generator) -> tuple:
        x = torch.randn(128, 32, generator=rng) @ mix.T
        return x, x @ truth.T

    return Task(
        "ill-conditioned regression", lambda: nn.Linear(32, 4), draw, lambda net, x, y: (net(x) - y).square().sum(1).mean() / 2, 1e-3, 2000
    )


def autoencoder() -> Task:
    images, _ = digits()
    sizes = [64, 48, 24, 8, 24, 48, 64]

    def model() -> nn.Module:
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
        return nn.Sequential(*layers[:-1])

    def draw(rng: torch.Generator) -> tuple:
        x = images[torch.randint(0, len(images), (256,), generator=rng)]
        return (x,)

    return Task("deep autoencoder", model, draw, lambda net, x: (net(x) - x).square().sum(1).mean() / 2, 0.75, 1500)


def convolutional() -> Task:
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    return digits_task("convolutional net", model, (1, 8, 8), 0.05, 600)


KARATE = (
    "1 2 3 4 5 6 7 8 10 11 12 13 17 19 21 31|2 3 7 13 17 19 21 30|3 7 8 9 13 27 28 32|7 12 13|6 10|6 10 16|16||30 32 33|33||||33|32 33|32 33||"
    "|32 33|33|32 33||32 33|25 27 29 32 33|25 27 31|31|29 33|33|31 33|32 33|32 33|32 33|33|"
)


class Graph(nn.Module):
    """Kipf and Welling's two layers on a fixed graph, with node numbers as features."""

    def __init__(self, spread: Tensor):
        super().__init__()
        self.one, self.two = nn.Linear(34, 32), nn.Linear(32, 2)
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.two(self.spread @ torch.relu(self.one(self.spread @ x)))


def graph() -> Task:
    edges = torch.eye(34)
    for i, row in enumerate(KARATE.split("|")):
        for j in map(int, row.split()):
            edges[i, j] = edges[j, i] = 1
    degree = edges.sum(1).rsqrt()
    spread = degree[:, None] * edges * degree
    instructor = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 16, 17, 19, 21, 8]
    labels = torch.ones(34, dtype=torch.long)
    labels[instructor] = 0
    return Task("GCN on the karate club", lambda: Graph(spread), lambda rng: (torch.eye(34), labels), classify, 0.02, 500)


def poisson() -> Task:
    """``-u'' = pi^2 sin(pi x)`` on [0, 1] with ``u = 0`` at both ends built in; second derivatives by nested vector-Jacobian products."""

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        x = x.requires_grad_(True)
        u = net(x) * x * (1 - x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        bend = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
        return (bend + math.pi**2 * torch.sin(math.pi * x)).square().mean() / 2

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    return Task("physics-informed Poisson", model, lambda rng: (torch.rand(128, 1, generator=rng),), loss, 5e-3, 1500)


# -- one run ----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one training run gave: steps to the target (inf when not reached), CPU seconds to it, last loss, whether all was finite."""

    steps: float
    seconds: float
    final: float
    finite: bool


def train(task: Task, make: Make, seed: int, steps: int | None = None, dtype: torch.dtype = torch.float32, stop: bool = True) -> Outcome:
    """Train; the target is met by the mean of the last ten losses. Seconds are steps times the median CPU time of a step."""
    torch.manual_seed(seed)
    net = task.model().to(dtype)
    rng = torch.Generator().manual_seed(1000 + seed)
    losses, times, hit, finite = [], [], math.inf, True
    optimizer = make(net)
    for k in range(steps or task.steps):
        batch = tuple(part.to(dtype) if part.is_floating_point() else part for part in task.batch(rng))
        start = time.process_time()
        optimizer.zero_grad()
        loss = task.loss(net, *batch)
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - start)
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            finite = False
            break
        if hit == math.inf and k >= 9 and sum(losses[-10:]) / 10 < task.target:
            hit = k + 1
            if stop:
                break
    finite = finite and all(bool(p.isfinite().all()) for p in net.parameters())
    # A refresh every T steps is paid in the mean, not in the median: take the median over blocks of ten.
    blocks = [statistics.mean(times[i : i + 10]) for i in range(0, max(1, len(times) - 9), 10)]
    return Outcome(hit, hit * statistics.median(blocks), statistics.mean(losses[-10:]), finite)


def tried(task: Task, make: Make, seed: int, **options: Any) -> Outcome:
    """Like `train`; an optimiser that raises has failed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return train(task, make, seed, **options)
    except (RuntimeError, ValueError, torch.linalg.LinAlgError):
        return Outcome(math.inf, math.inf, math.nan, finite=False)


# -- 2. speed and state -----------------------------------------------------------------------------------------------------------------


def floor(task: Task, interval: int) -> Callable[[], None]:
    """Plain forward and backward pass of the MLP and the matrix products of dense SINGD, and nothing else: one step per call."""
    torch.manual_seed(0)
    net = task.model()
    batch = task.batch(torch.Generator().manual_seed(0))
    count = len(batch[0])
    shapes = [(layer.out_features, layer.in_features + 1) for layer in net if isinstance(layer, nn.Linear)]
    sides = [
        (n, other, torch.randn(n, n), torch.randn(count, n), torch.empty(count, n), torch.empty(n, n))
        for d, p in shapes
        for n, other in ((p, d), (d, p))
    ]
    gradients = [torch.randn(d, p) for d, p in shapes]
    calls = [0]

    def step() -> None:
        for parameter in net.parameters():
            parameter.grad = None
        task.loss(net, *batch).backward()
        if calls[0] % interval == 0:
            for n, other, k, rows, seen, out in sides:
                torch.mm(rows, k, out=seen)
                torch.mm(seen.T, seen, out=out)
                torch.mm(k.T, k, out=out)
                torch.mm(k, k, out=out)
                if interval * other >= n:
                    torch.mm(k, k.T, out=out)
        for i, gradient in enumerate(gradients):
            (p, d, k, *_), (_, _, c, *_) = sides[2 * i], sides[2 * i + 1]
            right = gradient @ k if interval * d >= p else (gradient @ k) @ k.T
            _ = c @ right if interval * p >= d else c.T @ (c @ right)
        calls[0] += 1

    return step


def stepper(task: Task, make: Callable, bare: bool = False) -> tuple[Callable[[], None], torch.optim.Optimizer, nn.Module]:
    torch.manual_seed(0)
    net = task.model()
    optimizer = make(net.parameters() if bare else net)
    batch = task.batch(torch.Generator().manual_seed(0))

    def step() -> None:
        optimizer.zero_grad()
        task.loss(net, *batch).backward()
        if not bare:
            optimizer.step()

    return step, optimizer, net


def in_turns(steps: dict[str, Callable[[], None]], blocks: int, slow: dict[str, int]) -> dict[str, float]:
    """Median CPU milliseconds per step over blocks of ten; competitors take turns. ``slow`` caps the blocks of some."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(blocks + 1):
        for name, step in steps.items():
            if block > slow.get(name, blocks):
                continue
            start = time.process_time()
            for _ in range(10):
                step()
            if block:  # the first block warms up
                times[name].append((time.process_time() - start) * 100)
    return {name: statistics.median(values) for name, values in times.items()}


def numbers_of_state(optimizer: torch.optim.Optimizer) -> int:
    if isinstance(optimizer, SINGD):
        return sum(line.state for line in optimizer.report())
    if isinstance(optimizer, Pair):
        return sum(numbers_of_state(one) for one in optimizer.both)
    seen: set[int] = set()

    def count(value: Any) -> int:
        if isinstance(value, Tensor):
            fresh = value.data_ptr() not in seen and value.ndim > 0
            seen.add(value.data_ptr())
            return value.numel() if fresh else 0
        if isinstance(value, dict):
            return sum(map(count, value.values()))
        if isinstance(value, list | tuple):
            return sum(map(count, value))
        return sum(map(count, vars(value).values())) if type(value).__module__.startswith("singd") else 0

    total = count(dict(optimizer.state))
    for name in ("Ks", "Cs", "m_Ks", "m_Cs"):
        total += count(getattr(optimizer, name, {}))
    return total


def speed(options: argparse.Namespace) -> list[Row]:
    rows, blocks = [], 2 if options.quick else 25
    task = digits_task("MLP", mlp, (64,), 0.05, 100)
    absent: dict[str, str] = {}
    for interval in (1, 10):
        makes: dict[str, Make] = {"AdamW": partial(adamw, lr=1e-3)}
        makes |= {name: partial(SINGD, lr=1e-3, structure=ours, interval=interval) for name, (ours, _) in STRUCTURES.items()}
        makes |= {
            f"singd {name}": partial(reference, lr=1e-3, structure=theirs, interval=interval)
            for name, (_, theirs) in STRUCTURES.items()
            if theirs
        }
        makes |= {
            "Muon": partial(muon, lr=1e-3),
            "SOAP": partial(soap, lr=1e-3),
            "Kron": partial(kron, lr=1e-3),
            "KFAC": partial(KFAC, lr=1e-3, interval=interval),
        }
        steps, optimizers, net = (
            {"floor": floor(task, interval), "plain": stepper(task, partial(torch.optim.SGD, lr=0.0), bare=True)[0]},
            {},
            None,
        )
        for name, make in makes.items():
            try:
                steps[name], optimizers[name], net = stepper(task, make)
            except ImportError as error:
                absent[name] = f"absent: {error}"
        started = time.perf_counter()
        times = in_turns(steps, blocks, {"singd Toeplitz": 1, "Kron": 5})
        seconds = time.perf_counter() - started
        ratios = {name: value / times["AdamW"] for name, value in times.items()}
        peers = {name: round(ratios[name], 2) for name in ("Muon", "SOAP", "Kron", "KFAC") if name in ratios} | absent
        notes = {"ms": {name: round(value, 3) for name, value in times.items()}, "interval": interval, "threads": torch.get_num_threads()}
        rows.append(
            Row(f"MLP, dense, T={interval}: step over floor", times["dense"] / times["floor"], None, "x", 1.25, "<=", {}, seconds, notes)
        )
        targets = {("diagonal", 1): 1.6, ("Toeplitz", 1): 2.5}
        for name in STRUCTURES:
            target = targets.get((name, interval))
            rows.append(Row(f"MLP, {name}, T={interval}: step over AdamW's", ratios[name], None, "x", target, "<=", peers, 0.0, {}))
            if f"singd {name}" in times:
                faster = times[f"singd {name}"] / times[name]
                theirs = {"singd over AdamW": round(ratios[f"singd {name}"], 2)}
                rows.append(Row(f"MLP, {name}, T={interval}: singd's step over ours", faster, None, "x", 2.0, ">=", theirs, 0.0, {}))
                beyond = (times[f"singd {name}"] - times["plain"]) / (times[name] - times["plain"])
                rows.append(Row(f"MLP, {name}, T={interval}: singd's overhead over ours (less forward and backward)", beyond, None, "x"))
        if interval == 1 and net is not None:
            count = sum(parameter.numel() for parameter in net.parameters())
            state = {name: numbers_of_state(optimizer) / count for name, optimizer in optimizers.items()}
            limits = {"diagonal": 1.05, "Toeplitz": 1.05, "block-30": 1.75}
            others = {name: round(value, 2) for name, value in state.items() if name not in STRUCTURES}
            rows += [
                Row(f"MLP, {name}: numbers of state per parameter", state[name], None, "", limits.get(name), "<=", others)
                for name in STRUCTURES
            ]
    makes = {"AdamW": partial(adamw, lr=1e-3)} | {
        name: partial(SINGD, lr=1e-3, structure=ours, interval=10, max_rows=256) for name, (ours, _) in STRUCTURES.items()
    }
    steps = {name: stepper(characters(), make)[0] for name, make in makes.items()}
    times = in_turns(steps, 1 if options.quick else 15, {})
    for name in STRUCTURES:
        notes = {"ms": round(times[name], 2), "AdamW ms": round(times["AdamW"], 2), "max_rows": 256}
        rows.append(
            Row(f"char transformer, {name}, T=10: step over AdamW's", times[name] / times["AdamW"], None, "x", 1.10, "<=", {}, 0.0, notes)
        )
    return rows


# -- 3. robustness ----------------------------------------------------------------------------------------------------------------------


def robustness(options: argparse.Namespace) -> list[Row]:
    lrs, lr_covs, dampings = (1e-3, 1e-2, 1e-1, 1.0, 10.0), (0.01, 0.1, 0.5, 0.9), (1e-6, 1e-3, 1e-1)
    tasks = [digits_task("MLP", lambda: mlp(32), (64,), 0.05, 60), autoencoder(), characters(16, 16, 8)]
    steps = 5 if options.quick else 60
    there = find_spec("singd") is not None
    if options.quick:
        lrs, lr_covs, dampings = lrs[::2], lr_covs[::3], dampings[::2]
    rows = []
    for task in tasks:
        for dtype in (torch.float32, torch.bfloat16):
            start, cells = time.perf_counter(), [(lr, beta, damping) for lr in lrs for beta in lr_covs for damping in dampings]
            bad = {"SINGD": 0, "IKFAC": 0, "natural": 0, "singd": 0, "KFAC": 0}
            for lr, beta, damping in cells:
                ours = {"lr_cov": beta, "damping": damping, "interval": 1}
                makes = {
                    "SINGD": partial(SINGD, lr=lr, **ours),
                    "IKFAC": partial(SINGD, lr=lr, adaptive=False, **ours),
                    "natural": partial(SINGD, lr=lr, update_rms=None, **ours),
                    "singd": partial(reference, lr=lr, lr_cov=beta, damping=damping, interval=1),
                    "KFAC": partial(KFAC, lr=lr, decay=1 - beta, damping=damping, interval=1),
                }
                for name, make in makes.items():
                    if name == "singd" and not there:
                        continue
                    bad[name] += not tried(task, make, 0, steps=steps, dtype=dtype, stop=False).finite
            ours = bad["SINGD"] + bad["IKFAC"] + bad["natural"]
            notes = {
                "cells": len(cells),
                "steps": steps,
                "SINGD": bad["SINGD"],
                "IKFAC": bad["IKFAC"],
                "without update_rms": bad["natural"],
            }
            claim = f"{task.name}, {str(dtype).removeprefix('torch.')}: non-finite runs of {3 * len(cells)}"
            peers = {name: f"{bad[name]} of {len(cells)}" for name in ("singd", "KFAC")} | (
                {} if there else {"singd": "absent: not installed"}
            )
            rows.append(Row(claim, float(ours), None, "", 0.0, "<=", peers, time.perf_counter() - start, notes))
    return rows


# -- 4. time to a target loss -----------------------------------------------------------------------------------------------------------


def candidates(kind: str) -> list[Make]:
    """Eight settings for each optimiser."""
    rates = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
    if kind == "SINGD":
        free = {"update_rms": None, "kl_clip": 1e-2, "damping": 1e-5}
        return [
            *(partial(SINGD, lr=lr, structure=Dense(), interval=4) for lr in (8e-3, 2e-2, 5e-2)),
            partial(SINGD, lr=2e-2, structure=Dense(), interval=1),
            partial(SINGD, lr=0.1, structure=Dense(), interval=2, lr_cov=0.3, **free),
            partial(SINGD, lr=0.3, structure=Dense(), interval=2, lr_cov=0.3, **free),
            *(partial(SINGD, lr=lr, structure=Diagonal(), interval=10) for lr in (8e-3, 2e-2)),
        ]
    make = {
        "AdamW": adamw,
        "Muon": muon,
        "SOAP": soap,
        "Kron": kron,
        "KFAC": partial(KFAC, interval=4),
        "singd": partial(reference, interval=4, lr_cov=0.1, damping=1e-2),
    }[kind]
    return [partial(make, lr=lr) for lr in rates]


def loss(options: argparse.Namespace) -> list[Row]:
    tasks = [regression(), autoencoder(), convolutional(), characters(), graph(), poisson()]
    kinds = ["AdamW", "SINGD", "Muon", "SOAP", "Kron", "KFAC", "singd"]
    if options.quick:
        tasks, kinds = [graph()], ["AdamW", "SINGD"]
    rows, won = [], {"seconds": 0, "steps": 0}
    for task in tasks:
        began, found = time.perf_counter(), {}
        for kind in kinds:
            try:
                tuned = [(make, tried(task, make, 100)) for make in candidates(kind)]
            except ImportError as error:
                found[kind] = f"absent: {error}"
                continue
            best = {measure: min(tuned, key=lambda pair, m=measure: getattr(pair[1], m))[0] for measure in won}
            found[kind] = {
                measure: sorted(getattr(tried(task, make, seed), measure) for seed in range(options.seeds))
                for measure, make in best.items()
            }
        for measure in won:
            middle = {kind: statistics.median(values[measure]) for kind, values in found.items() if isinstance(values, dict)}
            won[measure] += middle["SINGD"] < middle["AdamW"]
            peers = {
                kind: f"{values[measure][0]:.3g} / {middle[kind]:.3g} / {values[measure][-1]:.3g}" if isinstance(values, dict) else values
                for kind, values in found.items()
            }
            spread = found["SINGD"][measure]
            quarter = (spread[(3 * len(spread)) // 4] - spread[len(spread) // 4]) / 2
            claim = f"{task.name}: {'CPU ' if measure == 'seconds' else ''}{measure} to a loss of {task.target:g} (least / median / most)"
            rows.append(
                Row(claim, middle["SINGD"], quarter, measure, None, "<=", peers, time.perf_counter() - began, {"seeds": options.seeds})
            )
            print(rows[-1].claim, peers, flush=True)
    for measure, wanted in (("seconds", 4), ("steps", 5)):
        rows.append(
            Row(f"tasks with fewer {measure} than tuned AdamW, of {len(tasks)}", float(won[measure]), None, "", float(wanted), ">=")
        )
    return rows


# -- 5. half precision ------------------------------------------------------------------------------------------------------------------


def precision(options: argparse.Namespace) -> list[Row]:
    makes: dict[str, Make] = {
        "AdamW": partial(adamw, lr=3e-3),
        "SINGD dense": partial(SINGD, lr=1e-2, structure=Dense(), interval=5),
        "SINGD hierarchical": partial(SINGD, lr=1e-2, structure=Hierarchical(15, 15), interval=5),
        "SINGD diagonal": partial(SINGD, lr=1e-2, structure=Diagonal(), interval=5),
        "IKFAC": partial(SINGD, lr=1e-2, structure=Dense(), interval=5, adaptive=False),
        "KFAC": partial(KFAC, lr=1e-2, interval=5, damping=1e-6),
    }
    rows, steps = [], 10 if options.quick else 200
    for task in (vision(), characters(32, 32, 16)):
        for name, make in makes.items():
            start = time.perf_counter()
            ends = {
                dtype: [tried(task, make, seed, steps=steps, dtype=dtype, stop=False).final for seed in range(options.seeds)]
                for dtype in (torch.float32, torch.bfloat16)
            }
            full, half = (statistics.median(values) for values in ends.values())
            failed = sum(not math.isfinite(value) for value in ends[torch.bfloat16])
            shown = "failed" if failed == options.seeds else f"{half:.4g}"
            peers = {
                "float32": full if math.isfinite(full) else "failed",
                "bfloat16": shown,
                "failed in bfloat16": f"{failed} of {options.seeds}",
            }
            target = 1.05 if name.startswith(("SINGD", "IKFAC")) else None
            value = half / full if math.isfinite(half) and math.isfinite(full) else math.inf
            rows.append(
                Row(
                    f"{task.name}, {name}: last loss in bfloat16 over float32",
                    value,
                    None,
                    "x",
                    target,
                    "<=",
                    peers,
                    time.perf_counter() - start,
                )
            )
            print(rows[-1].claim, rows[-1].value, peers, flush=True)
    return rows


# -- 6. a flow --------------------------------------------------------------------------------------------------------------------------


def flow(options: argparse.Namespace) -> list[Row]:
    """Flow matching from noise to eight Gaussians in the plane: regression of the velocity, fresh noise at every step."""
    centres = torch.stack([torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)]) for k in range(8)]) * 2

    def draw(rng: torch.Generator) -> tuple:
        target = centres[torch.randint(0, 8, (256,), generator=rng)] + 0.1 * torch.randn(256, 2, generator=rng)
        noise, t = torch.randn(256, 2, generator=rng), torch.rand(256, 1, generator=rng)
        return torch.cat([(1 - t) * noise + t * target, t], 1), target - noise

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    task = Task("flow matching", model, draw, lambda net, x, v: (net(x) - v).square().sum(1).mean(), 0.0, 20 if options.quick else 600)
    results = {}
    for kind in ("AdamW", "SINGD"):
        tuned = min(candidates(kind), key=lambda make: tried(task, make, 100, stop=False).final)
        results[kind] = statistics.median(tried(task, tuned, seed, stop=False).final for seed in range(options.seeds))
    return [Row(f"flow matching, {task.steps} steps: last loss", results["SINGD"], None, "", None, "<=", {"AdamW": results["AdamW"]})]


def main(options: argparse.Namespace) -> list[Row]:
    """Time per step, robustness, time to a target loss and half precision of SINGD and its peers."""
    torch.set_num_threads(1)
    random.seed(0)
    parts = {"speed": speed, "robustness": robustness, "loss": loss, "precision": precision, "flow": flow}
    return [row for part in options.only for row in parts[part](options)]


if __name__ == "__main__":
    run("optimizers", main, seeds=5, parts=PARTS)
