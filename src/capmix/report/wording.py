"""Numbers and lists as the report writes them."""

from collections.abc import Sequence

LISTED = 4


def signed(value: float) -> str:
    """In points, with its sign."""
    return ("+" if round(value, 1) > 0 else "") + unsigned(value)


def unsigned(value: float) -> str:
    """With one digit, and a minus sign where it is below zero."""
    return f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")


def interval_text(low: float, high: float) -> str:
    return f"[{unsigned(low)}, {unsigned(high)}]"


def change_text(mean: float, low: float | None, high: float | None) -> str:
    """A difference in points, with its interval if there is one."""
    return signed(mean) + ("" if low is None or high is None else f" {interval_text(low, high)}")


def counted(number: int, what: str) -> str:
    """A number of things, in the singular or the plural."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def listed(words: Sequence[str]) -> str:
    """The first words, and how many more there are."""
    if len(words) > LISTED + 1:
        return f"{', '.join(words[:LISTED])} and {len(words) - LISTED} more"
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
