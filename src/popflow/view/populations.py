"""Populations over time, from the arrays that a run has written.

    NAME.safetensors with x, log_w          a population; the last state of a simulation, if the file says at which step
    NAME.safetensors with x, or walkers/x   samples, or walkers, of equal weight
    paths.safetensors with x, log_w         x [paths, times, coordinates]: every time is there

A run keeps the last state of a simulation alone, so the states before it are those seen while the page looked. Only a part is kept in memory: particles and
times are thinned by equal strides, and of the coordinates the first ones.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from popflow.view.folders import open_file, stamps, text

PARTICLES, COORDINATES, FRAMES, FILMS = 600, 48, 100, 16
LARGEST = 64 * 2**20
"""Bytes of x beyond which an array is not read."""
_ALONG_TIME = "paths.safetensors"
_POINTS = ("x", "walkers/x")
_FLOATS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_HEADER = 2**23

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Frame:
    """A population at one time.

    Attributes:
        at: Which time, in words.
        x: ``[n, d]``.
        weights: ``[n]``, of mean 1 over each independent population.
        ess: Effective sample size over the number of particles, before thinning; the mean over independent populations.
    """

    at: str
    x: Floats
    weights: Floats
    ess: float


@dataclass(slots=True)
class Film:
    """The frames of one file.

    Attributes:
        name: Its name.
        particles: Their number before thinning.
        frames: In the order of time.
        grows: Whether the file holds the last state alone.
        why: Why there are no frames, if there are none.
    """

    name: str
    particles: int = 0
    frames: list[Frame] = field(default_factory=list)
    grows: bool = False
    why: str = ""


@dataclass(slots=True)
class Populations:
    """The films of a run, brought up to date by `look`."""

    folder: Path
    version: int = 0
    films: dict[str, Film] = field(default_factory=dict)
    _seen: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def look(self) -> None:
        """Read the files that have changed; the one that changed last comes last."""
        changed = sorted(stamps(self.folder).items(), key=lambda one: one[1])
        there = {name: stamp for name, stamp in changed if name.endswith(".safetensors") and name.isprintable()}
        for name in [name for name in self._seen if name not in there]:
            del self._seen[name]
            self.films.pop(name, None)
            self.version += 1
        for name, stamp in there.items():
            if self._seen.get(name) != stamp:
                self._seen[name] = stamp
                film = read(self.folder, name)
                if film is not None:
                    self.films[name] = _joined(self.films.pop(name, None), film)
                    self.version += 1
        for name in list(self.films)[:-FILMS]:
            del self.films[name]

    def plain(self) -> dict[str, Any]:
        """What there is to see, for JSON."""
        films = [
            {
                "name": film.name,
                "particles": film.particles,
                "coordinates": film.frames[0].x.shape[1] if film.frames else 0,
                "frames": [frame.at for frame in film.frames],
                "grows": film.grows,
                "why": film.why,
            }
            for film in self.films.values()
        ]
        return {"version": self.version, "films": films}

    def frame(self, film: str, frame: int, axes: tuple[int, int] | None) -> dict[str, Any]:
        """One frame in two coordinates, or in the two principal components of the last frame (``axes=None``), for JSON.

        Raises:
            LookupError: when there is no such film, frame or coordinate.
            ValueError: when the particles have no principal components, being too large for float32.
        """
        shown = self.films[film]
        one = shown.frames[frame]
        with np.errstate(all="ignore"):
            onto = _plane(shown.frames[-1].x, axes)
            low, high = _bounds(np.concatenate([onto(each.x) for each in shown.frames]))
            points = onto(one.x)
        kept = np.isfinite(points).all(1) & np.isfinite(one.weights)
        return {
            "at": one.at,
            "x": _rounded(points[kept, 0]),
            "y": _rounded(points[kept, 1]),
            "weights": _rounded(one.weights[kept]),
            "ess": one.ess if math.isfinite(one.ess) else None,
            "left_out": int((~kept).sum()),
            "low": _rounded(low),
            "high": _rounded(high),
        }


def read(folder: Path, name: str) -> Film | None:
    """Read the populations in a file of a run; None when it holds no x, as files of parameters do."""
    try:
        with open_file(folder, name) as file:
            arrays, begin = _header(file)
            points = next((one for one in _POINTS if one in arrays), None)
            if points is None:
                return None
            x = _array(file, arrays[points], begin)
            log_w = _array(file, arrays["log_w"], begin) if points == "x" and "log_w" in arrays else np.zeros(x.shape[:1])
            about = json.loads(arrays.get("__metadata__", {}).get("about", "{}"))
            step = about.get("k", about.get("step"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Film(name, why=text(f"it cannot be shown: {error}", 200))
    particles = log_w.size
    if not (log_w.ndim and x.size) or x.shape[: log_w.ndim] != log_w.shape:
        return Film(name, why="it cannot be shown: x and log_w have shapes that do not fit")
    weights, ess = _weights(log_w)
    some = np.unique(np.linspace(0, particles - 1, min(particles, PARTICLES)).astype(int))
    if name == _ALONG_TIME and log_w.ndim == 1 and x.ndim == 3:
        times = np.unique(np.linspace(0, x.shape[1] - 1, min(x.shape[1], FRAMES)).astype(int))
        frames = [Frame(f"time {i + 1} of {x.shape[1]}", _flat(x[some, i]), weights[some], ess) for i in times]
        return Film(name, particles, frames)
    every = x.reshape(particles, *x.shape[log_w.ndim :])
    grows = type(step) is int
    return Film(name, particles, [Frame(f"step {step}" if grows else "the end", _flat(every[some]), weights[some], ess)], grows=grows)


def _joined(before: Film | None, now: Film) -> Film:
    """Add the state that a file holds now to those that it held before; a step that comes again begins anew."""
    if before is None or not (now.grows and before.grows and before.frames and now.frames):
        return now
    same = before.frames[0].x.shape[1] == now.frames[0].x.shape[1]
    again = now.frames[0].at in [frame.at for frame in before.frames]
    kept = [] if again or not same else before.frames if len(before.frames) < FRAMES else before.frames[::2]
    return Film(now.name, now.particles, [*kept, *now.frames], grows=True)


def _header(file: Any) -> tuple[dict[str, Any], int]:
    """Description of the tensors of a safetensors file, and where their bytes begin."""
    length = int.from_bytes(file.read(8), "little")
    if length > _HEADER:
        raise ValueError(f"its header has {length} bytes")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("it is no safetensors file")
    return header, 8 + length


def _array(file: Any, about: Any, begin: int) -> NDArray[Any]:
    if about["dtype"] not in _FLOATS:
        raise ValueError(f"its numbers are {text(about['dtype'], 20)}, not {', '.join(_FLOATS)}")
    kind = np.dtype(_FLOATS[about["dtype"]])
    shape, (first, last) = [int(n) for n in about["shape"]], about["data_offsets"]
    size = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or first < 0 or last - first != size:
        raise ValueError("it is no safetensors file")
    if size > LARGEST:
        raise ValueError(f"x has {size / 2**20:.0f} MiB, more than {LARGEST // 2**20}")
    file.seek(begin + first)
    return np.frombuffer(file.read(size), kind.newbyteorder("<")).reshape(shape)


def _weights(log_w: NDArray[Any]) -> tuple[Floats, float]:
    """Weights of mean 1 over the last axis, flattened, and the effective share of the particles."""
    with np.errstate(all="ignore"):
        w = np.exp(log_w.astype(np.float64) - np.max(log_w, -1, keepdims=True))
        w /= w.mean(-1, keepdims=True)
        ess = 1 / np.square(w).mean(-1)
    return w.reshape(-1).astype(np.float32), float(np.mean(ess))


def _flat(x: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):
        return x.reshape(len(x), -1)[:, :COORDINATES].astype(np.float32)


def _plane(last: Floats, axes: tuple[int, int] | None) -> Any:
    """The map from particles to two coordinates. A single coordinate is spread over the second axis, so that particles can be told apart."""
    d = last.shape[1]
    if d == 1:
        return lambda x: np.stack([x[:, 0], np.arange(len(x)) * 0.618034 % 1], 1)
    if axes is None and d == 2:
        axes = (0, 1)
    if axes is not None:
        if not all(0 <= axis < d for axis in axes):
            raise IndexError(f"axes={axes}, wanted two of {d} coordinates")
        return lambda x: x[:, list(axes)]
    whole = last[np.isfinite(last).all(1)]
    centre = whole.mean(0) if len(whole) else np.zeros(d, np.float32)
    basis = np.linalg.svd(whole - centre, full_matrices=False)[2][:2] if len(whole) > 1 else np.eye(2, d)
    largest = np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1)
    basis = basis * np.sign(largest)  # a direction has no sign of its own
    return lambda x: (x - centre) @ cast(Any, basis).T


def _bounds(points: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    kept = points[np.isfinite(points).all(1)]
    return (kept.min(0), kept.max(0)) if len(kept) else (np.zeros(2), np.ones(2))


def _rounded(values: NDArray[Any]) -> list[float]:
    return [float(f"{value:.5g}") if math.isfinite(value) else 0.0 for value in values.tolist()]
