"""Write the figures of docs/methods/singd.md from the results: ``python benchmarks/optimizer_page.py``; what stands between its marks is replaced."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "methods" / "singd.md"
STRUCTURES = ("dense", "block-30", "hierarchical 15, 15", "Toeplitz", "diagonal")
Rows = dict[str, dict[str, Any]]


def rows(name: str) -> Rows:
    """The rows of a benchmark's result, by claim."""
    return {row["claim"]: row for row in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]}


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def short(value: float | str) -> str:
    """Three digits; a target that was not reached is never reached."""
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if math.isfinite(value) else "never"


def steps() -> str:
    """Time and state of each structure, and the targets that are missed."""
    found = rows("optimizers")
    state = found["MLP, diagonal: numbers of state per parameter"]["peers"]
    lines = []
    for name in STRUCTURES:
        cells = [name]
        for interval in (1, 10):
            claim = f"MLP, {name}, T={interval}: "
            cells += [
                short(found[f"{claim}step over AdamW's"]["value"]),
                short(found[f"{claim}singd's step over ours"]["peers"]["singd over AdamW"]),
            ]
        cells.append(short(found[f"char transformer, {name}, T=10: step over AdamW's"]["value"]))
        lines.append([*cells, short(found[f"MLP, {name}: numbers of state per parameter"]["value"]), short(state[f"singd {name}"])])
    head = ["structure", "T=1", "singd", "T=10", "singd", "transformer", "state", "singd"]
    missed = [
        f"{claim[0].lower() if claim.startswith('Char') else claim[0]}{claim[1:]} {short(row['value'])} (wanted {row['direction']} {row['target']:g})"
        for claim, row in found.items()
        if row["holds"] is False and math.isfinite(row["value"])
    ]
    return (
        table(head, lines)
        + "\n\n**Targets that are missed:** "
        + "; ".join(missed).replace("<=", "at most").replace(">=", "at least")
        + "."
    )


def lost() -> str:
    """Runs that diverged."""
    found = rows("optimizers_robustness")
    names = [claim.split(":")[0] for claim in found]
    ours = sum(row["value"] for row in found.values())
    lines = [[name, *(row["peers"][name] for row in found.values())] for name in ("singd", "KFAC")]
    return table(["", *names], lines) + f"\n\nSINGD, natural steps and IKFAC together lose {ours:.0f} of {180 * len(found)}."


def race(name: str) -> str:
    """Steps and seconds to the target, medians, and who needs the fewest."""
    found, parts, won = rows(name), [], []
    for measure, of in (("steps", " steps to"), ("seconds", " CPU seconds to")):
        mine = {claim.split(":")[0]: row["notes"]["runs"] for claim, row in found.items() if f":{of}" in claim}
        kinds = [kind for kind in next(iter(mine.values())) if kind != "SPRING"]
        kinds += ["SPRING"] if any("SPRING" in runs for runs in mine.values()) else []
        middle = {task: {kind: sorted(many)[len(many) // 2] for kind, many in runs.items()} for task, runs in mine.items()}
        parts.append(
            table([measure, *kinds], [[task, *(short(one[kind]) if kind in one else "" for kind in kinds)] for task, one in middle.items()])
        )
        first = {task: min(one, key=one.__getitem__) for task, one in middle.items()}
        ahead = sum(one["SINGD"] < one["AdamW"] for one in middle.values())
        leaders = ", ".join(f"{kind} on {sum(1 for one in first.values() if one == kind)}" for kind in kinds if kind in first.values())
        before = [(task, [kind for kind in kinds if one.get(kind, math.inf) < one["SINGD"]]) for task, one in middle.items()]
        others = "; ".join(f"{task}: {', '.join(many) or 'none'}" for task, many in before)
        won.append(f"Fewest {measure}: {leaders}. SINGD needs fewer than AdamW on {ahead} of {len(mine)}. Fewer than SINGD ({others}).")
    return "\n\n".join([*parts, *won])


def settings() -> str:
    """The settings with which SINGD needed the fewest steps."""
    found = {
        claim.split(":")[0]: row["notes"]["setting"]["SINGD"] for claim, row in rows("optimizers_race").items() if ": steps to" in claim
    }
    names = list(next(iter(found.values())))
    return table(["", *(f"`{name}`" for name in names)], [[task, *(short(one[name]) for name in names)] for task, one in found.items()])


def rates() -> str:
    """Losses at AdamW's own rate."""
    found = rows("optimizers_rates")
    cells: dict[str, dict[str, str]] = {}
    for claim, row in found.items():
        task, rate, count = re.fullmatch(r"(.*), lr (\S+): loss after (\d+) steps over AdamW's", claim).groups()  # pyright: ignore[reportOptionalMemberAccess]
        cells.setdefault(task, {})[f"{count} steps, lr {rate}"] = " / ".join(
            short(row["peers"][kind]) for kind in ("AdamW", "dense", "diagonal")
        )
    heads = sorted(next(iter(cells.values())), key=lambda head: (int(head.split()[0]), float(head.split()[-1])))
    below = {kind: sum(row["peers"][kind] < row["peers"]["AdamW"] for row in found.values()) for kind in ("dense", "diagonal")}
    denser = sum(row["peers"]["dense"] < row["peers"]["diagonal"] for row in found.values())
    late = {claim: row for claim, row in found.items() if "after 150" in claim}
    late_below = sum(row["peers"]["dense"] < row["peers"]["AdamW"] for row in late.values())
    worst = max(found.items(), key=lambda item: item[1]["value"])
    lines = [[task, *(own[head] for head in heads)] for task, own in cells.items()]
    return (
        table(["", *heads], lines)
        + f"\n\nDense factors end below AdamW in {below['dense']} of {len(found)} cases ({late_below} of {len(late)} after 150 steps), diagonal ones in "
        f"{below['diagonal']}; dense ones end below diagonal ones in {denser}. The worst case of dense ones is {short(worst[1]['value'])} times AdamW's loss: {worst[0].removesuffix(' over AdamW' + chr(39) + 's')}."
    )


def precision() -> str:
    """Losses in float32 and bfloat16, and the steps."""
    cells: dict[str, dict[str, str]] = {}
    for claim, row in rows("optimizers_precision").items():
        task, name = claim.removesuffix(": last loss in bfloat16 over float32").split(", ", 1)
        losses = " / ".join(short(row["peers"][kind]) for kind in ("float32", "bfloat16"))
        cells.setdefault(task, {})[name] = f"{losses} ({row['notes']['steps']})"
    names = list(next(iter(cells.values())))
    return table(["", *names], [[task, *(own[name] for name in names)] for task, own in cells.items()])


def expert() -> str:
    """A diffusion expert."""
    ((claim, row),) = rows("optimizers_learn").items()
    spent = row["notes"]["CPU seconds"]
    return (
        f"{claim}: {short(row['value'])} with diagonal SINGD, {short(row['peers']['AdamW'])} with AdamW, each at the best of four rates; "
        f"{short(spent['SINGD'])} and {short(spent['AdamW'])} CPU seconds; {row['notes']['seeds']} seeds, standard deviation {row['error']:.1g}."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "steps": steps,
    "lost": lost,
    "settings": settings,
    "race": lambda: race("optimizers_race"),
    "newer peers": lambda: race("optimizers_race_newer"),
    "rates": rates,
    "precision": precision,
    "expert": expert,
}


def written(text: str) -> str:
    """The page with its figures replaced.

    Raises:
        KeyError: for a mark that names no block.
    """

    def block(found: re.Match) -> str:
        return f"<!-- figures: {found[1]} -->\n\n{BLOCKS[found[1]]()}\n\n<!-- end of figures -->"

    return re.sub(r"<!-- figures: ([a-z ]+) -->.*?<!-- end of figures -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
