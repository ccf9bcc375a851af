"""Draw one of several texts each time a sample is visited.

LaCLIP (arXiv 2305.20088) draws among rewrites, VeCLIP (arXiv 2310.07699) between raw and synthetic
texts.
"""

import hashlib
import re
from collections.abc import Mapping

from capmix.errors import UserError

TWO_NUMBERS = 16


def parse_texts(text: str) -> dict[str, float]:
    """Parse `raw=0.5,blip2=0.5` to weights by source. Raises UserError if it is invalid."""
    pairs = [one.partition("=") for one in text.split(",")]
    try:
        return {name.strip(): float(value) for name, _, value in pairs}
    except ValueError as error:
        raise UserError(
            f"--texts {text}: expected SOURCE=WEIGHT,... such as raw=0.5,blip2=0.5"
        ) from error


def check_texts(texts: Mapping[str, float]) -> None:
    """Raise UserError if a weight is negative or not finite, or if all are 0."""
    good = all(weight >= 0 for weight in texts.values())
    if texts and not (good and 0 < sum(texts.values()) < float("inf")):
        raise UserError(f"texts {dict(texts)}: expected weights >= 0 that are not all 0")


def draw_text(
    captions: Mapping[str, str], texts: Mapping[str, float], visit: str, otherwise: str
) -> str:
    """Draw one of a sample's texts: a source by weight, then one of its captions uniformly.

    Sources without a text for this sample are skipped; if no source has one, return `otherwise`.
    `visit` seeds the draw.
    """
    choices = [(weight, _of_source(captions, source)) for source, weight in texts.items()]
    choices = [(weight, found) for weight, found in choices if found and weight > 0]
    if not choices:
        return otherwise
    digest = hashlib.blake2b(visit.encode(), digest_size=TWO_NUMBERS).digest()
    first, second = (int.from_bytes(part, "big") / 2**64 for part in (digest[:8], digest[8:]))
    left = first * sum(weight for weight, _ in choices)
    chosen = choices[-1][1]
    for weight, found in choices:
        if left < weight:
            chosen = found
            break
        left -= weight
    return chosen[int(second * len(chosen))]


def _of_source(captions: Mapping[str, str], source: str) -> list[str]:
    name = re.compile(rf"caption_{re.escape(source)}(_k\d+)?")
    return [text for field, text in captions.items() if name.fullmatch(field) and text.strip()]
