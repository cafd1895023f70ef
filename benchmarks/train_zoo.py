"""Train the experts and the classifier that come with the library: ``python benchmarks/train_zoo.py [NAME ...] [--work DIR]``.

Seeds are fixed; an interrupted run resumes from its checkpoint in the work directory. Parameters are stored as float16.

Denoising loss of an expert, for ``y = x_0 + tau eps``, tau log-uniform on [0.28, 20] (Karras et al. 2022, table 1, weight ``1/c_out^2``):

    | F(c_in y, log tau) - (x_0 - c_skip y) / c_out |^2

Models of particle systems (`popflow.compose.particles.models`) are trained on Monte Carlo samples, which are drawn first, by denoising and target
score matching combined (`popflow.compose.particles.training`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from popflow.compose.particles import models, tempered
from popflow.compose.particles.training import mostly_below, noised as noised_particles, samples_of, score_matching
from popflow.compose.zoo import classifier, digits
from popflow.compose.zoo.digits import Digits
from popflow.compose.zoo.networks import CONDITIONAL, DATA, NO_CLASS, SIGMA_DATA, TRAINING, Denoiser, measured_losses
from popflow.core import Streams, Tempered
from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.core.errors import unknown
from popflow.learn.fit import cosine, fit
from popflow.learn.learner import Loss

STEPS, BATCH = 8000, 512
CLASSIFIER_STEPS, CLASSIFIER_BATCH = 3000, 128
PARTICLES_BATCH = 128
SWEEPS, BURN = 2400, 400
"""The Monte Carlo run that particle models are trained on: 256 walkers, kept every 12 sweeps."""
TABLE_SWEEPS, TABLE_BURN = 6000, 600
"""Each of the two independent runs behind the tables of quantiles: 32 walkers at each temperature, kept every 15 sweeps."""
NO_LOSS = {"levels": [1.0], "losses": {NO_CLASS: [1.0]}}
"""What a file says of the denoising loss before it is measured: Euler-Maruyama."""
DROPOUT = 0.2
"""Fraction of labels replaced by "any digit"."""
LEVELS = tuple(round(0.01 * 4096 ** (k / 24), 6) for k in range(25))
"""Noise levels at which denoising losses are tabulated, 0.01 to 41."""
LOWEST, HIGHEST = 0.28, 20.0
"""Noise levels seen in training."""


def denoising(network: nn.Module) -> Loss:
    """Denoising score matching with preconditioning; the batch is ``(y, tau, x_0, labels or None)``."""

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> tuple[Tensor, dict[str, Tensor]]:
        y, tau, x_0, labels = batch
        level = tau.reshape(-1, 1, 1, 1)
        total = level**2 + SIGMA_DATA**2
        wanted = (x_0 - y * SIGMA_DATA**2 / total) * total.sqrt() / (level * SIGMA_DATA)
        out = functional_call(network, params, (y * total.rsqrt(), tau.log(), labels))
        return (out - wanted).square().mean(), {}

    return loss


def noised(data: Digits, conditional: bool, rng: Streams) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Draw a batch of noised training images."""
    index = torch.randint(len(data), (BATCH,), generator=rng("rows"))
    x_0 = data.images[index]
    tau = LOWEST * (HIGHEST / LOWEST) ** rng.uniform("level", (BATCH,), torch.float32)
    y = x_0 + tau.reshape(-1, 1, 1, 1) * rng.normal("noise", x_0)
    labels = None
    if conditional:
        labels = torch.where(rng.uniform("dropout", (BATCH,)) < DROPOUT, NO_CLASS, data.labels[index])
    return y, tau, x_0, labels


def train_expert(name: str, work: Path) -> Path:
    """Train one expert of the zoo and write its averaged parameters."""
    conditional, data = name in CONDITIONAL, TRAINING[name]()
    network = _fresh(partial(Denoiser, conditional))
    averaged = _fitted(
        name,
        denoising(network),
        network,
        lambda rng: noised(data, conditional, rng),
        STEPS,
        work,
        optimizer=partial(torch.optim.Adam, lr=2e-3),
    )
    _store(name, averaged, {"steps": STEPS, "batch": BATCH, "images": len(data), "bandwidth": digits.BANDWIDTH} | NO_LOSS)
    return add_loss(name, work)


def train_classifier(work: Path) -> Path:
    """Train the classifier on images shifted by up to one pixel and blurred by noise of up to twice the kernel width of the experts."""
    network, data = _fresh(classifier.Classifier), digits.for_classifier()

    def batches(rng: Streams) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(data), (CLASSIFIER_BATCH,), generator=rng("rows"))
        padded = F.pad(data.images[index], (1, 1, 1, 1), value=-1.0)
        shift = torch.randint(3, (CLASSIFIER_BATCH, 2), generator=rng("shift"))
        window = torch.arange(8)
        rows, columns = shift[:, :1] + window, shift[:, 1:] + window
        moved = padded[torch.arange(CLASSIFIER_BATCH)[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)
        blur = 2 * digits.BANDWIDTH * rng.uniform("level", (CLASSIFIER_BATCH, 1, 1, 1), torch.float32)
        return moved + blur * rng.normal("noise", moved), data.labels[index]

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(functional_call(network, params, (batch[0],)), batch[1], label_smoothing=0.02), {}

    averaged = _fitted(
        "classifier",
        loss,
        network,
        batches,
        CLASSIFIER_STEPS,
        work,
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.05),
        log_every=500,
    )
    return _store("digits-classifier", averaged, {"steps": CLASSIFIER_STEPS, "images": len(data)})


def train_particles(name: str, work: Path) -> Path:
    """Draw samples of a particle system at the temperature of its model, train on them, write the averaged parameters (float32)."""
    model = models.find(name)
    data = _kept(
        work / f"{name}-samples.safetensors", lambda: {"x": _monte_carlo(model, (model.temperature,), SWEEPS, BURN, 256, 12, 0).x[0]}
    )
    samples = samples_of(model.system, model.temperature, data["x"])
    network = _fresh(model.network)
    lowest, knee, highest = model.levels
    averaged = _fitted(
        name,
        score_matching(network, model.spread),
        network,
        noised_particles(samples, PARTICLES_BATCH, mostly_below(knee, lowest, highest)),
        model.steps,
        work,
        warmup=200,
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        clip_norm=1.0,
        log_every=500,
        checkpoint_every=500,
    )
    about = {"temperature": model.temperature, "steps": model.steps, "batch": PARTICLES_BATCH, "samples": len(samples.x)}
    save_tensors(models.DATA / f"{name}.safetensors", averaged, about | {"levels": [1.0], "losses": [1.0]})
    return add_loss(name, work)


def add_loss(name: str, work: Path) -> Path:
    """Measure the denoising loss of a stored model and write it beside the parameters."""
    if name in models.MODELS:
        path, table = models.DATA / f"{name}.safetensors", models.measured_loss(name)
        found = {"levels": [round(level, 6) for level in table.levels], "losses": [round(loss, 6) for loss in table.losses]}
    else:
        path, losses = DATA / f"{name}.safetensors", measured_losses(name, LEVELS)
        found = {"levels": LEVELS, "losses": {label: [round(loss, 6) for loss in each] for label, each in losses.items()}}
    tensors, about = load_tensors(path)
    return save_tensors(path, tensors, about | found)


def tabulate(name: str, work: Path) -> Path:
    """Write the quantiles of energies and distances of a particle system, from two independent runs of parallel tempering."""
    model = models.find(name)
    out: dict[str, list[Tensor]] = {}
    for seed in (100, 101):
        kept = _kept(work / f"{name}-truth-{seed}.safetensors", lambda seed=seed: truth(name, seed))
        for key, value in kept.items():
            out.setdefault(key, []).append(value)
    rows: dict[str, Tensor] = {}
    for temperature in model.tables:
        rows[f"energy.{temperature}"] = models.quantiles(torch.cat(out[f"energy.{temperature}"]))
        rows[f"distance.{temperature}"] = models.quantiles(model.system.distances(torch.cat(out[f"x.{temperature}"]).double()))
    about = {"runs": 2, "sweeps": TABLE_SWEEPS, "ladder": list(model.ladder)}
    return save_tensors(models.DATA / f"{name}-reference.safetensors", {key: value.float() for key, value in rows.items()}, about)


def truth(name: str, seed: int, sweeps: int = TABLE_SWEEPS, burn: int = TABLE_BURN) -> dict[str, Tensor]:
    """One run of parallel tempering: ``x.T`` ``[kept, n, d]`` and ``energy.T`` ``[sweeps, 32]`` at the temperatures with tables."""
    model = models.find(name)
    found = _monte_carlo(model, model.ladder, sweeps, burn, 32, 15, seed)
    at = {t: model.ladder.index(t) for t in model.tables}
    return {f"x.{t}": found.at(t).float() for t in at} | {f"energy.{t}": found.energies[:, i].float() for t, i in at.items()}


def _fitted(
    name: str,
    loss: Loss,
    network: nn.Module,
    batches: Callable[[Streams], Any],
    steps: int,
    work: Path,
    *,
    warmup: int = 100,
    log_every: int = 1000,
    **options: Any,
) -> dict[str, Tensor]:
    """Fit a network with a cosine schedule, and return its averaged parameters."""
    options |= {"schedule": cosine(steps, warmup), "ema": 0.999, "log_every": log_every, "compile": False}
    options |= {"checkpoint": work / f"{name}.safetensors"}
    told = [lambda progress: print(name, progress.step, progress.metrics, flush=True)]
    return fit(loss, dict(network.named_parameters()), batches, steps=steps, rng=Streams(0), record=told, **options).ema


def _monte_carlo(
    model: models.Model, ladder: tuple[float, ...], sweeps: int, burn: int, chains: int, keep_every: int, seed: int
) -> Tempered:
    settings = {"sweeps": sweeps, "burn": burn, "chains": chains, "keep_every": keep_every, "step_size": model.step_size}
    return tempered(model.system, ladder, model.start(), rng=Streams(seed), **settings)


def _kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read tensors, or make and save them."""
    if not path.exists():
        save_tensors(path, make())
    return load_tensors(path)[0]


Network = TypeVar("Network", bound=nn.Module)


def _fresh(make: Callable[[], Network]) -> Network:
    """Make a network with reproducible parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _store(name: str, params: dict[str, Tensor], about: dict[str, Any]) -> Path:
    return save_tensors(DATA / f"{name}.safetensors", {key: value.half() for key, value in params.items()}, about)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the named models, or all of them."""
    known = {"digits-classifier": train_classifier, **{name: partial(train_expert, name) for name in TRAINING}}
    known |= {name: partial(train_particles, name) for name in models.MODELS}
    known |= {f"{name}-loss": partial(add_loss, name) for name in (*TRAINING, *models.MODELS)}
    known |= {f"{name}-reference": partial(tabulate, name) for name in models.MODELS}
    parser = argparse.ArgumentParser(description="Train the experts and the classifier that come with popflow.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(known)}; default: all")
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"), help="where checkpoints are kept (default: runs/zoo)")
    given = parser.parse_args(argv)
    for name in given.names or known:
        if name not in known:
            parser.error(unknown("name", name, known))
        path = known[name](given.work)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
