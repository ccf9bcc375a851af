"""What a pool is made of: samples, and the places where one should have been."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

import xxhash

from capmix.pool.formats import FORMATS

IMAGE_SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)
TAR_IMAGES = ("jpg", "png", "jpeg", "webp")  # of images in tars, as open_clip looks for them
MAX_IMAGE_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 2**20
SAFE_UID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its raw text, as it lies in the pool.

    `text` is None where the pool has none. `metadata` is the sample's json object, or empty,
    `members` the sample's files in a tar by suffix, byte for byte. `is_named_by_path` says that
    the uid is that of a file's path, which changes when the file is renamed.
    """

    key: str
    uid: str
    image: bytes
    suffix: str
    text: str | None
    metadata: dict[str, Any] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict, repr=False)
    is_named_by_path: bool = False

    @property
    def draw_name(self) -> str:
        """What random draws about the image are keyed by: its uid, or the first 32 hex digits of
        its sha256 where the uid would change with the file's name."""
        needs_digest = self.is_named_by_path
        return self.drawn_by(hashlib.sha256(self.image).hexdigest() if needs_digest else "")

    def drawn_by(self, sha256: str) -> str:
        """The `draw_name`, by the hex digits of the image's sha256."""
        return sha256[:32] if self.is_named_by_path else self.uid

    @property
    def xxh3(self) -> int:
        """64 bits (xxh3) of all that was read of the sample, in its order."""
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
    """A row that could not be read: `reason` is a word to count by, `detail` is for people."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work. `name` is its path inside the pool without suffix and names every part.

    `fingerprint` changes when the shard's bytes do (size and time of change, or an etag). `bytes`
    is how many there are, where that is known.
    """

    name: str
    fingerprint: str
    bytes: int = 0


def uid_from_path(path: str) -> str:
    """The uid of a sample that brings none: 32 hex digits of the sha256 of its path in the pool.

    32 digits, as DataComp's uids have, so that subsets can be written in DataComp's format.
    """
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]
