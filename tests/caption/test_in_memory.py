"""Settings of caption_images. (tests/test_workspace.py captions real images.)"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import image_bytes

from capmix.caption.in_memory import caption_images
from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError

SEEN = """
from capmix.caption.captioner import Caption


class Seen:
    packages, device = (), "cpu"
    batch_size, workers = 4, 1

    def __init__(self, settings, source):
        self.settings, self.given = {}, settings

    def prepare(self, sample):
        return sample.key

    def caption(self, prepared, uids, source):
        text = f"{self.given.seed} {self.given.prompt} {self.given.top_k}"
        return [[Caption(text)] * self.given.captions_per_image for _ in prepared]
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "seen_settings.py").write_text(SEEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "seen_settings:Seen"
    sys.modules.pop("seen_settings", None)


def test_options_change_the_settings_that_are_given(model: str) -> None:
    settings = CaptionSettings(model=model, seed=3, prompt="a photo")
    images = [image_bytes(1), image_bytes(2)]
    assert caption_images(images, settings) == ["3 a photo 50"] * 2
    assert caption_images(images, settings, seed=4, top_k=7) == ["4 a photo 7"] * 2
    assert caption_images(images, settings, captions_per_image=2) == [["3 a photo 50"] * 2] * 2
    assert caption_images(images, settings, prompt=None) == ["3 None 50"] * 2
    assert caption_images(images, model=model, seed=5) == ["5 None 50"] * 2


def test_an_option_that_is_unknown_or_out_of_range_is_one_line(model: str) -> None:
    for settings in (None, CaptionSettings(model=model)):
        with pytest.raises(UserError, match="caption_images: unknown option 'typo'"):
            caption_images([], settings, captions_per_image=4, typo=3)
        with pytest.raises(UserError, match="caption_images: --top-k: expected a number of at"):
            caption_images([], settings, top_k=0)


def test_a_language_is_refused(model: str) -> None:
    expected = "caption_images: language: only sets flags"
    with pytest.raises(UserError, match=expected):
        caption_images([], model=model, language="en")
    with pytest.raises(UserError, match=expected):
        caption_images([], CaptionSettings(model=model, language="en"))
    assert caption_images([], CaptionSettings(model=model, language="en"), language=None) == []


def test_a_captioner_that_streams_gets_all_images_in_one_stream(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As captioners with slots do; images may finish in any order."""
    with (tmp_path / "seen_settings.py").open("a") as module:
        module.write("""
    def stream(self, images, running):
        for image in reversed(list(images)):
            image.finish([Caption(f"{running.source} {image.prepared}")])
            yield [image]
""")
    images = [image_bytes(1), b"not an image", *map(image_bytes, range(2, 8))]
    found = caption_images([*images, tmp_path / "no.jpg"], model=model)
    assert found == [*(f"image {i}" for i in range(8)), None]
    assert "image 8: [Errno 2]" in caplog.text
