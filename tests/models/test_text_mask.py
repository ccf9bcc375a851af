"""Compare masks and fills with loops over pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capmix.models.text_mask import text_mask, without_text

SIZE = 23, 17


def rectangle(draw: np.random.Generator) -> np.ndarray:
    """Return a random rotated rectangle that may leave the image, float (4, 2)."""
    angle, sides = draw.uniform(0, np.pi), draw.uniform(0.5, 15, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides / 2
    return corners @ turn.T + draw.uniform(-3, 25, 2)


def covers(box: np.ndarray, x: float, y: float) -> bool:
    """Return whether a point is on the same side of all edges of a box."""
    sides = []
    for i in range(4):
        (x0, y0), (x1, y1) = box[i], box[(i + 1) % 4]
        sides.append((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0))
    return all(side > 0 for side in sides) or all(side < 0 for side in sides)


def plain_mask(boxes: list[np.ndarray]) -> np.ndarray:
    found = np.zeros(SIZE[::-1], bool)
    for y in range(SIZE[1]):
        for x in range(SIZE[0]):
            found[y, x] = any(covers(box, x + 0.5, y + 0.5) for box in boxes)
    return found


@given(st.integers(0, 2**32), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_a_mask_has_the_pixels_whose_centres_are_in_a_box(seed: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    boxes = [rectangle(draw) for _ in range(count)]
    assert np.array_equal(text_mask(np.reshape(boxes, (-1, 4, 2)), SIZE), plain_mask(boxes))


def test_boxes_on_whole_pixels_and_their_union() -> None:
    boxes = np.array([[[2, 1], [6, 1], [6, 4], [2, 4]], [[4, 2], [8, 2], [8, 5], [4, 5]]])
    mask = text_mask(boxes, SIZE)
    expected = np.zeros_like(mask)
    expected[1:4, 2:6] = expected[2:5, 4:8] = True
    assert np.array_equal(mask, expected)
    assert mask.sum() == 12 + 12 - 4
    reverse = text_mask(boxes[:, ::-1], SIZE)
    assert np.array_equal(mask, reverse)
    assert not text_mask(np.empty((0, 4, 2)), SIZE).any()
    assert not text_mask(boxes + 100, SIZE).any()
    assert text_mask(np.array([[[-9, -9], [99, -9], [99, 99], [-9, 99]]]), SIZE).all()


def test_a_box_is_filled_with_the_mean_of_the_uncovered_pixels_around_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
    boxes = np.array([[[4, 5], [12, 5], [12, 9], [4, 9]], [[13, 6], [20, 6], [20, 14], [13, 14]]])
    found = np.asarray(without_text(Image.fromarray(pixels), boxes))
    mask = text_mask(boxes, SIZE)
    assert np.array_equal(found[~mask], pixels[~mask])
    expected = pixels.copy()
    for (left, top, right, bottom), rim in (((4, 5, 12, 9), 1), ((13, 6, 20, 14), 2)):
        around = [
            pixels[y, x].astype(float)
            for y in range(top - rim, bottom + rim)
            for x in range(left - rim, right + rim)
            if not mask[y, x]
        ]
        expected[top:bottom, left:right] = np.round(np.mean(around, axis=0))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("whole", [True, False])
def test_a_box_without_uncovered_pixels_around_it_gets_the_mean_of_the_image(whole: bool) -> None:
    pixels = np.full((17, 23, 3), 10, np.uint8)
    pixels[:, 20:] = 200
    width = 23 if whole else 22
    box = np.array([[0, 0], [width, 0], [width, 17], [0, 17]])
    inner = np.array([[8, 8], [9, 8], [9, 9], [8, 9]])  # its rim is covered by the first box
    found = np.asarray(without_text(Image.fromarray(pixels), np.array([box, inner])))
    expected = round((20 * 10 + 3 * 200) / 23) if whole else 200
    assert (found[8, 8] == expected).all()
