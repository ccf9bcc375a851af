"""Config files of models are untrusted: wrong values are one line."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from capmix.errors import UserError
from capmix.models.architectures import check_config, know_config
from capmix.models.vocabulary import check_vocabulary


@pytest.mark.parametrize(
    "text",
    [
        {"tokenizer_kwargs": {"additional_special_tokens": 5}},
        {"tokenizer_kwargs": {"additional_special_tokens": ["<a>", 5]}},
        {"tokenizer_kwargs": {"bpe_path": "a\0b"}},
        {"tokenizer_kwargs": {"bpe_path": "a" * 5000}},
        {"tokenizer_kwargs": {"context_length": 8}},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        {"tokenizer_kwargs": []},
        {"context_length": "8"},
        {"vocab_size": None},
        [],
    ],
)
def test_wrong_values_are_one_line(text: Any) -> None:
    with pytest.raises(UserError, match="^model m: [^\n]*$"):
        check_config("model m", {"text_cfg": text})


def test_merges_that_are_not_utf_8_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(b"#version: 0.2\na\xff b"))
    text = {"tokenizer_kwargs": {"bpe_path": str(path)}, "vocab_size": 1000}
    with pytest.raises(UserError, match=r"not UTF-8 text [^\n]*$"):
        check_vocabulary("m", {"text_cfg": text})


def test_a_config_with_a_long_name_is_registered() -> None:
    config = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}
    assert len(know_config("a" * 300, config)) < 100
