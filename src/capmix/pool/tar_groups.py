"""Neighbouring members of a tar that belong together, as webdataset and open_clip group them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from capmix.pool.sample import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, MAX_TEXT_BYTES
from capmix.pool.tar_members import TarMembers

FIRST_IMAGE = ("jpg", "png", "jpeg", "webp")  # which counts where there are several, as open_clip


@dataclass
class TarGroup:
    """Members by suffix; `too_large` says which was left out for its size, if any."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    too_large: str = ""

    @property
    def image(self) -> bytes | None:
        return next((self.members[one] for one in FIRST_IMAGE if one in self.members), None)


def tar_groups(stream: BinaryIO, wanted: Collection[str]) -> Iterator[TarGroup]:
    """Groups of members with the same path up to the first dot of the file's name.

    Suffixes are lower-cased; of others than `wanted` the bytes are skipped. A suffix that comes
    again begins another group. Raises TarError, zlib.error, OSError or ValueError where the tar
    breaks off, after the last whole group.
    """
    tar = TarMembers(stream)
    group = TarGroup("")
    for name, size in tar:
        directory, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        key, suffix = directory + slash + stem, suffix.lower()
        if key != group.key or suffix in group.members:
            if group.members or group.too_large:
                yield group
            group = TarGroup(key)
        if suffix not in wanted:
            continue
        bound = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_TEXT_BYTES
        if size > bound:
            group.too_large = f"member {name}: {size} bytes, at most {bound} are read"
            continue
        group.members[suffix] = tar.read()
    if group.members or group.too_large:
        yield group
