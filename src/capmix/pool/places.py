"""Resolve the locations of a pool to directories and files.

A location is a directory, a file, or a pattern: `{00000..00041}` and `{a,b}` expand to each of
their names; `*`, `?`, `[...]` and `**` match existing files. A pool may have several locations.
"""

import contextlib
import fnmatch
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from capmix.errors import UserError
from capmix.pool.formats import FORMATS
from capmix.pool.ignored import count_suffixes, suffix_of
from capmix.pool.local import (
    LEAVES,
    SIDECARS,
    FileTooLargeError,
    Listing,
    is_inside,
    list_local,
    list_named,
    open_local,
    read_local,
)
from capmix.pool.matching import DEEP, WILD, match_local
from capmix.storage.filesystem import again, files_below, open_file_system
from capmix.storage.layout import CAPTIONS, FIELDS, SAMPLES, SCORES, SHARDS, SUBSETS

TAR_SUFFIXES = (".tar", ".tar.gz")
PARQUET_SUFFIX = ".parquet"
IMAGE_ENDINGS = tuple(f".{suffix}" for one in FORMATS for suffix in one.suffixes)
FILES = (*TAR_SUFFIXES, PARQUET_SUFFIX, *IMAGE_ENDINGS)
SUFFIXES = (*FILES, *SIDECARS)
READ_AHEAD = 1 << 20
CONCURRENT_REQUESTS = 32
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}/]*,[^{}/]*)\}")
MAX_EXPANDED = 1_000_000
WILD_IN_ADDRESS = re.compile(r"\*")  # in a web address, ? begins the query
ADDRESS = ("http://", "https://")
# Examples of paths in a work directory, to test whether a pattern matches such a file or folder.
WORK_FILES = (
    *(f"{folder}/0.parquet" for folder in (SAMPLES, FIELDS)),
    *(f"{folder}/x/0.parquet" for folder in (CAPTIONS, SUBSETS, SHARDS)),
    *(f"{SCORES}/x/x/0.parquet", f"{SHARDS}/x/0.tar", f"{SHARDS}/x/0.jpg"),
)


@dataclass(frozen=True)
class PoolPlace:
    """A directory of a pool. `prefix` comes before the names of its files in the pool.

    `owned` is the path or URL of a directory that belongs to the pool as a whole; "" if the pool
    names single files, so that other files may exist beside them.
    """

    prefix: str
    fs: fsspec.AbstractFileSystem = field(repr=False)
    root: str
    follow_links: bool = False
    owned: str = ""

    @property
    def is_local(self) -> bool:
        return is_local(self.fs)

    def open(self, name: str, buffering: int = READ_AHEAD) -> BinaryIO:
        """Open a file by its path relative to the directory. Raises OSError."""
        if self.is_local:  # fsspec's wrapper would cost more than a small read
            return open_local(self.root, name, self.follow_links, buffering)
        opened: BinaryIO = self.fs.open(f"{self.root}/{name}", "rb")
        return opened

    def read(self, name: str, bound: int) -> bytes:
        """Read all bytes of a file.

        Raises FileTooLargeError if it has more than `bound` bytes, OSError if it cannot be read.
        """
        if self.is_local:
            return again(lambda: read_local(self.root, name, bound, self.follow_links))
        path = f"{self.root}/{name}"
        if again(lambda: self.fs.size(path)) > bound:
            raise FileTooLargeError(f"{name}: larger than the limit of {bound} bytes")
        data: bytes = again(lambda: self.fs.cat_file(path))
        return data


@dataclass(frozen=True)
class Listed:
    """A place and its files.

    `is_optional` is set if a pattern found the place, so that it may be empty. `is_chosen` is set
    if its files were named, instead of their directory.
    """

    place: PoolPlace
    listing: Listing
    is_optional: bool
    is_chosen: bool


@dataclass
class _Named:
    """What a location names: the directory `root`, or only the files `names` in it.

    `anchor` is the directory before the location's first wildcard or brace, or the path itself if
    it has none. `follow_links` is set if each file was named explicitly.
    """

    location: str
    fs: fsspec.AbstractFileSystem
    root: str
    anchor: str
    names: list[str] | None = None
    owned: str = ""
    follow_links: bool = False
    is_optional: bool = False
    about: dict[str, dict[str, Any]] = field(default_factory=dict)  # file information, if known
    listing: Listing = field(default_factory=Listing)  # matches of a pattern that are not read

    @property
    def parts(self) -> tuple[str, ...]:
        return _parts(self.location, self.root)


def _parts(location: str, path: str) -> tuple[str, ...]:
    """Split a path into its protocol and names."""
    protocol, mark, _ = location.partition("://")
    plain = path.partition("://")[2] if "://" in path else path
    is_path = not mark or protocol == "file"
    plain = os.path.normpath(plain) if is_path else plain
    return ("file" if is_path else protocol, *filter(None, plain.split("/")))


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is on a local disk."""
    return "file" in fs.protocol


def find_places(locations: Sequence[str], follow_links: bool) -> list[Listed]:
    """Return the places that the locations name, each with its files.

    Prefixes distinguish the directories: with one directory (or files in one directory) the prefix
    is empty; with a/ and b/ the prefixes are `a/` and `b/`. Raises UserError if nothing is found,
    or if one directory is inside another.
    """
    named: list[_Named] = []
    for location in locations:
        with _user_errors(location):
            named += _named_by(location, follow_links)
    named = _merged(named)
    _refuse_overlap(named)
    found = []
    for one, prefix in zip(named, _prefixes(named), strict=True):
        with _user_errors(one.location):
            found.append(_listed(one, prefix, follow_links))
    return found


@contextlib.contextmanager
def _user_errors(location: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"pool {location}: {error or type(error).__name__}") from error


def _named_by(location: str, follow_links: bool) -> list[_Named]:
    fs, path = open_file_system(location, "pool")
    path = path.rstrip("/")
    wild = WILD_IN_ADDRESS if location.startswith(ADDRESS) else WILD
    starts = [sign.start() for one in (BRACES, wild) if (sign := one.search(path))]
    if not starts or (is_local(fs) and os.path.lexists(path)):
        return [_literal(location, fs, path, path)]
    anchor = path[: min(starts)].rpartition("/")[0]
    found: list[_Named] = []
    for one in _expanded(path):
        if wild.search(one):
            found += _matches(_Named(location, fs, anchor, anchor, []), one, follow_links)
        else:
            found.append(_literal(location, fs, one, anchor))
    if not any(one.names is None or one.names for one in found):
        skipped = next(
            (f"; {one.listing.skipped}" for one in found if one.listing.skipped.counts), ""
        )
        raise UserError(f"pool {location}: no matching tar, image or parquet file{skipped}")
    return found


def would_find(location: str, directory: str, is_work: bool = False) -> bool:
    """Whether a location may match files that are written to `directory` later.

    `directory` is a path or URL and need not exist. The files are exported shards, or with
    `is_work` those of a work directory. Only patterns with `*`, `?` or `[...]` match new files.
    """
    fs, path = open_file_system(location, "pool")
    path = path.rstrip("/")
    wild = WILD_IN_ADDRESS if location.startswith(ADDRESS) else WILD
    if not wild.search(path) or (is_local(fs) and os.path.lexists(path)):
        return False
    inner = _real_parts(directory)
    for one in _expanded(path):
        start = wild.search(one)
        anchor = one[: start.start()].rpartition("/")[0] if start else one
        outer = _real_parts(_address(location, anchor))
        if start and inner[: len(outer)] == outer:
            pattern = one[len(anchor) :].strip("/").split("/")
            if _may_find(_rest(pattern, inner[len(outer) :]), is_work):
                return True
    return False


def _may_find(rest: list[str] | None, is_work: bool) -> bool:
    """Whether the rest of a pattern (see _rest) may match files written to the directory."""
    if not rest:
        return rest is not None
    if is_work:
        return any(_rest(rest, name.split("/")) == [] for name in WORK_FILES)
    # Tars and tables are written into the directory itself, images also into subfolders.
    return len(rest) == 1 or not rest[-1].endswith((*TAR_SUFFIXES, PARQUET_SUFFIX))


def _rest(pattern: list[str], names: Sequence[str]) -> list[str] | None:
    """Match a pattern against the names of a directory's path. Returns the remaining parts.

    Returns an empty list if the pattern matches the directory, or one that contains it, and None if
    the pattern does not match.
    """
    for number, part in enumerate(pattern):
        if part == DEEP:
            return []
        if number == len(names):
            return pattern[number:]
        is_left = names[number].startswith(".") and not part.startswith(".")
        if is_left or not fnmatch.fnmatch(names[number], part):
            return None
    return []


def _real_parts(place: str) -> tuple[str, ...]:
    """Split a path or URL into its protocol and names; links and `..` in a path are resolved."""
    path = place.removeprefix("file://")
    if "://" in path:
        return _parts(path, path)
    return _parts("", Path(path or "/").resolve().as_posix())


def _literal(location: str, fs: fsspec.AbstractFileSystem, path: str, anchor: str) -> _Named:
    """Return the file or directory at a path."""
    is_file = path.lower().endswith(FILES) and not (is_local(fs) and os.path.isdir(path))
    if is_file:
        anchor = path.rpartition("/")[0] if anchor == path else anchor
        name = path[len(anchor) :].lstrip("/")
        return _Named(location, fs, anchor, anchor, [name], follow_links=True)
    return _Named(location, fs, path, anchor, owned=_address(location, path))


def _address(location: str, path: str) -> str:
    """Prepend the protocol of the path's location."""
    protocol, mark, _ = location.partition("://")
    return f"{protocol}://{path}" if mark and "://" not in path else path


def _expanded(pattern: str) -> list[str]:
    """Expand the braces in a pattern. Raises OSError if that yields over MAX_EXPANDED names."""
    found, braces = [pattern], BRACES.search(pattern)
    while braces:
        choices = _choices(braces)
        if len(found) * len(choices) > MAX_EXPANDED:
            raise OSError(f"over {MAX_EXPANDED:,} names; name the directory, or use *")
        found = [f"{a}{one}{b}" for a, b in _split(found) for one in choices]
        braces = BRACES.search(found[0]) if found else None
    return found


def _split(patterns: list[str]) -> Iterator[tuple[str, str]]:
    for pattern in patterns:
        braces = BRACES.search(pattern)
        assert braces is not None
        yield pattern[: braces.start()], pattern[braces.end() :]


def _choices(braces: re.Match[str]) -> list[str]:
    first, last, names = braces.groups()
    if names is not None:
        return names.split(",")
    numbers = range(int(first), int(last) + 1)
    if len(numbers) > MAX_EXPANDED:
        raise OSError(f"over {MAX_EXPANDED:,} names; name the directory, or use *")
    return [f"{number:0{len(first)}d}" for number in numbers]


def _matches(files: _Named, pattern: str, follow_links: bool) -> list[_Named]:
    """Return the files and directories that match; with `**`, only files.

    Links that lead out of the anchor's directory are skipped, unless links are followed.
    """
    anchor, found = files.anchor, [files]
    files.is_optional, is_deep = True, DEEP in pattern
    files.owned = _address(files.location, anchor) if is_deep else ""
    for name, is_folder, about in _glob(files, pattern, follow_links):
        if is_folder and not is_deep:
            path = f"{anchor}/{name}"
            owned = _address(files.location, path)
            found.append(
                _Named(files.location, files.fs, path, anchor, owned=owned, is_optional=True)
            )
        elif not is_folder and name.lower().endswith(FILES):
            assert files.names is not None
            if is_local(files.fs) and not follow_links and not is_inside(anchor, name):
                files.listing.skipped.add(LEAVES, name)
                continue
            files.names.append(name)
            files.about |= {name: about} if about.get("size") is not None else {}
        elif not is_folder and not name.lower().endswith(SIDECARS):
            files.listing.others[suffix_of(name)] += 1
    return found


def _glob(
    files: _Named, pattern: str, follow_links: bool
) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Yield for each match its path below the anchor, whether it is a directory, and file info."""
    below = len(files.anchor)
    if is_local(files.fs):
        inner = pattern[below:].strip("/")
        names, files.listing.skipped = match_local(files.anchor, inner, follow_links)
        for name, is_folder in names:
            yield name, is_folder, {}
        return
    matches = again(lambda: files.fs.glob(pattern, detail=True))
    for path, info in sorted(matches.items(), key=lambda one: one[0].rstrip("/")):
        yield path[below:].strip("/"), info["type"] == "directory", info


def _merged(named: list[_Named]) -> list[_Named]:
    """Merge the entries that name files in the same directory."""
    found: dict[tuple[str, ...], _Named] = {}
    others = []
    for one in named:
        if one.names is None:
            others.append(one)
            continue
        first = found.setdefault(one.parts, one)
        if first is not one:
            assert first.names is not None
            first.names += one.names
            first.about |= one.about
            first.follow_links = first.follow_links and one.follow_links
            first.is_optional = first.is_optional and one.is_optional
            first.listing.others += one.listing.others
            first.listing.skipped.counts += one.listing.skipped.counts
            first.listing.skipped.example = (
                first.listing.skipped.example or one.listing.skipped.example
            )
            first.owned = first.owned or one.owned
    kept = [
        one
        for one in found.values()
        if one.names or one.listing.others or one.listing.skipped.counts
    ]
    return kept + others


def _refuse_overlap(named: list[_Named]) -> None:
    folders: dict[tuple[str, ...], _Named] = {}
    for one in named:
        if one.names is None and folders.setdefault(one.parts, one) is not one:
            raise UserError(f"pool {one.location}: given twice; give it once")
    for one in named:
        inner = one.parts if one.names is not None else one.parts[:-1]
        outer = (folders.get(inner[:end]) for end in range(len(inner), 0, -1))
        if around := next(filter(None, outer), None):
            raise UserError(
                f"pool {one.location}: it is inside {around.location}, which is also given; give "
                "only one of them"
            )


def _prefixes(named: list[_Named]) -> list[str]:
    """Return each place's prefix: its path below the longest common directory of all places."""
    anchors = [_parts(one.location, one.anchor) for one in named]
    levels = zip(*anchors, strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, levels))
    found = []
    for one in named:
        names = one.parts[common:]
        if hidden := next((name for name in names if name.startswith(".")), None):
            raise UserError(
                f"pool {one.location}: {hidden} is hidden and cannot be combined with other "
                "locations; give only this one"
            )
        found.append("".join(f"{name}/" for name in names))
    return found


def _listed(one: _Named, prefix: str, follow_links: bool) -> Listed:
    follow_links = follow_links or one.follow_links
    place = PoolPlace(prefix, one.fs, one.root, follow_links, one.owned)
    listing = _list_folder(place) if one.names is None else _list_files(one, follow_links)
    return Listed(place, listing, one.is_optional, one.names is not None)


def _list_folder(place: PoolPlace) -> Listing:
    """List a directory with one call per page of results.

    Only if the listing contains no sizes, files are queried one by one.
    """
    fs, root = place.fs, place.root
    if is_local(fs) and os.path.isdir(root):
        return list_local(root, SUFFIXES, place.follow_links)
    listed = files_below(fs, root)
    if not listed and not again(lambda: fs.exists(root)):
        raise FileNotFoundError("no such file or directory")
    found = {file[len(root) :].lstrip("/"): info for file, info in listed.items()}
    others = Counter[str]()
    if any(info.get("size") is None for info in found.values()):  # a web server's index page
        wanted = [name for name in found if name.lower().endswith(SUFFIXES)]
        others = count_suffixes([one for one in found.keys() - wanted if not is_hidden(one)])
        found = _about(fs, root, wanted)
    return Listing(found, others=others)


def _list_files(one: _Named, follow_links: bool) -> Listing:
    """List the named files, and the sidecars of the images among them."""
    names = sorted(set(one.names or ()))
    images = [name for name in names if name.lower().endswith(IMAGE_ENDINGS)]
    stems = dict.fromkeys(name.rpartition(".")[0] for name in images)
    sidecars = [f"{stem}{suffix}" for stem in stems for suffix in SIDECARS]
    if is_local(one.fs):
        existing = [name for name in sidecars if os.path.lexists(f"{one.root}/{name}")]
        found = list_named(one.root, [*names, *existing], follow_links)
        found.skipped.counts += one.listing.skipped.counts
        found.skipped.example = found.skipped.example or one.listing.skipped.example
        return Listing(found.files, found.skipped, one.listing.others)
    unknown = [name for name in names if name not in one.about]
    known = one.about | _about(one.fs, one.root, unknown)
    known |= _about(one.fs, one.root, sidecars, are_optional=True)
    return Listing(known, others=one.listing.others)


def _about(
    fs: fsspec.AbstractFileSystem, root: str, names: list[str], are_optional: bool = False
) -> dict[str, dict[str, Any]]:
    """Query information about each file, concurrently.

    A missing file raises FileNotFoundError, or is left out if `are_optional`.
    """

    def query(name: str) -> dict[str, Any]:
        try:
            about: dict[str, Any] = again(lambda: fs.info(f"{root}/{name}"))
        except FileNotFoundError as error:
            if are_optional:
                return {}
            raise FileNotFoundError(f"no such file: {name}") from error
        return about

    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as threads:
        found = dict(zip(names, threads.map(query, names), strict=True))
    return {name: about for name, about in found.items() if about}


def is_hidden(name: str) -> bool:
    """Whether a part of a path begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))
