"""Open a pool, local or remote: WebDataset tars, images, parquet files, or a Lance dataset."""

import contextlib
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

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
TEXTS = ("txt", "json", "caption", "tags")  # sidecars of images that capmix or trainers read
TAR_ENDING = re.compile(r"\.tar(\.gz)?$")
Read = Callable[[], Iterator[Sample | BadSample]]


class ImagePool(Protocol):
    """What stages that read images use of a pool; see Pool."""

    @property
    def is_folder(self) -> bool: ...
    def read(
        self, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]: ...


@dataclass(frozen=True)
class Pool:
    """The shards of a pool, in name order, and methods to read them. A pool is never modified.

    `files` maps each shard to its files. `location` is the text shown in messages, `locations` are
    the arguments that the pool was opened with. With `follow_links`, links are followed to anywhere
    on the local disks. `version` is the version of a Lance dataset, else 0.
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
        """The directory of the first place. A pool that is one directory has only this place."""
        return self.places[0].root

    @cached_property
    def has_images(self) -> bool:
        """False for parquet files with only metadata, judged by the first readable file."""
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
        """Raise UserError if the pool has only metadata."""
        if not self.has_images:
            raise UserError(
                f"{what}: pool {self.location} has metadata but no images. Download the images "
                "(for example with img2dataset) and open the resulting tars as a new pool."
            )

    @property
    def is_tars(self) -> bool:
        return self._first_file.endswith(TAR_SUFFIXES)

    @property
    def is_folder(self) -> bool:
        """Whether each sample is a separate file; its key is the path relative to the pool.

        Keys in tars, parquet files and Lance datasets have no suffix.
        """
        return not self._first_file.endswith((*TAR_SUFFIXES, PARQUET_SUFFIX, lance.SUFFIX))

    @property
    def is_local(self) -> bool:
        """Whether all files are on local disks."""
        return all(place.is_local for place in self.places)

    @property
    def survives_fork(self) -> bool:
        """Whether a forked process can read the pool.

        False for Lance: its threads do not survive a fork, and one in twenty forked processes hung.
        """
        return not self._first_file.endswith(lance.SUFFIX)

    @property
    def _first_file(self) -> str:
        return self.files[self.shards[0].name][0]

    def read(
        self, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        """Stream the samples of one shard; with `keys`, only the samples with these keys.

        `keys` must not change during the iteration. Bad input is returned as a BadSample, see
        read_tar and read_files.
        """
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
            open_local(self.root, name, self.follow_links).close()  # Lance itself opens any file
        return lance.read_fragment(self.root, self.version, shard.name, keys)

    @contextlib.contextmanager
    def open_parquet(self, shard: Shard) -> Iterator[pq.ParquetFile]:
        """Open a shard's parquet file. Raises OSError or pa.ArrowException."""
        with self._open(self.files[shard.name][0]) as stream, pq.ParquetFile(stream) as file:
            yield file

    def open_tar(self, shard: Shard) -> BinaryIO:
        """Open a shard's tar. Raises OSError."""
        return self._open(self.files[shard.name][0], buffering=-1)  # TarMembers buffers itself

    def open_beside(self, shard: Shard, ending: str) -> BinaryIO:
        """Open the file that is named like the shard's tar, with another ending. Raises OSError."""
        return self._open(self.files[shard.name][0].removesuffix(".tar") + ending)

    def path(self, name: str) -> str:
        """Return the path of a file in its file system."""
        place, inner = self.place_of(name)
        return f"{place.root}/{inner}"

    def holds(self, directory: str, is_work: bool = False) -> str:
        """Return the pool's directory or pattern that would include output in `directory`.

        The output is an export, or with `is_work` a work directory. Returns "" if there is none.
        """
        owned = (one.owned for one in self.places)
        if inside := next((one for one in owned if one and is_within(directory, one)), ""):
            return inside
        if self.locations == (EMBEDDED,):
            return ""
        return next((one for one in self.locations if would_find(one, directory, is_work)), "")

    def reopened(self) -> "Pool":
        """Return a copy with new connections, because connections do not survive a fork."""
        known: dict[int, fsspec.AbstractFileSystem] = {}
        for fs in [one.fs for one in self.places]:
            if id(fs) not in known:
                known[id(fs)] = type(fs)(*fs.storage_args, **fs.storage_options)
        return replace(self, places=tuple(replace(p, fs=known[id(p.fs)]) for p in self.places))

    def place_of(self, name: str) -> tuple[PoolPlace, str]:
        """Return the place of a file, and the file's path relative to that place."""
        # Places with longer prefixes come first.
        place = next(one for one in self.places if name.startswith(one.prefix))
        return place, name[len(place.prefix) :]

    def _base(self, name: str) -> str:
        """Return the directory that a file's name in the pool is relative to, for messages."""
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
        detail = f"{file}: {error}. Check that the file is complete."
        yield BadSample("", "unreadable_shard", detail)
    except OSError as error:
        detail = f"{file}: {error}. Check that the file exists and is readable."
        yield BadSample("", "unreadable_shard", detail)


def embedded_folder() -> Path:
    """Return the folder of the pool, evaluation sets and weights that ship with capmix."""
    return Path(__file__).parent.parent / "embedded"


def open_pool(location: str | Sequence[str], follow_links: bool = False) -> Pool:
    """Open a pool: list its shards.

    `location` is one of the following:

    - a directory or fsspec URL with tars (at any depth), images or parquet files
    - such a file, or a pattern like `{00000..00041}.tar` or `*.tar` (see places.py)
    - a sequence of these
    - a local directory that is a Lance dataset
    - `embedded`: the pool that ships with capmix

    In a directory, only regular files inside its real path are read, unless `follow_links` is true.
    A file that is named explicitly may be a link. Skipped and ignored files are logged in one line.

    Raises UserError if no pool is found.
    """
    locations = (location,) if isinstance(location, str) else tuple(location)
    shown = shown_location(locations)
    if EMBEDDED in locations:
        follow_links = True  # some installers install files as links
        if len(locations) > 1:
            raise UserError(
                f"pool {shown}: `{EMBEDDED}` cannot be combined with other locations; give only "
                "this one"
            )
    paths = [str(embedded_folder() / "pool") if one == EMBEDDED else one for one in locations]
    for path in paths:
        fs, root = open_file_system(path, "pool")
        if lance.is_dataset(root, is_local(fs)):
            if len(paths) > 1:
                raise UserError(
                    f"pool {path}: a Lance dataset cannot be combined with other locations; give "
                    "only this one"
                )
            return _open_lance(shown, fs, root.rstrip("/"), follow_links)
    found = [_contents(shown, one) for one in find_places(paths, follow_links)]
    return _joined(locations, [one for one in found if one is not None], follow_links)


def shown_location(locations: Sequence[str]) -> str:
    """Return the locations of a pool in short form: the first one and the number of others."""
    first, *others = locations
    return f"{first} and {len(others):,} more" if others else first


@dataclass(frozen=True)
class _Contents:
    """The contents of a place: the files of each shard and information about them.

    Names are relative to the place, without its prefix.
    """

    place: PoolPlace
    kind: str
    files: dict[str, list[str]]
    sidecars: set[str]
    about: dict[str, dict[str, Any]]


def _contents(location: str, found: Listed) -> _Contents | None:
    """Return the shards of a place.

    Returns None for an empty directory that a pattern found; raises UserError for any other place
    without shards.
    """
    listing, place = found.listing, found.place
    visible = {name: info for name, info in sorted(listing.files.items()) if not is_hidden(name)}
    tars = [name for name in visible if name.endswith(TAR_SUFFIXES)]
    images = [name for name in visible if is_image(name)]
    tables = [name for name in visible if name.endswith(PARQUET_SUFFIX)]
    readable = _readable(images)
    of_kind = {"tars": tars, "images": readable, "parquet files": tables}
    kinds = [kind for kind, names in of_kind.items() if names]
    if found.is_chosen and len(kinds) > 1:
        raise UserError(f"pool {location}: mixes {kinds[0]} and {kinds[1]}; give only one kind")
    kind = kinds[0] if kinds else ""
    files, sidecars = {}, set[str]()
    if kind == "tars":
        files = {TAR_ENDING.sub("", name): [name] for name in tars}
        if len(files) < len(tars):
            twin = next(name for name in tars if [name] not in files.values())
            raise UserError(
                f"pool {location}: both {twin} and {twin}.gz exist; keep only one of them"
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
            "; ".join([f"pool {where}: no tar, image or parquet file found", *left_out])
        )
    for text in left_out:
        log.warning("pool %s: %s", where, text)
    return _Contents(place, kind, files, sidecars, visible) if kind else None


def _joined(locations: tuple[str, ...], found: Sequence[_Contents], follow_links: bool) -> Pool:
    """Join the contents of all places into one pool."""
    shown = shown_location(locations)
    if not found:
        raise UserError(f"pool {shown}: no tar, image or parquet file found")
    other = next((one for one in found if one.kind != found[0].kind), None)
    if other is not None:
        raise UserError(
            f"pool {shown}: {found[0].place.root} holds {found[0].kind}, but {other.place.root} "
            f"holds {other.kind}; give only one kind"
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
    """Raise UserError if two places include the same file: its samples would be duplicated."""
    if len(found) < 2:
        return
    seen: set[tuple[int, str]] = set()
    for one in found:
        paths = {f"{one.place.root}/{name}" for names in one.files.values() for name in names}
        known = {(id(type(one.place.fs)), path) for path in paths}
        if twice := min(known & seen, default=None):
            raise UserError(f"pool {shown}: {twice[1]} is matched by two locations; give it once")
        seen |= known


def _open_lance(
    location: str, fs: fsspec.AbstractFileSystem, root: str, follow_links: bool
) -> Pool:
    if not is_local(fs):
        raise UserError(
            f"pool {location}: Lance datasets can be read only from a local disk; copy it there"
        )
    listing = list_local(root, ("",), follow_links)
    if listing.skipped.counts:
        raise UserError(
            f"pool {location}: a Lance dataset must hold only regular files; {listing.skipped}"
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
    """Return the images whose decoder is installed."""
    absent = {one for one in set(map(suffix_of, images)) if install_hint(one)}
    return [name for name in images if suffix_of(name) not in absent] if absent else images


def _ignored(
    listing: Listing, visible: Iterable[str], files: Mapping[str, list[str]], images: list[str]
) -> Counter[str]:
    """Count the files of a folder that are not read, by suffix.

    In folders of tars or parquet files only images are counted: img2dataset writes other files,
    such as statistics, beside them.
    """
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
    """Return the size and modification time (or etag) of a file, or a digest of several files'."""
    stamps = []
    for name, info in files.items():
        # S3; Google and HTTP; a local disk; Azure; Hugging Face
        stamps_of = ("ETag", "etag", "mtime", "last_modified", "blob_id", "created")
        changed = next((info[name] for name in stamps_of if info.get(name)), None)
        stamps.append(f"{name}: {info['size']} bytes, changed {changed}")
    if len(stamps) == 1:
        return stamps[0]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()
