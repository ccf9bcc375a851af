"""The failure budget, and the messages about failed rows.

In a small pool, the allowed fraction is less than one row: a single bad image among thirteen would
exceed it. A few failures are therefore always allowed, unless they are more than half of all rows.
"""

from collections.abc import Mapping, Sequence

from capmix.errors import UserError
from capmix.pool import Shard
from capmix.storage.layout import part_name
from capmix.storage.marker import Counts
from capmix.storage.rows import FAILED, Row, rows_of
from capmix.storage.store import Store

ALWAYS_ALLOWED = 10  # failed rows; 1% of a pool of 1,000
EXAMPLES = 3
LOOKED_AT = 20  # parts with failures that are searched for examples with distinct reasons
UNREAD = ("unreadable_shard", "not_a_tar")  # reasons where one row represents a whole shard
ENOUGH_ROWS = 1000  # rows after which a run is stopped if most of them failed


def allowed_failures(rows: int, max_failures: float, unread: int = 0) -> float:
    """Return how many of `rows` may fail.

    That is the fraction `max_failures`, or ALWAYS_ALLOWED (at most half of the rows) if that is
    more. With a fraction of 0 no row may fail. If `unread` rows are in shards that could not be
    read, only the fraction counts.
    """
    fraction = max_failures * rows
    return fraction if unread or not max_failures else max(fraction, min(ALWAYS_ALLOWED, rows // 2))


def check_failures(
    name: str,
    counts: Counts,
    max_failures: float,
    examples: Sequence[str],
    rows: int | None = None,
    unread: int = 0,
    is_about: bool = False,
) -> None:
    """Raise UserError if more rows failed than allowed_failures permits.

    `rows` is the total number of rows, given while the run is not finished; with `is_about` it is
    an estimate. `unread` is the estimated number of rows in shards that could not be read; `counts`
    does not include them.
    """
    failed = counts.failed.total()
    about = "about " if is_about else ""
    so_far = "" if rows is None else f" so far, of {about}{rows:,} rows in total"
    so_far += f", plus about {unread:,} in shards that could not be read" if unread else ""
    if failed + unread > allowed_failures(counts.total + unread, max_failures, unread):
        shown = ". ".join(examples)
        raise UserError(
            f"{name}: {failed:,} of {counts.total:,} rows failed{so_far} "
            f"({reasons(counts.failed)}), over the budget of {max_failures:.1%}. {shown}. "
            "`capmix failures` lists them all; fix the input and rerun with --retry-failed, or "
            "allow more with --max-failures."
        )


def is_unread(counts: Counts) -> bool:
    """Return whether the only row of a part represents a shard that could not be read at all."""
    return counts.total == 1 and any(counts.failed[reason] for reason in UNREAD)


def unread_rows(counts: Counts, unread: int, shards: int) -> int:
    """Estimate how many samples the `unread` shards hold in addition to their one row each.

    The estimate is the mean over the shards that could be read.
    """
    if not 0 < unread < shards:
        return 0
    return max(0, (counts.total - unread) // (shards - unread) - 1) * unread


def is_hopeless(counts: Counts, max_failures: float, rows: int | None) -> bool:
    """Return whether an unfinished run can be stopped early.

    True if more rows have failed than may fail among all `rows`, or if most of the rows processed
    so far have failed, for example because a disk or a model has become unavailable.
    """
    failed = counts.failed.total()
    if failed <= allowed_failures(counts.total, max_failures):
        return False
    if rows is not None and failed > allowed_failures(max(rows, counts.total), max_failures):
        return True
    return counts.total >= ENOUGH_ROWS and failed > counts.total / 2


def examples(store: Store, folder: str, shards: Sequence[Shard]) -> list[str]:
    """Describe a few failed rows: where they are and why they failed. Prefers distinct reasons."""
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
    """Return a line with the number of failed rows, examples, and the command that lists all."""
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
    """Format the count of each reason, for example `no_image 3, not_an_image 4`."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
