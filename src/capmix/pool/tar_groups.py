"""Neighbouring members of a tar that belong together, as webdataset and open_clip group them."""

import zlib
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from capmix.pool.sample import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, MAX_TEXT_BYTES
from capmix.pool.tar_members import TarError, TarMembers

FIRST_IMAGE = ("jpg", "png", "jpeg", "webp")  # which counts where there are several, as open_clip


class BrokenTarError(TarError):
    """The tar breaks off after the member `after`; "" where not even one could be read."""

    def __init__(self, after: str, cause: Exception):
        super().__init__(f"breaks off after member {after} ({cause})" if after else str(cause))
        self.after = after


@dataclass
class TarGroup:
    """Members by suffix; `too_large` says which was left out for its size, if any.

    `dotted` holds the names of images whose key has a dot, by that key: they end up in the group
    of the key before the first dot, where no reader finds them.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    dotted: dict[str, str] = field(default_factory=dict)
    too_large: str = ""

    @property
    def image(self) -> bytes | None:
        return next((self.members[one] for one in FIRST_IMAGE if one in self.members), None)

    @property
    def is_dotted(self) -> bool:
        """Whether there is nothing but images whose key has a dot."""
        return bool(self.dotted) and not (self.members or self.too_large)

    @property
    def is_empty(self) -> bool:
        return not (self.members or self.dotted or self.too_large)


def tar_groups(
    stream: BinaryIO, wanted: Collection[str], keys: Container[str] | None = None
) -> Iterator[TarGroup]:
    """Groups of members with the same path up to the first dot of the file's name.

    Suffixes are lower-cased; the bytes of suffixes outside `wanted` and, with `keys`, of other
    keys are skipped. A suffix that comes again begins another group. Raises BrokenTarError
    after the last whole group of a tar that breaks off, OSError where the storage fails.
    """
    last = ""
    group = TarGroup("")
    try:
        tar = TarMembers(stream)
        for name, size in tar:
            last = name
            directory, slash, base = name.rpartition("/")
            stem, _, suffix = base.partition(".")
            key, suffix = directory + slash + stem, suffix.lower()
            if key != group.key or suffix in group.members:
                if not group.is_empty:
                    yield group
                group = TarGroup(key)
            if keys is None or key in keys:
                _take(group, tar, name, size, suffix, wanted)
    except (TarError, zlib.error, ValueError) as error:
        raise BrokenTarError(last, error) from error
    if not group.is_empty:
        yield group


def _take(
    group: TarGroup, tar: TarMembers, name: str, size: int, suffix: str, wanted: Collection[str]
) -> None:
    if suffix not in wanted:
        stem, _, last = name.rpartition(".")
        if "." in suffix and last.lower() in IMAGE_SUFFIXES:
            group.dotted[stem] = name
        return
    bound = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_TEXT_BYTES
    if size > bound:
        group.too_large = f"member {name}: {size} bytes, at most {bound} are read"
        return
    group.members[suffix] = tar.read()
