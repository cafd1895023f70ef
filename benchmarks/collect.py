"""Write docs/results.md, and the table of the README, from the JSON files of benchmarks: ``python benchmarks/collect.py benchmarks/results/*.json``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
HEAD = """# Results

Each table was written by one script in `benchmarks/`; nothing here is typed by hand. *Wanted* is the target set beforehand, empty for rows that
are only informative; *reached* says whether the value met it. Ratios of times, medians and peers come from a single process on one machine, described below each
table with the day of the run (where a run did not record it, the day on which its file was committed).
"""

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- measured: written by benchmarks/collect.py -->\n", "<!-- end of what is measured -->"
FIGURES = {
    "Feynman-Kac correctors": (
        "feynman_kac_correctors",
        "corrector",
        "64 dimensions, product even prime, 100 levels, 1200 network calls: |error of log Z|",
    ),
    "SuperDiff": ("superdiff", "density", "AND of Gaussians of widths .3 and 1.5, 16 dimensions, 50 levels: |mean true gap|"),
    "DiffOPT": ("diffopt", "constrained", "tilted mixture, beta 4: error of the mean"),
    "Wasserstein Lagrangian flows": (
        "wasserstein_lagrangian_flows",
        "cells",
        "hematopoiesis: unbalanced, W1 at k = 1 (WFR, masses from counts)",
    ),
    "Meta flow matching": ("meta_flow_matching", "meta_flow", "gaussians: W2 on unseen populations, meta over plain"),
    "SINGD": ("singd", "optimizers_race", "tasks with fewer seconds than tuned AdamW, of 6"),
    "Quantum hypernetworks": ("quantum_hypernetworks", "circuits_speed", "lightning.qubit adjoint over this, geometric mean"),
    "Doob's Lagrangian": ("doob", "mueller_brown", "action, coupling flow"),
    "Wasserstein quantum Monte Carlo": ("wasserstein_qmc", "qmc_energies", "LiH: distance from the exact energy"),
    "MOLLEO": ("molleo", "molecules", "sum of AUC top-10, preranked: 23 tasks, 1000 calls"),
}
"""A figure for each method: its page, a benchmark, a claim."""


def figures(documents: dict[str, dict]) -> str:
    """Return the table of the README: one figure of each method, and how many bars of its benchmark are held and missed."""
    lines = ["| method | claim | figure | wanted | beside it | bars of its benchmark |", "|---|---|---|---|---|---|"]
    for method, (page, name, claim) in FIGURES.items():
        rows = documents[name]["rows"]
        row = next(row for row in rows if row["claim"] == claim)
        held, missed = (sum(one["holds"] is value for one in rows) for value in (True, False))
        bars = f"{held} held, {missed} missed" if held + missed else "no bar"
        wanted, peers = _wanted(row), _peers(row, 2)
        lines.append(f"| [{method}](docs/methods/{page}.md) | {cell(claim)} | {_value(row)} | {wanted} | {peers} | {bars} (`{name}.py`) |")
    return "\n".join(lines) + "\n"


def _value(row: dict) -> str:
    error = "" if row["error"] is None else f" ± {row['error']:.2g}"
    return f"{cell(float(row['value']))}{error} {row['unit']}"


def _wanted(row: dict) -> str:
    return "" if row["target"] is None else f"{cell(row['direction'])} {row['target']:g}"


def _peers(row: dict, most: int | None = None) -> str:
    return "; ".join(f"{cell(name)} {cell(value)}" for name, value in list(row["peers"].items())[:most])


def cell(value: object) -> str:
    """Return a number or text as a table cell."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def seeds_of(document: dict) -> str:
    """Say how many seeds there were, and where they were fewer; a part notes its own at its first row, whose claim begins with its name."""
    asked = document["options"]["seeds"]
    own = {row["claim"].partition(":")[0]: row["notes"]["seeds"] for row in document["rows"] if row["notes"].get("seeds", asked) != asked}
    return f"{asked} seed{'s' * (asked > 1)}" + "".join(f"; {part}: {count}" for part, count in own.items())


def day(name: str, document: dict) -> str:
    """The day of a run, or that on which its file was committed."""
    if "date" in document["machine"]:
        return document["machine"]["date"]
    log = ["git", "log", "-1", "--format=%as", "--", f"benchmarks/results/{name}.json"]
    committed = subprocess.run(log, cwd=PAGE.parents[1], capture_output=True, text=True, check=False).stdout.strip()
    return f"committed {committed}" if committed else "day not recorded"


def summary(documents: dict[str, dict]) -> str:
    """Return how many claims of each file were reached, and a table of all that were not."""
    every = [row for document in documents.values() for row in document["rows"]]
    held, missed = (sum(row["holds"] is value for row in every) for value in (True, False))
    lines = [f"\n{held} of {held + missed} targets were reached; {len(every) - held - missed} further figures have none.\n"]
    lines += ["| benchmark | reached | not reached | no target |", "|---|---|---|---|"]
    for name, document in documents.items():
        counts = [sum(row["holds"] is value for row in document["rows"]) for value in (True, False, None)]
        lines.append(f"| [{name}](#{name}) | {' | '.join(str(count) for count in counts)} |")
    lines += ["\n## Not reached\n", "| benchmark | claim | value | wanted |", "|---|---|---|---|"]
    for name, document in documents.items():
        for row in document["rows"]:
            if row["holds"] is False:
                lines.append(f"| [{name}](#{name}) | {cell(row['claim'])} | {_value(row)} | {_wanted(row)} |")
    return "\n".join(lines) + "\n"


def section(name: str, document: dict) -> str:
    """Return one file of results as a heading, a table and a description of the machine."""
    lines = [f"\n## {name}\n", *_of_parts(name, document), "| claim | value | wanted | reached | beside it |", "|---|---|---|---|---|"]
    for row in document["rows"]:
        reached = {True: "yes", False: "**no**", None: ""}[row["holds"]]
        lines.append(f"| {cell(row['claim'])} | {_value(row)} | {_wanted(row)} | {reached} | {_peers(row)} |")
    machine, options = document["machine"], document["options"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    lines.append(
        f"\n{machine['processor']}, {machine['cores']} cores, {machine['torch_threads']} torch thread(s){gpu}; Python {machine['python']}, "
        f"torch {machine['torch']}; {seeds_of(document)}{', quick' if options['quick'] else ''}; {day(name, document)}."
    )
    return "\n".join(lines) + "\n"


def _of_parts(name: str, document: dict) -> list[str]:
    """Say of a further run of a benchmark, kept under another name, which parts were run."""
    if name == document["benchmark"]:
        return []
    return [f"A further run of `{document['benchmark']}.py`; parts: {', '.join(document['options']['only'])}.\n"]


def main(files: list[str]) -> None:
    """Write the page from the named files, and the table of the README where they hold its figures."""
    documents = {Path(file).stem: json.loads(Path(file).read_text()) for file in sorted(files)}
    PAGE.write_text(HEAD + summary(documents) + "".join(section(name, document) for name, document in documents.items()))
    if all(name in documents for _, name, _ in FIGURES.values()):
        before, _, rest = README.read_text().partition(START)
        README.write_text(before + START + figures(documents) + END + rest.partition(END)[2])
    print(f"{len(documents)} benchmarks -> {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
