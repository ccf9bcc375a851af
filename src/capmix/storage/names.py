"""Names of sources, annotations and scorers, of which recipes make columns; why some are refused.

A source S has the columns S_text, S_score, S_score_SCORER, S_best_text, S_k0_text and so on (see
mix/columns.py). No source may be named so that a column of its own is one of another source's.
"""

import re
import sys
from collections.abc import Iterable

from capmix.errors import UserError
from capmix.storage.layout import RAW

SOURCE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
SCORER_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
# What no file of Windows can be called, whatever its suffix.
NOT_ON_WINDOWS = re.compile(
    r'[<>:"|?*\\\x00-\x1f]|[. ]/|(?:^|/)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[./]|$)', re.I
)
DERIVED = re.compile(r".+_(best|k[0-9]+|(score|truncated)(_.*)?)")


def check_source_name(source: str, what: str = "source") -> None:
    """Raise UserError unless `source` can name a folder and columns that no other name makes.

    `what` is what the error calls it: a source, or an annotation, whose rule is the same.
    """
    if source == RAW:
        raise UserError(f"{what} raw is the pool's own text: choose another name")
    if not SOURCE_NAME.fullmatch(source):
        raise UserError(
            f"{what} {source!r}: expected a lower-case letter, then letters, digits or '_'"
        )
    if DERIVED.fullmatch(source):
        raise UserError(
            f"{what} {source!r}: names with _score, _truncated, or _best or _k0 at the end are "
            "those of other sources' columns in recipes; choose another name"
        )


def check_shard_names(shards: Iterable[str]) -> None:
    """Raise UserError where a shard, of a pool that another system has written, names parts that
    this one cannot hold."""
    if sys.platform != "win32":
        return
    for name in shards:
        if found := NOT_ON_WINDOWS.search(name):
            raise UserError(
                f"shard {name}: Windows has no file of that name ({found[0]!r}); rename the shard, "
                "or name a --work that is a URL"
            )


def check_scorer_name(scorer: str, others: Iterable[str] = ()) -> None:
    """Raise UserError unless `scorer` can name a folder, and columns other than `others` do."""
    if not SCORER_NAME.fullmatch(scorer):
        raise UserError(f"--scorer {scorer!r}: expected lower-case letters, digits, '-' and '.'")
    check_scorer_columns(scorer, others)


def check_scorer_columns(scorer: str, others: Iterable[str]) -> None:
    """Raise UserError where recipes would call the scores of one of `others` as those of
    `scorer`."""
    for other in others:
        if other != scorer and scorer_suffix(other).lower() == scorer_suffix(scorer).lower():
            raise UserError(
                f"scorer {scorer!r}: recipes could not tell its columns from those of the scorer "
                f"{other!r}, S_score_{scorer_suffix(other)}; choose another name"
            )


def scorer_suffix(scorer: str) -> str:
    """What recipes call a scorer: S_score_SUFFIX."""
    return scorer.replace("-", "_").replace(".", "_")
