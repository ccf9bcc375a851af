"""The samples of a shard with all their texts, scores and flags, as the workbench looks at them."""

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

MOST_CAPTIONS = 8  # of one source that are shown
LONGEST_TEXT = 8192  # characters that are shown of a text, and that an edit may have
CACHED = 256 * 2**20  # bytes of shards' texts in memory
ABOUT = ("xxh3", "sha256", "width", "height")


@dataclass(frozen=True)
class ShardTexts:
    """Those N samples of a shard that are ok, in pool order.

    `names` are the texts as recipes call them: raw, blip2, blip2_k1; `table` has uid, key, width,
    height and the columns NAME_text, NAME_flags and NAME_score that exist. `rows` are the numbers
    of the samples by uid. `notes` say what could not be read, `unread` of which sources.
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
        """string (N,): the texts of one name; None where the shard has none of it."""
        return self._column(f"{name}_text")

    def flagged(self) -> np.ndarray:
        """bool (N,): samples of which a text has a flag."""
        found = np.zeros(len(self), bool)
        for name in self.names:
            flags = self._column(f"{name}_flags")
            if flags is not None:
                found |= pc.greater(pc.fill_null(pc.list_value_length(flags), 0), 0).to_numpy(
                    zero_copy_only=False
                )
        return found

    def without_text(self, name: str = "") -> np.ndarray:
        """bool (N,): samples without a text of `name`, or of any."""
        found = np.ones(len(self), bool)
        for one in [name] if name else self.names:
            texts = self.texts(one)
            if texts is not None:
                found &= pc.equal(
                    pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), 0
                ).to_numpy(zero_copy_only=False)
        return found

    def text(self, name: str, row: int) -> str | None:
        """One text in full."""
        texts = self.texts(name)
        found = None if texts is None else texts[row].as_py()
        return found if found is None else str(found)

    def image(self, row: int) -> str:
        """What identifies the sample's bytes; "" where the index does not say."""
        for name in ("xxh3", "sha256"):
            value = self.table[name][row].as_py()
            if value is not None:
                return image_name(value)
        return ""

    def as_json(self, row: int) -> dict[str, Any]:
        """One sample for the page."""
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
    """16 hex digits of a text; "" for none."""
    return "" if text is None else xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def base_source(name: str, sources: Sequence[str]) -> str:
    """The source that a text's name is of: blip2 for blip2_k1."""
    if name in sources or name == RAW:
        return name
    return name.rpartition("_k")[0] or name


@dataclass
class ShardCache:
    """Texts of shards as they are now, the ones used last in memory.

    `asked` is the scorer whose scores are shown, None for the only one that has any. `source` is
    the one that edits are written to; it is read for its scores. Without `may_index`, a
    shard that is not indexed yet is refused; else it is when it is first looked at. `renewed`
    counts shards that were written again since they were read.
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
        """None where there are no scores, or several scorers since the server began."""
        try:
            return self.catalog.scorer(self.asked)
        except UserError:
            return None

    def read(self, shard: Shard) -> ShardTexts:
        """Raises UserError where the shard is not indexed, or a part of it is damaged."""
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
        """List the samples of a shard, unless that was done before."""
        if self.store.read_marker(f"{SAMPLES}/{shard.name}") is not None:
            return
        if not self.may_index:
            raise UserError(
                f"shard {shard.name} is not indexed yet; run `capmix view` without --read-only"
            )
        (stage,) = index_stages(self.pool)
        if missing(stage, [shard], self.store):
            run_one(stage, shard, self.store, lambda _: None)


def read_shard(catalog: Catalog, shard: Shard, scorer: str | None) -> ShardTexts:
    """Read a shard's texts of all sources that have a part for it, with the scores that were made
    from them. What cannot be read is a note, where it is not the index."""
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
    """Take the sources out of `have` and `scored` that cannot be read, one by one; says why."""
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
    """What recipes call the captions of a source: the first one as the source itself."""
    if source == RAW:
        return [RAW]
    numbers = store.read_table(f"{captions_folder(source)}/{shard.name}.parquet", ["k"])["k"]
    highest = min(pc.max(numbers).as_py() or 0, MOST_CAPTIONS - 1)
    return [source, *(f"{source}_k{k}" for k in range(1, highest + 1))]
