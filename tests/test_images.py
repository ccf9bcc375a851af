import io

import numpy as np
import pytest
from PIL import Image
from samples import image_bytes

from capmix.images import BadImageError, decode_image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 5), 0x8000, np.uint16))
    else:
        image = Image.new("RGB", (5, 4), (200, 10, 10)).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    decoded = decode_image(encoded(image, kind))
    assert (decoded.mode, decoded.size) == ("RGB", (5, 4))
    if mode == "I;16":
        assert decoded.getpixel((0, 0)) == (128, 128, 128)


def test_transparency_is_laid_on_white() -> None:
    data = encoded(Image.new("RGBA", (3, 3), (0, 0, 0, 0)), "PNG")
    assert decode_image(data).getpixel((1, 1)) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert decode_image(data).size == (4, 8)


def test_pixels_are_bounded_before_they_are_decoded() -> None:
    with pytest.raises(BadImageError) as caught:
        decode_image(image_bytes(size=(64, 64)), max_pixels=1000)
    assert caught.value.reason == "too_many_pixels"
    bomb = encoded(Image.new("1", (30000, 30000)), "PNG")
    with pytest.raises(BadImageError) as caught:
        decode_image(bomb)
    assert caught.value.reason == "too_many_pixels"


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"GIF89a\x01\x00\x01\x00"])
def test_other_bytes_are_named(data: bytes) -> None:
    with pytest.raises(BadImageError) as caught:
        decode_image(data)
    assert caught.value.reason == "not_an_image"


def test_a_truncated_jpeg_is_broken() -> None:
    data = image_bytes(size=(200, 200))
    with pytest.raises(BadImageError) as caught:
        decode_image(data[: len(data) // 2])
    assert caught.value.reason == "broken_image"
