"""CLIP, SigLIP and SigLIP 2 with random weights, compared with transformers, pair by pair."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import sample_members, tar_bytes
from tiny_models import WORDS, clip, siglip, siglip2
from transformers import AutoModel, AutoProcessor, CanineTokenizer

from capmix.errors import UserError
from capmix.models.images import decode_image
from capmix.models.tokens import encode_truncated
from capmix.pool import Sample
from capmix.score.backends.transformers import TEXT_BATCH, TransformersScorer
from capmix.score.settings import ScoreSettings
from capmix.workspace import open_workspace

TEXTS = ["a red apple", "two dogs in green grass", "sea " * 100]


@pytest.mark.parametrize("build", [clip, siglip, siglip2])
def test_scores_equal_plain_transformers(build: object, tmp_path: Path) -> None:
    assert callable(build)
    folder = build(tmp_path / "model")
    members = [m for i, text in enumerate(TEXTS) for m in sample_members(f"k{i}", i, text)]
    (tmp_path / "p").mkdir()
    (tmp_path / "p/00000.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"))
    settings = ScoreSettings(model=f"transformers:{folder}", sources=["raw"])
    work.score(settings)
    table = work.store.read_table(f"scores/{settings.name}/raw/00000.parquet")
    model, processor = (
        AutoModel.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    padding = "max_length" if build is not clip else True
    plain = []
    for sample in work.pool.read(work.pool.shards[0]):
        assert isinstance(sample, Sample)
        inputs = processor(
            images=decode_image(sample.image),
            text=sample.text,
            padding=padding,
            max_length=64,
            truncation=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            out = model(**inputs)
        plain.append(float((out.image_embeds * out.text_embeds).sum()))
    assert np.abs(np.array(table.column("score").to_pylist()) - plain).max() < 1e-5
    assert table.column("truncated").to_pylist() == [False, False, True]


@pytest.mark.parametrize("build", [clip, siglip])
def test_vectors_have_the_bits_of_padded_texts(
    build: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each batch is tokenized once, without padding, ahead of the model."""
    assert callable(build)
    folder = build(tmp_path / "model")
    scorer = TransformersScorer(
        ScoreSettings(model=f"transformers:{folder}", device="cpu", dtype="float32")
    )
    words = WORDS.split()
    texts = [" ".join(words[: i % 17]) + " sea" * (i % 90) + " x" * (i % 3) for i in range(300)]
    model, processor = scorer._model, scorer._processor
    padding = {"padding": True} if build is clip else {"padding": "max_length"}
    wanted = []
    for start in range(0, len(texts), TEXT_BATCH):
        some = texts[start : start + TEXT_BATCH]
        inputs = processor.tokenizer(
            some, truncation=True, max_length=64, return_tensors="pt", **padding
        )
        with torch.inference_mode():
            features = model.get_text_features(**inputs).pooler_output
        wanted.append(torch.nn.functional.normalize(features, dim=-1).numpy())
    assert len({*texts}) == len(texts)
    tokens = scorer.tokenize(texts)
    assert (scorer.encode_tokens(tokens.inputs) == np.concatenate(wanted)).all()
    assert tokens.truncated == [len(text.split()) > 64 for text in texts]
    assert "fast tokenizer" not in caplog.text


def test_a_slow_tokenizer_of_transformers_is_observed_too() -> None:
    tokenizer = CanineTokenizer()
    texts = ["a" * n for n in (0, 7, 8, 9, 20)]
    rows, truncated = encode_truncated(tokenizer, texts, 10)
    assert rows == dict(tokenizer(texts, truncation=True, max_length=10))
    assert truncated == [False, False, False, True, True]


def test_tensors_that_the_weights_lack_are_not_random(tmp_path: Path) -> None:
    folder = clip(tmp_path / "clip")
    kept = load_file(folder / "model.safetensors")
    del kept["visual_projection.weight"]
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="its weights lack 1 tensors, such as visual_projection"):
        TransformersScorer(ScoreSettings(model=f"transformers:{folder}"))


def test_a_model_without_one_space_is_refused(tmp_path: Path) -> None:
    from tiny_models import blip2

    work = open_workspace("embedded", str(tmp_path / "w"))
    with pytest.raises(UserError, match="no such folder"):
        work.score(ScoreSettings(model=f"transformers:{tmp_path / 'nothing'}"))
    with pytest.raises(UserError, match="expected CLIP"):
        work.score(ScoreSettings(model=f"transformers:{blip2(tmp_path / 'b')}"))
