"""Compare with Pillow, which reads all headers that jpeg_size does not handle."""

import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from capmix.models.images import BadImageError, image_size, read_header
from capmix.models.jpeg import jpeg_size


def encoded(mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, "JPEG", **options)
    return out.getvalue()


PLAIN = [
    encoded(),
    encoded("L", (1, 9000)),
    encoded("CMYK"),
    encoded(progressive=True, dpi=(72, 72)),
    encoded(comment=b"a comment", quality=100, subsampling=0),
]
exif = Image.Exif()
exif[0x0112] = 6
OTHERS = [
    encoded(exif=exif),
    encoded(icc_profile=b"x" * 200),
    encoded(qtables=[[300] * 64]),
    encoded()[:2] + b"\xff" + encoded()[2:],
]
SEGMENTS = [
    b"\xff\xe0\0\2", b"\xff\xe0\0\7JFIF\0", b"\xff\xe0\0\x10" + b"JFIF\0" + bytes(9),
    b"\xff\xee\0\7Adobe", b"\xff\xee\0\x0eAdobe" + bytes(7), b"\xff\xfe\0\1", b"\xff\xfe\0\2",
    b"\xff\xdb\0\2", b"\xff\xdb\0\x05\0\0\0", b"\xff\xdb\0\x43\x10" + bytes(64),
    b"\xff\xc0\0\x0b\x08\0\5\0\6\1\1\x11\0", b"\xff\xc0\0\x0b\x0c\0\5\0\6\1\1\x11\0",
    b"\xff\xc0\0\x0b\x08\0\0\0\6\1\1\x11\0", b"\xff\xc2\0\x0b\x08\xff\xff\xff\xff\1\1\x11\0",
    b"\xff\xc3\0\x0b\x08\0\5\0\6\1\1\x11\0", b"\xff\xc0\0\x08\x08\0\5\0\6\1",
    b"\xff\xda\0\2", b"\xff\xd9", b"\xff\xd0", b"\0", b"\xff", b"\xff\xc8", b"\xff\x02",
]  # fmt: skip


def check(data: bytes) -> None:
    size = jpeg_size(data)
    if size is not None:
        assert read_header(data, max_pixels=10**9)[1:] == size


@pytest.mark.parametrize("number", range(len(PLAIN)))
def test_plain_jpegs_need_no_pillow(number: int) -> None:
    assert jpeg_size(PLAIN[number]) is not None
    check(PLAIN[number])


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_unusual_headers_are_left_to_pillow(number: int) -> None:
    assert jpeg_size(OTHERS[number]) is None
    assert image_size(OTHERS[number]) == (40, 30)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(PLAIN + OTHERS),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4),
    st.lists(st.tuples(st.sampled_from(SEGMENTS), st.booleans()), max_size=4),
    st.integers(0, 700) | st.none(),
)
@example(PLAIN[0], [], [(SEGMENTS[-7], True)], None)
def test_any_returned_size_equals_pillows(
    data: bytes,
    changes: list[tuple[int, int]],
    inserted: list[tuple[bytes, bool]],
    cut: int | None,
) -> None:
    for segment, is_first in inserted:
        at = 2 if is_first else data.index(b"\xff\xda")
        data = data[:at] + segment + data[at:]
    changed = bytearray(data)
    for at, byte in changes:
        changed[at % len(changed)] = byte
    check(bytes(changed[:cut]))


def test_malicious_headers_are_abandoned_early() -> None:
    assert jpeg_size(b"\xff\xd8" + b"\xff\xfe\0\2" * 10**6) is None
    assert jpeg_size(b"\xff\xd8" + SEGMENTS[13] + b"\xff\xda\0\2") is None
    with pytest.raises(BadImageError):
        image_size(b"\xff\xd8" + SEGMENTS[13] + b"\xff\xda\0\2")


def test_a_comment_that_contains_exif_is_not_an_exif_segment() -> None:
    comment = b"\xff\xfe\x03\x86" + b"Exif\0\0" * 150
    data = encoded()[:2] + comment + encoded(exif=exif)[2:]
    assert image_size(data) == (40, 30)
