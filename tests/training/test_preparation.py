"""Batches are those of open_clip's transform and tokenizer, bit for bit."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import AugmentationCfg, image_transform
from PIL import Image
from torchvision.transforms import Compose, RandomErasing, Resize, ToTensor

from capmix.training.preparation import prepare_with

TEXTS = ["a red cat", "The DOG &amp; cat  ", "word " * 100, "été 猫", "", "<end_of_text> x"]
USUAL = image_transform(32, True)
JITTER = AugmentationCfg(
    color_jitter=(0.3, 0.3, 0.3, 0.1), color_jitter_prob=0.8, gray_scale_prob=0.2
)
TRANSFORMS = {
    "usual": USUAL,
    "colours": image_transform(32, True, aug_cfg=JITTER),
    "evaluation": image_transform(32, False),
    "other mean": image_transform(32, True, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "not normalised": Compose([Resize((8, 8)), ToTensor()]),
    "erased": Compose([Resize((8, 8)), ToTensor(), USUAL.transforms[-1], RandomErasing(0.5)]),
}


def images(mode: str) -> list[Image.Image]:
    numbers = np.random.default_rng(0)
    sizes = [(40, 60), (32, 32), (90, 33), (5, 7)]
    pixels = [numbers.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    return [Image.fromarray(one).convert(mode) for one in pixels]


def seed() -> None:
    torch.manual_seed(0)
    random.seed(0)


@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "RGB") for name in TRANSFORMS), ("usual", "L"), ("usual", "RGBA"), ("colours", "L")],
)
def test_pixels_equal_those_of_the_transform(name: str, mode: str) -> None:
    transform = TRANSFORMS[name]
    seed()
    expected = torch.stack([transform(image) for image in images(mode)])
    prepare = prepare_with(transform, SimpleTokenizer())
    seed()
    found = prepare.stack([prepare.crop(image) for image in images(mode)])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert found.is_contiguous()


@pytest.mark.parametrize(
    "tokenizer",
    [SimpleTokenizer(), SimpleTokenizer(context_length=8), SimpleTokenizer(clean="canonicalize")],
    ids=["clip", "short", "canonicalize"],
)
def test_tokens_equal_those_of_the_tokenizer(tokenizer: Any) -> None:
    found = prepare_with(USUAL, tokenizer).tokenize(TEXTS)
    assert found.dtype == torch.int64
    assert torch.equal(found, tokenizer(TEXTS))


def test_reductions_draw_as_in_open_clip() -> None:
    tokenizer = SimpleTokenizer(context_length=8, reduction_mask="random")
    seed()
    expected = tokenizer(TEXTS)
    seed()
    assert torch.equal(prepare_with(USUAL, tokenizer).tokenize(TEXTS), expected)


def test_another_tokenizer_is_called_once_for_a_batch() -> None:
    calls = []

    def tokenizer(texts: list[str]) -> torch.Tensor:
        calls.append(texts)
        return torch.zeros(len(texts), 4, dtype=torch.long)

    assert prepare_with(USUAL, tokenizer).tokenize(TEXTS).shape == (len(TEXTS), 4)
    assert calls == [TEXTS]
