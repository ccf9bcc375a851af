"""Sentence vectors equal a plain loop over single texts, without padding."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_models import WORDS, small_bert

from capmix.errors import UserError
from capmix.sentences.encoder import EncoderSettings
from capmix.sentences.encoders import make_encoder

TEXTS = ["a red apple", "two dogs in green grass on the old table", "", "cat", "sea " * 40, WORDS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def plain(folder: Path, texts: list[str], length: int, first: bool = False) -> np.ndarray:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    found = []
    for text in texts:
        ids = tokenizer(text).input_ids
        ids = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]  # keeps the end token
        with torch.inference_mode():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        vector = states[0] if first else states.mean(0)
        found.append((vector / vector.norm()).numpy())
    return np.stack(found)


def encoded(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    encoder = make_encoder(EncoderSettings(str(folder), **options))
    return encoder.encode_tokens(encoder.tokenize(texts).inputs)


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_the_vector_is_the_mean_over_the_tokens_of_the_text(folder: Path, batch: int) -> None:
    found = encoded(folder, TEXTS, batch=batch)
    assert found.dtype == np.float32
    assert np.allclose(found, plain(folder, TEXTS, 32), atol=2e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_models_files_set_length_and_pooling(folder: Path) -> None:
    write(folder, "sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": False})
    write(folder, "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    encoder = make_encoder(EncoderSettings(str(folder)))
    tokens = encoder.tokenize(TEXTS)
    assert tokens.truncated == [False, True, False, False, True, True]
    expected = plain(folder, TEXTS, 7, first=True)
    assert np.allclose(encoder.encode_tokens(tokens.inputs), expected, atol=2e-6)
    assert encoder.settings["pooling"] == "first"
    assert encoder.settings["length"] == 7


def test_a_prefix_is_put_before_every_text(folder: Path) -> None:
    found = encoded(folder, TEXTS[:2], prefix="the old ")
    expected = plain(folder, [f"the old {text}" for text in TEXTS[:2]], 32)
    assert np.allclose(found, expected, atol=2e-6)


def test_other_weights_are_other_settings(folder: Path) -> None:
    first = make_encoder(EncoderSettings(str(folder))).settings
    tensors = load_file(folder / "model.safetensors")
    save_file({name: 2 * one for name, one in tensors.items()}, folder / "model.safetensors")
    assert make_encoder(EncoderSettings(str(folder))).settings != first


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling max_tokens is not"),
        ("1_Pooling/config.json", {}, "pooling none is not supported"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "module 'Dense'"),
        ("config.json", {"model_type": "t5"}, "cannot be loaded|have a decoder|its weights lack"),
        ("config.json", {"model_type": "bert", "hidden_size": "big"}, "cannot be loaded"),
        ("config.json", {"model_type": "bert", "hidden_size": 10**12}, "cannot be loaded"),
    ],
)
def test_models_that_need_more_are_refused_in_one_line(
    folder: Path, name: str, value: object, error: str
) -> None:
    write(folder, name, value)
    with pytest.raises(UserError, match=error) as caught:
        make_encoder(EncoderSettings(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_list_of_modules_that_is_none_is_ignored(folder: Path) -> None:
    write(folder, "modules.json", 5)
    assert np.allclose(encoded(folder, TEXTS), plain(folder, TEXTS, 32), atol=2e-6)


def test_damaged_weights_are_one_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        make_encoder(EncoderSettings(str(folder)))
    assert "\n" not in str(caught.value)


def test_tensors_that_the_weights_lack_are_not_random(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    without_pooler = {name: one for name, one in tensors.items() if "pooler" not in name}
    save_file(without_pooler, folder / "model.safetensors")  # the vector does not depend on it
    assert np.allclose(encoded(folder, TEXTS), plain(folder, TEXTS, 32), atol=2e-6)
    kept = {name: one for name, one in tensors.items() if "layer.0" not in name}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(UserError, match="its weights lack 16 tensors, such as encoder.layer.0"):
        make_encoder(EncoderSettings(str(folder)))


def test_weights_outside_of_safetensors_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="sentence encoder .*cannot be loaded"):
        make_encoder(EncoderSettings(str(folder)))


def test_a_scorers_text_tower_encodes_sentences() -> None:
    from capmix.score.backends.mini import MiniScorer

    encoder = make_encoder(EncoderSettings("scorer:mini"))
    found = encoder.encode_tokens(encoder.tokenize(TEXTS[:4]).inputs)
    assert np.array_equal(found, MiniScorer().encode_tokens(TEXTS[:4]))


def test_the_embedded_tower_needs_no_model() -> None:
    from capmix.mini.text_tower import text_tower

    encoder = make_encoder(EncoderSettings("mini"))
    found = encoder.encode_tokens(encoder.tokenize(TEXTS).inputs)
    assert np.array_equal(found, text_tower().encode(TEXTS))
