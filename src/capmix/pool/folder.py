"""Read a folder of images and their sidecars: .txt and .json files with the same stem."""

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from capmix.pool.local import FileTooLargeError
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
from capmix.storage.json_text import loads

ReadFile = Callable[[str, int], bytes]  # arguments: path relative to the folder, maximum size


def read_files(
    read: ReadFile, root: str, images: list[str], sidecars: set[str]
) -> Iterator[Sample | BadSample]:
    """Yield a sample for each file in `images` (paths relative to `root`), in that order.

    The key is the relative path. Images with the same stem (a.jpg, a.png) share their sidecars.
    """
    seen: set[str] = set()
    for image in images:
        try:
            found = _read_one(read, image, sidecars)
        except FileTooLargeError as error:
            found = BadSample(image, "too_many_bytes", str(error))
        except (OSError, ValueError) as error:
            found = BadSample(image, "unreadable_file", f"{root}/{image}: {error}")
        if isinstance(found, Sample):
            if found.uid in seen:
                found = BadSample(image, "duplicate_uid", f"uid {found.uid!r} was already used")
            else:
                seen.add(found.uid)
        yield found


def _read_one(read: ReadFile, image: str, sidecars: set[str]) -> Sample | BadSample:
    data = read(image, MAX_IMAGE_BYTES)
    stem = image.rpartition(".")[0]
    names = f"{stem}.txt", f"{stem}.json"
    text, about = (read(one, MAX_TEXT_BYTES) if one in sidecars else None for one in names)
    try:
        metadata = loads(about or b"{}")
    except (ValueError, RecursionError) as error:
        return BadSample(image, "bad_json", f"{stem}.json: {error}")
    if not isinstance(metadata, dict):
        return BadSample(image, "bad_json", f"{stem}.json: expected an object")
    by_path = uid_from_path(image)
    uid = metadata.get("uid") or by_path
    if not isinstance(uid, str) or not SAFE_UID.fullmatch(uid):
        return BadSample(image, "bad_uid", f"{stem}.json: uid {uid!r:.80}")
    caption = raw_text(text, metadata)
    suffix = PurePosixPath(image).suffix.lstrip(".").lower()
    caption = caption and caption.strip("\r\n")
    return Sample(image, uid, data, suffix, caption, metadata, is_named_by_path=uid == by_path)


def is_image(path: str) -> bool:
    return path.rpartition(".")[2].lower() in IMAGE_SUFFIXES
