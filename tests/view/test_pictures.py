"""Pictures for the browser."""

import threading
from collections.abc import Container, Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from samples import image_bytes

from capmix.models import images
from capmix.pool import Sample, Shard
from capmix.view.pictures import Pictures, browser_picture


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(
        images, "_to_rgb", lambda image: sizes.append(image.size) or image.convert("RGB")
    )
    data = image_bytes(1, (2400, 1600))
    made = browser_picture(data, 160)
    assert sizes == [(600, 400)]
    assert images.decode_image(made).size == (160, 107)


def test_thumbnails_in_the_making_do_not_hold_up_the_large_picture() -> None:
    is_asked, may_go_on = threading.Event(), threading.Event()

    def read(_: Shard, keys: Container[str]) -> Iterator[Sample]:
        if "b" in keys:  # the block of thumbnails
            is_asked.set()
            assert may_go_on.wait(10)
        yield Sample("a", "a", image_bytes(1), "jpg", None)

    pool: Any = SimpleNamespace(read=read)
    pictures, shard = Pictures(pool), Shard("0", "")
    thread = threading.Thread(
        target=pictures.thumbnail, args=(shard, pa.chunked_array([["a", "b"]]), 0)
    )
    thread.start()
    assert is_asked.wait(10)
    found: list[bytes] = []
    large = threading.Thread(target=lambda: found.append(pictures.large(shard, "a")))
    large.start()
    large.join(3)
    is_there = len(found) == 1
    may_go_on.set()
    thread.join(10)
    large.join(10)
    assert is_there
