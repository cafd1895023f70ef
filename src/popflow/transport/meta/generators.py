"""Populations whose response is known: Gaussians, a drug screen, and letters.

gaussians   every population turns about the origin by an angle set by its own mean: one field for all cannot do it
drug_screen patients x treatments x cell types; how far a cell is moved, and how much it divides, depends on its microenvironment
letters     noisy pictures of a letter, turned by a random angle, to be sharpened
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from popflow.core import Streams
from popflow.transport.meta.populations import Populations

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def gaussians(count: int, cells: int, rng: Streams, *, effect: float = 2.0, negative: bool = False, names: str = "") -> Populations:
    """Populations ``N(mu_i, I)`` in the plane that become ``N(mu_i + effect (sin a_i, cos a_i), I / 4)``, with ``mu_i`` uniform in a square of side 4.

    The angle is ``a_i = mu_i1 pi / 2 + mu_i2 pi / 4``: a cell at one place moves one way in one population and another way in another. In the negative
    control the angles are drawn at random: they are not a function of the population, and nothing can be learned from it.

    Args:
        count: Populations.
        cells: Cells of each, before and after.
        rng: Streams.
        effect: Length of the displacement.
        negative: Whether the response does not depend on the population.
        names: Beginning of the names of the groups.

    Example:
        >>> populations = gaussians(3, 2000, Streams(0), effect=2.0)
        >>> x, y = populations.clouds[:2]
        >>> round(float((y.mean(0) - x.mean(0)).norm()), 1), round(float(y.std(0).mean()), 1)
        (2.0, 0.5)
    """
    mean = 4 * rng.uniform("means", (count, 2), torch.float32) - 2
    angle = (
        (mean @ torch.tensor([math.pi / 2, math.pi / 4], device=mean.device))
        if not negative
        else 2 * math.pi * rng.uniform("angles", (count,))
    )
    move = effect * torch.stack([angle.sin(), angle.cos()], 1).to(mean)
    x, z = (rng.normal("cells", torch.empty(count, cells, 2, device=rng.device)) for _ in range(2))
    x, y = x + mean[:, None], z / 2 + (mean + move)[:, None]
    return Populations.of(list(x), list(y), groups=[f"{names}{k}" for k in range(count)])


@dataclass(frozen=True, eq=False)
class Screen:
    """A drug screen with known answers.

    Attributes:
        populations: Patients x treatments, with cell types; ``mass`` of a pair is its growth.
        shift: True displacement of a cell of each type ``[pairs, types, d]``.
        growth: True number of descendants of a cell of each type ``[pairs, types]``.
        environment: What each patient's cells respond to, ``[patients]`` in [0, 1]: the share of the second type.
    """

    populations: Populations
    shift: Tensor
    growth: Tensor
    environment: Tensor

    def truth(self, pair: int, cells: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Where given cells ``[n, d]`` go, and their relative weights ``[n]``."""
        weight = self.growth[pair][types]
        return cells + self.shift[pair][types], weight / weight.mean()


TYPES = ("tumour", "fibroblast", "immune")


def drug_screen(
    patients: int, cells: int, rng: Streams, *, treatments: int = 3, features: int = 5, negative: bool = False, names: str = "patient "
) -> Screen:
    """Patients x treatments x cell types, with a response that depends on the microenvironment.

    A patient has a share ``f`` of fibroblasts, uniform in [0.1, 0.6], and a shift of his own of all cells, which means nothing. Drug ``j`` moves
    tumour cells by ``(1 - 2 f s_j) u_j`` and lets ``exp(-2 (1 - f) k_j)`` of them survive: fibroblasts protect, and may turn the response round.
    Fibroblasts move by ``u_j / 2`` and immune cells not at all. In the negative control the patient's ``f`` in these formulas is drawn anew:
    the control cells say nothing about it.

    Args:
        patients: Number of patients.
        cells: Cells before treatment, and after.
        rng: Streams.
        treatments: Number of drugs.
        features: Number of markers.
        negative: Whether the response does not depend on what is seen before treatment.
        names: Beginning of the names of the patients.

    Example:
        >>> screen = drug_screen(4, 300, Streams(0))
        >>> len(screen.populations.pairs), screen.populations.type_names
        (12, ('tumour', 'fibroblast', 'immune'))
    """
    of_drugs = Streams(7)  # the drugs are the same in every screen
    place = 2.5 * torch.eye(3, features)
    direction = torch.nn.functional.normalize(of_drugs.normal("drugs", torch.empty(treatments, features)), dim=1) * 2
    turn = 1 + of_drugs.uniform("drugs", (treatments,), torch.float32)
    kill = of_drugs.uniform("drugs", (treatments,), torch.float32)
    share = 0.1 + 0.5 * rng.uniform("patients", (patients,), torch.float32).cpu()
    acts = 0.1 + 0.5 * rng.uniform("acts", (patients,), torch.float32).cpu() if negative else share
    own = 0.5 * rng.normal("patients", torch.empty(patients, features, device=rng.device)).cpu()
    sources, targets, groups, drugs, kinds, masses, shifts, growths = [], [], [], [], ([], []), [], [], []

    def drawn(i: int, portion: Tensor) -> tuple[Tensor, Tensor]:
        kind = torch.searchsorted(portion.cumsum(0), rng.uniform("types", (cells,), torch.float32).cpu()).clamp_max(2)
        return place[kind] + own[i] + 0.5 * rng.normal("cells", torch.empty(cells, features, device=rng.device)).cpu(), kind

    for i in range(patients):
        portion = torch.tensor([0.85 - share[i], share[i], 0.15])
        x, kind = drawn(i, portion)
        for j in range(treatments):
            shift = torch.stack([(1 - 2 * acts[i] * turn[j]) * direction[j], direction[j] / 2, torch.zeros(features)])
            growth = torch.stack([(-2 * (1 - acts[i]) * kill[j]).exp(), torch.tensor(1.0), torch.tensor(1.0)])
            mass = float((portion * growth).sum())
            y, after = drawn(i, portion * growth / mass)
            for column, value in zip(
                (sources, targets, groups, drugs, masses), (x, y + shift[after], f"{names}{i}", f"drug {j}", mass), strict=True
            ):
                column.append(value)
            kinds[0].append(kind)
            kinds[1].append(after)
            shifts.append(shift)
            growths.append(growth)
    populations = Populations.of(
        sources,
        targets,
        groups=groups,
        treatments=drugs,
        features=[f"marker {k + 1}" for k in range(features)],
        unit="arcsinh units",
        types=kinds,
        type_names=TYPES,
        masses=masses,
    )
    return Screen(populations, torch.stack(shifts), torch.stack(growths), share)


def letters(
    names: Sequence[str], turns: int, rng: Streams, *, cells: int = 700, blur: float = 0.5, font: str | None = None, size: int = 100
) -> Populations:
    """Letters as clouds of points, each turned by ``turns`` random angles; before is blurred by ``blur`` times Gaussian noise, after is sharp.

    Row k before is row k after, blurred (for the coupling `popflow.transport.meta.paired`).

    Args:
        names: The letters.
        turns: Populations of each letter.
        rng: Streams.
        cells: Points of a letter.
        blur: Standard deviation of the noise; letters extend over a square of side 6 at most.
        font: TrueType file; None: DejaVu Sans, which is free and comes with matplotlib.
        size: Height of the drawing in pixels.

    Example:
        >>> populations = letters("XY", 2, Streams(0), cells=50)
        >>> populations.groups, populations.clouds[0].shape
        (('X 0', 'X 1', 'Y 0', 'Y 1'), torch.Size([50, 2]))
    """
    before, after, groups = [], [], []
    for name in names:
        points = glyph(name, font, size)
        for turn in range(turns):
            pick = rng.uniform("points", (max(len(points), cells),)).cpu().argsort()[:cells] % len(points)
            sharp = points[pick] + 0.05 * rng.normal("points", torch.empty(cells, 2, device=rng.device)).cpu()
            angle = 2 * math.pi * float(rng.uniform("angles", ()))
            turned = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            sharp = sharp @ turned
            after.append(sharp)
            before.append(sharp + blur * rng.normal("blur", torch.empty(cells, 2, device=rng.device)).cpu())
            groups.append(f"{name} {turn}")
    return Populations.of(before, after, groups=groups, treatments="sharpen")


def glyph(name: str, font: str | None = None, size: int = 100) -> Tensor:
    """The pixels of a letter as points ``[n, 2]`` in a square of side 6, proportions kept."""
    import matplotlib as mpl
    from PIL import Image, ImageDraw, ImageFont

    file = ImageFont.truetype(font or str(mpl.get_data_path()) + "/fonts/ttf/DejaVuSans.ttf", size)
    picture = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(picture).text((size // 2, size // 4), name, fill=255, font=file)
    shade = torch.from_numpy(np.array(picture))
    y, x = (shade > 0).nonzero(as_tuple=True)
    points = torch.stack([x, -y], 1).float()
    points = points - (points.amax(0) + points.amin(0)) / 2
    return points * 6 / (points.amax(0) - points.amin(0)).max()
