"""Small pools for tests: real images, and tars in the forms that occur in practice."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Member = tuple[str, bytes]


def image_bytes(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    """Return a smooth random image, different for each seed."""
    grid = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def sample_members(
    key: str, seed: int, text: str | None = "a text", /, **fields: Any
) -> list[Member]:
    """Return the jpg, json and txt of one sample in img2dataset's format."""
    record = {"uid": f"{seed:032x}", "caption": text, **fields}
    members = [(f"{key}.jpg", image_bytes(seed)), (f"{key}.json", json.dumps(record).encode())]
    return members if text is None else [*members, (f"{key}.txt", text.encode())]


def tar_bytes(members: list[Member], form: int = tarfile.PAX_FORMAT, mtime: float = 0.5) -> bytes:
    """Return a tar; a fractional mtime in PAX format adds an extended header to each member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_pool(folder: Path, shards: int = 2, samples: int = 4) -> Path:
    """Write a WebDataset pool with keys from 000000000."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = []
        for row in range(samples):
            number = shard * 100 + row
            members += sample_members(f"{shard:05d}{row:04d}", number, f"picture {number}")
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    return folder


GOOD: list[Member] = sample_members("good", 9)
BAD: dict[str, list[Member]] = {
    "no_image": [("bad.json", b'{"uid": "x"}'), ("bad.txt", b"x")],
    "two_images": [*sample_members("bad", 1), ("bad.png", image_bytes(1, kind="PNG"))],
    "bad_json": [("bad.jpg", image_bytes(1)), ("bad.json", b"[1]")],
    "bad_uid": sample_members("bad", 1, uid="../../etc/passwd"),
    "no_json": [("bad.jpg", image_bytes(1)), ("bad.txt", b"x")],
    "duplicate_uid": sample_members("bad", 9),
    "duplicate_key": sample_members("good", 1),
    "dotted_key": [("ba.d.jpg", image_bytes(1)), ("ba.d.txt", b"x")],
    "too_many_bytes": [("bad.txt", b"x" * (2**20 + 1)), *sample_members("bad", 1)[:2]],
}
