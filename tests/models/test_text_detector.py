"""Run the real detector on rendered text, and compare its boxes with plain computations."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from capmix.errors import UserError
from capmix.models.images import decode_image
from capmix.models.text_detector import TextDetector, boxes_of, smallest_rectangle
from capmix.models.text_mask import text_mask
from capmix.pool import Sample, open_pool

pytest.importorskip("rapidocr")


def with_text(texts: list[tuple[int, int, int, str]]) -> tuple[Image.Image, np.ndarray]:
    """Return an image with (x, y, size, text) drawn, and the mask of Pillow's text boxes."""
    image = Image.new("RGB", (480, 320), (120, 160, 200))
    pen, mask = ImageDraw.Draw(image), np.zeros((320, 480), bool)
    for x, y, size, text in texts:
        font = ImageFont.load_default(size)
        left, top, right, bottom = map(round, pen.textbbox((x, y), text, font=font))
        pen.text((x, y), text, font=font, fill="black")
        mask[top:bottom, left:right] = True
    return image, mask


def found_mask(image: Image.Image, side: int = 640) -> tuple[int, np.ndarray]:
    detector = TextDetector(side)
    boxes = detector.find([detector.prepare(image)])[0]
    return len(boxes), text_mask(boxes, image.size)


def test_rendered_text_is_found_with_little_around_it() -> None:
    texts = [
        (40, 40, 36, "GRAND OPENING"),
        (60, 150, 24, "everything must go"),
        (250, 250, 30, "50% OFF"),
    ]
    image, drawn = with_text(texts)
    count, found = found_mask(image)
    assert count == 3
    assert (found & drawn).sum() > 0.97 * drawn.sum()
    # The boxes are larger than the ink on purpose.
    assert 1 < found.mean() / drawn.mean() < 2


def test_images_without_text_have_no_boxes() -> None:
    assert found_mask(Image.new("RGB", (480, 320), "white"))[0] == 0
    gradient = np.linspace(0, 255, 480 * 320).reshape(320, 480).astype(np.uint8)
    assert found_mask(Image.fromarray(gradient).convert("RGB"))[0] == 0


def test_pictures_without_text_have_few_boxes() -> None:
    pool = open_pool("embedded")
    samples = itertools.islice(pool.read(pool.shards[1]), 0, 480, 12)
    images = [decode_image(one.image) for one in samples if isinstance(one, Sample)]
    shares = [found_mask(image)[1].mean() for image in images]
    assert np.mean(shares) < 0.04  # clip art; some of it has letters
    assert np.mean(np.array(shares) == 0) > 0.8


def test_the_boxes_of_an_image_do_not_depend_on_its_batch() -> None:
    detector = TextDetector(640)
    images = [with_text([(20, 20 + 40 * i, 30, "one two three")])[0] for i in range(3)]
    prepared = [detector.prepare(image) for image in [*images, images[0].resize((200, 100))]]
    together = detector.find(prepared)
    for one, boxes in zip(prepared, together, strict=True):
        assert np.array_equal(detector.find([one])[0], boxes)


def test_images_are_reduced_but_not_enlarged_to_sides_of_multiples_of_32() -> None:
    detector = TextDetector(320)
    for size, expected in (
        ((640, 400), (192, 320)),
        ((100, 60), (64, 96)),
        ((4000, 3), (32, 320)),
        ((1, 1), (32, 32)),
    ):
        prepared = detector.prepare(Image.new("RGB", size))
        assert prepared.pixels.shape == (*expected, 3)
        assert prepared.size == size


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_rectangle_is_the_smallest_of_all_directions(seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 40, (12, 2))
    found = smallest_rectangle(points)
    areas = []
    for angle in np.linspace(0, np.pi / 2, 3000):
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        areas.append(np.ptp(points @ turn.T, axis=0).prod())
    assert found.sides.prod() <= min(areas) + 1e-6
    assert found.sides.prod() >= min(areas) * 0.98
    at = points @ found.axes.T
    assert (at >= found.low - 1e-6).all()
    assert (at <= found.low + found.sides + 1e-6).all()
    corners = found.corners()
    assert np.allclose(np.linalg.norm(corners[1] - corners[0]), found.sides[0])


def test_a_box_is_the_rectangle_around_a_region_moved_out_by_its_area() -> None:
    likelihood = np.zeros((64, 96), np.float32)
    likelihood[20:30, 10:50] = 0.9  # becomes 11 x 41 pixels, whose centres are 10 x 40 apart
    likelihood[40:44, 60:90] = 0.4  # over 0.3, but its mean is under 0.5
    likelihood[5:6, 5:90] = 0.9  # too low
    out = 10 * 40 * 1.6 / (2 * (10 + 40))
    (box,) = boxes_of(likelihood, (96, 64))
    assert sorted(map(tuple, box.tolist())) == sorted(
        (round(x), round(y)) for x in (10 - out, 50 + out) for y in (20 - out, 30 + out)
    )
    (scaled,) = boxes_of(likelihood, (960, 320))
    assert scaled[:, 0].max() == round((50 + out) * 10)
    assert scaled[:, 1].max() == round((30 + out) * 5)
    assert boxes_of(likelihood * 0, (96, 64)).shape == (0, 4, 2)


def test_masks_agree_with_those_of_rapidocr() -> None:
    reference = pytest.importorskip("rapidocr.ch_ppocr_det.utils")
    detector = TextDetector(640)
    post = reference.DBPostProcess(0.3, 0.5, 1000, 1.6, "fast", True)
    image, _ = with_text([(40, 40, 36, "GRAND OPENING"), (60, 150, 24, "everything must go")])
    turned = image.rotate(12, fillcolor=(120, 160, 200))
    for one in (image, turned):
        prepared = detector.prepare(one)
        likelihood = detector.likelihood(prepared)
        theirs, _ = post(likelihood[None, None], (one.height, one.width))
        ours = text_mask(boxes_of(likelihood, one.size), one.size)
        other = text_mask(np.array(theirs), one.size)
        assert (ours & other).sum() > 0.93 * (ours | other).sum()


def test_a_package_without_the_model_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capmix.models.text_detector.FILE", "models/other.onnx")
    with pytest.raises(UserError, match=r"rapidocr has no models/other.onnx; run pip install"):
        TextDetector(640)
