"""File systems through fsspec: local paths, s3://, gs://, hf://, http(s):// and others."""

import errno
import itertools
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from capmix.errors import UserError

Result = TypeVar("Result")

PROTOCOLS = ("file", "s3", "s3a", "gs", "gcs", "hf", "http", "https", "az", "abfs", "memory")
S3 = ("s3", "s3a")
PACKAGES = {  # the package to install for a protocol
    **dict.fromkeys(S3, "'capmix[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "'capmix[gcs]'"),
    **dict.fromkeys(("http", "https"), "'capmix[http]'"),
    **dict.fromkeys(("az", "abfs"), "adlfs"),
    "hf": "'capmix[hub]'",
}
READ_ONLY = ("http", "https")
TRIES = 4
FIRST_WAIT = 0.5  # seconds; each further wait is twice as long
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
# Without O_NONBLOCK, opening a FIFO without a writer blocks. Windows lacks O_NONBLOCK and
# O_CLOEXEC, and needs O_BINARY because it opens files in text mode by default.
READ_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
HELD_FOR = 2.0  # seconds to wait for a program that holds the file to replace open, on Windows
FULL = (27, 28, 30, 36, 122)  # EFBIG, ENOSPC, EROFS, ENAMETOOLONG, EDQUOT: a retry does not help
OTHER_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),  # the HTTP client of huggingface_hub 2
    ("gcsfs.retry", "HttpError"),
    ("gcsfs.retry", "ChecksumError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
USER = re.compile(r"(https?://)[^/@\s]+@")
SIGNED = re.compile(
    r"(?i)([?&][^=&\s]*(?:signature|credential|token|secret|password|sig|key)=)[^&\s'\"]+"
)


def open_file_system(location: str, what: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path in it.

    `what` names the location in errors; only a "pool" may be read-only. Listings are not cached,
    because other machines may write to the same location. Raises UserError if the protocol is not
    in PROTOCOLS, if its package is not installed, if it is read-only but must be written to, if an
    http(s) URL contains a secret, or if the Hub does not respond for an hf:// URL.
    """
    if not location or "::" in location:
        raise UserError(f"{what} {location!r}: expected a path or a URL, without '::'")
    protocol = location.split("://", 1)[0] if "://" in location else "file"
    if protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UserError(f"{what} {location}: protocol {protocol!r} is not one of {known}")
    if protocol in READ_ONLY and what != "pool":
        raise UserError(f"{what} {location}: {protocol} is read-only; choose another location")
    if protocol in READ_ONLY and without_secrets(location) != location:
        raise UserError(
            f"{what} {without_secrets(location)}: the URL contains a secret, which would be stored "
            "in the work directory; use a URL without one, or download the files first"
        )
    try:
        if protocol in S3:
            from capmix.storage.s3 import S3FileSystem

            return S3FileSystem(), S3FileSystem._strip_protocol(location)
        if protocol == "hf":
            from capmix.storage.hub import need_hub

            need_hub(f"{what} {location}")
        fs, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
    except ImportError as error:
        wanted = PACKAGES.get(protocol)
        hint = f"pip install {wanted}" if wanted else str(error)
        raise UserError(f"{what} {location}: {protocol}:// needs a package: {hint}") from error
    return fs, root


def is_within(place: str, folder: str) -> bool:
    """Return whether a path or URL is `folder` or is inside it."""
    inner, outer = (_resolved(one).rstrip("/") + "/" for one in (place, folder))
    return inner.startswith(outer)


def _resolved(place: str) -> str:
    """Return a URL unchanged, and a path or file:// URL without symbolic links and `..`."""
    path = place.removeprefix("file://")
    return path if "://" in path else Path(path).resolve().as_posix()


def files_below(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """Return fsspec's info of each file below `path`, at any depth; empty if `path` is missing.

    Raises OSError, also if a single folder cannot be listed.
    """
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    found: dict[str, dict[str, Any]]
    try:
        if {"file", "http", "https"} & protocols:
            found = _walked(fs, path)
        else:  # an object store lists everything below a prefix at once
            found = again(lambda: fs.find(path, detail=True))
    except FileNotFoundError:
        return {}
    return found


def _walked(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """Walk the folders below `path`. fsspec's own walk silently skips folders it cannot list."""
    found: dict[str, dict[str, Any]] = {}
    folders = [path]
    while folders:
        folder = folders.pop()
        try:
            listed = again(partial(fs.ls, folder, detail=True))
        except (FileNotFoundError, NotADirectoryError):  # removed since its parent was listed
            continue
        for info in listed:
            if info["type"] != "directory":
                found[info["name"]] = info
            elif info["name"].rstrip("/") != folder.rstrip("/") and not is_left_out(info["name"]):
                folders.append(info["name"])
    if not found and again(lambda: fs.isfile(path)):
        found[path] = fs.info(path)
    return dict(sorted(found.items()))


def is_left_out(folder: str) -> bool:
    """Return whether to skip a folder: hidden folders and `lost+found`, which users cannot read."""
    name = folder.rstrip("/").rpartition("/")[2]
    return name.startswith(".") or name == "lost+found"


def again(call: Callable[[], Result]) -> Result:
    """Return the result of `call`, with retries after transient storage errors.

    Raises OSError: the last error after TRIES attempts, or at once an error that is not transient.
    """
    return next(again_from(lambda: iter((call(),))))


def again_from(read: Callable[[], Iterable[Result]]) -> Iterator[Result]:
    """Yield the results of `read`, with retries after transient storage errors.

    A retry reads from the start and skips the results that were already yielded. Raises OSError as
    `again` does.
    """
    given, wait = 0, FIRST_WAIT
    for attempt in range(TRIES):
        try:
            for result in itertools.islice(read(), given, None):
                given += 1
                yield result
            return
        except storage_errors() as error:
            if attempt == TRIES - 1 or is_final(error):
                if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                    raise
                raise OSError(errno.EIO, str(error)) from error
        time.sleep(wait)
        wait *= 2


class NotAFileError(IsADirectoryError):
    """A folder, FIFO, device or socket was found in place of a regular file."""


def open_regular(path: str) -> int:
    """Open a local file for reading and return its descriptor, without blocking on a FIFO.

    Raises NotAFileError if it is not a regular file, and OSError if it cannot be opened.
    """
    try:
        handle = os.open(path, READ_FLAGS)
    except PermissionError as error:
        if os.path.isdir(path):  # Windows reports a folder as a permission error
            raise NotAFileError(errno.EISDIR, "not a regular file", path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotAFileError(errno.EISDIR, "not a regular file", path)
    return handle


def replace_file(path: str, name: str) -> None:
    """Rename a local file, replacing the file `name` if it exists.

    On Windows, wait up to HELD_FOR seconds if another program, such as a virus scanner, has one of
    the files open.
    """
    ends_at = time.monotonic() + HELD_FOR
    while True:
        try:
            os.replace(path, name)
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > ends_at:
                raise
        time.sleep(FIRST_WAIT / 10)


def is_final(error: BaseException) -> bool:
    """Return whether a storage error is permanent, so that a retry is useless."""
    return isinstance(error, FINAL) or getattr(error, "errno", None) in FULL


def storage_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of storage errors; some file systems raise others than OSError."""
    found: list[type[Exception]] = [OSError]
    for module, name in OTHER_ERRORS:
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def storage_message(error: BaseException) -> str:
    """Return a one-line message for a storage error, with what to do next."""
    shown = " ".join(str(error).split()).removesuffix(".")
    return f"storage error: {shown}. Fix it and rerun the same command to resume"


def without_secrets(text: str) -> str:
    """Return text in a form that can be shown: URLs without user, password and signature."""
    return SIGNED.sub(r"\1...", USER.sub(r"\1", text))


def expanded(name: str, ending: str = "") -> list[str]:
    """Return the local files that a path or a pattern names, sorted; [] if there are none.

    The name of an existing file is not a pattern. With `ending`, such as ".parquet", a folder
    stands for its files that end in it.
    """
    here = Path(name)
    if here.is_file():
        return [str(here)]
    is_folder = bool(ending) and here.is_dir()
    if not is_folder and not here.name:  # "." or "/", which a glob refuses
        return []
    found = here.glob(f"*{ending}") if is_folder else here.parent.glob(here.name)
    return sorted(str(one) for one in found if one.is_file())
