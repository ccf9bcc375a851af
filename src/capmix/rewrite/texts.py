"""Read the texts of some sources for the samples of one shard, without opening an image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from capmix.pool import Pool, Shard
from capmix.pool.sample import uid_from_path
from capmix.storage.layout import RAW, SAMPLES, captions_folder, texts_folder
from capmix.storage.rows import OK, Row, rows_of
from capmix.storage.store import Store


@dataclass(frozen=True, slots=True)
class SampleTexts:
    """A sample's row in the index, the name that seeds its draws, and its texts.

    `texts` has the texts of each source that has any, in the order of their numbers k.
    """

    row: Row
    name: str
    texts: Mapping[str, tuple[str, ...]]


def text_inputs(store: Store, shard: Shard, sources: Sequence[str]) -> dict[str, str]:
    """Return the fingerprints of the index and of the sources' parts, by folder."""
    folders = text_folders(sources)
    return {folder: store.fingerprint(f"{folder}/{shard.name}") for folder in folders}


def text_folders(sources: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that `read_texts` reads: the index lists the samples."""
    return tuple(dict.fromkeys([SAMPLES, *map(texts_folder, sources)]))


def read_texts(
    store: Store, pool: Pool, shard: Shard, sources: Sequence[str]
) -> Iterator[SampleTexts]:
    """Yield all samples of a shard, in the order of the index.

    Raises UserError if a source has no part for the shard.
    """
    index = store.read_table(f"{SAMPLES}/{shard.name}.parquet")
    raw = index["text"].to_pylist()
    images = _column(index, "sha256")
    captions = {source: _captions(store, source, shard) for source in sources if source != RAW}
    for row, text, image in zip(rows_of(index), raw, images, strict=True):
        found: dict[str, tuple[str, ...]] = {}
        for source in sources:
            of_raw = (text,) if text and text.strip() else ()
            some = of_raw if source == RAW else captions[source].get(row.uid or "", ())
            if some and row.status == OK:
                found[source] = some
        yield SampleTexts(row, _draw_name(pool, row, image), found)


def _column(table: pa.Table, name: str) -> list[str | None]:
    if name not in table.column_names:
        return [None] * len(table)
    values: list[str | None] = table[name].to_pylist()
    return values


def _captions(store: Store, source: str, shard: Shard) -> dict[str, tuple[str, ...]]:
    part = f"{captions_folder(source)}/{shard.name}.parquet"
    table = store.read_table(part, ["uid", "status", "k", "text"])
    found: dict[str, dict[int, str]] = {}
    for row in table.to_pylist():
        if row["status"] == OK and row["uid"] is not None and (row["text"] or "").strip():
            found.setdefault(row["uid"], {})[row["k"] or 0] = row["text"]
    return {uid: tuple(texts[k] for k in sorted(texts)) for uid, texts in found.items()}


def _draw_name(pool: Pool, row: Row, image: str | None) -> str:
    """Return Sample.draw_name of a sample of the index."""
    uid = row.uid or ""
    is_named_by_path = pool.is_folder and uid == uid_from_path(row.key)
    return image[:32] if is_named_by_path and image else uid
