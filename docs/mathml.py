"""Equations as MathML, made when the site is built: browsers typeset them, and no script is fetched or run."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

MARKED = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
"""What pymdownx.arithmatex leaves of ``$ ... $`` (a span) and ``$$ ... $$`` (a div)."""


def on_page_content(content: str, **_: Any) -> str:
    """Replace the marked LaTeX of a page by MathML."""

    def typeset(match: re.Match[str]) -> str:
        tag, latex = match.groups()
        latex = html.unescape(latex).strip().replace("{aligned}", "{align*}")  # the converter knows the outer environment alone
        display = "block" if tag == "div" else "inline"
        return f'<{tag} class="equation">{convert(latex, display=display)}</{tag}>'

    return MARKED.sub(typeset, content)
