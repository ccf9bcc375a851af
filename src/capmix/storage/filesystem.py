"""Places that fsspec reaches: a local path, s3://, gs://, hf://, http(s):// and some more."""

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
PACKAGES = {  # what pip installs for them
    **dict.fromkeys(S3, "'capmix[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "'capmix[gcs]'"),
    **dict.fromkeys(("http", "https"), "'capmix[http]'"),
    **dict.fromkeys(("az", "abfs"), "adlfs"),
    "hf": "huggingface_hub",
}
READ_ONLY = ("http", "https")
TRIES = 4
FIRST_WAIT = 0.5  # seconds; each further wait is twice as long
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
# A FIFO that nobody writes to would be waited for; Windows has none, and files of text by default.
READ_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
HELD_FOR = 2.0  # seconds that another program may hold a file that is replaced, on Windows
FULL = (27, 28, 30, 36, 122)  # EFBIG, ENOSPC, EROFS, ENAMETOOLONG, EDQUOT: no wait makes room
OTHER_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("httpx", "HTTPError"),
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
    """The file system of a path or URL, and the path in it.

    Listings are not cached: other machines write there too. Raises UserError where the protocol is
    none of PROTOCOLS, its package is not installed, or it cannot be written to and `what` must.
    """
    if not location or "::" in location:
        raise UserError(f"{what} {location!r}: expected a path or a URL, without '::'")
    protocol = location.split("://", 1)[0] if "://" in location else "file"
    if protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UserError(f"{what} {location}: protocol {protocol!r} is not one of {known}")
    if protocol in READ_ONLY and what != "pool":
        raise UserError(f"{what} {location}: {protocol} can only be read from; name another place")
    if protocol in READ_ONLY and without_secrets(location) != location:
        raise UserError(
            f"{what} {without_secrets(location)}: the address holds a secret, which would be "
            "written down in the work directory; let the server ask for none, or fetch the files"
        )
    try:
        if protocol in S3:
            from capmix.storage.s3 import S3FileSystem

            return S3FileSystem(), S3FileSystem._strip_protocol(location)
        fs, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
    except ImportError as error:
        wanted = PACKAGES.get(protocol)
        hint = f"pip install {wanted}" if wanted else str(error)
        raise UserError(f"{what} {location}: {protocol}:// needs a package: {hint}") from error
    return fs, root


def is_within(place: str, folder: str) -> bool:
    """Whether a path or URL is `folder` or lies below it."""
    inner, outer = (_resolved(one).rstrip("/") + "/" for one in (place, folder))
    return inner.startswith(outer)


def _resolved(place: str) -> str:
    """A URL as it is; a path, also of file://, without links and `..`."""
    path = place.removeprefix("file://")
    return path if "://" in path else Path(path).resolve().as_posix()


def files_below(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """What the file system says of each file below `path`, at any depth; none where it is missing.

    Raises OSError, also where one folder cannot be listed.
    """
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    found: dict[str, dict[str, Any]]
    try:
        if {"file", "http", "https"} & protocols:
            found = _walked(fs, path)
        else:  # one listing of all that is below, whatever its folders
            found = again(lambda: fs.find(path, detail=True))
    except FileNotFoundError:
        return {}
    return found


def _walked(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """As fsspec's own walk, which leaves out without a word the folders that it cannot list."""
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
    """Hidden folders, and one that no user can read, at the top of many disks."""
    name = folder.rstrip("/").rpartition("/")[2]
    return name.startswith(".") or name == "lost+found"


def again(call: Callable[[], Result]) -> Result:
    """What `call` returns; tried again where the storage fails in a way that may pass.

    Raises OSError: the last one, or at once one that waiting does not fix.
    """
    return next(again_from(lambda: iter((call(),))))


def again_from(read: Callable[[], Iterable[Result]]) -> Iterator[Result]:
    """What `read` gives; read from its start again where the storage fails in a way that may
    pass, without what was given already. Raises OSError as `again` does."""
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
    """A folder, FIFO, device or socket lies where a file is expected."""


def open_regular(path: str) -> int:
    """The descriptor of a local file, to read. Raises NotAFileError for what is no regular file,
    without waiting for it, and OSError where it cannot be opened."""
    try:
        handle = os.open(path, READ_FLAGS)
    except PermissionError as error:
        if os.path.isdir(path):  # as Windows says it
            raise NotAFileError(errno.EISDIR, "not a regular file", path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotAFileError(errno.EISDIR, "not a regular file", path)
    return handle


def replace_file(path: str, name: str) -> None:
    """Give a local file the name of another one, which is gone then. On Windows that waits a
    little while another program, such as a scanner, has either open."""
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
    """Whether an error of the storage says that trying again is of no use."""
    return isinstance(error, FINAL) or getattr(error, "errno", None) in FULL


def storage_errors() -> tuple[type[Exception], ...]:
    """What file systems raise where the storage fails; not all of them raise OSError alone."""
    found: list[type[Exception]] = [OSError]
    for module, name in OTHER_ERRORS:
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def storage_message(error: BaseException) -> str:
    """One line for a storage error, with what to do next."""
    return f"storage error: {error}. Fix it and rerun the same command to resume"


def without_secrets(text: str) -> str:
    """A URL as it may be shown: without user, password and signature that may stand in it."""
    return SIGNED.sub(r"\1...", USER.sub(r"\1", text))
