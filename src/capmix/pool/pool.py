"""Open a pool wherever it lies: WebDataset tars, a folder of images, or parquet files."""

import contextlib
import hashlib
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from capmix.errors import UserError
from capmix.pool.folder import is_image, read_files
from capmix.pool.parquet import ParquetForm, read_parquet
from capmix.pool.sample import BadSample, Sample, Shard
from capmix.pool.tar import read_tar

EMBEDDED = "embedded"
FILES_PER_SHARD = 1000
READ_AHEAD = 1 << 20
TAR_SUFFIXES = (".tar", ".tar.gz")
PARQUET_SUFFIX = ".parquet"
TAR_ENDING = re.compile(r"\.tar(\.gz)?$")
PROTOCOLS = ("file", "s3", "s3a", "gs", "gcs", "hf", "http", "https", "az", "abfs", "memory")


@dataclass(frozen=True)
class Pool:
    """Shards in name order, and the way to read one. The pool itself is never written to."""

    location: str
    shards: list[Shard]
    fs: fsspec.AbstractFileSystem = field(repr=False)
    root: str
    files: dict[str, list[str]] = field(repr=False)
    sidecars: set[str] = field(repr=False)

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

    @property
    def is_tars(self) -> bool:
        return self._first_file.endswith(TAR_SUFFIXES)

    @property
    def _first_file(self) -> str:
        return self.files[self.shards[0].name][0]

    def read(
        self, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        """Stream one shard's samples, or those with `keys` alone; see read_tar and read_files for
        what bad input becomes."""
        files = self.files[shard.name]
        if files[0].endswith(PARQUET_SUFFIX):
            yield from self._read_parquet(shard, keys)
            return
        if not files[0].endswith(TAR_SUFFIXES):
            wanted = files if keys is None else [file for file in files if file in keys]
            yield from read_files(self.fs, self.root, wanted, self.sidecars)
            return
        try:
            with self.open_tar(shard) as stream:
                yield from read_tar(stream, shard.name, keys)
        except OSError as error:
            detail = f"{files[0]}: {error}. Check that the file is there and readable."
            yield BadSample("", "unreadable_shard", detail)

    def _read_parquet(
        self, shard: Shard, keys: Container[str] | None
    ) -> Iterator[Sample | BadSample]:
        try:
            with self.open_parquet(shard) as file:
                yield from read_parquet(file, shard.name, keys)
        except (OSError, pa.ArrowException) as error:
            detail = f"{self.files[shard.name][0]}: {error}. Check that the file is whole."
            yield BadSample("", "unreadable_shard", detail)

    @contextlib.contextmanager
    def open_parquet(self, shard: Shard) -> Iterator[pq.ParquetFile]:
        """The file of a shard of a parquet pool. Raises OSError or pa.ArrowException."""
        path = f"{self.root}/{self.files[shard.name][0]}"
        with self._open(path) as stream, pq.ParquetFile(stream) as file:
            yield file

    def open_tar(self, shard: Shard) -> BinaryIO:
        """The bytes of a shard of a pool of tars. Raises OSError."""
        return self._open(f"{self.root}/{self.files[shard.name][0]}")

    def reopened(self) -> "Pool":
        """The same pool for another process: connections to a remote one do not survive a fork."""
        fs = type(self.fs)(*self.fs.storage_args, **self.fs.storage_options)
        return replace(self, fs=fs)

    def _open(self, path: str) -> BinaryIO:
        if "file" in self.fs.protocol:  # fsspec's wrapper costs more than small reads do
            return open(path, "rb", buffering=READ_AHEAD)
        opened: BinaryIO = self.fs.open(path, "rb")
        return opened


def embedded_folder() -> Path:
    """Where the pool, evaluation sets and weights that ship with capmix lie."""
    return Path(__file__).parent.parent / "embedded"


def open_pool(location: str) -> Pool:
    """List the shards of a pool.

    `location` is a directory or fsspec URL that holds tars (at any depth), images or parquet
    files, one such .tar or .parquet file, or `embedded`. Raises UserError where there is none.
    """
    path = str(embedded_folder() / "pool") if location == EMBEDDED else location
    fs, root = _file_system(path)
    if not fs.exists(root):
        raise UserError(f"pool {location}: no such file or directory")
    if fs.isfile(root):
        root, _, name = root.rpartition("/")
        found = {name: fs.info(f"{root}/{name}")}
    else:
        listing = fs.find(root, detail=True)
        found = {file[len(root) :].lstrip("/"): info for file, info in listing.items()}
    visible = {name: info for name, info in sorted(found.items()) if not _is_hidden(name)}
    tars = [name for name in visible if name.endswith(TAR_SUFFIXES)]
    if tars:
        files = {TAR_ENDING.sub("", name): [name] for name in tars}
        if len(files) < len(tars):
            twin = next(name for name in tars if [name] not in files.values())
            raise UserError(
                f"pool {location}: both {twin} and {twin}.gz are there; keep one of the two"
            )
        sidecars: set[str] = set()
    else:
        files = _folder_shards([name for name in visible if is_image(name)])
        sidecars = {name for name in visible if name.endswith((".txt", ".json"))}
    if not files:
        tables = [name for name in visible if name.endswith(PARQUET_SUFFIX)]
        files = {name.removesuffix(PARQUET_SUFFIX): [name] for name in tables}
    if not files:
        raise UserError(
            f"pool {location}: no .tar shard, no .jpg, .jpeg, .png or .webp image and no .parquet "
            "file in it"
        )
    shards = [
        Shard(
            name, _fingerprint({file: visible[file] for file in _with_sidecars(members, sidecars)})
        )
        for name, members in files.items()
    ]
    return Pool(location, shards, fs, root, files, sidecars)


def _file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    protocol = path.split("://", 1)[0] if "://" in path else "file"
    if protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UserError(f"pool {path}: protocol {protocol!r} is not one of {known}")
    try:
        fs, root = fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise UserError(f"pool {path}: {error}") from error
    return fs, root.rstrip("/")


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
        changed = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("created")
        stamps.append(f"{name}: {info['size']} bytes, changed {changed}")
    if len(stamps) == 1:
        return stamps[0]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()
