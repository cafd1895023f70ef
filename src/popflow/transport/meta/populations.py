"""Many populations before and after treatments: clouds of cells in memory or on disk, and the pairs of them that a flow learns from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace as _replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popflow.core.checkpoint import write_atomic
from popflow.core.errors import CheckpointError, unknown
from popflow.transport.meta.clouds import Cloud, Stored, rows
from popflow.transport.snapshots import dense

SAMPLED = 1000
"""Cells of a cloud that statistics of all clouds look at."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A population before and after a treatment.

    Attributes:
        group: The patient, donor or sample.
        treatment: Name of the treatment.
        source: Number of the cloud of control cells.
        target: Number of the cloud of treated cells; None where it is to be predicted.
        mass: Mass (number of cells) after the treatment relative to before, for growth with given masses.
    """

    group: str
    treatment: str
    source: int
    target: int | None
    mass: float = 1.0

    def __str__(self) -> str:
        return f"{self.group}, {self.treatment}"


@dataclass(frozen=True, eq=False)
class Populations:
    """Clouds of cells, and which of them are the same population before and after which treatment.

    Make them with `Populations.of`, `from_cells` or `popflow.transport.meta.anndata.read`. Cells are in the user's units everywhere; flows scale them inside.

    Attributes:
        clouds: ``[n_i, d]`` each, of one dtype.
        pairs: Populations before and after.
        features: Names of the ``d`` features (markers, components).
        unit: Unit of the features, in words.
        types: Cell type of each cell of each cloud, ``[n_i]`` integers, or None.
        type_names: Names of the types.

    Raises:
        ValueError: for shapes, dtypes, types and masses that do not fit, clouds of fewer than two cells, values that are not finite, or two pairs or
            two features of the same name.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> before = [torch.randn(50, 2, generator=g) + k for k in range(3)]
        >>> populations = Populations.of(before, [x + 1 for x in before], groups=["a", "b", "c"])
        >>> training, test = populations.hold_out("c")
        >>> [str(pair) for pair in training.pairs], test.pairs[0].group, test.dim
        (['a, treated', 'b, treated'], 'c', 2)
    """

    clouds: tuple[Cloud, ...]
    pairs: tuple[Pair, ...]
    features: tuple[str, ...]
    unit: str = "units of the data"
    types: tuple[Cloud, ...] | None = None
    type_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        dim = len(self.features)
        if not self.pairs:
            raise ValueError("pairs is empty, wanted at least one population.")
        twice = sorted({name for name in self.features if self.features.count(name) > 1})
        if twice:
            raise ValueError(
                f"features has {twice} more than once, wanted names that tell columns apart: rename them (AnnData.var_names_make_unique)."
            )
        dtypes = {cloud.dtype for cloud in self.clouds if isinstance(cloud, Tensor)}
        if len(dtypes) > 1:
            raise ValueError(f"clouds have the dtypes {sorted(map(str, dtypes))}, wanted one: convert them.")
        for k, cloud in enumerate(self.clouds):
            if len(cloud.shape) != 2 or cloud.shape[1] != dim:
                raise ValueError(
                    f"clouds[{k}] has shape {tuple(cloud.shape)}, wanted [cells, {dim}]: one column for each of {list(self.features[:6])}."
                )
            if len(cloud) < 2:
                raise ValueError(f"clouds[{k}] ({self.label(k)}) holds {len(cloud)} cell(s), wanted at least two: drop that population.")
            if isinstance(cloud, Tensor) and not bool(cloud.isfinite().all()):
                bad = int((~cloud.isfinite()).any(-1).sum())
                raise ValueError(
                    f"clouds[{k}] ({self.label(k)}) holds NaN or infinite values in {bad} cells, wanted finite ones: drop them."
                )
            self._check_types(k)
        seen: set[tuple[str, str]] = set()
        for pair in self.pairs:
            if not (math.isfinite(pair.mass) and pair.mass > 0):
                raise ValueError(
                    f"the mass of ({pair}) is {pair.mass}, wanted a number above 0: that after the treatment over that before."
                )
            if (pair.group, pair.treatment) in seen:
                raise ValueError(f"the pair ({pair}) is there twice, wanted one: name replicates as groups of their own.")
            seen.add((pair.group, pair.treatment))

    def _check_types(self, k: int) -> None:
        """One type for each cell of a cloud, by its number."""
        if self.types is None:
            return
        code, count = self.types[k], len(self.type_names)
        if len(code) != len(self.clouds[k]):
            raise ValueError(f"types[{k}] holds {len(code)} types for {len(self.clouds[k])} cells, wanted one each.")
        if isinstance(code, Tensor) and not bool(((code >= 0) & (code < count)).all()):
            raise ValueError(
                f"types[{k}] holds {int(code.min())} to {int(code.max())}, wanted places in type_names={self.type_names}, from 0 to {count - 1}."
            )

    @staticmethod
    def of(
        sources: Sequence[Any],
        targets: Sequence[Any],
        *,
        groups: Sequence[str] | None = None,
        treatments: Sequence[str] | str = "treated",
        features: Sequence[str] | None = None,
        unit: str = "units of the data",
        types: tuple[Sequence[Any], Sequence[Any]] | None = None,
        type_names: Sequence[str] = (),
        masses: Sequence[float] | None = None,
    ) -> Populations:
        """Make populations from two lists of arrays; an array that appears in several pairs as the same object is kept once.

        Args:
            sources: Control cells ``[n_i, d]`` of each pair.
            targets: Treated cells ``[m_i, d]`` of each pair; None where unknown.
            groups: Name of the patient of each pair; None numbers them.
            treatments: Name of the treatment of each pair, or one for all.
            features: Names of the columns; None numbers them.
            unit: Unit of the features.
            types: Integer types of the cells of the sources and of the targets.
            type_names: Names of the types.
            masses: Mass after each treatment relative to before; None: 1.
        """
        count = len(sources)
        names = list(map(str, range(count) if groups is None else groups))
        treatments = [treatments] * count if isinstance(treatments, str) else list(map(str, treatments))
        weights = [1.0] * count if masses is None else list(map(float, masses))
        if not len(targets) == len(names) == len(treatments) == len(weights) == count:
            raise ValueError(
                f"there are {count} sources, {len(targets)} targets, {len(names)} groups, {len(treatments)} treatments and {len(weights)} masses, "
                "wanted one each."
            )
        clouds: list[Cloud] = []
        codes: list[Cloud] = []
        known: dict[int, int] = {}

        def add(value: Any, code: Any) -> int:
            if id(value) not in known:
                known[id(value)] = len(clouds)
                clouds.append(value if isinstance(value, Stored) else dense("cells", value))
                if types is not None:
                    codes.append(code if isinstance(code, Stored) else torch.as_tensor(code).long())
            return known[id(value)]

        pairs = []
        for k in range(count):
            source = add(sources[k], None if types is None else types[0][k])
            target = None if targets[k] is None else add(targets[k], None if types is None else types[1][k])
            pairs.append(Pair(names[k], treatments[k], source, target, weights[k]))
        dim = clouds[0].shape[-1] if clouds and len(clouds[0].shape) else 0
        features = tuple(f"feature {k + 1}" for k in range(dim)) if features is None else tuple(map(str, features))
        return Populations(tuple(clouds), tuple(pairs), features, unit, None if types is None else tuple(codes), tuple(type_names))

    @staticmethod
    def from_cells(
        x: Any,
        group: Sequence[Any],
        condition: Sequence[Any],
        *,
        control: str,
        types: Sequence[Any] | None = None,
        features: Sequence[str] | None = None,
        unit: str = "units of the data",
    ) -> Populations:
        """Make populations from one array of cells with a patient and a condition for each.

        Every patient with cells under the condition ``control`` gives one pair for each other condition; a patient with control cells alone is
        kept as one to be predicted under every treatment.

        Args:
            x: Cells ``[n, d]``.
            group: The patient of each cell.
            condition: The condition of each cell.
            control: The condition before treatment.
            types: The type of each cell.
            features: Names of the columns.
            unit: Unit of the features.

        Raises:
            ValueError: for a control that no cell has (naming the closest condition), treated patients without control cells, or when no
                patient has both.
        """
        cells, names, conditions = dense("x", x), _texts("group", group, len(x)), _texts("condition", condition, len(x))
        known = sorted(set(conditions))
        if control not in known:
            raise ValueError(unknown("control: condition", control, known))
        kinds = sorted(set(_texts("types", types, len(x)))) if types is not None else []
        code = None if types is None else torch.tensor([kinds.index(one) for one in _texts("types", types, len(x))])
        members: dict[tuple[str, str], list[int]] = {}
        for k, key in enumerate(zip(names, conditions, strict=True)):
            members.setdefault(key, []).append(k)
        alone = sorted({name for name, _ in members if (name, control) not in members})
        if alone:
            raise ValueError(
                f"group: {alone} have treated cells and none under control={control!r}, wanted control cells of every patient: "
                "leave these patients out, or give them control cells."
            )
        treatments = [one for one in known if one != control]
        place = {key: k for k, key in enumerate(sorted(members))}
        index = [torch.tensor(members[key]) for key in place]
        pairs = []
        for name in sorted(set(names)):
            own = [one for one in treatments if (name, one) in members]
            pairs += [Pair(name, one, place[name, control], place.get((name, one))) for one in (own or treatments)]
        if not any(pair.target is not None for pair in pairs):
            raise ValueError(f"condition holds {known} and no patient has cells under control={control!r} and another one, wanted both.")
        features = tuple(f"feature {k + 1}" for k in range(cells.shape[1])) if features is None else tuple(map(str, features))
        return Populations(
            tuple(rows(cells, one) for one in index),
            tuple(pairs),
            features,
            unit,
            None if code is None else tuple(code[one] for one in index),
            tuple(kinds),
        )

    @property
    def dim(self) -> int:
        """Number of features."""
        return len(self.features)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the patients, in the order of the pairs."""
        return tuple(dict.fromkeys(pair.group for pair in self.pairs))

    @cached_property
    def treatments(self) -> tuple[str, ...]:
        """Names of the treatments, sorted."""
        return tuple(sorted({pair.treatment for pair in self.pairs}))

    def label(self, cloud: int) -> str:
        """What a cloud is, in words."""
        for pair in self.pairs:
            if cloud == pair.source:
                return f"control cells of {pair.group}"
            if cloud == pair.target:
                return f"cells of {pair}"
        return "no pair"

    def hold_out(self, *groups: str, treatment: str | None = None) -> tuple[Populations, Populations]:
        """Split into the populations to learn from and those held out: whole patients, or their pairs with one treatment.

        Raises:
            ValueError: for a patient that is not there (naming the closest), or when nothing is left to learn from.
        """
        for name in groups:
            if name not in self.groups:
                raise ValueError(unknown("group", name, self.groups))
        out = [pair for pair in self.pairs if pair.group in groups and treatment in (None, pair.treatment)]
        left = [pair for pair in self.pairs if pair not in out]
        if not out or not any(pair.target is not None for pair in left):
            raise ValueError(
                f"groups={groups}, treatment={treatment!r} hold out {len(out)} of {len(self.pairs)} pairs, wanted some, and some to learn from."
            )
        return self.of_pairs(left), self.of_pairs(out)

    def of_pairs(self, pairs: Sequence[Pair]) -> Populations:
        """The same clouds with some of the pairs."""
        return _replace(self, pairs=tuple(pairs))

    def complete(self) -> Populations:
        """The pairs with treated cells, which a flow can learn from."""
        return self.of_pairs([pair for pair in self.pairs if pair.target is not None])

    def by_type(self) -> Populations:
        """Each cell type of each patient as a population of its own: groups become ``patient / type``.

        Types with fewer than two cells on one side are left out.

        Raises:
            ValueError: without types.
        """
        if self.types is None:
            raise ValueError("types is None, wanted a type for each cell: Populations.from_cells(..., types=...).")
        clouds: list[Cloud] = []
        types: list[Cloud] = []
        place: dict[tuple[int, int], int] = {}

        def part(cloud: int, kind: int) -> int | None:
            if (cloud, kind) not in place:
                code = rows(self.types[cloud])  # pyright: ignore[reportOptionalSubscript]
                mine = (code == kind).nonzero()[:, 0]
                if len(mine) < 2:
                    return None
                place[cloud, kind] = len(clouds)
                clouds.append(rows(self.clouds[cloud], mine))
                types.append(code[mine])
            return place[cloud, kind]

        pairs = []
        for pair in self.pairs:
            for kind, name in enumerate(self.type_names):
                source, target = part(pair.source, kind), None if pair.target is None else part(pair.target, kind)
                if source is not None and (target is not None or pair.target is None):
                    pairs.append(Pair(f"{pair.group} / {name}", pair.treatment, source, target, pair.mass))
        return _replace(self, clouds=tuple(clouds), pairs=tuple(pairs), types=tuple(types))

    def store(self, folder: str | Path) -> Populations:
        """Write every cloud to a file of its own and return the populations on disk; `open` reads them back."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)

        def put(cloud: Cloud, name: str) -> Stored:
            np.save(folder / name, rows(cloud).cpu().numpy())
            return Stored(folder / name, tuple(cloud.shape))

        clouds = tuple(put(cloud, f"cloud-{k}.npy") for k, cloud in enumerate(self.clouds))
        types = None if self.types is None else tuple(put(code, f"types-{k}.npy") for k, code in enumerate(self.types))
        about = {
            "pairs": [[pair.group, pair.treatment, pair.source, pair.target, pair.mass] for pair in self.pairs],
            "features": self.features,
            "unit": self.unit,
            "clouds": [list(cloud.shape) for cloud in clouds],
            "type_names": None if types is None else self.type_names,
        }
        write_atomic(folder / "populations.json", json.dumps(about))
        return _replace(self, clouds=clouds, types=types)

    @staticmethod
    def open(folder: str | Path) -> Populations:
        """Return the populations that `store` wrote; their cells stay on disk.

        Raises:
            CheckpointError: when the folder holds none, or not all of them.
        """
        folder = Path(folder)
        try:
            about: Mapping[str, Any] = json.loads((folder / "populations.json").read_text())
            clouds = tuple(Stored(folder / f"cloud-{k}.npy", tuple(shape)) for k, shape in enumerate(about["clouds"]))
            names = about["type_names"]
            types = None if names is None else tuple(Stored(folder / f"types-{k}.npy", (len(cloud),)) for k, cloud in enumerate(clouds))
            pairs = tuple(Pair(*one) for one in about["pairs"])
            found = Populations(clouds, pairs, tuple(about["features"]), about["unit"], types, tuple(names or ()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"cannot read {folder / 'populations.json'}: {error!r}. Fix: give a folder that store(folder) wrote."
            ) from error
        absent = [one.path.name for one in (*clouds, *(types or ())) if not one.path.is_file()]
        if absent:
            raise CheckpointError(f"{folder} lacks {absent[:3]}, {len(absent)} file(s) in all. Fix: store the populations again.")
        return found

    def sample(self, cloud: int, most: int = SAMPLED) -> Tensor:
        """At most ``most`` evenly spaced cells of a cloud."""
        count = len(self.clouds[cloud])
        return rows(self.clouds[cloud], None if count <= most else torch.arange(most) * count // most)

    def proportions(self, cloud: int) -> Tensor:
        """Shares of the cell types in a cloud ``[types]``, float64."""
        if self.types is None:
            raise ValueError("types is None, wanted a type for each cell.")
        return torch.bincount(rows(self.types[cloud]), minlength=len(self.type_names)).double() / len(self.types[cloud])


def _texts(name: str, values: Sequence[Any], count: int) -> list[str]:
    absent = sum(one is None or (isinstance(one, float) and math.isnan(one)) for one in values)
    if absent:
        raise ValueError(f"{name} holds {absent} missing values (None or NaN), wanted a name for each cell: leave these cells out.")
    found = [str(one) for one in values]
    if len(found) != count:
        raise ValueError(f"{name} holds {len(found)} values for {count} cells, wanted one each.")
    return found
