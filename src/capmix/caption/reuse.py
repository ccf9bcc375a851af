"""Which captions of a source stay when its shards are captioned again.

A caption depends on the image, the name that its draws are keyed by, k and the settings. So those
of an image that did not change stay, wherever its file has moved; more captions per image extend
those that exist; and what was captioned of a part of a shard stays when the rest follows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.caption.captioner import Caption
from capmix.caption.carried import CarriedCaptions
from capmix.caption.fields import DEFAULTS, FIELDS
from capmix.engine.redo import Redo
from capmix.models.index import pool_inputs
from capmix.models.selected import LargerParts, SelectedSamples, not_selected
from capmix.pool import Pool, Shard
from capmix.pool.sample import uid_from_path
from capmix.pool.selection import NOT_SELECTED, Selection
from capmix.storage.compare import same_settings
from capmix.storage.layout import SAMPLES, captions_folder
from capmix.storage.marker import Counts
from capmix.storage.rows import FAILED, OK, Row, table_of
from capmix.storage.store import Store

NUMBER = "captions_per_image"
INDEX_COLUMNS = ("uid", "key", "status", "reason", "detail", "sha256")
PART_COLUMNS = ("uid", "key", "status", *(name for name, _ in FIELDS))
Name = tuple[str, int]


@dataclass
class KnownCaptions:
    """The captions of one image: as many as were asked for, and the rows of those not empty."""

    number: int
    values: list[tuple[Any, ...]] = field(default_factory=list)

    def captions(self) -> list[Caption]:
        """One for each k; those that came out empty are empty."""
        found = [Caption("")] * self.number
        for k, text, finish, *_ in self.values:
            found[k] = Caption(text, finish)
        return found


class CaptionReuse:
    """Reuse (engine/redo.py) of the captions of `source` that were made with `config`.

    With `of_image_alone`, a caption depends on nothing else in its sample. Otherwise captions of a
    shard that has changed are not kept.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        source: str,
        config: Mapping[str, Any],
        selection: Selection | None = None,
        of_image_alone: bool = False,
    ):
        self._store, self._pool, self._config = store, pool, dict(config)
        self._source, self._folder = source, captions_folder(source)
        self._selection, self._of_image_alone = selection, of_image_alone
        self._number = int(config.get(NUMBER, 1))
        self._larger: LargerParts | None = None
        if selection is not None:
            samples = SelectedSamples(store, selection)
            self._larger = LargerParts(samples, self._folder, self._config, DEFAULTS, pool_inputs)

    def keeps(self, config: Mapping[str, Any]) -> bool:
        """Whether only the number of captions per image differs, and has grown."""
        number = config.get(NUMBER, 1)
        if not isinstance(number, int) or number > self._number:
            return False
        return same_settings({**config, NUMBER: 1}, {**self._config, NUMBER: 1}, DEFAULTS)

    def suffices(self, shard: Shard) -> bool:
        """Whether a part of other samples has all those that are selected now."""
        return self._larger is not None and self._larger.suffices(shard)

    def redo(self, shard: Shard) -> Redo | None:
        """What stays of a shard's captions, and the samples that are to be captioned."""
        if self._selection is None and not self._has_earlier(shard):
            return None
        if not self._is_indexed(shard):
            if self._selection is None:
                return None
            raise OSError(f"shard {shard.name} was changed since its samples were selected")
        index = self._index(shard)
        samples = list(_index_rows(index))
        known = self._known(shard, {key: image for _, key, image, _ in samples if image})
        selected = np.ones(len(index), bool)
        if self._selection is not None and self._selection.fingerprint(shard.name):
            selected = self._selection.rows(shard.name, len(index))
        if not known and selected.all():
            return None
        plan = _Plan(self._number)
        for (uid, key, image, row), is_wanted in zip(samples, selected.tolist(), strict=True):
            if uid is None:
                plan.copy(row)
            else:
                one = known.get(self._name(uid, key, image)) or known.get((uid, image))
                plan.add(uid, key, one, is_wanted)
        return plan.redo()

    def _has_earlier(self, shard: Shard) -> bool:
        marker = self._store.read_marker(f"{self._folder}/{shard.name}")
        return bool(marker and self.keeps(marker.config)) or bool(len(self._carried))

    def _is_indexed(self, shard: Shard) -> bool:
        marker = self._store.read_marker(f"{SAMPLES}/{shard.name}")
        return marker is not None and marker.inputs == pool_inputs(shard)

    def _index(self, shard: Shard) -> pa.Table:
        return self._store.read_table(f"{SAMPLES}/{shard.name}.parquet", INDEX_COLUMNS)

    def _name(self, uid: str, key: str, image: int) -> Name:
        """What an image is known by: its content, and its uid where that does not come from the
        file's name, or where the rest of its sample counts too."""
        by_path = self._of_image_alone and self._pool.is_folder and uid == uid_from_path(key)
        return "" if by_path else uid, image

    def _known(self, shard: Shard, images: Mapping[str, int]) -> dict[Name, KnownCaptions]:
        """Captions by image: of those that may have moved, and of the shard's part as it is.

        `images` has the hash of each image of the shard by key. Parts of capmix 0.1 lack it; what
        they have was drawn by uid, and is known by it.
        """
        found: dict[Name, KnownCaptions] = {}
        for settings, table in self._carried.of(images.values()) if self._of_image_alone else ():
            if self.keeps(settings):
                found |= self._of_table(table, int(settings.get(NUMBER, 1)), {})
        part = f"{self._folder}/{shard.name}"
        marker = self._store.read_marker(part)
        if marker is None or not self.keeps(marker.config) or self._store.is_gone(part, marker):
            return found
        is_same = marker.inputs.get("pool") == shard.fingerprint
        if not is_same and not self._of_image_alone:
            return found
        with self._store.open_table(f"{part}.parquet") as file:
            names = [name for name in PART_COLUMNS if name in file.schema_arrow.names]
        table = self._store.read_table(f"{part}.parquet", names)
        number = int(marker.config.get(NUMBER, 1))
        for name, one in self._of_table(table, number, images if is_same else {}).items():
            if name not in found or found[name].number <= one.number:
                found[name] = one
        return found

    @cached_property
    def _carried(self) -> CarriedCaptions:
        return CarriedCaptions(self._store, self._source)

    def _of_table(
        self, table: pa.Table, number: int, images: Mapping[str, int]
    ) -> dict[Name, KnownCaptions]:
        """The samples of a part all of whose rows are ok, with a hash of their image."""
        rows = table.to_pylist()
        incomplete = {row["key"] for row in rows if row["status"] != OK}
        found: dict[Name, KnownCaptions] = {}
        last = "", 0
        for row in rows:
            uid, key, k, image = row["uid"], row["key"], row["k"], row.get("image_hash")
            is_whole = uid is not None and row["text"] is not None and k is not None
            if not is_whole or key in incomplete or not 0 <= k < number:
                continue
            name = (uid, images.get(key, 0)) if image is None else self._name(uid, key, image)
            if not name[1]:
                continue
            if key != last[0] or k <= last[1]:  # of two copies one is enough
                found[name] = KnownCaptions(number)
            last = key, k
            values = (k, row["text"], row["finish"] or "stop", row.get("flags"), name[1])
            found[name].values.append(values)
        return found


class _Plan:
    """The rows of a part that stays in parts, in the order of the index."""

    def __init__(self, number: int):
        self._number = number
        self._rows: list[Row] = []
        self._counts = Counts()
        self._kept: dict[str, list[Caption]] = {}
        self._keys: set[str] = set()
        self._bad: set[tuple[str, str]] = set()

    def copy(self, row: Row) -> None:
        """A sample that the pool has broken."""
        self._rows.append(row)
        self._counts.failed[row.reason or ""] += 1
        self._bad.add((row.key, row.reason or ""))

    def add(self, uid: str, key: str, known: KnownCaptions | None, is_wanted: bool) -> None:
        if known is not None and known.number == self._number:
            self._rows += [Row(uid, key, values=values) for values in known.values]
            self._counts.ok += 1
        elif known is not None or is_wanted:
            self._rows.append(Row(uid, key, FAILED))
            self._keys.add(key)
            if known is not None:
                self._kept[key] = known.captions()
        else:
            self._rows.append(not_selected(uid, key))
            self._counts.dropped[NOT_SELECTED] += 1

    def redo(self) -> Redo:
        table, counts = table_of(self._rows, FIELDS), self._counts
        keys, bad = frozenset(self._keys), frozenset(self._bad)
        return Redo(table, keys, counts.total, counts, self._kept, bad)


def _index_rows(index: pa.Table) -> Iterable[tuple[str | None, str, int, Row]]:
    """uid, key, hash of the image (0 where it is not known), and the status row of each sample."""
    for row in index.to_pylist():
        sha256 = row["sha256"]
        status = Row(row["uid"], row["key"], row["status"], row["reason"], row["detail"])
        yield row["uid"], row["key"], image_hash(sha256) if sha256 else 0, status


def image_hash(sha256: str) -> int:
    """The first 64 bits of an image's sha256, of its hex digits."""
    return int(sha256[:16], 16)
