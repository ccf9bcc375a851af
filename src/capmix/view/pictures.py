"""Images of samples as a browser takes them: thumbnails and larger ones, read from the pool."""

import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import pyarrow as pa
from PIL import Image

from capmix.models.images import BadImageError, decode_image
from capmix.pool import Pool, Sample, Shard

THUMBNAIL, LARGE = SIDES = 160, 1280  # pixels of the longer side
KEPT = 64 * 2**20  # bytes of pictures in memory
BLOCK = 24  # neighbours whose thumbnails are made in the same pass over a shard
READERS = 4  # shards read for images at a time
TYPE = "image/webp"


def browser_picture(data: bytes, side: int) -> bytes:
    """A WebP copy, `side` pixels at most each way. Raises BadImageError."""
    image = decode_image(data, input_side=side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=82)
    return out.getvalue()


@dataclass
class Pictures:
    """Pictures of a pool, the ones used last in memory."""

    pool: Pool
    _known: OrderedDict[tuple[str, str, int], bytes] = field(default_factory=OrderedDict)
    _size: int = 0
    _lock: Lock = field(default_factory=Lock)
    _locks: Mapping[int, Sequence[Lock]] = field(
        default_factory=lambda: {side: [Lock() for _ in range(READERS)] for side in SIDES}
    )

    def thumbnail(self, shard: Shard, keys: pa.ChunkedArray, row: int) -> bytes:
        """Of the sample of a row; `keys` are those of all rows. Raises KeyError for none."""
        block = keys.slice(row - row % BLOCK, BLOCK).to_pylist()
        return self._read(shard, block[row % BLOCK], block, THUMBNAIL)

    def large(self, shard: Shard, key: str) -> bytes:
        """Raises KeyError where there is no such image, or none that decodes."""
        return self._read(shard, key, [key], LARGE)

    def _read(self, shard: Shard, key: str, keys: Sequence[str], side: int) -> bytes:
        # Nobody waits for a block of thumbnails to see the one picture that is looked at.
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
        """Empty bytes for what does not decode."""
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
