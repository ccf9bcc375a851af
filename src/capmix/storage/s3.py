"""S3 through obstore, as an fsspec file system; storage/filesystem.py opens it.

obstore wraps the Rust crate object_store. botocore resolves endpoints and credentials, so that the
environment, `~/.aws`, profiles and roles work as in the AWS CLI.
"""

import contextlib
import errno
import io
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import botocore.session
import obstore
from botocore import UNSIGNED
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from fsspec import AbstractFileSystem
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from capmix.errors import UserError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential

AWS = (".amazonaws.com", ".amazonaws.com.cn")
RETRIES = 4  # the default of botocore
NO_BYTES_FOR = "60s"
WINDOW = 1 << 24  # bytes per read request
PIECE, PIECES = 1 << 24, 8_000  # minimum bytes and maximum number of upload parts; S3 allows 10,000
SENT_AT_ONCE = 4
KEPT_FOR = timedelta(minutes=10)  # botocore renews credentials 15 minutes before they expire
STATUS = re.compile(r"status code: (\d{3})")
MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
NOT_THERE = "no such object or bucket"
BAD_KEY = "a key with an empty, '.' or '..' segment or a control character; rename the object"
NO_CREDENTIALS = (
    "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or "
    "FSSPEC_S3_ANON=true for a public bucket"
)


@dataclass
class _Threads:
    """Number of the process that runs obstore's threads; 0 before they are started.

    This is a module-level state and not one per file system: a forked child inherits it, but not
    the threads.
    """

    process: int = 0

    def claim(self) -> None:
        """Claim obstore for this process. Raises UserError if it would hang here after a fork."""
        if self.process not in (0, os.getpid()):
            raise UserError(
                "s3://: this process was forked from one that had used S3, and would hang. Start "
                "processes with `spawn` or `forkserver` (multiprocessing.get_context)"
            )
        self.process = os.getpid()


THREADS = _Threads()


@dataclass(frozen=True)
class Access:
    """Options for access to buckets, with the same names and meaning as in s3fs.

    They can be set through the configuration of fsspec (FSSPEC_S3_ENDPOINT_URL, FSSPEC_S3_ANON,
    ...).
    """

    anon: bool = False
    key: str | None = None
    secret: str | None = None
    token: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    requester_pays: bool = False
    client_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Access":
        """Create Access from fsspec options. Raises UserError for an unknown option."""
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise UserError(f"s3://: unknown fsspec option {unknown[0]!r}; expected one of {known}")
        switches = {"anon", "requester_pays"} & set(options)
        return cls(**{**options, **{name: _is_on(options[name]) for name in switches}})

    def store(self, bucket: str) -> S3Store:
        """Return the obstore store of a bucket.

        Raises PermissionError without credentials, and UserError or BotoCoreError for an invalid
        configuration.
        """
        try:
            return self._store(bucket)
        except (BaseError, ValueError) as error:
            raise UserError(
                f"s3://{bucket}: {_short(error)}; check AWS_ENDPOINT_URL and AWS_CA_BUNDLE"
            ) from error

    def _store(self, bucket: str) -> S3Store:
        session = botocore.session.Session(profile=self.profile)
        client = self.client(session, unsigned=True)
        url, region = self._place(bucket, session, client)
        attempts = (client.meta.config.retries or {}).get("total_max_attempts", RETRIES + 1)
        return S3Store(
            bucket,
            endpoint=url,
            virtual_hosted_style_request=True,  # the endpoint URL already includes the bucket
            region=region,
            skip_signature=self.anon,
            request_payer=self.requester_pays,
            credential_provider=None if self.anon else self._credentials(session),
            client_options=_connection(url, session),
            retry_config={"max_retries": attempts - 1},
        )

    def client(
        self, session: botocore.session.Session, region: str | None = None, unsigned: bool = False
    ) -> BaseClient:
        """Return a botocore client."""
        given: dict[str, Any] = {"endpoint_url": self.endpoint_url} | dict(self.client_kwargs)
        if region:
            given["region_name"] = region
        if unsigned or self.anon:
            given["config"] = Config(signature_version=UNSIGNED)
        else:
            given |= {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret}
            given |= {"aws_session_token": self.token}
        return session.create_client("s3", **given)

    def _place(
        self, bucket: str, session: botocore.session.Session, client: BaseClient
    ) -> tuple[str, str]:
        """Return the URL of a bucket and its region."""
        if (urlsplit(client.meta.endpoint_url).hostname or "").endswith(AWS):
            region = _region_of(bucket, self.client(session)) or client.meta.region_name
            return f"{self.client(session, region).meta.endpoint_url}/{bucket}", region
        # Only a generated URL shows whether the bucket is in the path or in the host name.
        url = client.generate_presigned_url("head_bucket", Params={"Bucket": bucket})
        return url.rstrip("/"), client.meta.region_name

    def _credentials(self, session: botocore.session.Session) -> "Credentials":
        if self.key and self.secret:
            session.set_credentials(self.key, self.secret, self.token)
        found = session.get_credentials()
        if found is None:
            raise PermissionError(errno.EACCES, NO_CREDENTIALS)
        return Credentials(found)


@dataclass(frozen=True)
class Credentials:
    """Credential provider of obstore."""

    found: Any

    def __call__(self) -> "S3Credential":
        frozen = self.found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + KEPT_FOR,
        }


def _is_on(value: object) -> bool:
    """Return a boolean option, which may be a string from the environment."""
    return str(value).lower() in ("1", "true", "yes", "on")


def _region_of(bucket: str, client: BaseClient) -> str | None:
    """Return the region of a bucket on AWS, which rejects requests to any other region."""
    try:
        return str(client.head_bucket(Bucket=bucket)["BucketRegion"])
    except ClientError as error:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region: str | None = headers.get("x-amz-bucket-region")
        return region
    except (BotoCoreError, KeyError):
        return None


def _connection(url: str, session: botocore.session.Session) -> "ClientConfig":
    options: ClientConfig = {
        "allow_http": url.startswith("http://"),
        "connect_timeout": NO_BYTES_FOR,
        "read_timeout": NO_BYTES_FOR,
        "timeout": "1h",  # per request, including its whole transfer
    }
    bundle = session.get_config_variable("ca_bundle")
    if bundle and url.startswith("https://"):
        try:
            options["root_certificate"] = Path(bundle).read_bytes()
        except OSError as error:  # would look like a missing object
            raise UserError(
                f"s3://: cannot read AWS_CA_BUNDLE {bundle}: {error.strerror}"
            ) from error
    return options


class S3FileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Read, write and list objects in S3 buckets; `options` are the fields of Access.

    Listings are not cached. Connections are opened at the first request, in the process that makes
    it. Methods raise FileNotFoundError, PermissionError, and OSError for transient errors.
    """

    protocol = ("s3", "s3a")

    def __init__(self, use_listings_cache: bool = False, **options: Any):
        super().__init__(use_listings_cache=False, **options)
        self._access = Access.of(options)
        self._stores: dict[str, S3Store] = {}
        self._lock = threading.Lock()

    def _at(self, path: str) -> tuple[S3Store, str, str]:
        """Return the store of a path's bucket, the bucket and the key.

        Raises UserError in a forked process whose parent has used S3.
        """
        bucket, _, key = self._strip_protocol(path).partition("/")
        THREADS.claim()
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = self._access.store(bucket)
            return self._stores[bucket], bucket, key

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        store, bucket, key = self._at(path)
        if key:
            with contextlib.suppress(FileNotFoundError), _errors(path):
                return _info(bucket, obstore.head(store, key))
        with _errors(path):
            below = next(iter(obstore.list(store, key, chunk_size=1)), None)
            if key and not below:
                raise FileNotFoundError(errno.ENOENT, "no such object", path)
        return _folder(bucket, key)

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        store, bucket, key = self._at(path)
        with _errors(path):
            listed = obstore.list_with_delimiter(store, key)
        found = [_info(bucket, one) for one in listed["objects"] if one["path"] != key]
        found += [_folder(bucket, name) for name in listed["common_prefixes"]]
        if not found:
            found = [self.info(path)]
        return found if detail else sorted(one["name"] for one in found)

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **_: Any,
    ) -> Any:
        """Return all objects below a path with one listing; for an object, the object itself."""
        if maxdepth is not None or withdirs:
            raise NotImplementedError("maxdepth and withdirs are not supported")
        store, bucket, key = self._at(path)
        with _errors(path):
            try:
                listed: list[Any] = [one for page in obstore.list(store, key) for one in page]
            except InvalidPathError:  # one invalid key fails the whole listing in obstore
                listed = list(self._listed_by_botocore(bucket, key))
        found = [_info(bucket, one) for one in _without_folders(listed, key)]
        if not found and key:
            with contextlib.suppress(FileNotFoundError), _errors(path):
                found = [_info(bucket, obstore.head(store, key))]
        names = {one["name"]: one for one in found}
        return names if detail else list(names)

    def _listed_by_botocore(self, bucket: str, key: str) -> Iterator[dict[str, Any]]:
        client = self._access.client(botocore.session.Session(profile=self._access.profile))
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=f"{key}/" if key else ""
        )
        for page in pages:
            for one in page.get("Contents", ()):
                yield {"path": one["Key"], "size": one["Size"], "e_tag": one["ETag"]}

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        if start is not None or end is not None:
            data: bytes = super().cat_file(path, start, end)
            return data
        store, _bucket, key = self._at(path)
        with _errors(path):
            return obstore.get(store, key).bytes().to_bytes()

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        """Upload a local file. The object appears complete or not at all."""
        store, _bucket, key = self._at(rpath)
        piece = max(PIECE, os.path.getsize(lpath) // PIECES)
        with _errors(rpath):
            obstore.put(
                store, key, Path(lpath), chunk_size=piece, max_concurrency=SENT_AT_ONCE
            )  # fmt: skip

    def rm_file(self, path: str) -> None:
        self.rm(path)

    def rm(self, path: str | Iterable[str], recursive: bool = False, **_: Any) -> None:
        """Remove objects; missing objects are ignored."""
        if recursive:
            raise NotImplementedError("recursive is not supported; list the objects")
        keys: dict[str, list[str]] = {}
        for one in [path] if isinstance(path, str) else path:
            _store, bucket, key = self._at(one)
            keys.setdefault(bucket, []).append(key)
        for bucket, of_bucket in keys.items():
            with _errors(bucket):
                obstore.delete(self._stores[bucket], of_bucket)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "S3File":
        if mode != "rb":
            raise NotImplementedError("writing is not supported; upload a file with put_file")
        return S3File(self, path)

    def read_range(self, path: str, start: int, end: int, e_tag: str) -> memoryview:
        """Return a range of bytes of an object. Raises OSError if its ETag is not `e_tag`."""
        store, _bucket, key = self._at(path)
        with _errors(path):
            options: obstore.GetOptions = {"range": (start, end), "if_match": e_tag}
            return memoryview(obstore.get(store, key, options=options).bytes())


class S3File(io.BufferedIOBase):
    """Object opened for reading in windows, all of the same version of the object.

    Each window is a separate request, so that a slow reader does not hold a connection open.
    """

    def __init__(self, fs: S3FileSystem, path: str):
        self._fs, self._path, self._about = fs, path, fs.info(path)
        if self._about["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, "not an object", path)
        self._at, self._start, self._window = 0, 0, memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._about["size"]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes. Raises OSError, also if the object was replaced after it was opened."""
        end: int = self._about["size"]
        stop = end if size is None or size < 0 else min(end, self._at + size)
        pieces = []
        while self._at < stop:
            first = self._at - self._start
            if not 0 <= first < len(self._window):
                self._fetch(min(end, max(stop, self._at + WINDOW)))
                first = 0
            pieces.append(self._window[first : first + stop - self._at])
            self._at += len(pieces[-1])
        return b"".join(pieces)

    def _fetch(self, stop: int) -> None:
        found = self._fs.read_range(self._path, self._at, stop, self._about["ETag"])
        if len(found) != stop - self._at:
            raise OSError(errno.EIO, "incomplete response from the storage", self._path)
        self._start, self._window = self._at, found


def _info(bucket: str, about: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{bucket}/{about['path']}"
    return {"name": name, "size": about["size"], "type": "file", "ETag": about["e_tag"]}


def _folder(bucket: str, key: str) -> dict[str, Any]:
    return {"name": f"{bucket}/{key}".rstrip("/"), "size": 0, "type": "directory"}


def _without_folders(listed: list[Any], key: str) -> Iterator[Any]:
    """Leave out the empty objects that some tools create for folders; their keys end with `/`."""
    ends: list[Any] = [{"path": ""}]
    for one, following in pairwise([*listed, *ends]):
        path = one["path"].rstrip("/")
        is_folder = not one["size"] and following["path"].startswith(f"{path}/")
        if path != key and path == one["path"] and not is_folder:
            yield one


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """Convert the errors of obstore to those of a local file system."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, NOT_THERE, path) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, f"access denied: {_short(error)}", path) from error
    except PreconditionError as error:
        raise OSError(errno.EBUSY, "replaced while it was being read", path) from error
    except (InvalidPathError, ValueError) as error:
        raise FileNotFoundError(errno.ENOENT, BAD_KEY, path) from error
    except BaseError as error:
        # Errors of listings do not have specific classes.
        status = STATUS.search(str(error))
        if status and status[1] == "404":
            raise FileNotFoundError(errno.ENOENT, NOT_THERE, path) from error
        if status and status[1] in ("401", "403"):
            raise PermissionError(errno.EACCES, f"access denied: {_short(error)}", path) from error
        raise OSError(errno.EIO, _short(error), path) from error


def _short(error: Exception) -> str:
    """Return obstore's error and the server's message in one line, without the full response."""
    text = str(error).partition("\n\nDebug source")[0]
    said = MESSAGE.search(text)
    text = " ".join(text.partition("<?xml")[0].partition("<Error>")[0].split())[:400].rstrip(": ")
    return f"{text}: {said[1][:200]}" if said else text
