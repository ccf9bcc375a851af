"""Write the kept rows of a recipe as a subset (see subset.py for the files)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from capmix.mix.parts import Parts
from capmix.mix.run import Kept
from capmix.mix.subset import REFERENCES, TEXTS
from capmix.storage.layout import SAMPLES, texts_folder
from capmix.storage.record import Sink

# Most columns repeat few values, adjacent row numbers are close to each other, and scores do not
# compress. With `store_schema`, readers would return dictionaries.
REPEATING = ["shard", "source", "k", "weight", "copy"]
TEXTUAL = [name for name, _ in TEXTS]


@dataclass
class SubsetWriter:
    """Writes kept rows batch by batch, in pool order.

    `sources` has the source of each clause of the recipe; `parts` are the parts that the rows refer
    to.
    """

    stream: Sink
    sources: Sequence[str]
    with_texts: bool
    parts: Parts
    _shards: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._words = list(dict.fromkeys(self.sources))
        self._word_of = np.array([self._words.index(one) for one in self.sources], np.int32)
        schema = pa.schema(REFERENCES + (TEXTS if self.with_texts else []))
        self._file = pq.ParquetWriter(self.stream, schema, **_options(self.with_texts))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def table(self, kept: Kept) -> pa.Table:
        """Return the rows in the subset's schema, and count them."""
        self._count(kept)
        words = pa.array(self._words, pa.string())
        columns = {
            "shard": pa.DictionaryArray.from_arrays(pa.array(kept.shard), pa.array(kept.shards)),
            "row": pa.array(kept.row),
            "source": pa.DictionaryArray.from_arrays(pa.array(self._word_of[kept.clause]), words),
            "k": pa.array(kept.k),
            "score": pa.array(kept.score, mask=np.isnan(kept.score)),
            "weight": pa.array(kept.weight),
            "copy": pa.array(kept.copy),
        }
        if self.with_texts:
            nothing = pa.array([], pa.string())
            texts = kept.texts
            columns |= {name: nothing if texts is None else texts[name] for name in TEXTUAL}
        return pa.table(columns, schema=self._file.schema)

    def write(self, table: pa.Table) -> None:
        if len(table):
            self._file.write_table(table)

    def shards(self) -> pa.Table:
        """Return the subset's table of shards."""
        names, rows, copies = zip(*self._shards, strict=True) if self._shards else ((), (), ())
        columns = {
            "shard": pa.array(names, pa.string()),
            "rows": pa.array(rows, pa.int64()),
            "copies": pa.array(copies, pa.int64()),
        }
        prints = self.parts.fingerprints
        for folder in dict.fromkeys([SAMPLES, *map(texts_folder, self._words)]):
            columns[folder] = pa.array([prints[f"{folder}/{name}"] for name in names], pa.string())
        return pa.table(columns)

    def _count(self, kept: Kept) -> None:
        size = len(kept.shards)
        rows = np.bincount(kept.shard, minlength=size).tolist()
        copies = rows
        if len(kept) and kept.weight.max() > 1:
            copies = np.bincount(kept.shard, kept.weight, minlength=size).astype(np.int64).tolist()
        self._shards += [one for one in zip(kept.shards, rows, copies, strict=True) if one[1]]


def _options(with_texts: bool) -> dict[str, object]:
    packed = {"row": "none", "score": "none", **dict.fromkeys(REPEATING, "snappy")}
    if with_texts:
        packed |= dict.fromkeys(TEXTUAL, "snappy")
    return {
        "compression": packed,
        "use_dictionary": REPEATING,
        "column_encoding": {"row": "DELTA_BINARY_PACKED"},
        "write_statistics": ["shard"],
        "store_schema": False,
        "write_page_checksum": True,
    }
