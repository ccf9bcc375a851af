"""Text detection: the area of rendered text as measured, and the time per image by step.

python benchmarks/text_area.py [IMAGES]
"""

import itertools
import sys
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from capmix.models.images import decode_image
from capmix.models.text_detector import TextDetector, boxes_of
from capmix.models.text_mask import text_mask
from capmix.pool import EMBEDDED, Sample, open_pool
from capmix.score.masked import masked_png

WORDS = "SALE", "50% off", "free shipping", "Grand Opening", "breaking news", "call now"
SIZE = 512, 384
Drawn = tuple[Image.Image, np.ndarray, np.ndarray]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    pool = open_pool(EMBEDDED)
    samples = (one for shard in pool.shards for one in pool.read(shard))
    chosen = itertools.islice(samples, 0, count * 50, 50)
    pictures = [decode_image(one.image) for one in chosen if isinstance(one, Sample)]
    drawn = [rendered(one.resize(SIZE), i) for i, one in enumerate(pictures)]
    for side in (320, 480, 640):
        compare(drawn, TextDetector(side), side)
    print_times([image for image, *_ in drawn], TextDetector(640))


def rendered(image: Image.Image, seed: int) -> Drawn:
    """Return the image with texts, the mask of their ink's rectangles, and of their lines."""
    draw, ink = np.random.default_rng(seed), np.zeros(SIZE[::-1], bool)
    pen, lines = ImageDraw.Draw(image), np.zeros(SIZE[::-1], bool)
    for row in range(1 + seed % 3):
        size = int(draw.integers(20, 44))
        place = int(draw.integers(10, 150)), 20 + 120 * row
        font, text = ImageFont.load_default(size), str(draw.choice(WORDS))
        left, top, right, bottom = map(round, pen.textbbox(place, text, font=font))
        pen.rectangle((left - 8, top - 8, right + 8, bottom + 8), fill="white")
        pen.text(place, text, font=font, fill="black")
        ink[top:bottom, left:right] = True
        lines[top - 8 : bottom + 9, left - 8 : right + 9] = True
    return image, ink, lines


def compare(drawn: list[Drawn], detector: TextDetector, side: int) -> None:
    covered, ratio, error = [], [], []
    for image, ink, lines in drawn:
        found = text_mask(detector.find([detector.prepare(image)])[0], SIZE)
        covered.append((found & ink).sum() / ink.sum())
        ratio.append((found & lines).sum() / ink.sum())
        error.append(found.mean() - ink.mean())
    print(
        f"side {side}: {np.mean(covered):.1%} of the ink's rectangles covered (least "
        f"{min(covered):.1%}); boxes on text {np.median(ratio):.2f} x its rectangles; measured - "
        f"drawn share: median {np.median(error):+.3f}, 90% within {np.quantile(error, 0.05):+.3f} "
        f"to {np.quantile(error, 0.95):+.3f}"
    )


def print_times(images: list[Image.Image], detector: TextDetector) -> None:
    detector.find([detector.prepare(images[0])])  # compiles the model
    spent = dict.fromkeys(("prepare", "network", "boxes", "area", "mask and PNG"), 0.0)
    for image in images:
        marks = [time.process_time()]
        prepared = detector.prepare(image)
        marks.append(time.process_time())
        likelihood = detector.likelihood(prepared)
        marks.append(time.process_time())
        boxes = boxes_of(likelihood, image.size)
        marks.append(time.process_time())
        text_mask(boxes, image.size)
        marks.append(time.process_time())
        for name, start, end in zip(spent, marks, marks[1:], strict=False):
            spent[name] += end - start
    data = [_jpeg(image) for image in images]
    start = time.process_time()
    for image, one in zip(images, data, strict=True):
        masked_png(one, boxes_of(detector.likelihood(detector.prepare(image)), image.size))
    spent["mask and PNG"] = time.process_time() - start - spent["network"] - spent["boxes"]
    for name, seconds in spent.items():
        print(f"{name}: {1000 * seconds / len(images):.1f} ms of CPU time per image")


def _jpeg(image: Image.Image) -> bytes:
    import io

    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


if __name__ == "__main__":
    main()
