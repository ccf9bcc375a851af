"""The samples of a shard with all their texts, scores and flags, for the workbench."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from capmix.engine.stage import missing, run_one
from capmix.errors import UserError
from capmix.mix.catalog import Catalog
from capmix.mix.columns import Column, columns_of, folders_of, one_array, read_samples
from capmix.mix.parts import check_parts
from capmix.models.index import index_stages
from capmix.pool import Pool, Shard
from capmix.storage.layout import RAW, SAMPLES, captions_folder, scores_folder, texts_folder
from capmix.storage.store import Store
from capmix.view.places import image_name

MOST_CAPTIONS = 8  # captions displayed per source
LONGEST_TEXT = 8192  # characters displayed of a text, and maximum length of an edit
CACHED = 256 * 2**20  # bytes of cached texts
ABOUT = ("xxh3", "sha256", "width", "height")


@dataclass(frozen=True)
class ShardTexts:
    """The N ok samples of a shard, in pool order.

    `names` are the names of the texts in recipes, for example raw, blip2, blip2_k1. `table` has
    uid, key, width, height and the columns NAME_text, NAME_flags and NAME_score that exist. `rows`
    maps uids to row numbers. `notes` are errors while reading; `unread` are the sources concerned.
    """

    shard: str
    names: tuple[str, ...]
    table: pa.Table
    rows: Mapping[str, int]
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def texts(self, name: str) -> pa.Array | None:
        """Return string (N,), the texts of a name; None if the shard has no such texts."""
        return self._column(f"{name}_text")

    def flagged(self) -> np.ndarray:
        """Return bool (N,), true for samples with a flag on any text."""
        found = np.zeros(len(self), bool)
        for name in self.names:
            flags = self._column(f"{name}_flags")
            if flags is not None:
                found |= pc.greater(pc.fill_null(pc.list_value_length(flags), 0), 0).to_numpy(
                    zero_copy_only=False
                )
        return found

    def without_text(self, name: str = "") -> np.ndarray:
        """Return bool (N,), true for samples without a text of `name` (of any name if "")."""
        found = np.ones(len(self), bool)
        for one in [name] if name else self.names:
            texts = self.texts(one)
            if texts is not None:
                found &= pc.equal(
                    pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), 0
                ).to_numpy(zero_copy_only=False)
        return found

    def text(self, name: str, row: int) -> str | None:
        """Return one text in full length."""
        texts = self.texts(name)
        found = None if texts is None else texts[row].as_py()
        return found if found is None else str(found)

    def image(self, row: int) -> str:
        """Return the name of the sample's image bytes; "" if the index has none."""
        for name in ("xxh3", "sha256"):
            value = self.table[name][row].as_py()
            if value is not None:
                return image_name(value)
        return ""

    def as_json(self, row: int) -> dict[str, Any]:
        """Return one sample as JSON for the page."""
        about = {name: self.table[name][row].as_py() for name in ("uid", "key", "width", "height")}
        return about | {
            "shard": self.shard,
            "n": row,
            "texts": [self._text_as_json(name, row) for name in self.names],
        }

    def _text_as_json(self, name: str, row: int) -> dict[str, Any]:
        text = self.text(name, row)
        flags, score = self._column(f"{name}_flags"), self._column(f"{name}_score")
        value = None if score is None else score[row].as_py()
        return {
            "name": name,
            "text": text if text is None else text[:LONGEST_TEXT],
            "cut": text is not None and len(text) > LONGEST_TEXT,
            "digest": text_digest(text),
            "score": None if value is None else float(f"{value:.4f}"),
            "flags": [] if flags is None else flags[row].as_py() or [],
        }

    def _column(self, name: str) -> pa.Array | None:
        return one_array(self.table[name]) if name in self.table.column_names else None


def text_digest(text: str | None) -> str:
    """Return the digest of a text as 16 hex digits; "" for None."""
    return "" if text is None else xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def base_source(name: str, sources: Sequence[str]) -> str:
    """Return the source of a text's name: blip2 for blip2_k1."""
    if name in sources or name == RAW:
        return name
    return name.rpartition("_k")[0] or name


@dataclass
class ShardCache:
    """Current texts of shards, with a cache of recently used ones.

    `asked` is the scorer whose scores are displayed; None for the only scorer with scores. `source`
    is the source that edits are written to. With `may_index`, a shard is indexed when it is first
    read; without it, reading a shard that is not indexed raises UserError. `renewed` counts reloads
    of shards that changed after they were read.
    """

    catalog: Catalog
    asked: str | None
    source: str
    may_index: bool = True
    _known: OrderedDict[str, tuple[tuple[str, ...], ShardTexts]] = field(
        default_factory=OrderedDict
    )
    renewed: int = 0
    _lock: Lock = field(default_factory=Lock)
    _locks: dict[str, Lock] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return self.catalog.store

    @property
    def pool(self) -> Pool:
        return self.catalog.pool

    @property
    def scorer(self) -> str | None:
        """The scorer; None if there are no scores, or several scorers to choose from."""
        try:
            return self.catalog.scorer(self.asked)
        except UserError:
            return None

    def read(self, shard: Shard) -> ShardTexts:
        """Return a shard's texts. Raises UserError if it is not indexed or its index is damaged."""
        with self._lock:
            lock = self._locks.setdefault(shard.name, Lock())
        with lock:
            self.index(shard)
            scorer = self.scorer
            stamp = self._stamp(shard, scorer)
            with self._lock:
                known = self._known.get(shard.name)
                if known is not None and known[0] == stamp:
                    self._known.move_to_end(shard.name)
                    return known[1]
            found = read_shard(self.catalog, shard, scorer)
            with self._lock:
                self.renewed += known is not None
                self._known[shard.name] = stamp, found
                self._known.move_to_end(shard.name)
                self._shrink()
            return found

    def _shrink(self) -> None:
        size = sum(found.table.nbytes for _, found in self._known.values())
        while size > CACHED and len(self._known) > 1:
            _, (_, oldest) = self._known.popitem(last=False)
            size -= oldest.table.nbytes

    def _stamp(self, shard: Shard, scorer: str | None) -> tuple[str, ...]:
        sources = self.catalog.sources()
        folders = [texts_folder(one) for one in sources]
        if scorer:
            folders += [scores_folder(scorer, one) for one in sources]
        return tuple(f"{one} {self.store.fingerprint(f'{one}/{shard.name}')}" for one in folders)

    def index(self, shard: Shard) -> None:
        """Index a shard unless it is indexed already."""
        if self.store.read_marker(f"{SAMPLES}/{shard.name}") is not None:
            return
        if not self.may_index:
            raise UserError(
                f"shard {shard.name} is not indexed; run `capmix view` without --read-only"
            )
        (stage,) = index_stages(self.pool)
        if missing(stage, [shard], self.store):
            run_one(stage, shard, self.store, lambda _: None)


def read_shard(catalog: Catalog, shard: Shard, scorer: str | None) -> ShardTexts:
    """Read a shard's texts of all sources that have a part for it, with their scores.

    Unreadable parts are skipped and reported in `notes`, except the index, which raises UserError.
    """
    store, notes = catalog.store, list[str]()
    have = [
        one for one in catalog.sources()
        if one == RAW or store.read_marker(f"{captions_folder(one)}/{shard.name}") is not None
    ]  # fmt: skip
    scored = [
        one for one in (catalog.scored(scorer) if scorer else ())
        if one in have
        and store.read_marker(f"{scores_folder(scorer or '', one)}/{shard.name}") is not None
    ]  # fmt: skip
    all_of_them = list(have)
    try:
        names, table = _read(store, shard, have, scored, scorer)
    except UserError:
        notes = _without_unreadable(store, shard, have, scored, scorer)
        names, table = _read(store, shard, have, scored, scorer)
    uids = table["uid"].to_pylist()
    rows = {uid: row for row, uid in enumerate(uids)}
    unread = tuple(one for one in all_of_them if one not in have)
    return ShardTexts(shard.name, tuple(names), table, rows, tuple(notes), unread)


def _without_unreadable(
    store: Store, shard: Shard, have: list[str], scored: list[str], scorer: str | None
) -> list[str]:
    """Remove unreadable sources from `have` and `scored`; return the errors."""
    notes = []
    for source in list(scored):
        try:
            _read(store, shard, [source], [source], scorer)
        except UserError as error:
            notes.append(f"scores of {source}: {error}")
            scored.remove(source)
    for source in [one for one in have if one != RAW and one not in scored]:
        try:
            _read(store, shard, [source], [], None)
        except UserError as error:
            notes.append(f"captions of {source}: {error}")
            have.remove(source)
    return notes


def _read(
    store: Store, shard: Shard, sources: Sequence[str], scored: Sequence[str], scorer: str | None
) -> tuple[list[str], pa.Table]:
    names = [name for source in sources for name in _names(store, shard, source)]
    known = columns_of(sources, {scorer: scored} if scorer else {}, scorer, {}, ABOUT)
    wanted = {f"{name}_{one}" for name in names for one in ("text", "flags", "score")}
    columns: dict[str, Column] = {
        name: one for name, one in known.items() if name in wanted or name in ABOUT
    }
    parts = check_parts(store, [shard], folders_of(columns.values()))
    return names, read_samples(store, shard.name, columns, parts)


def _names(store: Store, shard: Shard, source: str) -> list[str]:
    """Return the names of a source's captions in recipes; the first is the source's own name."""
    if source == RAW:
        return [RAW]
    numbers = store.read_table(f"{captions_folder(source)}/{shard.name}.parquet", ["k"])["k"]
    highest = min(pc.max(numbers).as_py() or 0, MOST_CAPTIONS - 1)
    return [source, *(f"{source}_k{k}" for k in range(1, highest + 1))]
