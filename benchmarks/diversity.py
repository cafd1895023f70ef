"""Diversity: OR of two models that saw disjoint parts of the digits, against either alone, a random choice and a model of all of them.

Parts: random halves of the training images, and disjoint classes. Models:

- *networks*: the shipped experts (halves a and b; even and odd digits; all). One split; seeds are of sampling;
- *networks, no noise*: the same by the probability-flow ODE, where the densities of OR need divergences;
- *exact experts*: kernel mixtures of the parts themselves; every seed has its own split.

Every model is one of images blurred by noise of the kernel width, so everything is compared in that space: the reference are the images of the odd
rows, which no expert has seen, blurred alike; "training images" are the even rows blurred alike, what the exact expert of all images draws.
Frechet distance, precision and recall (3 neighbours) are measured in the 64 features before the last layer of the shipped classifier, which has
learned from three quarters of the reference; as many samples as reference images. Nearest: the mean distance to the nearest training image, in pixels
of [-1, 1], blur included. Classes: the effective number of classes (exponential of the entropy), as the classifier says.

The published figures are of CIFAR-10 with disjoint parts (FID, arXiv:2412.17762, table 1); only their order is compared.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from harness import Row, run
from torch import Tensor

from popflow.compose import Expert, Sampler, average, either, feynman_kac, karras, kernel_mixture, sample, zoo
from popflow.compose.zoo import classifier, digits
from popflow.core import Streams
from popflow.core.metrics import effective_number, frechet, precision_recall
from popflow.runs import Measured

LAST, FIRST = 0.1, 15.0
WIDTH = math.hypot(digits.BANDWIDTH, LAST)
"""Blur of samples that end at the noise level `LAST`."""
A, B, BOTH, CHOICE, OR, SHARP, MEAN = "A", "B", "trained on both", "random choice", "OR, T = 1", "OR, T = 100", "averaging"
TRAINING = "training images"
PUBLISHED = {
    "noise": {A: 15.33, B: 13.50, BOTH: 3.50, CHOICE: 3.99, OR: 4.00, SHARP: 4.00},
    "no noise": {A: 14.00, B: 13.09, BOTH: 6.00, CHOICE: 4.28, OR: 4.41, SHARP: 4.11},
}
"""FID on CIFAR-10, disjoint parts, SDE and ODE."""
DISTANCE = "Frechet distance"
SHOWN = {
    DISTANCE: "less is better",
    "precision": "",
    "recall": "",
    "nearest training image": "",
    "classes": "of 10",
}


@dataclass(frozen=True)
class Parts:
    """A model of each part, and one of both."""

    a: Expert
    b: Expert
    both: Expert


def networks(classes: bool, seed: int) -> Parts:
    names = ("digits-even", "digits-odd", "digits-all") if classes else ("digits-half-a", "digits-half-b", "digits-all")
    return Parts(*(zoo.load(name) for name in names))


def exact_experts(classes: bool, seed: int) -> Parts:
    """Kernel mixtures of a split of the training images, or of the ten digits, in two halves."""
    data, rng = digits.training(), Streams(seed)
    keys = data.labels if classes else torch.arange(len(data))
    order = torch.randperm(int(keys.max()) + 1, generator=rng("split"))
    first = torch.isin(keys, order[: len(order) // 2])
    make = partial(kernel_mixture, bandwidth=digits.BANDWIDTH)
    return Parts(make(data.images[first]), make(data.images[~first]), make(data.images))


KINDS: dict[str, tuple[Callable[[bool, int], Parts], bool]] = {
    "networks": (networks, False),
    "networks, no noise": (networks, True),
    "exact experts": (exact_experts, False),
}


def samplers(parts: Parts, deterministic: bool) -> dict[str, list[tuple[Sampler, float]]]:
    """What makes which share of the samples."""
    alone = partial(feynman_kac, correct=False, zeta=0.0 if deterministic else 1.0)
    pair = [parts.a, parts.b]
    return {
        A: [(alone(parts.a), 1.0)],
        B: [(alone(parts.b), 1.0)],
        BOTH: [(alone(parts.both), 1.0)],
        CHOICE: [(alone(parts.a), 0.5), (alone(parts.b), 0.5)],
        OR: [(either(pair, deterministic=deterministic), 1.0)],
        SHARP: [(either(pair, temperature=100.0, deterministic=deterministic), 1.0)],
        MEAN: [(average(pair, deterministic=deterministic), 1.0)],
    }


def made(shares: list[tuple[Sampler, float]], n: int, steps: int, rng: Streams) -> Tensor:
    counts = [round(n * share) for _, share in shares]
    levels = karras(steps, LAST, FIRST)
    return torch.cat([sample(one, levels, particles=k, rng=rng).x[0] for (one, _), k in zip(shares, counts, strict=True)])


def blurred(images: Tensor, rng: Streams) -> Tensor:
    return images + WIDTH * rng.normal("blur", images)


def judged(x: Tensor, reference: Tensor, training: Tensor) -> dict[str, float]:
    """Every figure of one set of samples against blurred reference images."""
    network = classifier.load()
    with torch.no_grad():
        ours, theirs, said = network.features(x), network.features(reference), network(x).argmax(1)
    precision, recall = precision_recall(ours, theirs)
    nearest = torch.cdist(x.flatten(1), training.flatten(1)).min(1).values.mean()
    masses = torch.bincount(said, minlength=len(digits.ALL)).double()
    return dict(zip(SHOWN, map(float, (frechet(ours, theirs), precision, recall, nearest, effective_number(masses))), strict=True))


def measured(each: list[float]) -> Measured:
    """Mean and standard error over seeds."""
    values = torch.tensor(each, dtype=torch.float64)
    return Measured(float(values.mean()), float(values.std() / math.sqrt(len(values))))


def setting(kind: str, classes: bool, quick: bool, seeds: int) -> list[Row]:
    begin = time.perf_counter()
    make, deterministic = KINDS[kind]
    known = digits.everything()
    training, unseen = digits.training().images, known.images[torch.arange(len(known)) % 2 == 1]
    if quick:
        training, unseen = training[:40], unseen[:40]
    n, steps = len(unseen), 3 if quick else 64
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        reference = blurred(unseen, Streams(1000 + seed))
        for place, (name, shares) in enumerate(samplers(make(classes, seed), deterministic).items()):
            x = made(shares, n, steps, Streams(10 * seed + place))
            found.setdefault(name, []).append(judged(x, reference, training))
        found.setdefault(TRAINING, []).append(judged(blurred(training, Streams(2000 + seed)), reference, training))

    def over_seeds(name: str, key: str) -> Measured:
        return measured([one[key] for one in found[name]])

    where = f"{'disjoint classes' if classes else 'random halves'}, {kind}"
    far = {name: torch.tensor([one[DISTANCE] for one in each], dtype=torch.float64) for name, each in found.items()}
    notes = {"samples": n, "steps": steps, "seeds": seeds, "seconds": time.perf_counter() - begin}
    rows = []
    for name in (OR, SHARP):
        apart = measured((far[name] - far[CHOICE]).tolist())
        rows.append(
            Row(
                f"{where}: Frechet distance, {name} against random choice",
                abs(apart.value) / (apart.error or math.inf),
                None,
                "standard errors",
                2.0,
                "<=",
                {
                    name: str(over_seeds(name, DISTANCE)),
                    CHOICE: str(over_seeds(CHOICE, DISTANCE)),
                    "difference": str(apart),
                },
                notes["seconds"],
                notes | {"each": {key: value.tolist() for key, value in far.items()}},
            )
        )
        best = min(float(far[A].mean()), float(far[B].mean()))
        claim = f"{where}: Frechet distance, {name} over the better of A and B"
        rows.append(
            Row(claim, float(far[name].mean()) / best, None, "", 1.0, "<=", {one: str(over_seeds(one, DISTANCE)) for one in (A, B)})
        )
    for key, unit in SHOWN.items():
        every: dict[str, float | str] = {name: str(over_seeds(name, key)) for name in found if name != OR}
        shown = over_seeds(OR, key)
        rows.append(Row(f"{where}: {key} of {OR} (shown)", shown.value, shown.error, unit, None, "<=", every))
    return [*rows, ordering(where, far, PUBLISHED["no noise" if deterministic else "noise"])]


def ordering(where: str, far: dict[str, Tensor], fid: dict[str, float]) -> Row:
    """Count the published orders of two samplers that are found here: a difference by more than two standard errors, none by less."""
    peers, confirmed = {}, 0
    for pair in ((BOTH, OR), (SHARP, OR), (SHARP, CHOICE), (CHOICE, BOTH), (OR, A), (OR, B)):
        better, worse = sorted(pair, key=fid.__getitem__)
        apart = measured((far[worse] - far[better]).tolist())
        size = apart.value / (apart.error or math.inf)
        if fid[better] == fid[worse]:
            answer = "confirmed" if abs(size) <= 2 else "contradicted"
        else:
            answer = "confirmed" if size > 2 else "contradicted" if size < -2 else "undecided"
        confirmed += answer == "confirmed"
        sign = "=" if fid[better] == fid[worse] else "<"
        peers[f"{better} {sign} {worse} (FID {fid[better]:.2f} {sign} {fid[worse]:.2f})"] = f"{apart}, {answer}"
    return Row(f"{where}: published orders confirmed (shown)", float(confirmed), None, f"of {len(peers)}", None, ">=", peers)


PARTS = {f"{'classes' if classes else 'halves'}, {kind}": (kind, classes) for kind in KINDS for classes in (False, True)}


def main(options: argparse.Namespace) -> list[Row]:
    """OR of models of disjoint parts of the digits against random choice, each alone, averaging and a model of both."""
    seeds = 2 if options.quick else options.seeds
    return [row for part in options.only for row in setting(*PARTS[part], options.quick, seeds)]


if __name__ == "__main__":
    run("diversity", main, seeds=5, parts=tuple(PARTS))
