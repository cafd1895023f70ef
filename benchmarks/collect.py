"""Write docs/results.md from the JSON files of the benchmarks: ``python benchmarks/collect.py benchmarks/results/*.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
HEAD = """# Results

Every table is what one script of `benchmarks/` wrote; nothing here is typed by hand. *Wanted* is the bar that was set before, empty for rows that
only inform. Ratios of times, medians and peers come from one process on one machine, described below each table.
"""


def cell(value: object) -> str:
    """One number or text of a table."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def section(document: dict) -> str:
    """One benchmark as a heading, a table and the machine."""
    lines = [f"\n## {document['benchmark']}\n", "| claim | value | wanted | held | beside it |", "|---|---|---|---|---|"]
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
        f"torch {machine['torch']}; {options['seeds']} seeds{', quick' if options['quick'] else ''}."
    )
    return "\n".join(lines) + "\n"


def main(files: list[str]) -> None:
    """Collect the named files into the page."""
    documents = [json.loads(Path(file).read_text()) for file in sorted(files)]
    PAGE.write_text(HEAD + "".join(section(document) for document in documents))
    print(f"{len(documents)} benchmarks -> {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
