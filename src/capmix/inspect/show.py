"""Show images with their texts: HTML in a notebook, plain text in a terminal.

The content comes from the pool and from models, so it is escaped and bounded: thumbnails of
THUMBNAIL pixels, texts of LONGEST_TEXT characters, MOST samples. Nothing is loaded over the
network.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from capmix.errors import UserError
from capmix.inspect.table import (
    Index,
    TableRequest,
    chosen_shards,
    has_threshold,
    read_batches,
)
from capmix.mix.catalog import Catalog
from capmix.mix.choose import growing
from capmix.mix.columns import folders_of
from capmix.mix.subset import SubsetRows
from capmix.mix.table import table_columns
from capmix.pool import Shard
from capmix.report.examples import LONGEST_TEXT, data_url, thumbnails
from capmix.settings.counted import counted
from capmix.settings.printable import printable
from capmix.settings.tables import NO_MATH, table_lines

MOST = 100  # samples; about 1 MB of HTML
AT_FIRST = 4  # shards to draw samples from, if they have enough
LONGEST_LINE = 100  # characters of a text in a terminal
NO_TEXT = "(no text)"
STYLE = {
    "grid": "display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:10px",
    "card": "margin:0;padding:8px;border:1px solid #8886;border-radius:6px;overflow:hidden",
    "picture": "height:192px;display:flex;align-items:center;justify-content:center",
    "image": "max-width:100%;max-height:192px;margin:0",
    "text": "margin-top:6px;font-size:13px;line-height:1.35;overflow-wrap:anywhere",
    "about": "opacity:.65;font-size:11px;overflow-wrap:anywhere",
}


@dataclass(frozen=True)
class ShownText:
    """Caption `k` of a source, or the raw text of a sample.

    `notes` are its flags and, in a subset, its k and weight. `is_chosen` is true if it is in the
    displayed subset.
    """

    source: str
    text: str | None
    score: float | None = None
    notes: Sequence[str] = ()
    k: int = 0
    is_chosen: bool = False

    @property
    def name(self) -> str:
        return f"{self.source} ✓" if self.is_chosen else self.source


@dataclass(frozen=True)
class ShownSample:
    """A sample. `image` is a WebP thumbnail; None if the image does not decode or the pool has no
    images."""

    uid: str
    key: str
    shard: str
    texts: Sequence[ShownText]
    image: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Gallery:
    """Some samples of a pool or subset; displayed with images in a notebook, as text elsewhere."""

    title: str
    samples: Sequence[ShownSample]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[ShownSample]:
        return iter(self.samples)

    def __repr__(self) -> str:
        lines = [printable(self.title)]
        for sample in self.samples:
            lines.append(printable(f"{sample.shard}: {sample.key}"))
            rows = [
                [one.name, _score(one), " ".join([_short(one.text), *_notes(one)])]
                for one in sample.texts
            ]
            lines += [f"  {line}" for line in table_lines([], rows, "lll")]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cards = Markup("\n").join(_card(sample) for sample in self.samples)
        page = Markup('<div class="{}"><p>{}</p>\n<div style="{}">\n{}\n</div></div>')
        return str(page.format(NO_MATH, self.title, STYLE["grid"], cards))


def show(
    catalog: Catalog,
    index: Index,
    n: int,
    asked: TableRequest,
    seed: int = 0,
    subset: str | None = None,
) -> Gallery:
    """Draw `n` samples of the pool or a subset by `seed`, with their texts.

    They are drawn from AT_FIRST random shards, and from more only if these have too few samples
    that match `asked.where`, so that few shards of a large pool are read. Shards that lack some of
    the requested captions or scores are skipped, unless all shards do. Raises UserError if `n` is
    not in 1 to MOST, and in the same cases as read_batches.
    """
    if not 1 <= n <= MOST:
        raise UserError(f"show: n: expected a number from 1 to {MOST}, found {n}")
    shards = chosen_shards(catalog.pool, asked.shards)
    asked = replace(asked, shards=None)
    of_pool = _OfPool(catalog, index, asked, seed)
    drawn: _OfPool | _OfSubset = of_pool
    if subset is not None:
        drawn = _OfSubset(of_pool, SubsetRows.pinned(catalog.store, subset))
    order = sorted(drawn.ready(shards), key=lambda shard: _digest(f"show/{seed}/{shard.name}"))
    found: list[ShownSample] = []
    is_of_pool = asked.where is not None and has_threshold(asked.where)
    for group in [order] if is_of_pool else growing(order, AT_FIRST):
        found = nsmallest(n, [*found, *drawn.samples(group)], key=drawn.draw)
        if len(found) == n:
            break
    found = _with_images(catalog, found)
    count = counted(len(found), "sample")
    return Gallery(f"{count} {drawn.about}", found)


@dataclass(frozen=True)
class _OfPool:
    """Samples of the pool with a text of each source."""

    catalog: Catalog
    index: Index
    asked: TableRequest
    seed: int

    @property
    def about(self) -> str:
        condition = f" where {self.asked.where}" if self.asked.where else ""
        return f"of pool {self.catalog.pool.location}{condition}"

    def ready(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return the shards that have all requested columns; all shards if none has."""
        known = self.catalog.columns(self.catalog.scorer(self.asked.scorer))
        names = table_columns(self.catalog, self._sources, self.asked.scorer)
        folders = folders_of([known[name] for name in names]) - folders_of([])
        found = list(shards)
        for folder in folders:
            parts = set(self.catalog.store.parts(folder))
            found = [shard for shard in found if f"{folder}/{shard.name}" in parts]
        return found or list(shards)

    def draw(self, sample: ShownSample) -> tuple[bytes, str]:
        return _digest(f"draw/{self.seed}/{sample.uid}"), sample.uid

    def samples(self, shards: Sequence[Shard]) -> Iterable[ShownSample]:
        for row in self.rows(shards):
            texts = [self._text(row, source) for source in self._sources]
            yield ShownSample(row["uid"], row["key"], row["shard"], texts)

    def rows(self, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        asked = replace(self.asked, columns=())
        for batch in read_batches(self.catalog, asked, self.index, shards):
            yield from pa.Table.from_batches([batch]).to_pylist()

    @property
    def _sources(self) -> list[str]:
        sources = self.asked.sources
        return self.catalog.known_sources([sources] if isinstance(sources, str) else sources)

    def _text(self, row: dict[str, Any], source: str) -> ShownText:
        flags = row.get(f"{source}_flags") or ()
        return ShownText(source, row[f"{source}_text"], row.get(f"{source}_score"), flags)


@dataclass(frozen=True)
class _OfSubset:
    """Samples of a subset with their selected texts, and texts of any sources requested by name."""

    of_pool: _OfPool
    rows: SubsetRows

    @property
    def about(self) -> str:
        condition = f" where {self.of_pool.asked.where}" if self.of_pool.asked.where else ""
        return f"of subset {self.rows.name}{condition}"

    def ready(self, shards: Sequence[Shard]) -> list[Shard]:
        names = set(self.rows.shard_names())
        return [shard for shard in shards if shard.name in names]

    def draw(self, sample: ShownSample) -> tuple[bytes, str]:
        return self.of_pool.draw(sample)

    def samples(self, shards: Sequence[Shard]) -> Iterable[ShownSample]:
        asked = self.of_pool.asked
        others: dict[str, ShownSample] | None = None
        if asked.where is not None or asked.sources is not None:
            others = {one.uid: one for one in self.of_pool.samples(shards)}
        found: dict[str, ShownSample] = {}
        for shard in shards:
            for row in self.rows.of_shard(shard.name).to_pylist():
                if others is None or row["uid"] in others:
                    self._add(found, row)
        if others is not None and asked.sources is not None:
            found = {uid: _with_others(one, others[uid]) for uid, one in found.items()}
        return found.values()

    def _add(self, found: dict[str, ShownSample], row: dict[str, Any]) -> None:
        notes = [f"k {row['k']}"] if row["k"] else []
        notes += [f"weight {row['weight']}"] if row["weight"] != 1 else []
        text = ShownText(row["source"], row["text"], row["score"], notes, row["k"], True)
        before = found.get(row["uid"])
        texts = [*before.texts, text] if before else [text]
        found[row["uid"]] = ShownSample(row["uid"], row["key"], row["shard"], texts)


def _with_others(sample: ShownSample, other: ShownSample) -> ShownSample:
    known = {(one.source, one.k) for one in sample.texts}
    more = [one for one in other.texts if (one.source, one.k) not in known]
    return replace(sample, texts=[*sample.texts, *more])


def _with_images(catalog: Catalog, samples: Sequence[ShownSample]) -> list[ShownSample]:
    if not catalog.pool.has_images:
        return list(samples)
    rows = [{"uid": one.uid, "key": one.key, "shard": one.shard} for one in samples]
    images = thumbnails(catalog.pool, rows)
    return [replace(one, image=images.get(one.uid)) for one in samples]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _card(sample: ShownSample) -> Markup:
    image = Markup('<span style="{}">no image</span>').format(STYLE["about"])
    if sample.image is not None:
        image = Markup('<img src="{}" alt="" style="{}">').format(
            data_url(sample.image), STYLE["image"]
        )
    texts = Markup("").join(_text_html(one) for one in sample.texts)
    card = Markup(
        '<figure style="{}"><div style="{}">{}</div><figcaption style="{}">{}</figcaption>'
        '<div style="{}"><bdi>{}: {}</bdi></div></figure>'
    )
    return card.format(
        STYLE["card"], STYLE["picture"], image, STYLE["text"], texts,
        STYLE["about"], sample.shard, sample.key,
    )  # fmt: skip


def _text_html(one: ShownText) -> Markup:
    about = " ".join(filter(None, [_score(one), *_notes(one)]))
    line = Markup('<div><b>{}</b> <span style="{}">{}</span><br><bdi>{}</bdi></div>')
    return line.format(one.name, STYLE["about"], about, _cut(one.text, LONGEST_TEXT))


def _score(one: ShownText) -> str:
    return "" if one.score is None or one.score != one.score else f"{one.score:.3f}"


def _notes(one: ShownText) -> list[str]:
    return [f"[{note}]" for note in one.notes]


def _short(text: str | None) -> str:
    return " ".join(_cut(text, LONGEST_LINE).split())


def _cut(text: str | None, longest: int) -> str:
    if not text:
        return NO_TEXT
    return text if len(text) <= longest else f"{text[:longest]} …"
