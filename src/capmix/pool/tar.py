"""Read WebDataset tars as a stream of images, texts and JSON objects.

Members are never written to disk, unpickled or decoded according to their name. A sample is a run
of adjacent members whose file names agree up to the first dot, as in webdataset and open_clip.
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
    """Yield the samples of one tar in order; a sample that cannot be read yields a BadSample.

    With `keys`, yields only the samples with these keys and skips the bytes of the others. Memory
    holds one sample, and the keys and uids seen so far. A truncated tar yields every complete
    sample before the break (see tar_groups), then one BadSample with reason `truncated_shard`
    (`not_a_tar` if nothing could be read, `too_many_bytes` if its names exceed 32 MiB). Raises
    OSError if the storage fails.
    """
    reader = _Reader(shard)
    if keys is not None:
        reader.expects_json = False  # the first sample may be skipped, so its members are unknown
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
        detail = f"{error}; expected a tar of images. Download the shard again or remove it."
        return BadSample("", "not_a_tar", detail)
    if error.is_too_long:
        return BadSample("", "too_many_bytes", f"{error}. Split the shard or shorten its names.")
    return BadSample("", "truncated_shard", f"{error}. Download the shard again.")


class _Reader:
    """Converts groups of members to samples, and keeps the keys and uids seen in one tar."""

    def __init__(self, shard: str):
        self.shard = shard
        self.keys: set[str] = set()
        self.uids: set[str] = set()
        self.expects_json: bool | None = None

    def finish(self, group: TarGroup) -> Sample | BadSample:
        """Return the sample of a group with at least one member."""
        key = group.key
        if group.too_large:
            return BadSample(key, "too_many_bytes", group.too_large)
        if key in self.keys:
            detail = "the key occurs more than once in this tar; the first sample was kept"
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
            detail = "no json member, though the shard's first sample has one: the uid is unknown"
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
            detail = f"uid {uid} occurs more than once in this tar; the first sample was kept"
            return BadSample(group.key, "duplicate_uid", detail)
        self.uids.add(uid)
        text = raw_text(group.members.get("txt"), metadata)
        image, members = group.members[suffix], group.members
        return Sample(group.key, uid, image, suffix, text, metadata, members)


def raw_text(member: bytes | None, metadata: dict[str, object]) -> str | None:
    """Return the text of the txt member, else of the JSON's `caption` (as in img2dataset's output).

    Returns None if there is neither. Invalid UTF-8 is replaced with U+FFFD, lone surrogates
    with `?`.
    """
    if member is not None:
        return member.decode("utf-8", "replace")
    caption = metadata.get("caption")
    if not isinstance(caption, str):
        return None
    # JSON strings can hold lone surrogates, which UTF-8 cannot encode.
    return caption.encode("utf-8", "replace").decode("utf-8")


def _dotted(stem: str, name: str) -> BadSample:
    detail = (
        f"member {shown(name)}: the key has a dot; webdataset readers end a key at its first dot"
    )
    return BadSample(stem, "dotted_key", detail)
