"""Replace the generated block of a Markdown page."""

import re


def with_block(page: str, begin: str, end: str, block: str) -> str:
    """Return the page with `block` between the lines `begin` and `end`.

    Raises ValueError if the page does not have both.
    """
    if begin not in page or end not in page:
        raise ValueError(f"expected the lines {begin} and {end}")
    written = f"{begin}\n\n{block}\n\n{end}"
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: written, page, flags=re.DOTALL
    )
