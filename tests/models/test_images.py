import io
import struct

import numpy as np
import pytest
from PIL import Image
from samples import image_bytes

from capmix.models.images import (
    MAX_SCANNED,
    BadImageError,
    decode_as_stored,
    decode_image,
    read_header,
)
from capmix.pool.formats import FORMATS, ImageFormat

BICUBIC = Image.Resampling.BICUBIC


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


def test_transparent_images_are_put_on_white() -> None:
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


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"GIF89a\x01\x00\x01\x00", b"\xff\xd8"])
def test_other_bytes_are_named(data: bytes) -> None:
    with pytest.raises(BadImageError) as caught:
        decode_image(data)
    assert caught.value.reason == "not_an_image"


@pytest.mark.parametrize("kind", [one for one in FORMATS if one.starts])
def test_a_truncated_header_is_not_an_image(kind: ImageFormat) -> None:
    data = kind.starts[0] + bytes(30)
    message = f"^{len(data)} bytes that start like {kind.name}: "
    with pytest.raises(BadImageError, match=message) as e:
        decode_image(data)
    assert e.value.reason == "not_an_image"


def test_a_truncated_jpeg_is_broken() -> None:
    data = image_bytes(size=(200, 200))
    with pytest.raises(BadImageError) as caught:
        decode_image(data[: len(data) // 2])
    assert caught.value.reason == "broken_image"


def test_a_large_jpeg_is_decoded_at_a_scale_within_the_stated_tolerance() -> None:
    grid = np.random.default_rng(0).integers(0, 255, (15, 20, 3), np.uint8)
    photo = Image.fromarray(grid).resize((640, 480), Image.Resampling.BICUBIC)
    data = encoded(photo, "JPEG", quality=90)
    full, scaled = decode_image(data), decode_image(data, input_side=100)
    assert (full.size, scaled.size) == ((640, 480), (320, 240))
    inputs = [np.asarray(one.resize((133, 100), BICUBIC), float) for one in (full, scaled)]
    assert np.abs(inputs[0] - inputs[1]).mean() < 1


@pytest.mark.parametrize(
    ("kind", "size", "side", "expected"),
    [
        ("JPEG", (640, 480), 121, (640, 480)),  # half the size is less than twice the side
        ("JPEG", (641, 480), 50, (641, 480)),  # half a pixel would shift the image
        ("JPEG", (644, 484), 50, (161, 121)),
        ("JPEG", (1600, 800), 50, (200, 100)),
        ("PNG", (640, 480), 50, (640, 480)),
    ],
)
def test_the_scale_keeps_twice_the_side_and_whole_pixels(
    kind: str, size: tuple[int, int], side: int, expected: tuple[int, int]
) -> None:
    data = encoded(Image.new("RGB", size), kind)
    assert decode_image(data, input_side=side).size == expected


def test_a_scaled_jpeg_keeps_its_orientation_and_colours() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (800, 400), (250, 0, 0)), "JPEG", exif=exif)
    assert decode_image(data, input_side=50).size == (100, 200)
    cmyk = encoded(Image.new("CMYK", (800, 400), (0, 255, 255, 0)), "JPEG")
    decoded = decode_image(cmyk, input_side=50)
    assert decoded.size == (200, 100)
    assert decoded.getpixel((9, 9))[0] > 200


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(data).getpixel((2, 2)) == (255, 0, 0)
    for kind in ("GIF", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode_image(data).getpixel((2, 2)) == (255, 0, 0)


def test_a_palette_with_transparency_is_put_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    decoded = decode_image(encoded(image, "PNG", transparency=0))
    assert decoded.getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16", "CMYK"])
def test_as_stored_means_as_webdataset_decodes(mode: str) -> None:
    """Compare with `pilrgb`, which open_clip's trainer and CLIP_benchmark use."""
    from webdataset.autodecode import imagehandler

    noise = np.random.default_rng(0).integers(0, 255, (6, 9, 4), np.uint8)
    image = Image.fromarray(noise, "RGBA")
    image = Image.new("I;16", (9, 6), 40_000) if mode == "I;16" else image.convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    exif = Image.Exif()
    exif[0x0112] = 6  # a rotation by 90 degrees, which must be ignored
    data = encoded(image, kind, exif=exif)
    theirs = imagehandler("pilrgb")("x.png" if kind == "PNG" else "x.jpg", data)
    assert np.array_equal(np.asarray(decode_as_stored(data)), np.asarray(theirs))


def test_a_header_is_read_without_the_pixels() -> None:
    data = image_bytes(size=(200, 100))
    assert read_header(data[: len(data) // 2]) == ("JPEG", 200, 100)
    assert read_header(image_bytes(size=(9, 8), kind="PNG")[:60]) == ("PNG", 9, 8)
    several = [Image.new("RGB", (6, 5)), Image.new("RGB", (6, 5))]
    data = encoded(several[0], "MPO", save_all=True, append_images=several[1:])
    assert read_header(data) == ("JPEG", 6, 5)


def test_headers_have_the_same_limits_as_decoding() -> None:
    with pytest.raises(BadImageError, match="exceeds the limit"):
        read_header(image_bytes(size=(64, 64)), max_pixels=1000)
    with pytest.raises(BadImageError, match="not a supported image format"):
        read_header(b"<html>")


def tiff_with(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """Write a TIFF of 16 x 16 pixels with an extra tag, whose value is in the tag itself."""
    data = bytearray(encoded(Image.new("RGB", (16, 16), "red"), "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    number = struct.unpack_from("<H", data, start)[0]
    tags = [bytes(data[start + 2 + 12 * i : start + 14 + 12 * i]) for i in range(number)]
    tags.append(struct.pack("<HHI4s", tag, kind, count, value))
    tags.sort(key=lambda one: struct.unpack_from("<H", one)[0])
    struct.pack_into("<I", data, 4, len(data))
    return bytes(data) + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


@pytest.mark.parametrize(
    "value",
    [(2, 3, b"ab\0"), (3, 1, bytes(4)), (11, 1, struct.pack("<f", float("nan"))), (7, 4, b"abcd")],
    ids=["text", "0", "not a number", "bytes"],
)
@pytest.mark.parametrize("tag", [322, 323])
def test_a_tiff_with_an_odd_tile_is_broken(tag: int, value: tuple[int, int, bytes]) -> None:
    data = tiff_with(tag, *value)
    with pytest.raises(BadImageError, match=r"TIFF 16 x 16: the side of a tile is .*; expected"):
        read_header(data)
    with pytest.raises(BadImageError) as caught:
        decode_image(data)
    assert caught.value.reason == "broken_image"


def test_pixels_of_a_tiff_are_not_mistaken_for_scans() -> None:
    side = 1600
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    pixels[:, :800] = np.resize(np.frombuffer(b"\xff\xda\0", np.uint8), (side, 800, 3))
    data = encoded(Image.fromarray(pixels), "TIFF")
    assert data.count(b"\xff\xda") * side * side > MAX_SCANNED
    assert decode_image(data).size == (side, side)


def test_scans_of_a_jpeg_in_a_tiff_are_bounded() -> None:
    side = 1600
    scan = b"\xff\xda\0\x08\x01\1\0\0\x3f\0"
    data = encoded(Image.new("RGB", (side, side)), "TIFF", compression="jpeg") + scan * 2000
    with pytest.raises(BadImageError, match="1600 x 1600 pixels in 2[0-9]00 scans"):
        decode_image(data)
