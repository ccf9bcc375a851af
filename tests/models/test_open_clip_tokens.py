"""Ids and `truncated` equal those of open_clip's own tokenizers, with every option."""

import copy
import gzip
import html
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import (
    HFTokenizer,
    SigLipTokenizer,
    SimpleTokenizer,
    get_clean_fn,
    get_reduction_mask_fn,
)
from tiny_models import small_tokenizer
from web_texts import SPECIAL, web_texts

from capmix.models.open_clip_tokens import (
    BpeTokenizer,
    OwnTokenizer,
    needs_no_repair,
    open_clip_tokenizer,
)

TEXTS = list(web_texts(400, seed=2))
PRINTABLE = [chr(i) for i in range(32, 127) if chr(i) != "&"]
ANY_TEXT = st.text(st.characters(exclude_categories=()))
PLAIN = SimpleTokenizer()
FAST = open_clip_tokenizer(PLAIN)


def assert_equals_plain(tokenizer: SimpleTokenizer, texts: list[str]) -> None:
    found = open_clip_tokenizer(tokenizer)(texts)
    assert torch.equal(torch.from_numpy(np.stack(found.inputs)), tokenizer(texts))
    limit = tokenizer.context_length
    assert found.truncated == [len(tokenizer.encode(text)) + 2 > limit for text in texts]


def test_web_texts_have_open_clips_ids() -> None:
    texts = list(web_texts(1000, seed=1))
    assert isinstance(FAST, BpeTokenizer)
    assert_equals_plain(PLAIN, texts)
    assert FAST.encode(texts) == [PLAIN.encode(text) for text in texts]


@given(st.lists(ANY_TEXT | st.sampled_from(SPECIAL), max_size=6))
def test_any_text_has_open_clips_ids(parts: list[str]) -> None:
    assert isinstance(FAST, BpeTokenizer)
    for text in ("".join(parts), " ".join(parts)):
        assert FAST.encode([text]) == [PLAIN.encode(text)]


@given(st.text(PRINTABLE))
def test_a_text_that_needs_no_repair_is_not_changed(text: str) -> None:
    assert needs_no_repair(text)
    assert ftfy.fix_text(text) == html.unescape(html.unescape(text)) == text


def test_no_two_letters_that_need_no_repair_are_changed() -> None:
    assert needs_no_repair("".join(PRINTABLE))
    text = "".join(first + second for first, second in product(PRINTABLE, PRINTABLE))
    assert ftfy.fix_text(text) == text
    assert {*pairwise(text)} >= {*product(PRINTABLE, PRINTABLE)}


@pytest.mark.parametrize("text", ["a\nb", "a\x1bb", "R&D", "é", "\x7f", "a\x0bb", "\ud800"])
def test_other_texts_may_need_repair(text: str) -> None:
    assert not needs_no_repair(text)


@pytest.mark.parametrize(
    ("clean", "context_length"),
    [("lower", 300), ("lower", 2), ("whitespace", 3), ("canonicalize", 16)],
)
def test_other_cleaning_and_context_lengths(clean: str, context_length: int) -> None:
    tokenizer = copy.copy(PLAIN)
    tokenizer.clean_fn, tokenizer.context_length = get_clean_fn(clean), context_length
    assert isinstance(open_clip_tokenizer(tokenizer), BpeTokenizer)
    assert_equals_plain(tokenizer, TEXTS[:100])


@pytest.mark.parametrize("mask", ["simple", "random", "shuffle"])
def test_a_reduction_mask_draws_as_in_open_clip(mask: str) -> None:
    tokenizer = copy.copy(PLAIN)
    tokenizer.reduction_fn, tokenizer.context_length = get_reduction_mask_fn(mask), 12
    texts = TEXTS[:100]
    random.seed(3)
    torch.manual_seed(3)
    wanted = tokenizer(texts)
    random.seed(3)
    torch.manual_seed(3)
    found = open_clip_tokenizer(tokenizer)(texts)
    assert torch.equal(torch.from_numpy(np.stack(found.inputs)), wanted)
    assert found.truncated == [len(tokenizer.encode(text)) + 2 > 12 for text in texts]


def test_own_special_tokens_and_cleaning_are_open_clips() -> None:
    special = SimpleTokenizer(additional_special_tokens=["<mask>"])
    own = copy.copy(PLAIN)
    own.clean_fn = str.swapcase
    assert isinstance(open_clip_tokenizer(special), OwnTokenizer)
    assert isinstance(open_clip_tokenizer(own), BpeTokenizer)
    for tokenizer in (special, own):
        assert_equals_plain(tokenizer, ["a <mask> b", "The <MASK>", *SPECIAL, "word " * 90])


@pytest.mark.parametrize("fault", ["a token of two merges", "a token used before it is made"])
def test_merges_that_another_order_would_change_are_open_clips(fault: str) -> None:
    merges = list(PLAIN.bpe_ranks)
    if fault == "a token of two merges":
        assert {("in", "g"), ("n", "g")} <= {*merges}
        merges[30_000] = ("i", "ng")
    else:
        first, second = merges.index(("t", "h")), merges.index(("th", "e</w>"))
        merges[first], merges[second] = merges[second], merges[first]
    tokenizer = copy.copy(PLAIN)
    tokenizer.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
    tokenizer.cache = {token: token for token in SPECIAL[:2]}
    assert isinstance(open_clip_tokenizer(tokenizer), OwnTokenizer)
    assert_equals_plain(tokenizer, ["the thing", "bathe those three", *TEXTS[:50]])


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_own_merges_have_open_clips_ids(end: str, tmp_path: Path) -> None:
    """A last line that ends in a newline is an empty merge with an id of its own in open_clip."""
    first = ["#version: 0.2", *(" ".join(pair) for pair in list(PLAIN.bpe_ranks)[:850])]
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(("\n".join(first) + end).encode()))
    tokenizer = SimpleTokenizer(bpe_path=str(path), context_length=24)
    assert tokenizer.vocab_size < 2000
    assert isinstance(open_clip_tokenizer(tokenizer), BpeTokenizer)
    assert_equals_plain(tokenizer, TEXTS)


def test_merges_that_are_no_pairs_are_open_clips(tmp_path: Path) -> None:
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(b"#\nt h\nth e</w> x\nc a"))
    tokenizer = SimpleTokenizer(bpe_path=str(path), context_length=24)
    assert isinstance(open_clip_tokenizer(tokenizer), OwnTokenizer)
    assert_equals_plain(tokenizer, TEXTS[:50])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save_pretrained(folder)
    return str(folder)


WORDS = ["a red apple", "", "a cat &amp; two dogs", "sea " * 9, "sea " * 10, "sea " * 11, "é" * 40]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clean": "canonicalize"},
        {"clean": "lower", "strip_sep_token": True},
        {"tokenizer_mode": "clips"},
    ],
)
def test_tokenizers_of_the_hub_keep_their_ids(hub: str, options: dict[str, Any]) -> None:
    tokenizer = HFTokenizer(hub, context_length=10, **options)
    for name in ("sep_token", "cls_token"):
        setattr(tokenizer.tokenizer, name, "<unk>")
    calls: Counter[str] = Counter()
    call = type(tokenizer.tokenizer).__call__

    class Counted(type(tokenizer.tokenizer)):  # type: ignore[misc]
        def __call__(self, texts: list[str], **options: Any) -> Any:
            calls.update(texts)
            return call(self, texts, **options)

    wanted = tokenizer(WORDS)
    tokenizer.tokenizer.__class__ = Counted
    found = open_clip_tokenizer(tokenizer)(WORDS)
    assert torch.equal(torch.from_numpy(np.stack(found.inputs)), wanted)
    room = 7 if "tokenizer_mode" in options else 10
    lengths = [len(tokenizer.tokenizer([tokenizer.clean_fn(t)]).input_ids[0]) for t in WORDS]
    assert found.truncated == [length > room for length in lengths]
    assert True in found.truncated
    assert calls.total() == 2 * len(WORDS)  # once above, to compare


def test_siglips_tokenizer_keeps_its_ids() -> None:
    tokenizer = object.__new__(SigLipTokenizer)  # the constructor downloads a vocabulary
    tokenizer.tokenizer, tokenizer.context_length = small_tokenizer(), 10
    found = open_clip_tokenizer(tokenizer)(WORDS)
    assert torch.equal(torch.from_numpy(np.stack(found.inputs)), tokenizer(WORDS))
    assert found.truncated == [False, False, False, False, False, True, False]


def test_unseen_words_do_not_stay_in_memory() -> None:
    for special in ([], ["<mask>"]):
        tokenizer = SimpleTokenizer(additional_special_tokens=special)
        before = len(tokenizer.cache)
        open_clip_tokenizer(tokenizer)(TEXTS[:50])
        assert len(tokenizer.cache) == before


@pytest.mark.parametrize("kind", ["bpe", "hub"])
def test_threads_get_the_same_ids(kind: str, hub: str) -> None:
    tokenizer = PLAIN if kind == "bpe" else HFTokenizer(hub, context_length=10)
    run = open_clip_tokenizer(tokenizer)
    groups = [TEXTS[start : start + 20] for start in range(0, 400, 20)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, groups))
    wanted = tokenizer(TEXTS[:400])
    assert torch.equal(torch.from_numpy(np.concatenate([f.inputs for f in found])), wanted)


def test_no_texts_are_no_tokens() -> None:
    assert FAST([]).inputs == FAST([]).truncated == []
