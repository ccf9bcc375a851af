"""The image embeddings of a pool as one array of unit vectors, read on demand."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capmix.errors import UserError
from capmix.models.image_pass import unit
from capmix.pool import Shard
from capmix.storage.draft import MadeMeanwhileError
from capmix.storage.layout import annotation_folder, embeddings_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.rows import OK, Row, column_names, rows_of, table_of
from capmix.storage.store import Store

Columns = dict[str, tuple[np.ndarray, Any]]  # values (N,) and their Arrow type, by name


@dataclass
class PoolVectors:
    """Unit vectors, float32 (N, D), of a pool's embedded samples, in pool order."""

    array: np.ndarray
    rows: list[list[Row]]
    shards: list[Shard]

    def __len__(self) -> int:
        return len(self.array)

    def batches(self, size: int = 16_384) -> Iterator[np.ndarray]:
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return the vectors of the given samples, float32 (n, D)."""
        return unit(np.asarray(self.array[numbers], np.float32))

    def by_shard(self, values: np.ndarray) -> Iterator[tuple[Shard, list[Row], np.ndarray]]:
        """Yield each shard with its rows, and the slice of `values` (N,) for its ok rows."""
        start = 0
        for shard, rows in zip(self.shards, self.rows, strict=True):
            count = sum(row.status == OK for row in rows)
            yield shard, rows, values[start : start + count]
            start += count


def image_vectors(store: Store, shards: Sequence[Shard], name: str, scratch: str) -> PoolVectors:
    """Load the embeddings `embeddings/<name>/image`. Raises UserError if a shard has none.

    They are concatenated into a file in the folder `scratch`, which is memory-mapped.
    """
    folder = embeddings_folder(name)
    rows: list[list[Row]] = []
    path = Path(scratch) / "image.bin"
    width = 0
    with path.open("wb") as stream:
        for shard in shards:
            if store.read_marker(f"{folder}/{shard.name}") is None:
                raise UserError(
                    f"{store.path(folder)}: no embeddings of shard {shard.name}. Run "
                    "`capmix score --save-embeddings` first."
                )
            array = store.read_array(f"{folder}/{shard.name}.npy")
            rows.append(rows_of(store.read_table(f"{folder}/{shard.name}.parquet")))
            width = array.shape[1]
            stream.write(np.ascontiguousarray(array, np.float16).tobytes())
    return PoolVectors(_mapped(path, width), rows, list(shards))


def _mapped(path: Path, width: int) -> np.ndarray:
    if not path.stat().st_size:
        raise UserError("the saved embeddings are empty: no image of this pool could be embedded")
    return np.memmap(path, np.float16, "r").reshape(-1, width)


def read_reference(path: str, name: str, width: int) -> np.ndarray:
    """Return unit vectors, float32 (M, D), of a reference set.

    `path` is a .npy file (M, D), or a work directory with embeddings of the same `name`. Raises
    UserError if it is neither, or if D is not `width`.
    """
    try:
        if path.endswith(".npy"):
            found: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # no pickle, no zip
        else:
            store = Store(path)
            parts = store.parts(embeddings_folder(name))
            found = np.concatenate([store.read_array(f"{part}.npy") for part in parts])
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"reference {path}: {error}. Expected a .npy file of vectors or a work directory with "
            f"embeddings of {name}."
        ) from error
    if found.ndim != 2 or found.shape[1] != width:
        raise UserError(
            f"reference {path}: shape {found.shape}, but the pool's embeddings have {width} "
            "dimensions"
        )
    return unit(found.astype(np.float32))


def reference_stamp(path: str, folder: str) -> str:
    """Return a stamp that changes when a reference set changes; "" if it cannot be read."""
    try:
        if path.endswith(".npy"):
            with open(path, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        store = Store(path)
        return " ".join(store.fingerprint(part) for part in store.parts(folder))
    except OSError:
        return ""


def fingerprints(store: Store, folders: Sequence[str], shards: Sequence[Shard]) -> list[str]:
    """Return the fingerprints of all parts of some folders, folder by folder, in pool order."""
    with store.listed(folders):
        return [store.fingerprint(f"{one}/{shard.name}") for one in folders for shard in shards]


def columns_done(
    store: Store, shards: Sequence[Shard], name: str, inputs: str, config: Mapping[str, object]
) -> Counts | None:
    """Return the counts of an up-to-date annotation with this config; None if there is none."""
    total, values = Counts(), set()
    with store.listed([annotation_folder(name), inputs]):
        for shard in shards:
            part, source = f"{annotation_folder(name)}/{shard.name}", f"{inputs}/{shard.name}"
            marker = store.read_marker(part)
            if marker is None:
                return None
            made = {**config, "values": marker.config.get("values")}
            if not store.is_done(part, {source: store.fingerprint(source)}, made):
                return None
            total.add(marker.counts)
            values.add(marker.config.get("values"))
    return total if len(values) == 1 else None  # several: the parts are from two runs


def write_columns(
    store: Store,
    vectors: PoolVectors,
    name: str,
    columns: Columns,
    inputs: str,
    config: dict[str, object],
) -> Counts:
    """Write columns, each given as values (N,) and a type, to `columns/<name>/<shard>.parquet`.

    `inputs` is the folder of the embeddings that the values were computed from.
    """
    # Each value depends on all shards. The digest of all values identifies the run, so that parts
    # from different runs are detected (see inputs.check_parts).
    digest = hashlib.sha256()
    for values_of, _ in columns.values():
        digest.update(values_of.tobytes())
    config = config | {"values": digest.hexdigest()[:32]}
    total = Counts()
    split = [vectors.by_shard(values) for values, _ in columns.values()]
    fields = list(zip(columns, (kind for _, kind in columns.values()), strict=True))
    for pieces in zip(*split, strict=True):
        shard, rows, _ = pieces[0]
        part = f"{inputs}/{shard.name}"
        values = iter(zip(*(piece[2].tolist() for piece in pieces), strict=True))
        filled = [
            Row(row.uid, row.key, values=next(values)) if row.status == OK else row for row in rows
        ]
        counts = Counts()
        for row in filled:
            if row.status == OK:
                counts.ok += 1
            else:
                counts.failed[row.reason or ""] += 1
        with store.draft(f"{annotation_folder(name)}/{shard.name}") as draft:
            draft.write_table(f"{draft.part}.parquet", table_of(filled, fields))
            made_from = {part: store.fingerprint(part)}
            marker = Marker(made_from, config, len(rows), counts, columns=column_names(fields))
            with suppress(MadeMeanwhileError):
                draft.commit(marker)
        total.add(counts)
    return total
