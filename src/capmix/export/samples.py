"""Read the images and captions of a subset's rows from the pool, in pool order."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.export.names import pool_name
from capmix.models.index import IndexedBytes, indexed_bytes
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.storage.layout import SAMPLES, texts_folder
from capmix.storage.store import Store

ROW = ("uid", "key", "source", "k", "text", "score", "first", "times")  # see SubsetRows.between


class Chosen(NamedTuple):
    """A sample with its selected text; `row` has the values of the columns ROW.

    `captions` has all its texts: caption_raw, caption_S for the first caption of source S,
    caption_S_k1 for the second, and so on. `copies` are the numbers appended to its keys.
    `filename` is the sample's name in the pool (see names.pool_name).
    """

    sample: Sample
    row: dict[str, Any]
    captions: dict[str, str]
    copies: range
    filename: str

    @property
    def fields(self) -> dict[str, Any]:
        """The fields written with the image, as JSON or as columns."""
        return self.captions | {
            "filename": self.filename,
            "caption_choice": self.row["source"],
            "caption_choice_k": self.row["k"],
            "caption_choice_score": self.row["score"],
        }


def chosen_samples(
    pool: Pool,
    store: Store,
    rows: pa.Table,
    shards: Sequence[Shard],
    sources: Sequence[str],
    failed: Counter[str],
) -> Iterator[Chosen]:
    """Yield the samples of `rows` (see SubsetRows.between), read from `shards`.

    Missing samples are skipped. Samples that cannot be read, or whose bytes differ from the index,
    are skipped and their copies counted in `failed`. Raises OSError if a shard cannot be read.

    Rows are in pool order, so each input shard is streamed once; members of other samples are
    skipped.
    """
    for shard in shards:
        wanted = _rows_by_key(rows.filter(pc.equal(rows["shard"], shard.name)))
        captions = _captions(store, shard.name, sources)
        indexed = indexed_bytes(store, shard.name)
        for sample in pool.read(shard, frozenset(wanted)):
            if isinstance(sample, BadSample) and sample.reason == "unreadable_shard":
                raise OSError(sample.detail)
            if isinstance(sample, BadSample) and sample.reason == "unreadable_file":
                failed[sample.reason] += sum(row["times"] for row in wanted.pop(sample.key, ()))
            if isinstance(sample, Sample) and not _is_indexed(sample, indexed):
                failed["changed_sample"] += sum(row["times"] for row in wanted.pop(sample.key, ()))
            elif isinstance(sample, Sample):
                for row in wanted.pop(sample.key, ()):
                    if row["uid"] != sample.uid:
                        continue
                    copies = range(row["first"], row["first"] + row["times"])
                    texts = captions.get(sample.uid, {})
                    yield Chosen(sample, row, texts, copies, pool_name(sample, pool.is_folder))
            if not wanted:
                break


def _rows_by_key(rows: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Group rows by key; three times as fast as Table.to_pylist."""
    found: dict[str, list[dict[str, Any]]] = {}
    columns = (rows[name].to_pylist() for name in ROW)
    for values in zip(*columns, strict=True):
        row = dict(zip(ROW, values, strict=True))
        found.setdefault(row["key"], []).append(row)
    return found


def _is_indexed(sample: Sample, indexed: Mapping[str, IndexedBytes]) -> bool:
    known = indexed.get(sample.key)
    return known is not None and known.are_of(sample)


def refuse_changed(store: Store, shard: Shard) -> None:
    """Raise UserError if a shard has changed since it was indexed, since its keys may then refer to
    other samples."""
    indexed = store.read_marker(f"{SAMPLES}/{shard.name}")
    if indexed is None or indexed.inputs.get("pool") != shard.fingerprint:
        raise UserError(
            f"shard {shard.name} of the pool has changed since it was indexed; rerun `capmix "
            "caption` and `capmix score` if the recipe uses them, then `capmix mix`"
        )


def _captions(store: Store, shard: str, sources: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return all texts of a shard's samples, by uid and field name."""
    found: dict[str, dict[str, str]] = {}
    for source in sources:
        fields = ["uid", "text"] if source == "raw" else ["uid", "text", "k"]
        part = f"{texts_folder(source)}/{shard}.parquet"
        if not store.exists(part):
            continue
        columns = store.read_table(part, fields).to_pydict()
        numbers = columns.get("k") or [0] * len(columns["uid"])
        for uid, text, k in zip(columns["uid"], columns["text"], numbers, strict=True):
            if uid is not None and text is not None:
                name = f"caption_{source}_k{k}" if k else f"caption_{source}"
                found.setdefault(uid, {})[name] = text
    return found
