"""What methods of several rooms do together: the three hybrids of ``examples/``, beside the truth and beside what each room does alone.

``python benchmarks/hybrids.py [--quick] [--seeds N] [--json FILE]``
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness import Row, run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import hybrid_likely_molecules as molecules
import hybrid_steered_cells as cells
import hybrid_union_of_designs as designs

Found = dict[str, dict[str, float]]


def over(measured: Callable[[int, bool], Found], options: argparse.Namespace) -> tuple[Callable[..., dict], float]:
    """Measure all seeds; return ``value(way, key) -> {value, error}`` (median, standard error of the mean) and the seconds spent."""
    begin = time.perf_counter()
    found = [measured(seed, options.quick) for seed in range(options.seeds)]

    def value(way: str, key: str, change: Callable[[float], float] = float) -> dict:
        values = [change(one[way][key]) for one in found]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return {"value": statistics.median(values), "error": error}

    return value, time.perf_counter() - begin


def steered(options: argparse.Namespace) -> list[Row]:
    """Feynman-Kac weights along a learned flow of cells."""
    value, seconds = over(cells.measured, options)
    mean, std, mass = cells.exact()
    off = {key: (lambda one, truth=truth: abs(one - truth)) for key, truth in (("mean", mean), ("std", std), ("log mass", mass))}
    notes = {"seconds": seconds, "notes": {"seeds": options.seeds, "exact": {"mean": mean, "std": std, "log mass": mass}}}
    rows = [
        Row(
            f"steered cells: {key} of the marker, distance from the truth"
            if key != "log mass"
            else "steered cells: log mass, distance from the truth",
            **value("steered", key, off[key]),
            target=target,
            peers={
                way: value(way, key, off[key])["value"]
                for way in ("not steered", "weighed at the end")
                if key != "log mass" or way != "not steered"
            },
            **notes,
        )
        for key, target in (("mean", 0.05), ("std", 0.03), ("log mass", 0.1))
    ]
    for key, title in (("effective share", "effective share of the last weights"), ("lines", "share of the first cells with descendants")):
        peers = {"weighed at the end": value("weighed at the end", key)["value"]}
        rows.append(Row(f"steered cells: {title}", **value("steered", key), direction=">=", peers=peers, **notes))
    return rows


def union(options: argparse.Namespace) -> list[Row]:
    """SuperDiff's OR as the prior of DiffOPT."""
    value, seconds = over(designs.measured, options)
    exact = designs.exact()
    notes = {"seconds": seconds, "notes": {"seeds": options.seeds, "exact": exact}}
    alone = ("first alone", "second alone")
    rows = []
    for key, title, target, direction in (
        ("union", "designs in the union of both sets", 0.95, ">="),
        ("mean h", "mean objective", None, "<="),
        ("first", "share in the first set", None, ">="),
        ("second", "share in the second set", None, ">="),
        ("least h", "least objective among feasible designs", None, "<="),
    ):
        peers = {way: value(way, key)["value"] for way in alone} | ({"exact": exact[key]} if key in exact else {})
        rows.append(Row(f"union of designs: {title}", **value("OR of both", key), target=target, direction=direction, peers=peers, **notes))
    away = value("OR of both", "first", lambda share: abs(share - exact["first"]))
    rows.append(Row("union of designs: share in the first set, distance from the truth", **away, target=0.1, **notes))
    return rows


def likely(options: argparse.Namespace) -> list[Row]:
    """Parents resampled towards a Boltzmann target whose prior is a language model."""
    try:
        value, seconds = over(molecules.measured, options)
    except ImportError as error:
        return [Row("likely molecules", math.nan, peers={"hybrid": f"absent: {error}"})]
    notes = {"seconds": seconds, "notes": {"seeds": options.seeds, "objective": molecules.OBJECTIVE, "temperature": molecules.T}}
    return [
        Row(
            f"likely molecules: {title}",
            **value("Boltzmann", key),
            unit=unit,
            target=value("plain", key)["value"],
            direction=">=",
            peers={"plain evolution": value("plain", key)["value"]},
            **notes,
        )
        for key, title, unit in (
            ("top 10", "mean of the ten best", ""),
            ("log p of the top 10", "log p of the ten best", "nats"),
            ("log p of children", "log p of all children", "nats"),
        )
    ]


def main(options: argparse.Namespace) -> list[Row]:
    """Measure the hybrids of the examples."""
    return [*steered(options), *union(options), *likely(options)]


if __name__ == "__main__":
    run("hybrids", main)
