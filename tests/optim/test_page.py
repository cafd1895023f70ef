"""The figures in docs/methods/singd.md are those of the committed results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "optimizer_page.py"


def test_the_page_holds_the_figures_of_the_results():
    spec = importlib.util.spec_from_file_location("optimizer_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.written(text) == text, "docs/methods/singd.md is not what the results say. Fix: python benchmarks/optimizer_page.py"
    assert all(f"<!-- figures: {name} -->" in text for name in script.BLOCKS)
