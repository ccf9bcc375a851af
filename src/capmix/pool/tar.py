"""Read WebDataset tars as a stream: nothing but images, texts and json objects ever comes out.

Members are never written to disk, never unpickled and never decoded by name. A sample is the run
of neighbouring members that share the text before the first dot of their file name, as
webdataset and open_clip read it.
"""

from collections.abc import Container, Iterator
from typing import BinaryIO

from capmix.pool.sample import IMAGE_SUFFIXES, SAFE_UID, BadSample, Sample, uid_from_path
from capmix.pool.tar_groups import BrokenTarError, TarGroup, shown, tar_groups
from capmix.storage.json_text import loads

READ_SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json", "cls")


def read_tar(
    stream: BinaryIO, shard: str, keys: Container[str] | None = None
) -> Iterator[Sample | BadSample]:
    """Samples of one tar in the order they lie in it; what cannot be read comes as a BadSample.

    With `keys`, of these alone: the bytes of others are skipped. Memory holds one sample, and the
    keys and uids already seen. A tar that breaks off gives every whole sample before the break (see
    tar_groups), then one BadSample with reason `truncated_shard` (or `not_a_tar` when nothing could
    be read; `too_many_bytes` where its names hold over 32 MiB). Raises OSError where the storage
    fails.
    """
    reader = _Reader(shard)
    if keys is not None:
        reader.expects_json = False  # what the first sample has is not seen
    try:
        for group in tar_groups(stream, READ_SUFFIXES, keys):
            if group.dotted and not group.images:
                yield from (_dotted(stem, name) for stem, name in group.dotted.items())
            elif group.members or group.too_large:
                yield reader.finish(group)
    except BrokenTarError as error:
        yield _broken_tar(error)


def _broken_tar(error: BrokenTarError) -> BadSample:
    if not error.after:
        detail = f"{error}; expected a tar of images. Fetch the shard again or take it away."
        return BadSample("", "not_a_tar", detail)
    if error.is_too_long:
        return BadSample("", "too_many_bytes", f"{error}. Split the shard, or shorten its names.")
    return BadSample("", "truncated_shard", f"{error}. Fetch the shard again.")


class _Reader:
    """Turns groups of members into samples, and remembers what one tar has shown so far."""

    def __init__(self, shard: str):
        self.shard = shard
        self.keys: set[str] = set()
        self.uids: set[str] = set()
        self.expects_json: bool | None = None

    def finish(self, group: TarGroup) -> Sample | BadSample:
        """The sample of a group that has any member."""
        key = group.key
        if group.too_large:
            return BadSample(key, "too_many_bytes", group.too_large)
        if key in self.keys:
            detail = "the key stands in this tar more than once; the first sample was kept"
            return BadSample(key, "duplicate_key", detail)
        self.keys.add(key)
        images = group.images
        if len(images) != 1:
            found = ", ".join(sorted(group.members))
            reason = "two_images" if images else "no_image"
            expected = "/".join(IMAGE_SUFFIXES)
            return BadSample(key, reason, f"expected one {expected} member, found {found}")
        if self.expects_json is None:
            self.expects_json = "json" in group.members
        if self.expects_json and "json" not in group.members:
            detail = "no json member though the shard's first sample has one: its uid is unknown"
            return BadSample(key, "no_json", detail)
        return self._with_metadata(group, images[0])

    def _with_metadata(self, group: TarGroup, suffix: str) -> Sample | BadSample:
        try:
            metadata = loads(group.members.get("json", b"{}"))
        except (ValueError, RecursionError) as error:
            return BadSample(group.key, "bad_json", f"json member: {error}")
        if not isinstance(metadata, dict):
            detail = f"json member: expected an object, found {type(metadata).__name__}"
            return BadSample(group.key, "bad_json", detail)
        uid = metadata.get("uid") or uid_from_path(f"{self.shard}/{group.key}")
        if not isinstance(uid, str) or not SAFE_UID.fullmatch(uid):
            detail = f"uid {uid!r:.80}: expected 1 to 128 letters, digits, '-' or '_'"
            return BadSample(group.key, "bad_uid", detail)
        if uid in self.uids:
            detail = f"uid {uid} stands in this tar more than once; the first sample was kept"
            return BadSample(group.key, "duplicate_uid", detail)
        self.uids.add(uid)
        text = raw_text(group.members.get("txt"), metadata)
        image, members = group.members[suffix], group.members
        return Sample(group.key, uid, image, suffix, text, metadata, members)


def raw_text(member: bytes | None, metadata: dict[str, object]) -> str | None:
    """The txt member, else the json's `caption` (as img2dataset writes); bad bytes: U+FFFD."""
    if member is not None:
        return member.decode("utf-8", "replace")
    caption = metadata.get("caption")
    if not isinstance(caption, str):
        return None
    # A json string can hold lone surrogates, which no UTF-8 file can.
    return caption.encode("utf-8", "replace").decode("utf-8")


def _dotted(stem: str, name: str) -> BadSample:
    detail = (
        f"member {shown(name)}: the key has a dot; webdataset readers end a key at its first dot"
    )
    return BadSample(stem, "dotted_key", detail)
