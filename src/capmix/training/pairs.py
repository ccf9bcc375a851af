"""Images with their texts to train on: from exported shards, or from the pool itself.

Both ways give the same pairs: an exported shard holds what the rows of the subset say, and the pool
is joined with those rows while it streams. Nothing but images, texts and json is ever taken out of
a tar; open_clip's own reader would unpickle members whose names ask for it.
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
    """An image and the text that the subset chose for it. `captions` are all texts of the sample,
    named as export names them (caption_raw, caption_S, caption_S_k1), where they are asked for."""

    key: str
    image: bytes
    text: str
    captions: dict[str, str] = field(default_factory=dict)


class PairSource(Protocol):
    """Where pairs come from. `shards` are drawn, by `weights` where there are any.

    `identity` names the data: a run goes on only with the same.
    """

    @property
    def shards(self) -> Sequence[str]: ...

    @property
    def weights(self) -> Sequence[float] | None: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def read(self, shard: str) -> Iterator[Pair | BadSample]: ...

    def look_up(self) -> None:
        """Ask the storage for all that a run needs to know before its data workers start."""
        ...

    def reopened(self) -> "PairSource":
        """The same for another process, with connections of its own."""
        ...


@dataclass(frozen=True)
class ExportedShards:
    """Tars as `capmix export`, DataComp's resharder or img2dataset write them.

    `directories` may have a weight each, that of each of its shards: as open_clip has it, a
    directory is drawn in proportion to its weight times the number of its shards.
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
                    f"{pool.location}: no tars to train on. `capmix export` writes some; a pool "
                    "is trained on with --pool, --work and --subset."
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
        """Names of the captions that some first samples have."""
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
        """The shards as open_clip's --train-data names them."""
        return "::".join(_braces(pool) for pool in self._pools)

    def read(self, shard: str) -> Iterator[Pair | BadSample]:
        pool, number = self._places[int(shard)]
        name = pool.shards[number].name
        try:
            with pool.open_tar(pool.shards[number]) as stream:
                yield from read_pairs(stream, self.with_captions)
        except OSError as error:
            detail = f"{pool.location}, {name}: {error}. Check that the file is there and readable."
            yield BadSample("", "unreadable_shard", detail)

    def reopened(self) -> "ExportedShards":
        again = replace(self)
        again.__dict__["_pools"] = [pool.reopened() for pool in self._pools]
        return again


@dataclass(frozen=True)
class PoolSubset:
    """A pool that nothing was written from, with the rows of a subset.

    `sources` are those whose texts come as `captions`; () for none.
    """

    pool: Pool
    store: Store
    subset: str
    sources: Sequence[str] = ()

    @property
    def weights(self) -> None:
        """None: rows have weights of their own."""

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
            detail = f"shard {shard}: sample {key} is gone, cannot be read, or is another one now"
            yield BadSample(key, "image_gone", detail)

    def look_up(self) -> None:
        _ = self.shards, self.identity

    def reopened(self) -> "PoolSubset":
        again = replace(self, pool=self.pool.reopened(), store=self.store.reopened())
        again.__dict__["_rows"] = replace(self._rows, store=again.store)
        again.__dict__["shards"] = self.shards  # they were checked
        return again


def read_pairs(stream: BinaryIO, with_captions: bool = False) -> Iterator[Pair | BadSample]:
    """The pairs of one tar as open_clip 3.3 groups them; see tar_groups.

    An image without a .txt member comes as a BadSample, as does a sample over the bounds of bytes.
    """
    wanted = {*IMAGE_SUFFIXES, "txt"} | ({"json"} if with_captions else set())
    try:
        for group in tar_groups(stream, wanted):
            if group.is_dotted:
                for key, name in group.dotted.items():
                    yield BadSample(key, "dotted_key", f"member {name}: the key has a dot")
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
    """Names of shards with what changes when they do: of an export of ours, the markers'."""
    store = Store(pool.location, EXPORT_MARKERS)
    markers = [store.fingerprint(shard.name) for shard in pool.shards]
    both = zip(pool.shards, markers, strict=True)
    return [[shard.name, marker or shard.fingerprint] for shard, marker in both]


def _braces(pool: Pool) -> str:
    """The tars of a pool in brace notation where their names are consecutive numbers."""
    files = [pool.files[shard.name][0] for shard in pool.shards]
    stems = [file.removesuffix(".tar") for file in files]
    first = stems[0]
    if all(stem.isdigit() for stem in stems) and len(stems) > 1:
        width = len(first)
        run = [f"{int(first) + i:0{width}d}" for i in range(len(stems))]
        if run == stems:
            return f"{pool.root}/{{{first}..{stems[-1]}}}.tar"
    return "::".join(pool.path(file) for file in files)
