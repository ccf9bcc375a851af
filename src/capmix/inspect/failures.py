"""List the samples that a stage failed on or dropped, with the reason."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from typing import TextIO

from capmix.errors import UserError
from capmix.settings.printable import printable
from capmix.storage.layout import NOT_OF_SAMPLES
from capmix.storage.marker import Marker
from capmix.storage.rows import OK, rows_of
from capmix.storage.store import Store


@dataclass(frozen=True)
class Failure:
    """One failed or dropped sample.

    `stage` is the folder of its part. `uid` and `key` are empty if unknown.
    """

    stage: str
    shard: str
    uid: str
    key: str
    status: str
    reason: str
    detail: str


def failures(
    store: Store, stage: str | None = None, status: str | None = None
) -> Iterator[Failure]:
    """Yield failed and dropped samples by stage and shard.

    `stage` and `status` (`failed` or `dropped`) restrict them. Only parts that count any such
    samples are read. Raises UserError if the stage has no finished part.
    """
    folder = (stage or "").strip("/")
    parts = [
        part
        for part in store.parts(folder)
        if not part.startswith(tuple(f"{one}/" for one in NOT_OF_SAMPLES))
    ]
    if not parts:
        raise UserError(
            f"{store.path(folder)} has no finished parts; name a stage's folder, for example "
            "samples, captions/blip2 or scores/mini/raw"
        )
    with store.listed([folder]):
        markers = {part: store.read_marker(part) for part in parts}
    return _rows(store, markers, status)


def _rows(
    store: Store, markers: Mapping[str, Marker | None], status: str | None
) -> Iterator[Failure]:
    for part, marker in markers.items():
        if marker is None or (not marker.counts.dropped and not marker.counts.failed):
            continue
        if marker.files and f"{part}.parquet" not in marker.files:
            continue  # an export; its rows are the subset's
        place, _, shard = part.rpartition("/")
        for row in rows_of(store.read_table(f"{part}.parquet")):
            if row.status != OK and (status is None or row.status == status):
                known = row.status, row.reason or "", row.detail or ""
                yield Failure(place, shard, row.uid or "", row.key, *known)


def write_lines(out: TextIO, found: Iterable[Failure]) -> Counter[tuple[str, str]]:
    """Write one tab-separated line per sample, with control characters escaped; return counts by
    stage and reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for one in found:
        counts[one.stage, f"{one.status}: {one.reason}"] += 1
        out.write("\t".join(printable(value) for value in astuple(one)) + "\n")
    return counts


def write_csv(path: str, found: Iterable[Failure]) -> Counter[tuple[str, str]]:
    """Write a CSV file with a header; return counts by stage and reason. Raises UserError."""
    counts: Counter[tuple[str, str]] = Counter()
    try:
        with open(path, "w", encoding="utf-8", errors="replace", newline="") as out:
            writer = csv.writer(out)
            writer.writerow([field.name for field in fields(Failure)])
            for one in found:
                counts[one.stage, f"{one.status}: {one.reason}"] += 1
                writer.writerow(astuple(one))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return counts
