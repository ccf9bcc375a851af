import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import fresh_folder

from capmix.measure.diversity import Diversity, SketchedDiversity, split_batch

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
ROWS = st.lists(
    st.tuples(st.none() | st.text(st.sampled_from("aB -é."), max_size=9), st.integers(0, 2)),
    max_size=30,
)


def measured(rows: list[tuple[str | None, int]], batches: int = 1) -> dict[str, Any]:
    counter = Diversity(fresh_folder(), 3)
    for part in np.array_split(np.arange(len(rows)), batches):
        texts = pa.array([rows[i][0] for i in part], pa.string())
        counter.add(split_batch(texts, np.array([rows[i][1] for i in part], np.uint8)))
    return counter.result()


@given(ROWS, st.integers(1, 3))
def test_every_level_equals_a_plain_count(rows: list, batches: int) -> None:
    found = measured(rows, batches)
    for level in range(3):
        texts = [text for text, at in rows if text and at <= level]
        words = [WORD.findall(text.lower()) for text in texts]
        grams = [[t for w in words for t in zip(*(w[i:] for i in range(n)), strict=False)]
                 for n in (1, 2, 3)]  # fmt: skip
        curve = {name: values[level] for name, values in found["curve"].items()}
        assert curve == {
            "texts": len(texts),
            "unique_texts": len(set(texts)),
            "vocabulary": len(set(grams[0])),
            "unique_bigrams": len(set(grams[1])),
            "unique_trigrams": len(set(grams[2])),
            **{f"distinct_{n}": len(set(g)) / len(g) if g else 0.0 for n, g in enumerate(grams, 1)},
        }


def test_a_hand_worked_case() -> None:
    texts = ["A red apple, food"] * 5 + ["the red apple falls", "apple"]
    found = measured([(text, 0) for text in texts])
    assert found["texts"] == 7
    assert found["unique_texts"] == 3
    assert found["share_repeated_5"] == 5 / 7
    assert found["mean_words"] == (5 * 4 + 4 + 1) / 7
    assert found["mean_characters"] == (5 * 17 + 19 + 5) / 7
    assert found["vocabulary"] == 6  # a red apple food the falls
    # a red apple, red apple food, the red apple, red apple falls
    assert found["unique_trigrams"] == 4
    assert found["distinct_3"] == 4 / 12
    assert found["words_deciles"] == [1, 1, 4, 4, 4, 4, 4, 4, 4, 4, 4]


def test_no_texts_give_zeros() -> None:
    found = measured([(None, 0), ("", 0)])
    assert (found["texts"], found["mean_words"], found["unique_trigrams"]) == (0, 0.0, 0)


def test_a_sketch_is_close_and_says_how_close(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(3_000)])
    texts = pa.array([" ".join(random.choice(words, 8)) for _ in range(5_000)])
    levels = (random.random(5_000) * 3).astype(np.uint8)
    exact, about = Diversity(tmp_path, 3), SketchedDiversity(3)
    exact.add(split_batch(texts, levels))
    about.add(split_batch(texts, levels))
    wanted, found = exact.result(), about.result()
    for name in ("unique_texts", "vocabulary", "unique_bigrams", "unique_trigrams"):
        assert found["curve"][name] == pytest.approx(
            wanted["curve"][name], rel=4 * found["standard_error"]
        )
    assert found["mean_words"] == wanted["mean_words"] == 8
