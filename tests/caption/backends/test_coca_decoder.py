"""Cached keys and values give open_clip's logits for every prefix, including pad tokens."""

from pathlib import Path

import open_clip
import pytest
import torch
from tiny_clip import COCA, open_clip_folder

from capmix.caption.backends.coca_decoder import CocaDecoder


@pytest.mark.parametrize("correct_cls_mask", [False, True])
def test_logits_equal_the_whole_model(tmp_path: Path, correct_cls_mask: bool) -> None:
    name = open_clip_folder(tmp_path / "coca", COCA)
    model = open_clip.create_model_and_transforms(name)[0].eval()
    model.text.correct_cls_mask = correct_cls_mask
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 32, 32, generator=draw)
    tokens = torch.randint(1, 49408, (4, 9), generator=draw)
    tokens[0, 3] = tokens[1, 1] = tokens[2, 8] = model.text.pad_id
    with torch.inference_mode():
        _, patches = model._encode_image(pixels)
        decoder = CocaDecoder(model, patches, captions_per_image=2)
        for step in range(tokens.shape[1]):
            logits = decoder.logits(tokens[:, step])
            prefix = tokens[:, : step + 1]
            repeated = pixels.repeat_interleave(2, 0)
            whole = model(repeated, prefix, output_labels=False)["logits"][:, -1]
            torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)
