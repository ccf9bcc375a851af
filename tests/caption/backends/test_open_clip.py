"""CoCa with random weights, compared with recomputing the whole prefix, one image at a time."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from samples import image_bytes
from tiny_clip import CLIP, COCA, open_clip_folder

from capmix.caption.backends.open_clip import CocaCaptioner
from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.models.images import decode_image
from capmix.pool import Sample

UIDS = [f"u{i}" for i in range(6)]
SAMPLES = [Sample(u, u, image_bytes(i), "jpg", None) for i, u in enumerate(UIDS)]


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return open_clip_folder(tmp_path_factory.mktemp("coca"), COCA)


def captioner(name: str, **settings: Any) -> CocaCaptioner:
    return CocaCaptioner(CaptionSettings(model=f"open_clip:{name}", **settings))


def test_greedy_equals_a_plain_loop_over_the_whole_model(name: str) -> None:
    one = captioner(name, temperature=0, min_tokens=0, max_tokens=8)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)
    for sample in SAMPLES[:3]:
        pixels = preprocess(decode_image(sample.image)).unsqueeze(0)
        tokens = torch.tensor([[tokenizer.sot_token_id]])
        with torch.inference_mode():
            for _ in range(8):
                logits = model(pixels, tokens, output_labels=False)["logits"][:, -1]
                tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
        expected = tokens[0, 1:].tolist()
        if tokenizer.eot_token_id in expected:
            expected = expected[: expected.index(tokenizer.eot_token_id)]
        (caption,) = one.caption([one.prepare(sample)], [sample.uid], "s")[0]
        assert caption.text == tokenizer.decode(expected).strip()


def test_captions_depend_on_no_batch(name: str) -> None:
    one = captioner(name, captions_per_image=2, max_tokens=8)
    prepared = [one.prepare(sample) for sample in SAMPLES]
    together = one.caption(prepared, UIDS, "s")
    alone = [one.caption([p], [uid], "s")[0] for p, uid in zip(prepared, UIDS, strict=True)]
    assert together == alone
    assert len({captions[0].text for captions in together}) > 3
    further = one.caption(prepared, UIDS, "s", first=1)
    assert further == [captions[1:] for captions in together]


def test_a_model_that_writes_no_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write captions"):
        captioner(open_clip_folder(tmp_path / "clip", CLIP))
