"""Rules for the names of sources, annotations and scorers, from which recipes derive column names.

A source S has the columns S_text, S_score, S_score_SCORER, S_best_text, S_k0_text and so on (see
mix/columns.py). A source name is invalid if one of its columns could belong to another source.
"""

import re
import sys
from collections.abc import Iterable

from capmix.errors import UserError
from capmix.settings.base import did_you_mean
from capmix.storage.layout import EDITED, RAW

SOURCE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
MASKED = "-masked"  # ends the names of scorers, and embeddings, of images without their text
HASH_GROUPS = "_phash"  # ends the names of annotations with the groups of an image annotation
SCORER_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
# Matches names that no file can have on Windows, with any suffix.
NOT_ON_WINDOWS = re.compile(
    r'[<>:"|?*\\\x00-\x1f]|[. ]/|(?:^|/)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[./]|$)', re.I
)
DERIVED = re.compile(r".+_(best|k[0-9]+|(score|truncated)(_.*)?)")


def check_source_name(source: str, what: str = "source") -> None:
    """Raise UserError unless `source` is a valid folder name and its column names are unambiguous.

    `what` is the word for it in the error: source or annotation, which follow the same rule.
    """
    if source == RAW:
        raise UserError(f"{what} raw is reserved for the pool's own text; choose another name")
    if not SOURCE_NAME.fullmatch(source):
        raise UserError(
            f"{what} {source!r}: expected a lower-case letter, then letters, digits or '_'"
        )
    if DERIVED.fullmatch(source):
        raise UserError(
            f"{what} {source!r}: names that contain _score or _truncated, or end in _best or _k0, "
            "clash with the columns of other sources in recipes; choose another name"
        )


def check_annotation_name(name: str) -> None:
    """Raise UserError unless `name` is valid for an annotation; see check_source_name."""
    check_source_name(name, "annotation")
    if name.endswith(HASH_GROUPS):
        raise UserError(
            f"annotation {name!r}: names that end in {HASH_GROUPS} are reserved for the groups of "
            "`capmix annotate --method image`; choose another name"
        )


def annotate_command(name: str, method: str = "METHOD") -> str:
    """Return the `capmix annotate` command that writes an annotation."""
    if name.endswith(HASH_GROUPS):
        name, method = name.removesuffix(HASH_GROUPS), "image"
    return f"capmix annotate --method {method} --name {name}"


def no_captions(source: str, sources: Iterable[str]) -> str:
    """Return the error for a source without captions: the known sources and what to do next."""
    known = list(sources)
    hint = did_you_mean(source, known)
    if not hint and source == EDITED:
        hint = "; edit captions with `capmix view` first"
    elif not hint and SOURCE_NAME.fullmatch(source):
        hint = f"; run `capmix caption --source {source}` (or `capmix rewrite`) first"
    return f"no captions of source {source!r}; sources: {', '.join(known) or 'none'}{hint}"


def check_shard_names(shards: Iterable[str]) -> None:
    """Raise UserError if a shard's name is not a valid file name on this system.

    A pool that was written on another system can have such shards.
    """
    if sys.platform != "win32":
        return
    for name in shards:
        if found := NOT_ON_WINDOWS.search(name):
            raise UserError(
                f"shard {name}: not a valid file name on Windows ({found[0]!r}); rename the shard, "
                "or use a URL as --work"
            )


def check_scorer_name(scorer: str, others: Iterable[str] = ()) -> None:
    """Raise UserError unless `scorer` is a valid folder name with other columns than `others`."""
    if not SCORER_NAME.fullmatch(scorer):
        raise UserError(f"--scorer {scorer!r}: expected lower-case letters, digits, '-' and '.'")
    check_scorer_columns(scorer, others)


def check_scorer_columns(scorer: str, others: Iterable[str]) -> None:
    """Raise UserError if `scorer` and one of `others` have the same column names in recipes."""
    for other in others:
        if other != scorer and scorer_suffix(other).lower() == scorer_suffix(scorer).lower():
            raise UserError(
                f"scorer {scorer!r}: its columns in recipes would clash with the columns of scorer "
                f"{other!r} (S_score_{scorer_suffix(other)}); choose another name"
            )


def scorer_suffix(scorer: str) -> str:
    """Return the suffix of a scorer's columns in recipes, as in S_score_SUFFIX."""
    return scorer.replace("-", "_").replace(".", "_")
