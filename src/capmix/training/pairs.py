"""Image-text pairs for training, from exported shards or directly from the pool.

Both yield the same pairs: an exported shard contains the rows of the subset, and a pool is joined
with these rows while it is streamed. Only images, texts and JSON are read from a tar; open_clip's
reader would unpickle members with certain names.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, BinaryIO, Protocol

from capmix.errors import UserError
from capmix.export.samples import chosen_samples, refuse_changed
from capmix.mix.subset import SubsetRows
from capmix.pool import BadSample, Pool, open_pool
from capmix.pool.sample import IMAGE_SUFFIXES
from capmix.pool.tar_groups import BrokenTarError, TarGroup, tar_groups
from capmix.storage.json_text import loads
from capmix.storage.layout import EXPORT_MARKERS, texts_folder
from capmix.storage.store import Store

FIRST_SHARDS, FIRST_PAIRS = 5, 100


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and the text that the subset selected for it.

    `captions` has all texts of the sample, if requested, under the names of the export
    (caption_raw, caption_S, caption_S_k1).
    """

    key: str
    image: bytes
    text: str
    captions: dict[str, str] = field(default_factory=dict)


class PairSource(Protocol):
    """A source of training pairs. Shards are drawn by `weights`, or evenly if there are none.

    `identity` identifies the data: a run resumes only with the same identity.
    """

    @property
    def shards(self) -> Sequence[str]: ...

    @property
    def weights(self) -> Sequence[float] | None: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def read(self, shard: str) -> Iterator[Pair | BadSample]: ...

    def look_up(self) -> None:
        """Read from storage all that a run needs before its data workers start."""
        ...

    def reopened(self) -> "PairSource":
        """Return a copy with new connections, for use in another process."""
        ...


@dataclass(frozen=True)
class ExportedShards:
    """Tars written by `capmix export`, DataComp's resharder or img2dataset.

    Each of `directories` may have a weight, which applies to each of its shards: as in open_clip, a
    directory is drawn in proportion to its weight times its number of shards.
    """

    directories: Sequence[str]
    directory_weights: Sequence[float] | None = None
    with_captions: bool = False
    follow_links: bool = False

    @cached_property
    def _pools(self) -> list[Pool]:
        pools = [open_pool(directory, self.follow_links) for directory in self.directories]
        for pool in pools:
            if not pool.is_tars:
                raise UserError(
                    f"{pool.location}: no tars to train on. Write them with `capmix export`, or "
                    "train directly from a pool with --pool, --work and --subset."
                )
        return pools

    @cached_property
    def _places(self) -> list[tuple[Pool, int]]:
        return [(pool, i) for pool in self._pools for i in range(len(pool.shards))]

    @cached_property
    def shards(self) -> Sequence[str]:
        return [str(i) for i in range(len(self._places))]

    @cached_property
    def weights(self) -> Sequence[float] | None:
        if self.directory_weights is None:
            return None
        both = zip(self._pools, self.directory_weights, strict=True)
        return [weight for pool, weight in both for _ in pool.shards]

    @cached_property
    def identity(self) -> dict[str, Any]:
        prints = [_fingerprints(pool) for pool in self._pools]
        return {"shards": prints, "weights": list(self.directory_weights or [])}

    @cached_property
    def first_captions(self) -> frozenset[str]:
        """Names of the captions in the first pairs of the first shards."""
        found: set[str] = set()
        for shard in self.shards[:FIRST_SHARDS]:
            for pair in islice(self.read(shard), FIRST_PAIRS):
                found |= set(pair.captions) if isinstance(pair, Pair) else set()
        return frozenset(found)

    def look_up(self) -> None:
        _ = self.shards, self.weights, self.identity
        if self.with_captions:
            _ = self.first_captions

    def open_clip_urls(self) -> str:
        """Return the shards in the format of open_clip's --train-data."""
        return "::".join(_braces(pool) for pool in self._pools)

    def read(self, shard: str) -> Iterator[Pair | BadSample]:
        pool, number = self._places[int(shard)]
        name = pool.shards[number].name
        try:
            with pool.open_tar(pool.shards[number]) as stream:
                yield from read_pairs(stream, self.with_captions)
        except OSError as error:
            detail = (
                f"{pool.location}, {name}: {error}. Check that the file exists and is readable."
            )
            yield BadSample("", "unreadable_shard", detail)

    def reopened(self) -> "ExportedShards":
        again = replace(self)
        again.__dict__["_pools"] = [pool.reopened() for pool in self._pools]
        return again


@dataclass(frozen=True)
class PoolSubset:
    """The rows of a subset, read directly from the pool without an export.

    The texts of `sources` are added to each pair as `captions`.
    """

    pool: Pool
    store: Store
    subset: str
    sources: Sequence[str] = ()

    @property
    def weights(self) -> None:
        """None: the rows of the subset determine the proportions."""

    @cached_property
    def _rows(self) -> SubsetRows:
        return SubsetRows.pinned(self.store, self.subset)

    @cached_property
    def shards(self) -> Sequence[str]:
        self._rows.refuse_stale()
        names = self._rows.shard_names()
        self._rows.refuse_gone(self.pool)
        by_name = {shard.name: shard for shard in self.pool.shards}
        for name in names:
            refuse_changed(self.store, by_name[name])
        return names

    @cached_property
    def identity(self) -> dict[str, Any]:
        texts = {
            source: [
                self.store.fingerprint(f"{texts_folder(source)}/{name}") for name in self.shards
            ]
            for source in self.sources
        }
        return {"subset": self.subset, "rows": self._rows.fingerprint, "texts": texts}

    def read(self, shard: str) -> Iterator[Pair | BadSample]:
        rows = self._rows.of_shard(shard)
        place = next(one for one in self.pool.shards if one.name == shard)
        missing = dict.fromkeys(rows["key"].to_pylist())
        read = chosen_samples(self.pool, self.store, rows, [place], self.sources, Counter())
        for chosen in read:
            missing.pop(chosen.sample.key, None)
            key, text = chosen.sample.uid, chosen.row["text"]
            for copy in chosen.copies:
                yield Pair(f"{key}-{copy}", chosen.sample.image, text, chosen.captions)
        for key in missing:
            detail = f"shard {shard}: sample {key} is missing, unreadable or has changed"
            yield BadSample(key, "image_gone", detail)

    def look_up(self) -> None:
        _ = self.shards, self.identity

    def reopened(self) -> "PoolSubset":
        again = replace(self, pool=self.pool.reopened(), store=self.store.reopened())
        again.__dict__["_rows"] = replace(self._rows, store=again.store)
        again.__dict__["shards"] = self.shards  # already checked
        return again


def read_pairs(stream: BinaryIO, with_captions: bool = False) -> Iterator[Pair | BadSample]:
    """Yield the pairs of a tar, grouped as in open_clip 3.3; see tar_groups.

    Yields a BadSample for an image without a .txt member and for a sample over the size limits.
    """
    wanted = {*IMAGE_SUFFIXES, "txt"} | ({"json"} if with_captions else set())
    try:
        for group in tar_groups(stream, wanted):
            if group.is_dotted:
                for key, name in group.dotted.items():
                    yield BadSample(key, "dotted_key", f"member {name}: the key contains a dot")
            else:
                yield _pair(group)
    except (BrokenTarError, OSError) as error:
        yield BadSample("", "truncated_shard", str(error))


def _pair(group: TarGroup) -> Pair | BadSample:
    if group.too_large:
        return BadSample(group.key, "too_many_bytes", group.too_large)
    image, text = group.image, group.members.get("txt")
    if image is None or text is None:
        absent = "no_image" if image is None else "no_text"
        return BadSample(group.key, absent, "expected an image and a .txt member of the same name")
    captions = _captions(group.members.get("json", b"{}"))
    return Pair(group.key, image, text.decode("utf-8", "replace"), captions)


def _captions(data: bytes) -> dict[str, str]:
    try:
        fields = loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict):
        return {}
    named = {k: v for k, v in fields.items() if k.startswith("caption_") and isinstance(v, str)}
    return {k: v for k, v in named.items() if not k.startswith("caption_choice")}


def _fingerprints(pool: Pool) -> list[list[str]]:
    """Return the shards' names and fingerprints, of their markers in an export of capmix."""
    store = Store(pool.location, EXPORT_MARKERS)
    markers = [store.fingerprint(shard.name) for shard in pool.shards]
    both = zip(pool.shards, markers, strict=True)
    return [[shard.name, marker or shard.fingerprint] for shard, marker in both]


def _braces(pool: Pool) -> str:
    """Return the tars of a pool, in brace notation if their names are consecutive numbers."""
    files = [pool.files[shard.name][0] for shard in pool.shards]
    stems = [file.removesuffix(".tar") for file in files]
    first = stems[0]
    if all(stem.isdigit() for stem in stems) and len(stems) > 1:
        width = len(first)
        run = [f"{int(first) + i:0{width}d}" for i in range(len(stems))]
        if run == stems:
            return f"{pool.root}/{{{first}..{stems[-1]}}}.tar"
    return "::".join(pool.path(file) for file in files)
