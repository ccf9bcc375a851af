"""Images and all captions of the rows of a subset, in their order, out of the pool."""

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

ROW = ("uid", "key", "source", "k", "text", "score", "first", "times")  # of SubsetRows.between


class Chosen(NamedTuple):
    """A sample with the text that was chosen for it, and the values of its row by the names ROW.

    `captions` are all its texts: caption_raw, caption_S for the first of source S, caption_S_k1 and
    so on. `copies` are the numbers that its keys end in. `filename` is the sample's name in the
    pool (see names.pool_name).
    """

    sample: Sample
    row: dict[str, Any]
    captions: dict[str, str]
    copies: range
    filename: str

    @property
    def fields(self) -> dict[str, Any]:
        """What is written beside the image, as json or as columns."""
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
    """The samples that `rows` (see SubsetRows.between) name, out of `shards`, which are those that
    the rows come from. One that is gone is left out; copies of one that cannot be read, or has
    other bytes than were indexed, are counted in `failed`, and a shard that cannot be read raises
    OSError.

    Rows lie in pool order, so that each input shard is streamed once; members of samples that are
    not asked for are skipped.
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
    """As Table.to_pylist gives them, in a third of the time."""
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
    """Raise UserError for a shard that is not the one that was indexed: its keys may be those of
    other samples."""
    indexed = store.read_marker(f"{SAMPLES}/{shard.name}")
    if indexed is None or indexed.inputs.get("pool") != shard.fingerprint:
        raise UserError(
            f"shard {shard.name} of the pool has changed since it was indexed. Run `capmix mix` "
            "again, after `caption` and `score` where they are needed."
        )


def _captions(store: Store, shard: str, sources: Sequence[str]) -> dict[str, dict[str, str]]:
    """All texts of a shard's samples by uid and name of the field."""
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
