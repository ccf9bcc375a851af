"""How many rows may fail, and what a run says of those that did.

A fraction of a small pool is less than one row, so that one bad photo of thirteen would be too
many. A few rows may always fail, unless that is more than half of all.
"""

from collections.abc import Mapping, Sequence

from capmix.errors import UserError
from capmix.pool import Shard
from capmix.storage.layout import part_name
from capmix.storage.marker import Counts
from capmix.storage.rows import FAILED, Row, rows_of
from capmix.storage.store import Store

ALWAYS_ALLOWED = 10  # failed rows; 1 % of a pool of 1,000
EXAMPLES = 3
LOOKED_AT = 20  # parts with failures, for examples of different reasons
UNREAD = ("unreadable_shard", "not_a_tar")  # reasons of one row that stands for a whole shard
ENOUGH_ROWS = 1000  # after which a run whose rows mostly fail is ended


def allowed_failures(rows: int, max_failures: float, unread: int = 0) -> float:
    """How many of `rows` may fail: the fraction `max_failures`, and ALWAYS_ALLOWED if they are at
    most half of all. None with a fraction of 0; the fraction alone where `unread` of the rows are
    in shards that could not be read."""
    fraction = max_failures * rows
    return fraction if unread or not max_failures else max(fraction, min(ALWAYS_ALLOWED, rows // 2))


def check_failures(
    name: str,
    counts: Counts,
    max_failures: float,
    examples: Sequence[str],
    rows: int | None = None,
    unread: int = 0,
) -> None:
    """Raise UserError if more rows failed than allowed_failures says.

    `rows` is how many there are where not all are counted yet; `unread` those that are not counted
    since their shards could not be read.
    """
    failed = counts.failed.total()
    so_far = "" if rows is None else f" so far, of {rows:,} rows in all,"
    so_far += f", with about {unread:,} in shards that could not be read," if unread else ""
    if failed + unread > allowed_failures(counts.total + unread, max_failures, unread):
        shown = ". ".join(examples)
        raise UserError(
            f"{name}: {failed:,} of {counts.total:,} rows failed{so_far} "
            f"({reasons(counts.failed)}), over the budget of {max_failures:.1%}. {shown}. "
            "`capmix failures` lists them all; fix the input and rerun with --retry-failed, or "
            "allow more with --max-failures."
        )


def is_unread(counts: Counts) -> bool:
    """Whether the one row of a part stands for a shard that could not be read at all."""
    return counts.total == 1 and any(counts.failed[reason] for reason in UNREAD)


def unread_rows(counts: Counts, unread: int, shards: int) -> int:
    """About how many samples `unread` of the shards hold beside their one row each: as many as the
    others."""
    if not 0 < unread < shards:
        return 0
    return max(0, (counts.total - unread) // (shards - unread) - 1) * unread


def is_hopeless(counts: Counts, max_failures: float, rows: int | None) -> bool:
    """Whether a run that is under way need not go on: more have failed than may of all `rows`, or
    most of what was done, as when a disk or a model is gone."""
    failed = counts.failed.total()
    if failed <= allowed_failures(counts.total, max_failures):
        return False
    if rows is not None and failed > allowed_failures(max(rows, counts.total), max_failures):
        return True
    return counts.total >= ENOUGH_ROWS and failed > counts.total / 2


def examples(store: Store, folder: str, shards: Sequence[Shard]) -> list[str]:
    """Where some failed rows are and why they failed, of different reasons where there are."""
    found: list[tuple[str, Row]] = []
    looked_at = 0
    for shard in shards:
        if looked_at == LOOKED_AT:
            break
        part = part_name(folder, shard.name)
        marker = store.read_marker(part)
        if marker is None or not marker.counts.failed:
            continue
        looked_at += 1
        if store.exists(f"{part}.parquet"):
            rows = rows_of(store.read_table(f"{part}.parquet"))
            found += [(shard.name, row) for row in rows if row.status == FAILED]
        else:
            found.append((shard.name, Row(None, "", FAILED, None, reasons(marker.counts.failed))))
    first_of: dict[str | None, tuple[str, Row]] = {}
    for one in found:
        first_of.setdefault(one[1].reason, one)
    chosen = list(first_of.values())
    chosen += [one for one in found if one not in chosen]
    return [_line(shard, row) for shard, row in chosen[:EXAMPLES]]


def failed_line(counts: Counts, examples: Sequence[str]) -> str:
    """How many rows failed, some of them, and where all are listed."""
    failed = counts.failed.total()
    rest = failed - len(examples)
    more = f"{rest:,} more; " if rest > 0 else ""
    return (
        f"{failed:,} of {counts.total:,} rows failed ({reasons(counts.failed)}). "
        f"{'. '.join(examples)}. {more}`capmix failures` lists them all"
    )


def _line(shard: str, row: Row) -> str:
    sample = f", sample {row.key!r}" if row.key else ""
    return f"Shard {shard}{sample}: {row.detail}".rstrip(".")


def reasons(counts: Mapping[str, int]) -> str:
    """Each reason with its number."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
