"""Time bounds for functions whose time grows with the square of the text's length, or with the
lengths of text and pattern.

DuckDB checks for interrupts only between vectors of rows, so the time of a single row needs its own
bound. RE2 needs up to 5 ns per byte of the text and step of the pattern. A search for all matches
may read the rest of the text for each match.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

WORK = 2_000_000_000  # steps per row: about 10 s at worst
AT_MOST = "capmix_at_most"  # SQL function (text, bytes, function), see functions.add_bound
ALL_MATCHES = frozenset(
    ("regexp_extract_all", "regexp_split_to_array", "string_split_regex", "str_split_regex")
)
MATCHING = ALL_MATCHES | {"regexp_matches", "regexp_full_match", "regexp_extract", "regexp_replace"}
ORDERING = frozenset(("nfc_normalize",))  # sorts adjacent combining marks
ORDERED_AT_ONCE = 16  # marks sorted in the time of one step
PROPERTY = 20  # steps of a Unicode class, for example \pL
REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}")


@dataclass(frozen=True)
class SlowCall:
    """A call that needs `steps` * length ** `power` steps for a text of `length` bytes.

    The text may have at most `longest` bytes. `times` bounds its bytes per byte of the row. `share`
    is the part of WORK that this call may use.
    """

    function: str
    steps: float
    power: int
    times: int = 1
    share: float = 1.0

    @property
    def longest(self) -> int:
        most = WORK * self.share / self.steps
        return int(most) if self.power == 1 else math.isqrt(int(most))


def slow_call(name: str, written: Sequence[str | None], times: int) -> SlowCall | None:
    """Return the time bounds of a call of function `name`; None if the function is not slow.

    `written` are the arguments: the value of each constant, None for any other expression.
    """
    if name in ORDERING:
        return SlowCall(name, 1 / ORDERED_AT_ONCE, 2, times)
    if name not in MATCHING:
        return None
    options = written[3] if name == "regexp_replace" and len(written) > 3 else ""
    is_all = name in ALL_MATCHES or options is None or "g" in options
    pattern = written[1] if len(written) > 1 else ""
    return SlowCall(name, pattern_steps(pattern or ""), 2 if is_all else 1, times)


def pattern_steps(pattern: str) -> int:
    """Estimate how many instructions RE2 compiles a pattern to, at least 1. RE2 expands counted
    repetitions."""
    open_, last, i = [0], 0, 0
    while i < len(pattern):
        letter, repeat = pattern[i], REPEAT.match(pattern, i)
        if repeat and last:
            times = max(int(number[:9] or 1) for number in repeat.groups(default=""))
            open_[-1] += last * (times - 1)
            last *= max(1, times)
            i = repeat.end()
            continue
        if letter == "(":
            open_.append(0)
        elif letter == ")" and len(open_) > 1:
            last = open_.pop() + 1
            open_[-1] += last
        else:
            end = _end(pattern, i)
            last = 1 + PROPERTY * len(re.findall(r"\\[pP]", pattern[i:end]))
            open_[-1] += last
            i = end - 1
        i += 1
    return max(1, sum(open_))


def _end(pattern: str, start: int) -> int:
    """Return where the character, escape or class at `start` ends."""
    if pattern[start] == "\\":
        return min(start + 2, len(pattern))
    if pattern[start] != "[":
        return start + 1
    i = start + 1 + pattern.startswith("^", start + 1)
    i += pattern.startswith("]", i)
    while i < len(pattern) and pattern[i] != "]":
        i += 2 if pattern[i] == "\\" else 1
    return min(i + 1, len(pattern))
