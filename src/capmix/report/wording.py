"""Format numbers and lists for the report."""

from collections.abc import Sequence

LISTED = 4


def signed(value: float) -> str:
    """Format points with a sign."""
    return ("+" if round(value, 1) > 0 else "") + unsigned(value)


def unsigned(value: float) -> str:
    """Format with one decimal, and a minus sign if negative."""
    return f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")


def interval_text(low: float, high: float) -> str:
    return f"[{unsigned(low)}, {unsigned(high)}]"


def change_text(mean: float, low: float | None, high: float | None) -> str:
    """Format a difference in points, with its interval if there is one."""
    return signed(mean) + ("" if low is None or high is None else f" {interval_text(low, high)}")


def listed(words: Sequence[str]) -> str:
    """Join words; if there are many, the first ones and the number of the others."""
    if len(words) > LISTED + 1:
        return f"{', '.join(words[:LISTED])} and {len(words) - LISTED} more"
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
