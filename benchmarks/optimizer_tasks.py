"""The problems that optimisers are compared on, and one training run of one of them."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from optimizer_peers import Make, Spring
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.optim import categorical_cotangent, gaussian_cotangent, over_data, over_rows
from popflow.optim.capture import Averaging


@dataclass(frozen=True)
class Task:
    """A problem: a model, a batch for each step, a loss, the loss that counts as reached and the fixed batch on which it is looked at.

    ``sample`` draws cotangents of one datum's own loss by the model's outputs, whose Gram matrix is the Fisher matrix, for optimisers that ask
    for them, made from a ``share`` of each batch; ``averaging`` is what the loss averages over, for those that record it. ``coupled`` data
    cannot be taken apart.
    """

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple]
    loss: Callable[..., Tensor]
    target: float
    steps: int
    judge: tuple
    sample: Callable[[Tensor, torch.Generator], Tensor] = categorical_cotangent
    averaging: Averaging = over_data
    share: float = 1.0
    coupled: bool = False


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


def characters(width: int = 64, length: int = 64, batch: int = 16, target: float = 2.3, steps: int = 300, depth: int = 2) -> Task:
    stream, vocabulary = text()

    def draw(rng: torch.Generator, batch: int = batch) -> tuple:
        at = torch.randint(0, len(stream) - length - 1, (batch, 1), generator=rng) + torch.arange(length + 1)
        return stream[at[:, :-1]], stream[at[:, 1:]]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())

    def sample(logits: Tensor, rng: torch.Generator) -> Tensor:  # a datum is a sequence, its loss the mean over positions
        return categorical_cotangent(logits, rng) / length**0.5

    model, judge = partial(Transformer, vocabulary, length, width, depth), draw(torch.Generator().manual_seed(0), 64)
    return Task("char transformer", model, draw, loss, target, steps, judge, sample, over_rows)


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).float(), y)


def digits_task(name: str, model: Callable[[], nn.Module], shape: tuple[int, ...], target: float, steps: int, batch: int = 128) -> Task:
    images, labels = digits()

    def draw(rng: torch.Generator, batch: int = batch) -> tuple:
        at = torch.randint(0, len(images), (batch,), generator=rng)
        return images[at].reshape(-1, *shape), labels[at]

    return Task(name, model, draw, classify, target, steps, draw(torch.Generator().manual_seed(0), 512))


def vision(width: int = 32, depth: int = 2, batch: int = 64, steps: int = 300) -> Task:
    images, labels = digits()
    tiles = images.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)

    def draw(rng: torch.Generator, batch: int = batch) -> tuple:
        at = torch.randint(0, len(tiles), (batch,), generator=rng)
        return tiles[at], labels[at]

    judge = draw(torch.Generator().manual_seed(0), 512)
    return Task("ViT on digits", lambda: Transformer(10, 16, width, depth, patch=4), draw, classify, 0.1, steps, judge)


def regression() -> Task:
    rng = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(32, 32, generator=rng))
    mix = q * torch.logspace(0, -3, 32)  # condition of the covariance: 1e6
    truth = torch.randn(4, 32, generator=rng) @ torch.diag(torch.logspace(0, 3, 32)) @ q.T / 32

    def draw(rng: torch.Generator, batch: int = 128) -> tuple:
        x = torch.randn(batch, 32, generator=rng) @ mix.T
        return x, x @ truth.T

    return Task(
        "ill-conditioned regression",
        lambda: nn.Linear(32, 4),
        draw,
        lambda net, x, y: (net(x) - y).square().sum(1).mean() / 2,
        1e-3,
        1000,
        draw(torch.Generator().manual_seed(0), 1024),
        gaussian_cotangent,
    )


def autoencoder(sizes: tuple[int, ...] = (64, 48, 24, 8, 24, 48, 64), batch: int = 256) -> Task:
    images, _ = digits()

    def model() -> nn.Module:
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
        return nn.Sequential(*layers[:-1])

    def draw(rng: torch.Generator, batch: int = batch) -> tuple:
        return (images[torch.randint(0, len(images), (batch,), generator=rng)],)

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        return (net(x) - x).square().sum(1).mean() / 2

    return Task("deep autoencoder", model, draw, loss, 0.75, 700, draw(torch.Generator().manual_seed(0), 512), gaussian_cotangent)


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

    return digits_task("convolutional net", model, (1, 8, 8), 0.1, 300)


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
    whole = (torch.eye(34), labels)
    return Task("GCN on the karate club", lambda: Graph(spread), lambda rng: whole, classify, 0.02, 300, whole, coupled=True)


class Jets(nn.Module):
    """Tanh network on [0, 1] that is called on jets ``(u, u', u'')`` and returns the residual of ``-u'' = pi^2 sin(pi x)``, ``u(0) = u(1) = 0``.

    Each linear layer takes the three as three uses of its weight, with a column of ones for the bias in the value and of zeros in the derivatives,
    so that what enters and leaves it are the rows of the residual's Gauss-Newton matrix (Dangel, Mueller, Zeinhofer, arXiv 2405.15603). Nothing is
    differentiated twice. The ends are built in: ``u = x (1 - x) net(x)``.
    """

    def __init__(self, sizes: tuple[int, ...] = (1, 32, 32, 1)):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a + 1, b, bias=False) for a, b in pairwise(sizes))
        for layer, (a, b) in zip(self.layers, pairwise(sizes), strict=True):
            plain = nn.Linear(a, b)  # the same start as layers with a bias of their own
            layer.weight.data = torch.cat([plain.weight, plain.bias[:, None]], 1).detach()

    def forward(self, x: Tensor) -> Tensor:
        """Residual ``u'' + pi^2 sin(pi x)``, ``[N]``, at points ``[N, 1]``."""
        jet = torch.stack([x, torch.ones_like(x), torch.zeros_like(x)], 1)
        one = jet.new_tensor([1.0, 0.0, 0.0])[:, None].expand(len(x), 3, 1)
        for i, layer in enumerate(self.layers):
            if i:
                value, slope, bend = jet.unbind(1)
                t = torch.tanh(value)
                s = 1 - t * t
                jet = torch.stack([t, s * slope, s * (bend - 2 * t * slope * slope)], 1)
            jet = layer(torch.cat([jet, one], -1))
        value, slope, bend = jet[:, :, 0].unbind(1)
        x = x[:, 0]
        return x * (1 - x) * bend + 2 * (1 - 2 * x) * slope - 2 * value + math.pi**2 * torch.sin(math.pi * x)


def poisson() -> Task:
    """Residuals of a Poisson problem at random points; judged at 256 even ones."""

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        return net(x).square().mean() / 2

    even = ((torch.arange(256) + 0.5) / 256)[:, None]
    return Task(
        "physics-informed Poisson",
        Jets,
        lambda rng: (torch.rand(128, 1, generator=rng),),
        loss,
        5e-3,
        700,
        (even,),
        lambda r, rng: torch.ones_like(r),
    )


def backward(task: Task, net: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple, rng: torch.Generator) -> Tensor:
    """Gradients of the loss; an optimiser that records no curvature of the loss itself observes sampled cotangents where a refresh is due.

    Those of a share of the batch come from a pass of their own.
    """
    optimizer.zero_grad()
    if isinstance(optimizer, Spring):
        return optimizer.solve(batch)
    tap: Any = getattr(getattr(optimizer, "preconditioner", optimizer), "tap", None)
    if tap is None or tap.sink is not None or not tap.armed:
        loss = task.loss(net, *batch)
        loss.backward()
        return loss
    listener: Any = optimizer
    if task.share < 1:
        outputs = net(batch[0][: math.ceil(task.share * len(batch[0]))])
        listener.observe(outputs, task.sample(outputs.detach(), rng))
        tap.armed = False
        loss = task.loss(net, *batch)
    else:
        seen: list[Tensor] = []
        handle = net.register_forward_hook(lambda module, inputs, output: seen.append(output))
        loss = task.loss(net, *batch)
        handle.remove()
        listener.observe(seen[-1], task.sample(seen[-1].detach(), rng))
    loss.backward()
    tap.armed = True  # the optimiser disarms it at its step
    return loss


@dataclass
class Outcome:
    """What one training run gave: steps to the target (inf when not reached), CPU seconds of the steps taken, last loss, whether all was finite."""

    steps: float
    seconds: float
    final: float
    finite: bool


def train(
    task: Task,
    make: Make,
    seed: int,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
    stop: bool = True,
    beat: tuple[float, float] = (math.inf, math.inf),
) -> Outcome:
    """Train; the target is met by the first step after which the loss on the task's fixed batch is below it. Looking costs no time.

    With ``beat = (steps, seconds)`` a run ends once it has used more of both: it can win neither any more.
    ``stop=False`` takes all steps and never looks.
    """
    torch.manual_seed(seed)
    net = task.model().to(dtype)
    rng, noise = (torch.Generator().manual_seed(base + seed) for base in (1000, 2000))
    judge = _cast(task.judge, dtype)
    losses, seconds, hit, finite = [], 0.0, math.inf, True
    optimizer = make(net)
    for k in range(steps or task.steps):
        batch = _cast(task.batch(rng), dtype)
        start = time.process_time()
        loss = backward(task, net, optimizer, batch, noise)
        optimizer.step()
        seconds += time.process_time() - start
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            finite = False
            break
        if stop:
            with torch.no_grad():
                reached = float(task.loss(net, *judge)) < task.target
            if reached:
                hit = k + 1
                break
        if k + 1 > beat[0] and seconds > beat[1]:
            break
    finite = finite and all(bool(p.isfinite().all()) for p in net.parameters())
    return Outcome(hit, seconds, statistics.mean(losses[-10:]), finite)


def _cast(batch: tuple, dtype: torch.dtype) -> tuple:
    return tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)


def tried(task: Task, make: Make, seed: int, **options: Any) -> Outcome:
    """Like `train`; an optimiser that raises has failed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return train(task, make, seed, **options)
    except (RuntimeError, ValueError, torch.linalg.LinAlgError):
        return Outcome(math.inf, math.inf, math.nan, finite=False)


class Memo:
    """Numbers already measured, one JSON line each beside the result file, so that a benchmark that was stopped goes on where it was.

    Without a result file nothing is kept. The key names the task, the settings and the seed; delete the file when the code has changed.
    """

    def __init__(self, result: Path | None):
        self.path = None if result is None else result.with_suffix(".parts.jsonl")
        lines = self.path.read_text().splitlines() if self.path is not None and self.path.exists() else []
        self.known: dict[str, Any] = dict(json.loads(line) for line in lines)

    def __call__(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return what is known under ``key``, or measure and write it down."""
        if key not in self.known:
            self.known[key] = measure()
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps([key, self.known[key]]) + "\n")
        return self.known[key]


def ending(options: argparse.Namespace, task: Task, name: str, make: Make, seed: int, **how: Any) -> Outcome:
    """Train once, or recall the outcome from the memo of the run."""
    key = f"{task.name} | {name} | {seed} | {sorted((k, str(v)) for k, v in how.items())}"
    return Outcome(**options.memo(key, lambda: asdict(tried(task, make, seed, **how))))
