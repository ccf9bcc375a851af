"""Group the adjacent members of a tar into samples, as webdataset and open_clip do."""

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

SHOWN = 200  # maximum length of a member's name in messages
OTHER_IMAGES = tuple(one for one in IMAGE_SUFFIXES if one not in TAR_IMAGES)


class BrokenTarError(TarError):
    """The tar is truncated or corrupt after the member `after` ("" if no member could be read).

    `is_too_long` is set if the tar continues, but its names exceed the limit.
    """

    def __init__(self, after: str, cause: Exception):
        self.after = after
        self.is_too_long = isinstance(cause, NamesTooLongError)
        what = "reading stopped at" if self.is_too_long else "broken after"
        super().__init__(f"{what} member {shown(after)} ({cause})" if after else str(cause))


@dataclass
class TarGroup:
    """The members of one sample, by suffix.

    `suffixes` are the suffixes of all wanted members, including omitted and skipped ones.
    `too_large_by` has a message for each member that was left out because of its size. `dotted`
    maps keys that contain a dot to the names of their images: webdataset readers end a key at its
    first dot, and so miss these images. Images in formats that open_clip and webdataset do not
    read count only if the group has no other image.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    dotted: dict[str, str] = field(default_factory=dict)
    too_large_by: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        """Suffixes of the images, in the order of the members."""
        return [suffix for suffix in self.members if suffix in IMAGE_SUFFIXES]

    def without_others(self) -> "TarGroup":
        """Return the group; if it has an image of TAR_IMAGES, without images of other formats."""
        if self.suffixes.isdisjoint(TAR_IMAGES):
            return self
        for suffix in self.suffixes.intersection(OTHER_IMAGES):
            self.members.pop(suffix, None)
            self.too_large_by.pop(suffix, None)
        return self

    @property
    def image(self) -> bytes | None:
        """The image that open_clip would use: the first by suffix, in the order of TAR_IMAGES."""
        order = (*TAR_IMAGES, *OTHER_IMAGES)
        return next((self.members[one] for one in order if one in self.members), None)

    @property
    def too_large(self) -> str:
        """The message for the first member that was left out because of its size; "" if none."""
        return next(iter(self.too_large_by.values()), "")

    @property
    def is_dotted(self) -> bool:
        """Whether the group holds only images whose keys contain a dot."""
        return bool(self.dotted) and not (self.members or self.too_large)

    @property
    def is_empty(self) -> bool:
        return not (self.members or self.dotted or self.too_large)


def tar_groups(
    stream: BinaryIO, wanted: Collection[str], keys: Container[str] | None = None
) -> Iterator[TarGroup]:
    """Yield groups of adjacent members with the same path up to the first dot of the file name.

    Suffixes are lower-cased. Members with suffixes outside `wanted` are skipped; with `keys`, so
    are members with other keys. A repeated suffix begins another group. Raises BrokenTarError
    after the last complete group of a truncated tar, and OSError if the storage fails.

    A group is known to be complete when a member with another key follows it. For the last group
    before a break, that is unknown: it counts as complete if all of its members are complete, and
    if it has as many images as any earlier group and every other wanted suffix that an earlier
    group has. If it is the tar's first group, it counts as incomplete.
    """
    bounds = {one: MAX_IMAGE_BYTES if one in IMAGE_SUFFIXES else MAX_TEXT_BYTES for one in wanted}
    last, begin = "", "."
    group, is_requested = TarGroup(""), keys is None or "" in keys
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
                is_requested = keys is None or key in keys
            if suffix not in bounds:
                if is_requested and "." in suffix:
                    _note_dotted(group, last)
                continue
            group.suffixes.add(suffix)
            if not is_requested:
                continue
            if size > bounds[suffix]:
                about = f"{size} bytes; the limit is {bounds[suffix]}"
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
    """Whether a group has as many images as any earlier group, and all of their other suffixes.

    False if there is no earlier group.
    """
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
    """Shorten a member's name for a message to its last characters."""
    return name if len(name) <= SHOWN else f"...{name[-SHOWN:]}"
