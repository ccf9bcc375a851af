"""Format counts with their noun in the singular or plural."""


def plural(noun: str) -> str:
    """Return the plural of a regular English noun, such as `images` or `batches`."""
    return f"{noun}es" if noun.endswith(("ch", "s", "x")) else f"{noun}s"


def counted(number: int, noun: str) -> str:
    """Format a count with its noun, for example `1 image` or `2,300 images`."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"
