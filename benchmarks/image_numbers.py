"""CPU time of `capmix annotate --method image`: numbers per image, and groups of many hashes.

    python benchmarks/image_numbers.py [HASHES]

Prints the time per synthetic photo to decode it, and to decode it and compute its numbers. Then the
time to group random hashes (default: 12.8 million), a tenth of which are replaced by others with up
to 4 flipped bits, as well as equal hashes, consecutive numbers, and random numbers below 2^43.
"""

import io
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from capmix.annotate.hash_groups import hash_groups
from capmix.annotate.image_numbers import SIDE, image_numbers
from capmix.models.images import SPARE, decode_image

DISTANCE = 4
HOSTILE = 1_000_000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 12_800_000
    draw = np.random.default_rng(0)
    for size in ((512, 384), (1600, 1200)):
        photos = [_photo(size, draw) for _ in range(12)]
        decode = _least(photos, lambda data: decode_image(data, input_side=SIDE // SPARE).load())
        both = _least(photos, image_numbers)
        print(f"{size[0]} x {size[1]}: decode {decode:.2f} ms, with numbers {both:.2f} ms")
    _group("random", _random(count, draw))
    _group("equal", np.zeros(count, np.uint64))
    _group("consecutive", np.arange(HOSTILE, dtype=np.uint64))
    _group("below 2^43", draw.integers(0, 2**43, HOSTILE, np.uint64))


def _photo(size: tuple[int, int], draw: np.random.Generator) -> bytes:
    smooth = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8))
    pixels = np.asarray(smooth.resize(size, Image.Resampling.BICUBIC)).astype(int)
    pixels += draw.integers(-12, 13, pixels.shape)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def _least(photos: list[bytes], work: Callable[[bytes], object]) -> float:
    """Return milliseconds of CPU time per photo, the least of several rounds."""
    found = []
    for _ in range(7):
        started = time.process_time()
        for data in photos:
            work(data)
        found.append(1_000 * (time.process_time() - started) / len(photos))
    return min(found)


def _random(count: int, draw: np.random.Generator) -> np.ndarray:
    hashes = draw.integers(0, 2**64, count, np.uint64)
    planted = hashes[draw.integers(0, count, count // 10)]
    for _ in range(DISTANCE):
        planted ^= np.uint64(1) << draw.integers(0, 64, len(planted)).astype(np.uint64)
    hashes[draw.permutation(count)[: len(planted)]] = planted
    return hashes


def _group(name: str, hashes: np.ndarray) -> None:
    started = time.process_time()
    groups = len(np.unique(hash_groups(hashes, DISTANCE)))
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name}: {len(hashes):,} hashes, {groups:,} groups, {seconds:.1f} s, peak {peak:.1f} GB")


if __name__ == "__main__":
    main()
