"""Open a pool wherever it lies: WebDataset tars, images, parquet files, or a Lance dataset."""

import contextlib
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from capmix.errors import UserError
from capmix.pool import lance
from capmix.pool.folder import is_image, read_files
from capmix.pool.formats import install_hint
from capmix.pool.ignored import count_suffixes, ignored_line, suffix_of
from capmix.pool.local import SIDECARS, Listing, list_local, open_local
from capmix.pool.parquet import ParquetForm, read_parquet
from capmix.pool.places import (
    PARQUET_SUFFIX,
    READ_AHEAD,
    TAR_SUFFIXES,
    Listed,
    PoolPlace,
    find_places,
    is_hidden,
    is_local,
    would_find,
)
from capmix.pool.sample import BadSample, Sample, Shard
from capmix.pool.tar import read_tar
from capmix.storage.filesystem import again_from, is_within, open_file_system

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
FILES_PER_SHARD = 1000
TEXTS = ("txt", "json", "caption", "tags")  # beside images: what is read, or trainers read
TAR_ENDING = re.compile(r"\.tar(\.gz)?$")
Read = Callable[[], Iterator[Sample | BadSample]]


@dataclass(frozen=True)
class Pool:
    """Shards in name order, and the way to read one. The pool itself is never written to.

    `files` are those of each shard. `location` is what people are shown, `locations` what the pool
    was opened by. `follow_links` opens what links lead to, wherever that is on this machine's
    disks. `version` is that of a Lance dataset.
    """

    location: str
    shards: list[Shard]
    places: tuple[PoolPlace, ...]
    files: dict[str, list[str]] = field(repr=False)
    sidecars: set[str] = field(repr=False)
    follow_links: bool = False
    version: int = 0
    locations: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """The directory of the first place: the only one of a pool that is one directory."""
        return self.places[0].root

    @cached_property
    def has_images(self) -> bool:
        """False for parquet files of metadata alone. The first one that can be read tells."""
        if not self._first_file.endswith(PARQUET_SUFFIX):
            return True
        for shard in self.shards:
            with (
                contextlib.suppress(OSError, pa.ArrowException),
                self.open_parquet(shard) as file,
            ):
                return ParquetForm.of(file.schema_arrow).image is not None
        return True

    def need_images(self, what: str) -> None:
        """Raise UserError for a pool of metadata alone."""
        if not self.has_images:
            raise UserError(
                f"{what}: pool {self.location} holds metadata without images. Download them "
                "first (img2dataset), and open the tars as a pool of their own."
            )

    @property
    def is_tars(self) -> bool:
        return self._first_file.endswith(TAR_SUFFIXES)

    @property
    def is_folder(self) -> bool:
        """Whether the samples are files of their own, whose keys are paths below the pool's folder.
        In tars, parquet files and Lance datasets a key has no suffix."""
        return not self._first_file.endswith((*TAR_SUFFIXES, PARQUET_SUFFIX, lance.SUFFIX))

    @property
    def is_local(self) -> bool:
        """Whether all of it is on this machine's disks."""
        return all(place.is_local for place in self.places)

    @property
    def survives_fork(self) -> bool:
        """Whether a forked process can read it. Lance's threads are not there: of twenty such
        processes one did not end."""
        return not self._first_file.endswith(lance.SUFFIX)

    @property
    def _first_file(self) -> str:
        return self.files[self.shards[0].name][0]

    def read(
        self, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        """Stream one shard's samples, or those with `keys` alone, which must not change meanwhile;
        see read_tar and read_files for what bad input becomes."""
        files = self.files[shard.name]
        if files[0].endswith(PARQUET_SUFFIX):
            return _read_again(lambda: self._read_parquet(shard, keys), files[0])
        if files[0].endswith(TAR_SUFFIXES):
            return _read_again(lambda: self._read_tar(shard, keys), files[0])
        if files[0].endswith(lance.SUFFIX):
            return _read_again(lambda: self._read_lance(shard, keys), files[0])
        wanted = files if keys is None else [file for file in files if file in keys]
        return read_files(self._read_file, self._base(files[0]), wanted, self.sidecars)

    def _read_tar(self, shard: Shard, keys: Container[str] | None) -> Iterator[Sample | BadSample]:
        with self.open_tar(shard) as stream:
            yield from read_tar(stream, shard.name, keys)

    def _read_parquet(
        self, shard: Shard, keys: Container[str] | None
    ) -> Iterator[Sample | BadSample]:
        with self.open_parquet(shard) as file:
            yield from read_parquet(file, shard.name, keys)

    def _read_lance(
        self, shard: Shard, keys: Container[str] | None
    ) -> Iterator[Sample | BadSample]:
        for name in self.files[shard.name]:
            open_local(self.root, name, self.follow_links).close()  # Lance opens whatever is there
        return lance.read_fragment(self.root, self.version, shard.name, keys)

    @contextlib.contextmanager
    def open_parquet(self, shard: Shard) -> Iterator[pq.ParquetFile]:
        """The file of a shard of a parquet pool. Raises OSError or pa.ArrowException."""
        with self._open(self.files[shard.name][0]) as stream, pq.ParquetFile(stream) as file:
            yield file

    def open_tar(self, shard: Shard) -> BinaryIO:
        """The bytes of a shard of a pool of tars. Raises OSError."""
        return self._open(self.files[shard.name][0], buffering=-1)  # read in windows

    def path(self, name: str) -> str:
        """The path of a file in its file system."""
        place, inner = self.place_of(name)
        return f"{place.root}/{inner}"

    def holds(self, directory: str, is_work: bool = False) -> str:
        """The directory or pattern of the pool that finds what is exported to `directory`, or where
        it `is_work` what a work directory there holds; "" where none does."""
        owned = (one.owned for one in self.places)
        if inside := next((one for one in owned if one and is_within(directory, one)), ""):
            return inside
        if self.locations == (EMBEDDED,):
            return ""
        return next((one for one in self.locations if would_find(one, directory, is_work)), "")

    def reopened(self) -> "Pool":
        """The same pool for another process: connections to a remote one do not survive a fork."""
        known: dict[int, fsspec.AbstractFileSystem] = {}
        for fs in [one.fs for one in self.places]:
            if id(fs) not in known:
                known[id(fs)] = type(fs)(*fs.storage_args, **fs.storage_options)
        return replace(self, places=tuple(replace(p, fs=known[id(p.fs)]) for p in self.places))

    def place_of(self, name: str) -> tuple[PoolPlace, str]:
        """Where a file is, and its name there. Longer prefixes come first."""
        place = next(one for one in self.places if name.startswith(one.prefix))
        return place, name[len(place.prefix) :]

    def _base(self, name: str) -> str:
        """What comes before the name of a file in its path, in messages."""
        place, _ = self.place_of(name)
        return place.root.removesuffix(place.prefix.rstrip("/")).rstrip("/")

    def _open(self, name: str, buffering: int = READ_AHEAD) -> BinaryIO:
        place, inner = self.place_of(name)
        return place.open(inner, buffering)

    def _read_file(self, name: str, bound: int) -> bytes:
        place, inner = self.place_of(name)
        return place.read(inner, bound)


def _read_again(read: Read, file: str) -> Iterator[Sample | BadSample]:
    try:
        yield from again_from(read)
    except pa.ArrowInvalid as error:
        detail = f"{file}: {error}. Check that the file is whole."
        yield BadSample("", "unreadable_shard", detail)
    except OSError as error:
        detail = f"{file}: {error}. Check that the file is there and readable."
        yield BadSample("", "unreadable_shard", detail)


def embedded_folder() -> Path:
    """Where the pool, evaluation sets and weights that ship with capmix lie."""
    return Path(__file__).parent.parent / "embedded"


def open_pool(location: str | Sequence[str], follow_links: bool = False) -> Pool:
    """List the shards of a pool.

    `location` is a directory or fsspec URL that holds tars (at any depth), images or parquet files,
    such a file, a pattern of them as `{00000..00041}.tar` or `*.tar` (see places.py), several of
    these, a local directory that is a Lance dataset, or `embedded`. Raises UserError where there is
    none.

    In a directory, only regular files inside its real path are read; `follow_links` adds what links
    lead to. What is skipped or ignored is logged as one line. A file that is named may be a link.
    """
    locations = (location,) if isinstance(location, str) else tuple(location)
    shown = shown_location(locations)
    if EMBEDDED in locations:
        follow_links = True  # some installers link what they install
        if len(locations) > 1:
            raise UserError(f"pool {shown}: `{EMBEDDED}` is a pool of its own")
    paths = [str(embedded_folder() / "pool") if one == EMBEDDED else one for one in locations]
    for path in paths:
        fs, root = open_file_system(path, "pool")
        if lance.is_dataset(root, is_local(fs)):
            if len(paths) > 1:
                raise UserError(f"pool {path}: a Lance dataset is a pool of its own")
            return _open_lance(shown, fs, root.rstrip("/"), follow_links)
    found = [_contents(shown, one) for one in find_places(paths, follow_links)]
    return _joined(locations, [one for one in found if one is not None], follow_links)


def shown_location(locations: Sequence[str]) -> str:
    """The places of a pool in a few words."""
    first, *others = locations
    return f"{first} and {len(others):,} more" if others else first


@dataclass(frozen=True)
class _Contents:
    """What a place holds: `files` of each shard and what is known of them, without its prefix."""

    place: PoolPlace
    kind: str
    files: dict[str, list[str]]
    sidecars: set[str]
    about: dict[str, dict[str, Any]]


def _contents(location: str, found: Listed) -> _Contents | None:
    """The shards of a place; None where a pattern found a directory that has none. Raises
    UserError for another one."""
    listing, place = found.listing, found.place
    visible = {name: info for name, info in sorted(listing.files.items()) if not is_hidden(name)}
    tars = [name for name in visible if name.endswith(TAR_SUFFIXES)]
    images = [name for name in visible if is_image(name)]
    tables = [name for name in visible if name.endswith(PARQUET_SUFFIX)]
    readable = _readable(images)
    of_kind = {"tars": tars, "images": readable, "parquet files": tables}
    kinds = [kind for kind, names in of_kind.items() if names]
    if found.is_chosen and len(kinds) > 1:
        raise UserError(f"pool {location}: it names {kinds[0]} and {kinds[1]}; name one kind")
    kind = kinds[0] if kinds else ""
    files, sidecars = {}, set[str]()
    if kind == "tars":
        files = {TAR_ENDING.sub("", name): [name] for name in tars}
        if len(files) < len(tars):
            twin = next(name for name in tars if [name] not in files.values())
            raise UserError(
                f"pool {location}: both {twin} and {twin}.gz exist; keep one of the two"
            )
    elif kind == "images":
        files = _folder_shards(readable)
        sidecars = {name for name in visible if name.endswith(SIDECARS)}
    else:
        files = {name.removesuffix(PARQUET_SUFFIX): [name] for name in tables}
    ignored = ignored_line(_ignored(listing, visible, files, images))
    left_out = [text for text in (str(listing.skipped), ignored) if text]
    where = location if not place.prefix else f"{location}: {place.root}"
    if not kind and not found.is_optional:
        raise UserError(
            "; ".join([f"pool {where}: no tar, no image and no parquet file in it", *left_out])
        )
    for text in left_out:
        log.warning("pool %s: %s", where, text)
    return _Contents(place, kind, files, sidecars, visible) if kind else None


def _joined(locations: tuple[str, ...], found: Sequence[_Contents], follow_links: bool) -> Pool:
    """One pool of what all places hold."""
    shown = shown_location(locations)
    if not found:
        raise UserError(f"pool {shown}: no tar, no image and no parquet file in it")
    other = next((one for one in found if one.kind != found[0].kind), None)
    if other is not None:
        raise UserError(
            f"pool {shown}: {found[0].place.root} holds {found[0].kind}, and {other.place.root} "
            f"{other.kind}; a pool is of one kind"
        )
    _refuse_twice(shown, found)
    files: dict[str, list[str]] = {}
    sidecars: set[str] = set()
    shards: dict[str, Shard] = {}
    for one in found:
        prefix = one.place.prefix
        sidecars |= {f"{prefix}{name}" for name in one.sidecars}
        for shard, members in one.files.items():
            about = {f"{prefix}{n}": one.about[n] for n in _with_sidecars(members, one.sidecars)}
            size = sum(info["size"] or 0 for info in about.values())
            name = f"{prefix}{shard}"
            files[name] = [f"{prefix}{member}" for member in members]
            shards[name] = Shard(name, _fingerprint(about), size)
    places = sorted((one.place for one in found), key=lambda one: -len(one.prefix))
    in_order = [shards[name] for name in sorted(files, key=lambda name: files[name][0])]
    return Pool(shown, in_order, tuple(places), files, sidecars, follow_links, locations=locations)


def _refuse_twice(shown: str, found: Sequence[_Contents]) -> None:
    """Raise UserError for a file that two places hold: its sample would be there twice."""
    if len(found) < 2:
        return
    seen: set[tuple[int, str]] = set()
    for one in found:
        paths = {f"{one.place.root}/{name}" for names in one.files.values() for name in names}
        known = {(id(type(one.place.fs)), path) for path in paths}
        if twice := min(known & seen, default=None):
            raise UserError(f"pool {shown}: {twice[1]} is in two of the places; name it once")
        seen |= known


def _open_lance(
    location: str, fs: fsspec.AbstractFileSystem, root: str, follow_links: bool
) -> Pool:
    if not is_local(fs):
        raise UserError(
            f"pool {location}: a Lance dataset is read from a local disk alone; copy it there"
        )
    listing = list_local(root, ("",), follow_links)
    if listing.skipped.counts:
        raise UserError(
            f"pool {location}: a Lance dataset of regular files only; {listing.skipped}"
        )
    version, fragments = lance.list_fragments(location, root)
    files, shards = {}, []
    for one in fragments:
        about = {name: listing.files.get(name, {"size": 0}) for name in one.files}
        stamps = f"{one.about}\n{_fingerprint(about)}"
        size = sum(info["size"] for info in about.values())
        shards.append(Shard(one.name, hashlib.sha256(stamps.encode()).hexdigest(), size))
        files[one.name] = one.files
    place = PoolPlace("", fs, root, follow_links, location)
    return Pool(location, shards, (place,), files, set(), follow_links, version, (location,))


def _readable(images: list[str]) -> list[str]:
    """The images that can be decoded here."""
    absent = {one for one in set(map(suffix_of, images)) if install_hint(one)}
    return [name for name in images if suffix_of(name) not in absent] if absent else images


def _ignored(
    listing: Listing, visible: Iterable[str], files: Mapping[str, list[str]], images: list[str]
) -> Counter[str]:
    """The files of a pool's folder that it does not read, by suffix. Beside tars and tables, as
    img2dataset writes them with files of counts, only images are of interest."""
    used = {name for names in files.values() for name in names}
    is_folder = not files or is_image(next(iter(used)))
    considered = visible if is_folder else images
    found = count_suffixes(one for one in considered if one not in used)
    found += listing.others if is_folder else Counter()
    return Counter({suffix: count for suffix, count in found.items() if suffix not in TEXTS})


def _folder_shards(images: list[str]) -> dict[str, list[str]]:
    starts = range(0, len(images), FILES_PER_SHARD)
    return {f"{i // FILES_PER_SHARD:05d}": images[i : i + FILES_PER_SHARD] for i in starts}


def _with_sidecars(files: list[str], sidecars: set[str]) -> list[str]:
    stems = dict.fromkeys(file.rpartition(".")[0] for file in files)
    names = (stem + suffix for stem in stems for suffix in (".json", ".txt"))
    return files + [name for name in names if name in sidecars]


def _fingerprint(files: dict[str, dict[str, Any]]) -> str:
    """Size and time of change (or etag) of a file; a digest over names and these for several."""
    stamps = []
    for name, info in files.items():
        # S3; Google and HTTP; a local disk; Azure; Hugging Face
        stamps_of = ("ETag", "etag", "mtime", "last_modified", "blob_id", "created")
        changed = next((info[name] for name in stamps_of if info.get(name)), None)
        stamps.append(f"{name}: {info['size']} bytes, changed {changed}")
    if len(stamps) == 1:
        return stamps[0]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()
