"""The `sample` key of recipes: draw the rows in batches, with repeats (see soft_cap.py)."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

SCORE = "score"  # in `logit`: the score of the clause's own text
NO_CAP = "none"
MULTIPLE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)x")
MAX_DRAWS = 10**12
MAX_BATCHES = 10_000  # also the most repeats of a row
MAX_PENALTY = 1000.0


@dataclass(frozen=True)
class CapRules:
    """How items are drawn.

    `draws` items in total, `batch` at a time; the last batch may be smaller. Each drawn item's
    logit is reduced by `penalty` (0 or more). Items leave once drawn `cap` times (None: never).
    """

    draws: int
    batch: int
    penalty: float
    cap: int | None = None


class Sampling(BaseModel):
    """Draw rows in batches, each without replacement with the probabilities softmax(logit).

    - logit: SQL; `score` is the score of the clause's own text.
    - draw: how many rows to draw in total: a number, or a multiple of the pool such as 10x.
    - batch: how many rows to draw at a time: a number, or a multiple of the pool.
    - penalty: subtracted from the logit of a row each time that it is drawn (soft cap).
    - cap: most times that a row is drawn (hard cap).

    Numbers are texts, as they may be `{placeholders}` until the recipe is filled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    logit: str = SCORE
    draw: str
    batch: str = "100000"
    penalty: str = "0.15"
    cap: str = NO_CAP

    @field_validator("logit", "draw", "batch", "penalty", "cap", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value

    def filled(self, fill: Callable[[str], str]) -> "Sampling":
        """Replace the placeholders. Raises ValueError for a value that is not a valid number."""
        found = Sampling(**{name: fill(text) for name, text in self.model_dump().items()})
        found.rules(1)
        return found

    def rules(self, pool: int) -> CapRules:
        """Return the rules for a pool of `pool` samples. Raises ValueError if they are invalid."""
        cap = None if self.cap == NO_CAP else _rows("cap", self.cap, 0)
        draws, batch = (_rows(n, t, pool) for n, t in (("draw", self.draw), ("batch", self.batch)))
        return CapRules(draws, batch, _penalty(self.penalty), cap)


def batches_of(rules: CapRules, items: int) -> int:
    """Return the number of batches in which `items` are drawn, not counting smaller ones after
    some have reached the cap. Raises ValueError for more than MAX_BATCHES."""
    batch = min(rules.batch, items)
    draws = rules.draws if rules.cap is None else min(rules.draws, rules.cap * items)
    count = -(-draws // batch) if batch else 0
    if count > MAX_BATCHES:
        raise ValueError(
            f"{draws:,} rows in batches of {batch:,} need {count:,} batches; at most "
            f"{MAX_BATCHES:,} are supported. Use a larger batch, or draw fewer rows"
        )
    return count


def _rows(name: str, text: str, pool: int) -> int:
    """Parse a number of rows; a multiple of the pool only if the pool is known."""
    multiple = MULTIPLE.fullmatch(text)
    try:
        number = float(multiple[1]) * pool if multiple and pool else float(text)
    except ValueError:
        number = math.nan
    if multiple and pool and float(multiple[1]):
        number = max(1.0, math.floor(number))
    if not 1 <= number <= MAX_DRAWS or number != math.floor(number):
        multiples = ", or a multiple of the pool such as 10x" if pool else f", or {NO_CAP}"
        raise ValueError(f"{name} {text[:80]!r}: expected a whole number above 0{multiples}")
    return int(number)


def _penalty(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= MAX_PENALTY:
        raise ValueError(
            f"penalty {text[:80]!r}: expected a number of at least 0 and at most {MAX_PENALTY:g}"
        )
    return number
