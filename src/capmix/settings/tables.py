"""Tables of text for a terminal and for notebooks, one way for all of them."""

from collections.abc import Sequence
from html import escape

from tabulate import tabulate

from capmix.settings.printable import printable

# Jupyter typesets what is between dollars, which in captions are prices; MathJax 2 and 3.
NO_MATH = "mathjax_ignore tex2jax_ignore"
SIDES = {"l": "left", "r": "right"}


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], align: str = "l") -> list[str]:
    """A line per row under a line of heads, which is left out where it is empty.

    `align` has l or r for each column; columns beyond it are aligned to the right.
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
    """Bytes for people, such as `512 bytes` and `1.2 GB`; a GB is 10^9."""
    value, unit = float(size), "bytes"
    for following in ("kB", "MB", "GB", "TB", "PB"):
        if value < 1000:
            break
        value, unit = value / 1000, following
    return f"{size:,.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def table_html(
    heads: Sequence[str], rows: Sequence[Sequence[str]], align: str = "l", title: str = ""
) -> str:
    """The same table as HTML for a notebook, below a title; every text is escaped.

    `heads` are left out where they are empty.
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
