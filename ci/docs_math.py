"""A hook of mkdocs: formulas become MathML, which browsers draw without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# in a docstring; a block of it; in a notebook, where a dollar sign is nothing else
INLINE = re.compile(r":math:<code>(.+?)</code>", re.DOTALL)
BLOCK = re.compile(r"<p>\.\. math::\s+(.+?)</p>", re.DOTALL)
DOLLARS = re.compile(r"\$([^$<>]+)\$")
CELL = re.compile(r'<div class="[^"]*jp-MarkdownOutput[^"]*"[^>]*>.*?</div>', re.DOTALL)


def drawn(latex: str, display: str) -> str:
    """MathML of what stands in HTML."""
    return convert(html.unescape(" ".join(latex.split())), display=display)


def on_post_page(output: str, **kwargs: Any) -> str:
    """What mkdocs calls for each page."""
    del kwargs
    output = BLOCK.sub(lambda found: f"<p>{drawn(found[1], 'block')}</p>", output)
    output = INLINE.sub(lambda found: drawn(found[1], "inline"), output)
    return CELL.sub(
        lambda cell: DOLLARS.sub(lambda found: drawn(found[1], "inline"), cell[0]), output
    )
