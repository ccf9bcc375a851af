"""The pixels of a PixelPlan, compared with the models' own processors on the whole image."""

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import (
    BlipImageProcessor,
    BlipImageProcessorPil,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    ConvNextImageProcessor,
    Qwen2VLImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    ViTImageProcessor,
)

from capmix.models import images
from capmix.models.images import BadImageError, decode_image, enlarged, plain_jpeg_size
from capmix.models.pixels import PixelPlan, processor_plan, transform_plan

SQUARE = {"height": 56, "width": 56}
SIZES = [(128, 96), (83, 127), (40, 31), (300, 9), (57, 56)]
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "shortest": {"size": 56},
    "squash": {"size": 56, "resize_mode": "squash"},
    "squash, bilinear": {"size": (48, 64), "resize_mode": "squash", "interpolation": "bilinear"},
}
# The first four are resized by torch, as in a plan; the others by Pillow.
PROCESSORS: dict[str, Any] = {
    "BLIP": BlipImageProcessor(size=SQUARE),
    "CLIP": CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE),
    "SigLIP": SiglipImageProcessor(size=SQUARE),
    "ViT": ViTImageProcessor(size={"height": 48, "width": 64}),
    "BLIP, Pillow": BlipImageProcessorPil(size=SQUARE),
    "CLIP, Pillow": CLIPImageProcessorPil(size={"shortest_edge": 63}, crop_size=SQUARE),
}


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Return smooth areas with noise."""
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, 256, (5, 6, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + rng.normal(0, 5, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def run_of(processor: Any) -> Callable[[Image.Image], Any]:
    return lambda image: processor(images=image, return_tensors="pt")


def plan_of(processor: Any) -> PixelPlan:
    found = processor_plan(processor, run_of(processor))
    assert found is not None
    assert found[1] == {}
    return found[0]


def input_of(plan: PixelPlan, data: bytes) -> torch.Tensor:
    found: torch.Tensor = plan.normalize(torch.from_numpy(plan.prepare(data))[None], torch.float32)
    return found[0]


def levels(plan: PixelPlan, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).abs() * torch.tensor(plan.std)[:, None, None] * plan.divisor


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    plain = [encoded(photo(size, i), quality=85) for i, size in enumerate(SIZES)]
    grey = encoded(photo((128, 96)).convert("L"))
    return [*plain, grey, encoded(photo((128, 96)), progressive=True, subsampling=0)]


@pytest.mark.parametrize("name", list(PROCESSORS))
def test_a_plan_makes_the_input_that_transformers_makes(name: str, photos: list[bytes]) -> None:
    processor = PROCESSORS[name]
    plan = plan_of(processor)
    apart = []
    for data in photos:
        own = run_of(processor)(decode_image(data))["pixel_values"][0]
        found = input_of(plan, data)
        if "Pillow" not in name:
            assert torch.equal(found, own)
        apart.append(levels(plan, found, own).flatten())
    _check_levels(torch.cat(apart))


@pytest.mark.parametrize("name", list(OPEN_CLIP))
def test_a_plan_makes_the_input_that_open_clip_makes(name: str, photos: list[bytes]) -> None:
    transform = image_transform_v2(PreprocessCfg(**OPEN_CLIP[name]), is_train=False)
    plan = transform_plan(transform)
    assert plan is not None
    pairs = [(input_of(plan, data), transform(decode_image(data))) for data in photos]
    _check_levels(torch.cat([levels(plan, *pair).flatten() for pair in pairs]))
    exact = plan.normalize(torch.from_numpy(plan.convert(photo((56, 56))))[None], torch.float32)
    if name != "squash, bilinear":  # which resizes this image
        assert torch.equal(exact[0], transform(photo((56, 56))))


def _check_levels(apart: torch.Tensor) -> None:
    assert apart.max() < 2.01
    assert (apart > 1.01).float().mean() < 1e-4
    assert (apart > 0.01).float().mean() < 0.05


@pytest.mark.parametrize(
    "processor",
    [
        Siglip2ImageProcessor(),  # as many patches as fit
        Qwen2VLImageProcessor(),
        SmolVLMImageProcessor(),  # tiles
        ConvNextImageProcessor(),  # resizes by its own rule
        SiglipImageProcessor(size=SQUARE, do_pad=True, pad_size=SQUARE),
        SiglipImageProcessor(size=SQUARE, resample=Image.Resampling.LANCZOS),
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 64, "width": 64}),
        CLIPImageProcessor(do_center_crop=False),  # images of several shapes
        CLIPImageProcessor(do_normalize=False),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_processor_with_other_steps_has_no_plan(processor: Any) -> None:
    assert processor_plan(processor, run_of(processor)) is None


def test_a_processor_that_changes_the_pixels_elsewhere_has_no_plan() -> None:
    processor = PROCESSORS["BLIP"]

    def darker(image: Image.Image) -> dict[str, Any]:
        return {"pixel_values": run_of(processor)(image)["pixel_values"] - 1}

    def with_size(image: Image.Image) -> dict[str, Any]:
        return dict(run_of(processor)(image)) | {"sizes": torch.tensor([image.size])}

    assert processor_plan(processor, darker) is None
    assert processor_plan(processor, with_size) is None


def test_transforms_with_other_steps_have_no_plan() -> None:
    for options in ({"resize_mode": "longest"}, {"size": (48, 64)}):
        transform = image_transform_v2(PreprocessCfg(**{"size": 56, **options}), is_train=False)
        assert transform_plan(transform) is None
    assert transform_plan(lambda image: image) is None


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo((90, 70)), exif=exif)


def transparent() -> bytes:
    image = photo((90, 70)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((90, 70)))
    return encoded(image, "PNG")


ODD = {
    "rotated": rotated(6),
    "upright": rotated(1),
    "transparent": transparent(),
    "CMYK": encoded(photo((90, 70)).convert("CMYK")),
    "16 bits": encoded(Image.new("I;16", (90, 70), 40_000), "PNG"),
    "palette": encoded(photo((90, 70)).quantize(16), "PNG"),
    "WebP": encoded(photo((90, 70)), "WEBP"),
    "GIF": encoded(photo((90, 70)), "GIF"),
    "TIFF": encoded(photo((90, 70)), "TIFF"),
    "several": encoded(photo((90, 70)), "MPO", save_all=True, append_images=[photo((9, 9))]),
    "bytes after the end": encoded(photo((90, 70))) + b"\r\n",
    "profile": encoded(photo((90, 70)), icc_profile=bytes(1000)),
    "1 x 1": encoded(photo((1, 1))),
    "1 x 90": encoded(photo((1, 90))),
    "3 x 4": encoded(photo((3, 4))),
}


@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_image_has_the_pixels_of_decode_image(name: str) -> None:
    for processor in (PROCESSORS["BLIP"], PROCESSORS["CLIP"]):
        plan = plan_of(processor)
        expected = plan.convert(enlarged(decode_image(ODD[name]), 5))
        found = plan.prepare(ODD[name], smallest=5)
        assert (found.dtype, found.shape) == (np.uint8, plan.shape)
        assert np.array_equal(found, expected)


def test_only_plain_jpegs_are_decoded_by_torchvision() -> None:
    plain = {name for name, data in ODD.items() if plain_jpeg_size(data)}
    assert plain == {"upright", "profile", "1 x 1", "1 x 90", "3 x 4"}


def outcome(work: Callable[[], np.ndarray]) -> bytes | str:
    try:
        return work().tobytes()
    except BadImageError as error:
        return error.reason


def test_damaged_jpegs_fail_for_the_reasons_of_decode_image() -> None:
    plan = plan_of(PROCESSORS["BLIP"])
    rng = random.Random(0)
    small = photo((72, 50))
    bases = [
        encoded(small),
        encoded(small, progressive=True),
        encoded(small.convert("L"), restart_marker_blocks=3),
        encoded(small, exif=Image.Exif(), icc_profile=bytes(50)),
    ]
    outcomes: list[bytes | str] = []
    for _ in range(600):
        data = damaged(rng.choice(bases), rng)
        found = outcome(lambda data=data: plan.prepare(data))
        assert found == outcome(lambda data=data: plan.convert(decode_image(data)))
        outcomes.append(found)
    names = {name for name in outcomes if isinstance(name, str)}
    assert names == {"broken_image", "not_an_image"}
    assert 100 < sum(isinstance(one, bytes) for one in outcomes) < 500


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, overwrite, insert or delete bytes. Often keep the end marker."""
    broken, at = bytearray(data), rng.randrange(2, len(data) - 2)
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(broken[:at])
    if kind == 1:
        return bytes(broken[:at]) + b"\xff\xd9"
    if kind == 2:
        broken[at:at] = rng.randbytes(rng.randint(1, 20))
    elif kind == 3:
        del broken[at : at + rng.randint(1, 30)]
    else:
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(2, len(broken))] = rng.randrange(256)
    return bytes(broken)


def test_limits_are_those_of_decode_image(monkeypatch: pytest.MonkeyPatch) -> None:
    squash, shortest = plan_of(PROCESSORS["BLIP"]), plan_of(PROCESSORS["CLIP"])
    line = encoded(Image.new("L", (65_000, 1)))
    with pytest.raises(BadImageError, match="shorter side resized to 64"):
        shortest.prepare(line)
    assert squash.prepare(line).shape == (3, 56, 56)
    monkeypatch.setattr(images, "MAX_SCANNED", 5 * 96 * 96)
    many_scans = encoded(photo((96, 96)), progressive=True)
    with pytest.raises(BadImageError, match="96 x 96 pixels in .* scans"):
        squash.prepare(many_scans)
    bomb = bytearray(encoded(photo((96, 96))))
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = b"\xff\x00\xff\x00"
    with pytest.raises(BadImageError) as caught:
        squash.prepare(bytes(bomb))
    assert caught.value.reason == "too_many_pixels"


@pytest.mark.parametrize(
    ("size", "exif", "expected"),
    [
        ((444, 444), 1, (444, 444)),  # 1/4 keeps less than twice the side
        ((448, 448), 1, (112, 112)),
        ((450, 448), 1, (450, 448)),
        ((960, 896), 6, (112, 120)),
    ],
)
def test_large_jpegs_are_reduced_by_four_or_eight(
    size: tuple[int, int], exif: int, expected: tuple[int, int]
) -> None:
    about = Image.Exif()
    about[0x0112] = exif
    data = encoded(photo(size), exif=about)
    plan = plan_of(PROCESSORS["BLIP"])
    seen = decode_image(data, input_side=56, least_scale=4)
    assert seen.size == expected
    assert np.array_equal(plan.prepare(data), plan.convert(seen))


def test_without_torchvisions_decoder_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data = plan_of(PROCESSORS["BLIP"]), encoded(photo((90, 70)))
    expected = plan.prepare(data)
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    assert np.array_equal(plan.prepare(data), expected)
