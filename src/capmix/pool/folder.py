"""Read a folder of images with .txt (and .json) files of the same name beside them."""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

import fsspec

from capmix.pool.sample import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    SAFE_UID,
    BadSample,
    Sample,
    uid_from_path,
)
from capmix.pool.tar import raw_text
from capmix.storage.filesystem import again


def read_files(
    fs: fsspec.AbstractFileSystem, root: str, images: list[str], sidecars: set[str]
) -> Iterator[Sample | BadSample]:
    """Samples of the image files `images` (paths below `root`), in that order.

    The key is the path below the folder. Two images of one name (a.jpg, a.png) share their .txt.
    """
    seen: set[str] = set()
    for image in images:
        try:
            found = _read_one(fs, root, image, sidecars)
        except (OSError, ValueError) as error:
            found = BadSample(image, "unreadable_file", f"{root}/{image}: {error}")
        if isinstance(found, Sample):
            if found.uid in seen:
                found = BadSample(image, "duplicate_uid", f"uid {found.uid!r} is there before")
            else:
                seen.add(found.uid)
        yield found


def _read_one(
    fs: fsspec.AbstractFileSystem, root: str, image: str, sidecars: set[str]
) -> Sample | BadSample:
    if again(lambda: fs.size(f"{root}/{image}")) > MAX_IMAGE_BYTES:
        return BadSample(image, "too_many_bytes", f"{image}: at most {MAX_IMAGE_BYTES} are read")
    stem = image.rpartition(".")[0]
    text = _read_sidecar(fs, root, f"{stem}.txt", sidecars)
    try:
        metadata = json.loads(_read_sidecar(fs, root, f"{stem}.json", sidecars) or b"{}")
    except (ValueError, RecursionError) as error:
        return BadSample(image, "bad_json", f"{stem}.json: {error}")
    if not isinstance(metadata, dict):
        return BadSample(image, "bad_json", f"{stem}.json: expected an object")
    uid = metadata.get("uid") or uid_from_path(image)
    if not isinstance(uid, str) or not SAFE_UID.fullmatch(uid):
        return BadSample(image, "bad_uid", f"{stem}.json: uid {uid!r:.80}")
    data = again(lambda: fs.cat_file(f"{root}/{image}"))
    caption = raw_text(text, metadata)
    suffix = PurePosixPath(image).suffix.lstrip(".").lower()
    return Sample(image, uid, data, suffix, caption and caption.strip("\r\n"), metadata)


def _read_sidecar(
    fs: fsspec.AbstractFileSystem, root: str, name: str, sidecars: set[str]
) -> bytes | None:
    if name not in sidecars:
        return None
    if again(lambda: fs.size(f"{root}/{name}")) > MAX_TEXT_BYTES:
        raise ValueError(f"{name}: at most {MAX_TEXT_BYTES} bytes are read")
    data: bytes = again(lambda: fs.cat_file(f"{root}/{name}"))
    return data


def is_image(path: str) -> bool:
    return path.rpartition(".")[2].lower() in IMAGE_SUFFIXES
