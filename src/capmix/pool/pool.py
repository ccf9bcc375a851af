"""Open a pool wherever it lies: WebDataset tars, images, parquet files, or a Lance dataset."""

import contextlib
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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
from capmix.pool.local import (
    SIDECARS,
    FileTooLargeError,
    Listing,
    list_local,
    open_local,
    read_local,
)
from capmix.pool.parquet import ParquetForm, read_parquet
from capmix.pool.sample import IMAGE_SUFFIXES, BadSample, Sample, Shard
from capmix.pool.tar import read_tar
from capmix.storage.filesystem import (
    again,
    again_from,
    files_below,
    open_file_system,
)

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
FILES_PER_SHARD = 1000
READ_AHEAD = 1 << 20
TAR_SUFFIXES = (".tar", ".tar.gz")
PARQUET_SUFFIX = ".parquet"
IMAGE_ENDINGS = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
SUFFIXES = (*TAR_SUFFIXES, PARQUET_SUFFIX, *IMAGE_ENDINGS, *SIDECARS)
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_DIGITS = 8
ASKED_AT_ONCE = 32
TAR_ENDING = re.compile(r"\.tar(\.gz)?$")
Read = Callable[[], Iterator[Sample | BadSample]]


@dataclass(frozen=True)
class Pool:
    """Shards in name order, and the way to read one. The pool itself is never written to.

    `follow_links` opens what links lead to, wherever that is on this machine's disks. `version` is
    that of a Lance dataset.
    """

    location: str
    shards: list[Shard]
    fs: fsspec.AbstractFileSystem = field(repr=False)
    root: str
    files: dict[str, list[str]] = field(repr=False)
    sidecars: set[str] = field(repr=False)
    follow_links: bool = False
    version: int = 0

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
        return read_files(self._read_file, self.root, wanted, self.sidecars)

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

    def reopened(self) -> "Pool":
        """The same pool for another process: connections to a remote one do not survive a fork."""
        fs = type(self.fs)(*self.fs.storage_args, **self.fs.storage_options)
        return replace(self, fs=fs)

    def _open(self, name: str, buffering: int = READ_AHEAD) -> BinaryIO:
        if _is_local(self.fs):  # fsspec's wrapper costs more than small reads do
            return open_local(self.root, name, self.follow_links, buffering)
        opened: BinaryIO = self.fs.open(f"{self.root}/{name}", "rb")
        return opened

    def _read_file(self, name: str, bound: int) -> bytes:
        """All bytes of a file. Raises FileTooLargeError for one of more than `bound`, OSError."""
        if _is_local(self.fs):
            return again(lambda: read_local(self.root, name, bound, self.follow_links))
        path = f"{self.root}/{name}"
        if again(lambda: self.fs.size(path)) > bound:
            raise FileTooLargeError(f"{name}: at most {bound} bytes are read")
        data: bytes = again(lambda: self.fs.cat_file(path))
        return data


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in fs.protocol


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


def open_pool(location: str, follow_links: bool = False) -> Pool:
    """List the shards of a pool.

    `location` is a directory or fsspec URL that holds tars (at any depth), images or parquet
    files, one such .tar or .parquet file, several as `{00000..00041}.tar`, a local directory that
    is a Lance dataset, or `embedded`. Raises UserError where there is none.

    In a directory, only regular files inside its real path are read; `follow_links` adds what links
    lead to. What is skipped is logged as one line. A file that is named may be a link.
    """
    path = str(embedded_folder() / "pool") if location == EMBEDDED else location
    fs, root = open_file_system(path, "pool")
    follow_links = follow_links or location == EMBEDDED  # some installers link what they install
    if lance.is_dataset(root, _is_local(fs)):
        return _open_lance(location, fs, root.rstrip("/"), follow_links)
    root, listing, is_named = _list(fs, root.rstrip("/"), location, follow_links)
    visible = {name: info for name, info in sorted(listing.files.items()) if not _is_hidden(name)}
    tars = [name for name in visible if name.endswith(TAR_SUFFIXES)]
    images = [name for name in visible if is_image(name)]
    if tars:
        files = {TAR_ENDING.sub("", name): [name] for name in tars}
        if len(files) < len(tars):
            twin = next(name for name in tars if [name] not in files.values())
            raise UserError(
                f"pool {location}: both {twin} and {twin}.gz exist; keep one of the two"
            )
        sidecars: set[str] = set()
    else:
        files = _folder_shards(_readable(images))
        sidecars = {name for name in visible if name.endswith(SIDECARS)}
    if not files:
        tables = [name for name in visible if name.endswith(PARQUET_SUFFIX)]
        files = {name.removesuffix(PARQUET_SUFFIX): [name] for name in tables}
    ignored = ignored_line(_ignored(listing, visible, files, images))
    left_out = [text for text in (str(listing.skipped), ignored) if text]
    if not files:
        raise UserError(
            "; ".join([f"pool {location}: no tar, no image and no parquet file in it", *left_out])
        )
    for text in left_out:
        log.warning("pool %s: %s", location, text)
    shards = []
    for name, members in files.items():
        about = {file: visible[file] for file in _with_sidecars(members, sidecars)}
        size = sum(info["size"] or 0 for info in about.values())
        shards.append(Shard(name, _fingerprint(about), size))
    return Pool(location, shards, fs, root, files, sidecars, follow_links or is_named)


def _open_lance(
    location: str, fs: fsspec.AbstractFileSystem, root: str, follow_links: bool
) -> Pool:
    if not _is_local(fs):
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
    return Pool(location, shards, fs, root, files, set(), follow_links, version)


def _list(
    fs: fsspec.AbstractFileSystem, root: str, location: str, follow_links: bool
) -> tuple[str, Listing, bool]:
    """The pool's directory, every file in it by its path there with what is known of it, and
    whether the files are named by the location itself.

    One listing, of as many calls as its pages are; never a call a file where it tells sizes.
    """
    try:
        if BRACES.search(root):
            root, names = _expanded(root)
            return root, Listing(_about(fs, root, names)), True
        if _is_local(fs) and fs.isdir(root):
            return root, list_local(root, SUFFIXES, follow_links), False
        listing = files_below(fs, root)
        if list(listing) == [root]:
            root, _, name = root.rpartition("/")
            return root, Listing(_about(fs, root, [name])), True
    except OSError as error:
        raise UserError(f"pool {location}: {error or type(error).__name__}") from error
    if not listing and not again(lambda: fs.exists(root)):
        raise UserError(f"pool {location}: no such file or directory")
    found = {file[len(root) :].lstrip("/"): info for file, info in listing.items()}
    others = Counter[str]()
    if any(info.get("size") is None for info in found.values()):  # a web server's index page
        wanted = [name for name in found if name.lower().endswith(SUFFIXES)]
        others = count_suffixes([one for one in found.keys() - wanted if not _is_hidden(one)])
        found = _about(fs, root, wanted)
    return root, Listing(found, others=others), False


def _expanded(pattern: str) -> tuple[str, list[str]]:
    """The directory and file names of `directory/{00000..00041}.tar`."""
    root, _, name = pattern.rpartition("/")
    found = BRACES.search(name)
    if found is None or len(found[1]) > MAX_DIGITS:
        raise OSError("expected one range such as {00000..00041}, in the name of the file")
    first, last = found[1], found[2]
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return root, [name[: found.start()] + number + name[found.end() :] for number in numbers]


def _about(fs: fsspec.AbstractFileSystem, root: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """What the file system says of each file, asked side by side."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        found = threads.map(lambda name: again(lambda: fs.info(f"{root}/{name}")), names)
        return dict(zip(names, found, strict=True))


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
    unused = [one for one in considered if one not in used and not one.lower().endswith(SIDECARS)]
    found = count_suffixes(unused)
    return found + listing.others if is_folder else found


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


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
