"""Effect of decoding JPEGs at reduced scale: the difference in a model's input, and the time saved.

    python benchmarks/decode.py [JPEG ...]

Each photo is decoded at full and at half scale. Photos are by default matplotlib's sample image
and, if installed, the two of scikit-learn; they are cropped to multiples of 16 pixels, because
capmix reduces an image only if the scale divides its sides. Both versions are resized as for CLIP
(bicubic, shorter side, center crop) to input sides for which the half scale is 1 to 3 times as
large as needed. Prints the difference of the two inputs in levels of 255 (the mean, and the share
of values that differ by more than 4), then the time to decode 12 megapixels for an input side of
224 pixels.
"""

import io
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image

from capmix.models.images import decode_image

RATIOS = (1.0, 1.25, 1.5, 2.0, 3.0)


def main() -> None:
    photos = [Path(name) for name in sys.argv[1:]] or _samples()
    print(f"{'half scale / input side':<26}{'mean levels':>12}{'over 4 levels':>15}")
    for ratio in RATIOS:
        found = [_difference(data, ratio) for data in map(_even, photos)]
        differences = np.concatenate([one.ravel() for one in found])
        print(f"{ratio:<26}{differences.mean():>12.2f}{(differences > 4).mean():>15.2%}")
    large = _encoded(Image.open(photos[0]).convert("RGB").resize((4000, 3000)))
    full, scaled = _milliseconds(large, None), _milliseconds(large, 224)
    print(
        f"12 megapixels: {full:.0f} ms full scale, {scaled:.0f} ms reduced, {full / scaled:.1f} x"
    )


def _samples() -> list[Path]:
    photos = [Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"]
    found = find_spec("sklearn")
    if found and found.origin:
        photos += sorted((Path(found.origin).parent / "datasets" / "images").glob("*.jpg"))
    return photos


def _difference(data: bytes, ratio: float) -> np.ndarray:
    full, half = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    width, height = full.size
    half.draft(None, (width // 2, height // 2))
    half.load()
    side = round(min(half.size) / ratio)
    return np.abs(_input(full.convert("RGB"), side) - _input(half.convert("RGB"), side))


def _input(image: Image.Image, side: int) -> np.ndarray:
    scale = side / min(image.size)
    width, height = (round(length * scale) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(resized.crop((left, top, left + side, top + side)), np.float32)


def _even(path: Path) -> bytes:
    image = Image.open(path).convert("RGB")
    return _encoded(image.crop((0, 0, image.width // 16 * 16, image.height // 16 * 16)))


def _encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def _milliseconds(data: bytes, side: int | None) -> float:
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        decode_image(data, input_side=side)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    main()
