"""Write docs/results.md from the JSON files of the benchmarks: ``python benchmarks/collect.py benchmarks/results/*.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
HEAD = """# Results

Each table was written by one script in `benchmarks/`; nothing here is typed by hand. *Wanted* is the target set beforehand, empty for rows that
are only informative. Ratios of times, medians and peers come from a single process on one machine, described below each table.
"""


def cell(value: object) -> str:
    """Return a number or text as a table cell."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def seeds_of(document: dict) -> str:
    """Say how many seeds there were, and where they were fewer; a part notes its own at its first row, whose claim begins with its name."""
    asked = document["options"]["seeds"]
    own = {row["claim"].partition(":")[0]: row["notes"]["seeds"] for row in document["rows"] if row["notes"].get("seeds", asked) != asked}
    return f"{asked} seed{'s' * (asked > 1)}" + "".join(f"; {part}: {count}" for part, count in own.items())


def section(name: str, document: dict) -> str:
    """Return one file of results as a heading, a table and a description of the machine."""
    lines = [f"\n## {name}\n", *_of_parts(name, document), "| claim | value | wanted | held | beside it |", "|---|---|---|---|---|"]
    for row in document["rows"]:
        error = "" if row["error"] is None else f" ± {row['error']:.2g}"
        wanted = "" if row["target"] is None else f"{cell(row['direction'])} {row['target']:g}"
        held = {True: "yes", False: "**no**", None: ""}[row["holds"]]
        peers = "; ".join(f"{cell(name)} {cell(value)}" for name, value in row["peers"].items())
        lines.append(f"| {cell(row['claim'])} | {cell(float(row['value']))}{error} {row['unit']} | {wanted} | {held} | {peers} |")
    machine, options = document["machine"], document["options"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    lines.append(
        f"\n{machine['processor']}, {machine['cores']} cores, {machine['torch_threads']} torch thread(s){gpu}; Python {machine['python']}, "
        f"torch {machine['torch']}; {seeds_of(document)}{', quick' if options['quick'] else ''}."
    )
    return "\n".join(lines) + "\n"


def _of_parts(name: str, document: dict) -> list[str]:
    """Say of a further run of a benchmark, kept under another name, which parts were run."""
    if name == document["benchmark"]:
        return []
    return [f"A further run of `{document['benchmark']}.py`; parts: {', '.join(document['options']['only'])}.\n"]


def main(files: list[str]) -> None:
    """Write the page from the named files."""
    documents = {Path(file).stem: json.loads(Path(file).read_text()) for file in sorted(files)}
    PAGE.write_text(HEAD + "".join(section(name, document) for name, document in documents.items()))
    print(f"{len(documents)} benchmarks -> {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
