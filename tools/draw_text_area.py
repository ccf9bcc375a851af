"""Draw docs/images/text-area.png: images with rendered text, their mask, and the masked image.

python tools/draw_text_area.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from capmix.models.images import decode_image
from capmix.models.text_detector import TextDetector
from capmix.models.text_mask import text_mask, without_text
from capmix.pool import EMBEDDED, Sample, open_pool

OUT = Path(__file__).parent.parent / "docs/images/text-area.png"
SIZE, GAP, HEAD, FOOT = (240, 180), 8, 22, 20
TEXTS = (("GRAND", "OPENING"), ("only today", "50% OFF"), ("Breaking news",))
TITLES = "image", "found text", "text filled"


def main() -> None:
    detector = TextDetector(640)
    width = 3 * SIZE[0] + 4 * GAP
    page = Image.new("RGB", (width, HEAD + len(TEXTS) * (SIZE[1] + FOOT)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for column, title in enumerate(TITLES):
        pen.text((GAP + column * (SIZE[0] + GAP), 4), title, font=font, fill="black")
    for row, (picture, texts) in enumerate(zip(pictures(), TEXTS, strict=True)):
        image, drawn = with_text(picture, texts)
        boxes = detector.find([detector.prepare(image)])[0]
        mask = text_mask(boxes, SIZE)
        top = HEAD + row * (SIZE[1] + FOOT)
        shown = image, Image.fromarray(mask), without_text(image, boxes)
        for column, one in enumerate(shown):
            page.paste(one.convert("RGB"), (GAP + column * (SIZE[0] + GAP), top))
        line = f"text_area {mask.mean():.3f} (drawn {drawn.mean():.3f}), text_boxes {len(boxes)}"
        pen.text((GAP, top + SIZE[1] + 2), line, font=font, fill="black")
    page.quantize(128).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


def pictures() -> list[Image.Image]:
    """Return three pictures of the embedded pool, on canvases of one size."""
    pool, found = open_pool(EMBEDDED), []
    samples = list(pool.read(pool.shards[1]))
    for number in (228, 468, 324):
        sample = samples[number]
        assert isinstance(sample, Sample)
        picture = decode_image(sample.image).resize((SIZE[1], SIZE[1]), Image.Resampling.LANCZOS)
        canvas = Image.new("RGB", SIZE, (214, 226, 235))
        canvas.paste(picture, ((SIZE[0] - SIZE[1]) // 2, 0))
        found.append(canvas)
    return found


def with_text(picture: Image.Image, texts: tuple[str, ...]) -> tuple[Image.Image, np.ndarray]:
    """Return the picture with texts, and the mask of the rectangles around their ink."""
    pen, mask = ImageDraw.Draw(picture), np.zeros(SIZE[::-1], bool)
    font = ImageFont.load_default(30)
    for row, text in enumerate(texts):
        place = 12 + 30 * row, 14 + 110 * row
        left, top, right, bottom = map(round, pen.textbbox(place, text, font=font))
        pen.rectangle((left - 6, top - 6, right + 6, bottom + 6), fill=(250, 240, 190))
        pen.text(place, text, font=font, fill=(160, 20, 30))
        mask[top:bottom, left:right] = True
    return picture, mask


if __name__ == "__main__":
    main()
