"""Format tables as text for a terminal and as HTML for notebooks."""

from collections.abc import Sequence
from html import escape

from tabulate import tabulate

from capmix.settings.printable import printable

# Jupyter typesets text between dollar signs, which in captions are prices; MathJax 2 and 3.
NO_MATH = "mathjax_ignore tex2jax_ignore"
SIDES = {"l": "left", "r": "right"}


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], align: str = "l") -> list[str]:
    """Return a line of headings, unless `heads` is empty, and a line per row.

    `align` has l or r for each column; further columns are right-aligned.
    """
    if not rows:
        return ["  ".join(heads)] if heads else []
    rows = [[printable(cell) for cell in row] for row in rows]
    sides = [SIDES[side] for side in align.ljust(len(rows[0]), "r")]
    text = tabulate(
        rows,
        heads,
        tablefmt="plain",
        colalign=sides,
        disable_numparse=True,
        preserve_whitespace=True,
    )
    return [line.rstrip() for line in text.splitlines()]


def size_text(size: float) -> str:
    """Format a number of bytes, for example `512 bytes` or `1.2 GB`; a GB is 10^9 bytes."""
    value, unit = float(size), "bytes"
    for following in ("kB", "MB", "GB", "TB", "PB"):
        if value < 1000:
            break
        value, unit = value / 1000, following
    return f"{size:,.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def table_html(
    heads: Sequence[str], rows: Sequence[Sequence[str]], align: str = "l", title: str = ""
) -> str:
    """Return the same table as HTML for a notebook, below a title; all text is escaped.

    The line of headings is left out if `heads` is empty.
    """
    sides = [SIDES[side] for side in align.ljust(max(map(len, [heads, *rows])), "r")]
    lines = [_html_row("td", row, sides) for row in rows]
    head = f"<thead>{_html_row('th', heads, sides)}</thead>" if heads else ""
    about = f"<p>{_html_text(title)}</p>" if title else ""
    body = f"<table>{head}<tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="{NO_MATH}">{about}{body}</div>'


def _html_row(tag: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    found = [
        f'<{tag} style="text-align:{side}">{_html_text(cell)}</{tag}>'
        for cell, side in zip(cells, sides, strict=False)
    ]
    return f"<tr>{''.join(found)}</tr>"


def _html_text(text: str) -> str:
    return escape(printable(text))
