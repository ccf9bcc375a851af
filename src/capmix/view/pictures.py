"""Thumbnails and larger WebP images of samples for the browser, read from the pool."""

import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import pyarrow as pa
from PIL import Image

from capmix.models.images import BadImageError, decode_image
from capmix.pool import Pool, Sample, Shard

THUMBNAIL, LARGE = SIDES = 160, 1280  # longer side in pixels
KEPT = 64 * 2**20  # bytes of cached pictures
BLOCK = 24  # neighbouring thumbnails created in one pass over a shard
READERS = 4  # shards read for images at a time
TYPE = "image/webp"


def browser_picture(data: bytes, side: int) -> bytes:
    """Return a WebP copy of at most `side` x `side` pixels. Raises BadImageError."""
    image = decode_image(data, input_side=side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=82)
    return out.getvalue()


@dataclass
class Pictures:
    """Pictures of a pool, with a cache of recently used ones."""

    pool: Pool
    _known: OrderedDict[tuple[str, str, int], bytes] = field(default_factory=OrderedDict)
    _size: int = 0
    _lock: Lock = field(default_factory=Lock)
    _locks: Mapping[int, Sequence[Lock]] = field(
        default_factory=lambda: {side: [Lock() for _ in range(READERS)] for side in SIDES}
    )

    def thumbnail(self, shard: Shard, keys: pa.ChunkedArray, row: int) -> bytes:
        """Return the thumbnail of a row; `keys` has the keys of all rows. Raises KeyError if the
        image does not exist or does not decode."""
        block = keys.slice(row - row % BLOCK, BLOCK).to_pylist()
        return self._read(shard, block[row % BLOCK], block, THUMBNAIL)

    def large(self, shard: Shard, key: str) -> bytes:
        """Return the large picture. Raises KeyError if the image does not exist or decode."""
        return self._read(shard, key, [key], LARGE)

    def _read(self, shard: Shard, key: str, keys: Sequence[str], side: int) -> bytes:
        # Locks are per size, so that a large picture does not wait for a block of thumbnails.
        with self._locks[side][hash(shard.name) % READERS]:
            found = self._kept(shard, key, side)
            if found is None:
                new = [one for one in keys if self._kept(shard, one, side) is None]
                made = self._made(shard, dict.fromkeys(new), side)
                self._keep(shard, made, side)
                found = made.get(key)
            if not found:
                raise KeyError(f"image of sample {key}")
            return found

    def _made(self, shard: Shard, keys: Mapping[str, None], side: int) -> dict[str, bytes]:
        """Create pictures by key; empty bytes for images that do not decode."""
        found: dict[str, bytes] = {}
        for sample in self.pool.read(shard, keys):
            if not isinstance(sample, Sample) or sample.key not in keys:
                continue
            try:
                found[sample.key] = browser_picture(sample.image, side)
            except BadImageError:
                found[sample.key] = b""
            if len(found) == len(keys):
                break
        return found

    def _kept(self, shard: Shard, key: str, side: int) -> bytes | None:
        with self._lock:
            name = shard.fingerprint + shard.name, key, side
            found = self._known.get(name)
            if found is not None:
                self._known.move_to_end(name)
            return found

    def _keep(self, shard: Shard, made: Mapping[str, bytes], side: int) -> None:
        with self._lock:
            for key, data in made.items():
                self._known[shard.fingerprint + shard.name, key, side] = data
                self._size += len(data)
            while self._size > KEPT and len(self._known) > 1:
                self._size -= len(self._known.popitem(last=False)[1])
