"""Samples, samples that could not be read, and shards."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import xxhash

from capmix.pool.formats import FORMATS

IMAGE_SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)
TAR_IMAGES = ("jpg", "png", "jpeg", "webp")  # images that open_clip reads from tars, in its order
MAX_IMAGE_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 2**20
SAFE_UID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True)  # without slots, which exclude a cached property
class Sample:
    """One image of the pool with its raw text.

    `text` is None if the pool has no text for it. `metadata` is the sample's JSON object, or empty.
    `members` are the sample's files in a tar, unchanged, by suffix. `is_named_by_path` is set if
    the uid was derived from the path of the image file, and so changes when the file is renamed.
    """

    key: str
    uid: str
    image: bytes
    suffix: str
    text: str | None
    metadata: dict[str, Any] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict, repr=False)
    is_named_by_path: bool = False

    @cached_property
    def sha256(self) -> str:
        """The image's sha256 in hex digits, computed once for the index and the captions."""
        return hashlib.sha256(self.image).hexdigest()

    @property
    def draw_name(self) -> str:
        """The key of random draws about the image.

        It is the uid, or the first 32 hex digits of the image's sha256 if the uid depends on the
        name of the file.
        """
        return self.sha256[:32] if self.is_named_by_path else self.uid

    @property
    def xxh3(self) -> int:
        """64-bit xxh3 digest of the sample's files, in the order in which they were read."""
        files = self.members or self._files
        sizes = "".join([f"{name} {len(data)}\n" for name, data in files.items()])
        state = xxhash.xxh3_64(sizes.encode())
        for data in files.values():
            state.update(data)
        return int(state.intdigest())

    @property
    def _files(self) -> dict[str, bytes]:
        about = json.dumps(self.metadata, sort_keys=True).encode()
        return {self.suffix: self.image, "txt": (self.text or "").encode(), "json": about}


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that could not be read: `reason` is a code to count by, `detail` a message."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work. `name` is its path in the pool without suffix; parts have the same name.

    `fingerprint` changes when the shard's bytes change (size and modification time, or an etag).
    `bytes` is its size, or 0 if unknown.
    """

    name: str
    fingerprint: str
    bytes: int = 0


def uid_from_path(path: str) -> str:
    """Return the uid of a sample without one: 32 hex digits of the sha256 of its path in the pool.

    DataComp's uids have 32 digits too, so subsets can be written in DataComp's format.
    """
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]
