"""Sentences of dense captions become captions k of a source."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import write_pool

from capmix.rewrite.backends.split import SplitRewriter
from capmix.rewrite.rewriter import TextRequest
from capmix.rewrite.settings import RewriteSettings
from capmix.training.pairs import ExportedShards, Pair, PoolSubset
from capmix.training.stream import PairReader, SampleTally
from capmix.workspace import Workspace, open_workspace

DENSE = "A dog runs. It is brown, e.g. like Dr. Smith's dog! Is the sea near?\n\nThe sky is blue"
SENTENCES = [
    "A dog runs.", "It is brown, e.g. like Dr. Smith's dog!", "Is the sea near?", "The sky is blue",
]  # fmt: skip


def split(*texts: str, **settings: Any) -> list[str]:
    one = SplitRewriter(RewriteSettings(model="split", **settings))
    request = TextRequest("u", texts, "s")
    (found,) = one.rewrite([one.prepare(request)], [request])
    assert all(text.finish == "stop" for text in found)
    return [text.text for text in found]


def test_sentences_end_where_a_reader_ends_them() -> None:
    assert split(DENSE) == SENTENCES


@pytest.mark.parametrize(
    ("language", "text", "sentences"),
    [
        ("ja", "これは犬です。猫もいます。", ["これは犬です。", "猫もいます。"]),
        ("es", "¿Qué es? Es un perro.", ["¿Qué es?", "Es un perro."]),
    ],
)
def test_the_language_chooses_the_rules(language: str, text: str, sentences: list[str]) -> None:
    assert split(text, language=language) == sentences


def test_a_text_without_boundary_is_one_sentence() -> None:
    assert split("a red apple") == ["a red apple"]


def test_no_character_but_white_space_is_lost() -> None:
    joined = "".join("".join(split(DENSE)).split())
    assert joined == "".join(DENSE.split())


def test_several_captions_are_split_in_order_and_each_once() -> None:
    assert split("One. Two.", "Three.", "One. Two.") == ["One.", "Two.", "Three."]


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    pool = write_pool(tmp_path / "p", 1, 3)
    work = open_workspace(str(pool), str(tmp_path / "w"))
    texts = [DENSE, "One sentence.", None]
    table = pa.table({"uid": [f"{i:032x}" for i in range(3)], "text": texts})
    pq.write_table(table, tmp_path / "dense.parquet")
    work.import_captions([str(tmp_path / "dense.parquet")], source="dense")
    return work


def test_sentences_are_the_captions_of_a_source_and_more_than_k_are_counted(
    work: Workspace,
) -> None:
    work.rewrite("sentences", model="split", from_="dense", captions_per_image=3)
    rows = work.store.read_table("captions/sentences/00000.parquet").to_pylist()
    found = [(int(row["uid"], 16), row["k"], row["text"]) for row in rows]
    assert found == [*((0, k, SENTENCES[k]) for k in range(3)), (1, 0, "One sentence.")]
    marker = work.store.read_marker("captions/sentences/00000")
    assert marker is not None
    assert marker.extra == {"missing_skipped": 1, "with_more_texts": 1}


def test_eight_sentences_are_kept_by_default(work: Workspace) -> None:
    assert work.rewrite("sentences", model="split", from_="dense").ok == 2
    rows = work.store.read_table("captions/sentences/00000.parquet").to_pylist()
    assert [row["text"] for row in rows if row["uid"].endswith("0")] == SENTENCES


def test_training_draws_one_of_the_sentences_per_visit(work: Workspace, tmp_path: Path) -> None:
    """From the pool and from exported shards."""
    work.rewrite("sentences", model="split", from_="dense", captions_per_image=3)
    work.mix("raw")
    work.export("raw", str(tmp_path / "out"))
    weights = {"sentences": 1.0}
    for source in (
        PoolSubset(work.pool, work.store, "raw", list(weights)),
        ExportedShards([str(tmp_path / "out")], None, True),
    ):
        drawn: dict[str, set[str]] = {}
        for visit in range(40):
            reader = PairReader(source, SampleTally(), weights)
            for shard in source.shards:
                for pair in reader.pairs(shard, str(visit)):
                    assert isinstance(pair, Pair)
                    drawn.setdefault(pair.key, set()).add(pair.text)
        of_sample: Any = sorted(drawn.values(), key=len)
        assert of_sample == [{"One sentence."}, {"picture 2"}, set(SENTENCES[:3])]
