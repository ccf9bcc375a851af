"""Neighbouring members of a tar that belong together, as webdataset and open_clip group them."""

import zlib
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from capmix.pool.sample import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    TAR_IMAGES,
)
from capmix.pool.tar_members import NamesTooLongError, TarError, TarMembers

SHOWN = 200  # characters of a name in a message
OTHER_IMAGES = tuple(one for one in IMAGE_SUFFIXES if one not in TAR_IMAGES)


class BrokenTarError(TarError):
    """The tar breaks off after the member `after`; "" where not even one could be read.

    `is_too_long` where it goes on, with more names than are read of one tar.
    """

    def __init__(self, after: str, cause: Exception):
        self.after = after
        self.is_too_long = isinstance(cause, NamesTooLongError)
        what = "is read up to" if self.is_too_long else "breaks off after"
        super().__init__(f"{what} member {shown(after)} ({cause})" if after else str(cause))


@dataclass
class TarGroup:
    """Members by suffix; `too_large_by` says which were left out for their size.

    Images of formats that open_clip and webdataset do not read count where there is no other image.
    `suffixes` are those of all wanted members, also of what was left out or skipped. `dotted` holds
    the names of images whose key has a dot, by that key: they end up in the group of the key before
    the first dot, where no reader finds them.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    dotted: dict[str, str] = field(default_factory=dict)
    too_large_by: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        """Suffixes of the images, in their order."""
        return [suffix for suffix in self.members if suffix in IMAGE_SUFFIXES]

    def without_others(self) -> "TarGroup":
        """The group without its images of other formats, where it has one of TAR_IMAGES."""
        if self.suffixes.isdisjoint(TAR_IMAGES):
            return self
        for suffix in self.suffixes.intersection(OTHER_IMAGES):
            self.members.pop(suffix, None)
            self.too_large_by.pop(suffix, None)
        return self

    @property
    def image(self) -> bytes | None:
        """The one that counts where there are several, as for open_clip."""
        order = (*TAR_IMAGES, *OTHER_IMAGES)
        return next((self.members[one] for one in order if one in self.members), None)

    @property
    def too_large(self) -> str:
        """What was left out for its size; "" for nothing."""
        return next(iter(self.too_large_by.values()), "")

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

    The group before a break is whole where another key's member follows it. Where the break hides
    what follows, it is whole if all of its members are there to their last byte and it has as many
    images and every other wanted suffix that any group before it has. The first group of a tar has
    none before it, so that it is not.
    """
    bounds = {one: MAX_IMAGE_BYTES if one in IMAGE_SUFFIXES else MAX_TEXT_BYTES for one in wanted}
    last, begin = "", "."
    group, is_asked_for = TarGroup(""), keys is None or "" in keys
    shapes: set[frozenset[str]] = set()
    tar, fault = TarMembers(stream), None
    try:
        for last, size in tar:
            suffix = last[len(begin) :].lower()
            if not last.startswith(begin) or "/" in suffix or suffix in group.suffixes:
                if not group.is_empty:
                    yield group.without_others()
                shapes.add(frozenset(group.suffixes))
                key, suffix = _key_and_suffix(last)
                group, begin = TarGroup(key), f"{key}."
                is_asked_for = keys is None or key in keys
            if suffix not in bounds:
                if is_asked_for and "." in suffix:
                    _note_dotted(group, last)
                continue
            group.suffixes.add(suffix)
            if not is_asked_for:
                continue
            if size > bounds[suffix]:
                about = f"{size} bytes, at most {bounds[suffix]} are read"
                group.too_large_by[suffix] = f"member {shown(last)}: {about}"
            else:
                group.members[suffix] = tar.read()
    except (TarError, zlib.error, ValueError) as error:
        fault = error
    is_whole = fault is None or (tar.is_whole and _has_all(group.suffixes, shapes))
    if is_whole and not group.is_empty:
        yield group.without_others()
    if fault is not None:
        raise BrokenTarError(last, fault) from fault


def _key_and_suffix(name: str) -> tuple[str, str]:
    directory, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return directory + slash + stem, suffix.lower()


def _has_all(suffixes: Collection[str], before: Collection[frozenset[str]]) -> bool:
    """Whether a group has as many images as any before it, and every other suffix of some; false
    where there is none before it."""
    images, others = _images_and_others(suffixes)
    parts = [_images_and_others(one) for one in before]
    most = max((count for count, _ in parts), default=0)
    needed: set[str] = set().union(*(names for _, names in parts))
    return bool(most or needed) and images >= most and needed <= others


def _images_and_others(suffixes: Collection[str]) -> tuple[int, set[str]]:
    others = set(suffixes).difference(IMAGE_SUFFIXES)
    return len(suffixes) - len(others), others


def _note_dotted(group: TarGroup, name: str) -> None:
    stem, _, last = name.rpartition(".")
    if last.lower() in IMAGE_SUFFIXES:
        group.dotted[stem] = name


def shown(name: str) -> str:
    """A member's name in a message, the end of a long one."""
    return name if len(name) <= SHOWN else f"...{name[-SHOWN:]}"
