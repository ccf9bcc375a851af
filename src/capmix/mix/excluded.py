"""Find the samples that `--exclude` leaves out, before anything else reads the pool.

Thresholds, fractions and multiples of the pool are those of the other samples, so that the result
is that of a pool without the excluded samples: whoever opts out does not influence which samples of
others are selected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import duckdb
import numpy as np
import pyarrow as pa

from capmix.engine.local import cores
from capmix.engine.mapped import Threads
from capmix.engine.progress import progress
from capmix.errors import UserError
from capmix.mix.batch import BatchReader
from capmix.mix.columns import FIELD, Column, one_array
from capmix.mix.exclude_files import OPTION, ExcludeList, md5_pairs, read_excluded, split_kind
from capmix.mix.parts import Parts
from capmix.mix.plan import locked_connection
from capmix.settings.counted import counted
from capmix.storage.layout import ANNOTATIONS

URL = ("url", "URL")  # names of the field that downloaders write
SHA256 = ("sha256", f"{FIELD}sha256")  # of the stored image; of the image before it was resized


@dataclass(frozen=True)
class ExcludedCounts:
    """Counts of one kind of `--exclude`.

    `samples` match one of its entries and none of an earlier kind. Of `entries` distinct entries,
    `matched` match a sample. `malformed` lines are no entries; `example` is the first of them.
    """

    kind: str
    samples: int
    entries: int
    matched: int
    malformed: int = 0
    example: str = ""

    def line(self) -> str:
        """Return the counts as a line of text."""
        faults = f", malformed lines: {self.malformed:,}" if self.malformed else ""
        return (
            f"excluded by {self.kind}: {counted(self.samples, 'sample')} (entries: "
            f"{self.entries:,}, without a sample: {self.entries - self.matched:,}{faults})"
        )


@dataclass(frozen=True)
class Exclusion:
    """The lists of `--exclude` by kind, and the columns that each is compared with."""

    lists: dict[str, ExcludeList] = field(default_factory=dict)
    columns: dict[str, dict[str, Column]] = field(default_factory=dict)

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each list, for the subset's marker."""
        return {f"exclude {kind}": one.digest for kind, one in self.lists.items()}

    @property
    def needed(self) -> dict[str, Column]:
        """All columns, by name."""
        return {name: one for of_kind in self.columns.values() for name, one in of_kind.items()}


def names_of_exclusion(given: Sequence[str]) -> set[str]:
    """Return the names of the columns that the files of `--exclude` may be compared with.

    A file without kind may list anything.
    """
    kinds = {split_kind(one)[0] for one in given}
    found: set[str] = set()
    if kinds & {"url", None}:
        found |= {f"{FIELD}{URL[0]}"}
    if kinds & {"sha256", None}:
        found |= {*SHA256}
    return found


def open_exclusion(given: Sequence[str], columns: Mapping[str, Column]) -> Exclusion:
    """Read the files of `--exclude`, and find their columns.

    Raises UserError for an unreadable file, and if the pool has no column of a kind.
    """
    if not given:
        return Exclusion()
    lists = read_excluded(given, locked_connection())
    return Exclusion(lists, {kind: _columns_of(kind, columns) for kind in lists})


def _columns_of(kind: str, columns: Mapping[str, Column]) -> dict[str, Column]:
    """Return the columns of a kind; none for uids, which every sample has."""
    if kind == "uid":
        return {}
    if kind == "phash":
        found = {
            name: one
            for name, one in columns.items()
            if one.field == "phash" and one.folder.startswith(f"{ANNOTATIONS}/")
        }
        absent = "no perceptual hashes; run `capmix annotate --method image` first"
    elif kind == "url":
        names = [name for one in URL for name in (f"{FIELD}{one}", one)]
        found = {name: columns[name] for name in names if name in columns}
        found = dict(list(found.items())[:1])
        absent = "the pool has no field url; exclude by uid or sha256"
    else:
        found = {name: columns[name] for name in SHA256 if name in columns}
        absent = "the pool has no column sha256; exclude by uid or url"
    if not found:
        raise UserError(f"{OPTION} {kind}: {absent}")
    return found


def find_excluded(
    exclusion: Exclusion, reader: BatchReader, parts: Parts, batches: Sequence[Sequence[str]]
) -> tuple[Parts, list[ExcludedCounts]]:
    """Return the parts without the excluded samples, and the counts of each kind.

    Raises UserError if no sample is left.
    """
    matched = {kind: np.zeros(len(one.pairs), bool) for kind, one in exclusion.lists.items()}
    samples = dict.fromkeys(exclusion.lists, 0)
    left_out: dict[str, bytes] = {}
    total = 0
    work = partial(_found, exclusion, reader)
    with progress("exclude", "shard", len(parts.rows)) as bar:
        for here, found in Threads(cores())(work, map(parts.of, batches)):
            for kind, count in found.samples.items():
                samples[kind] += count
                matched[kind][found.entries[kind]] = True
            left_out |= found.left_out
            total += found.total
            bar.update(len(here.rows))
    if total and sum(samples.values()) == total:
        raise UserError(f"{OPTION}: all {counted(total, 'sample')} are excluded; none is left")
    counts = [
        ExcludedCounts(
            kind,
            samples[kind],
            len(one.pairs),
            int(matched[kind].sum()),
            one.malformed,
            one.example,
        )
        for kind, one in exclusion.lists.items()
    ]
    return replace(parts, left_out=left_out), counts


@dataclass(frozen=True)
class _Found:
    """The excluded samples of a batch: packed bits by shard, counts and matched entries by kind.

    `total` is the number of samples of the batch.
    """

    total: int
    left_out: dict[str, bytes]
    samples: dict[str, int]
    entries: dict[str, np.ndarray]


def _found(exclusion: Exclusion, reader: BatchReader, parts: Parts) -> _Found:
    batch = reader.read(parts, {"uid", *exclusion.needed})
    connection = locked_connection()
    is_out = np.zeros(len(batch), bool)
    samples, entries = {}, {}
    for kind, one in exclusion.lists.items():
        here = np.zeros(len(batch), bool)
        places = []
        for name in exclusion.columns[kind] or ["uid"]:
            place = _places(connection, one, one_array(batch.table[name]))
            here |= place >= 0
            places.append(place[place >= 0])
        samples[kind] = int((here & ~is_out).sum())
        entries[kind] = np.concatenate(places)
        is_out |= here
    left_out = {}
    for number in np.unique(batch.shard[is_out]).tolist():
        name = batch.shards[number]
        bits = np.zeros(parts.rows[name], bool)
        bits[batch.row[is_out & (batch.shard == number)]] = True
        left_out[name] = np.packbits(bits).tobytes()
    return _Found(len(batch), left_out, samples, entries)


def _places(
    connection: duckdb.DuckDBPyConnection, entries: ExcludeList, values: pa.Array
) -> np.ndarray:
    """Return the place of each sample's value among the entries, int64 (N,); -1 for none."""
    is_there = values.is_valid().to_numpy(False)
    found = np.full(len(values), -1, np.int64)
    if not is_there.any():
        return found
    if not pa.types.is_integer(values.type):
        values = values.cast(pa.string())
    found[is_there] = entries.pairs.find(md5_pairs(connection, entries.kind, values.drop_null()))
    return found
