"""Decide which captions of a source are kept when its shards are recaptioned.

A caption depends on the image, the name that seeds its draws, k and the settings. Therefore the
captions of an unchanged image are kept even if its file has moved, raising the number of captions
per image only adds the missing ones, and captions of selected samples are kept when the rest of
their shard is captioned.
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
from capmix.caption.prompts import NUMBER, caption_number, prompt_number
from capmix.engine.redo import Redo
from capmix.models.index import pool_inputs
from capmix.models.selected import LargerParts, SelectedSamples, not_selected
from capmix.pool import ImagePool, Shard
from capmix.pool.sample import uid_from_path
from capmix.pool.selection import NOT_SELECTED, Selection
from capmix.storage.compare import same_settings
from capmix.storage.layout import SAMPLES, captions_folder
from capmix.storage.marker import Counts
from capmix.storage.rows import FAILED, OK, Row, table_of
from capmix.storage.store import Store

INDEX_COLUMNS = ("uid", "key", "status", "reason", "detail", "sha256")
PART_COLUMNS = ("uid", "key", "status", *(name for name, _ in FIELDS))
Name = tuple[str, int]


@dataclass
class KnownCaptions:
    """The captions of one image: the requested number, and the rows of the nonempty ones."""

    number: int
    values: list[tuple[Any, ...]] = field(default_factory=list)

    def captions(self) -> list[Caption]:
        """Return one caption per k; a caption without a row is empty."""
        found = [Caption("")] * self.number
        for k, text, finish, *_ in self.values:
            found[k] = Caption(text, finish)
        return found


class CaptionReuse:
    """Reuse (engine/redo.py) of captions of `source` that were written with `config`.

    With `of_image_alone`, captions depend only on the image of a sample. Otherwise the captions of
    a changed shard are not kept.
    """

    def __init__(
        self,
        store: Store,
        pool: ImagePool,
        source: str,
        config: Mapping[str, Any],
        selection: Selection | None = None,
        of_image_alone: bool = False,
    ):
        self._store, self._pool, self._config = store, pool, dict(config)
        self._source, self._folder = source, captions_folder(source)
        self._selection, self._of_image_alone = selection, of_image_alone
        self._number = caption_number(config)
        self._larger: LargerParts | None = None
        if selection is not None:
            samples = SelectedSamples(store, selection)
            self._larger = LargerParts(samples, self._folder, self._config, DEFAULTS, pool_inputs)

    def keeps(self, config: Mapping[str, Any]) -> bool:
        """Return whether `config` differs at most in having fewer captions per image.

        With several prompts, the numbers k of the captions depend on how many each prompt writes.
        """
        number = config.get(NUMBER, 1)
        own = self._config.get(NUMBER, 1)
        if not isinstance(number, int) or number > own:
            return False
        if number != own and prompt_number(self._config) > 1:
            return False
        return same_settings({**config, NUMBER: 1}, {**self._config, NUMBER: 1}, DEFAULTS)

    def suffices(self, shard: Shard) -> bool:
        """Return whether a part written for another selection has all selected samples."""
        return self._larger is not None and self._larger.suffices(shard)

    def redo(self, shard: Shard) -> Redo | None:
        """Return the kept captions of a shard and the samples to caption; None to caption all.

        Raises OSError if the shard was changed since its samples were selected.
        """
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

    def needs_all(self, shard: Shard) -> bool:
        """Return whether all samples of a shard must be captioned; false if that is not certain."""
        return self._selection is None and not self._has_earlier(shard)

    def _has_earlier(self, shard: Shard) -> bool:
        marker = self._store.read_marker(f"{self._folder}/{shard.name}")
        return bool(marker and self.keeps(marker.config)) or bool(len(self._carried))

    def _is_indexed(self, shard: Shard) -> bool:
        marker = self._store.read_marker(f"{SAMPLES}/{shard.name}")
        return marker is not None and marker.inputs == pool_inputs(shard)

    def _index(self, shard: Shard) -> pa.Table:
        return self._store.read_table(f"{SAMPLES}/{shard.name}.parquet", INDEX_COLUMNS)

    def _name(self, uid: str, key: str, image: int) -> Name:
        """Return the key of an image: its hash and its uid.

        The uid is left out if it is derived from the file name and captions depend only on the
        image. If they depend on other parts of the sample, the key is added.
        """
        if not self._of_image_alone:  # samples with equal images and uids may have other texts
            return f"{uid} {key}", image
        by_path = self._pool.is_folder and uid == uid_from_path(key)
        return "" if by_path else uid, image

    def _known(self, shard: Shard, images: Mapping[str, int]) -> dict[Name, KnownCaptions]:
        """Return the known captions by image: those that may have moved, and the existing part's.

        `images` maps the keys of the shard to image hashes. Parts written by capmix 0.1 have no
        hashes; their captions were drawn by uid and are found by uid.
        """
        found: dict[Name, KnownCaptions] = {}
        for settings, table in self._carried.of(images.values()) if self._of_image_alone else ():
            if self.keeps(settings):
                found |= self._of_table(table, caption_number(settings), {})
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
        number = caption_number(marker.config)
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
        """Return the samples of a part that have an image hash and only ok rows."""
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
            if key != last[0] or k <= last[1]:  # a second copy of the sample
                found[name] = KnownCaptions(number)
            last = key, k
            values = (k, row["text"], row["finish"] or "stop", row.get("flags"), name[1])
            found[name].values.append(values)
        return found


class _Plan:
    """The rows of a part that is partly kept, in the order of the index."""

    def __init__(self, number: int):
        self._number = number
        self._rows: list[Row] = []
        self._counts = Counts()
        self._kept: dict[str, list[Caption]] = {}
        self._keys: set[str] = set()
        self._bad: set[tuple[str, str]] = set()

    def copy(self, row: Row) -> None:
        """Add a sample that is unreadable in the pool."""
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
    """Yield (uid, key, image hash or 0 if unknown, status row) for each sample."""
    for row in index.to_pylist():
        sha256 = row["sha256"]
        status = Row(row["uid"], row["key"], row["status"], row["reason"], row["detail"])
        yield row["uid"], row["key"], image_hash(sha256) if sha256 else 0, status


def image_hash(sha256: str) -> int:
    """Return the first 64 bits of an image's sha256, which is given in hex digits."""
    return int(sha256[:16], 16)
