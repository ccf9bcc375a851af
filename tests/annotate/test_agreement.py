"""Agreement of texts and captions equals SIEVE's definition, text by text."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import SCORER, HandMade, Made, fresh_folder
from samples import write_pool

from capmix.annotate import agreement
from capmix.annotate.agreement import PHRASES, agreement_stage, without_phrases
from capmix.annotate.settings import AnnotateSettings
from capmix.caption.captioner import Caption
from capmix.caption.fields import NEEDED as CAPTION_FIELDS
from capmix.caption.stage import caption_rows
from capmix.cli.main import main
from capmix.engine.run import run_job
from capmix.engine.stage import PartWriter
from capmix.engine.worker import Job
from capmix.errors import UserError
from capmix.mix.columns import columns_of
from capmix.mix.recipe import load_recipe
from capmix.models.tokens import Tokens
from capmix.pool import Shard
from capmix.storage.rows import FAILED, OK, Row
from capmix.workspace import open_workspace


class Letters:
    """Encodes a text as the counts of its letters; counts the texts it has seen."""

    def __init__(self, settings: object = None):
        self.settings: dict[str, Any] = {"model": "letters"}
        self.seen: list[str] = []

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        self.seen += texts
        return Tokens(texts, [False] * len(texts))

    def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
        if any("broken" in text for text in inputs):
            raise ValueError("no such text")
        return np.stack([letters(text) for text in inputs])


def letters(text: str) -> np.ndarray:
    counts = np.array([text.lower().count(chr(97 + i)) for i in range(26)], np.float32) + 0.01
    return counts / np.linalg.norm(counts)


def plain(raw: str, captions: list[str]) -> tuple[float, int]:
    """Compute SIEVE's score in a loop, with its own removal of phrases."""

    def removed(text: str) -> str:
        for phrase in PHRASES:
            while (at := text.lower().find(phrase)) >= 0:
                text = text[:at] + text[at + len(phrase) :]
        return text.strip()

    best, score, number = "", -2.0, -1
    for k, caption in enumerate(captions):
        cosine = float(letters(removed(raw)) @ letters(removed(caption)))
        if cosine > score:
            best, score, number = removed(caption), cosine, k
    return (score if best else 0.0), number


RAW = ["A Photo Of a red apple", "stock photo: dog", "photo", "nothing", None, "  ", "an IMAGE"]
CAPTIONS = [
    ["an image of an apple", "a photo of a red table"],
    ["a dog", "a photo of two dogs", "stock photo dog"],
    ["a photo", "a cat"],
    [],
    ["a boat"],
    ["a boat"],
    ["image", "a photo of", "zzz"],
]


def samples() -> list[Made]:
    draw = np.random.default_rng(0)
    words = ["apple", "dog", "photo", "image", "of", "a", "an", "red", "boat", "sky"]
    raw = [*RAW, *(" ".join(draw.choice(words, 4)) for _ in range(20))]
    captions = [
        *CAPTIONS,
        *([" ".join(draw.choice(words, 3)) for _ in range(8)] for _ in range(20)),
    ]
    return [
        Made(
            f"{i:032x}",
            text,
            float(np.float32(draw.normal(0.2, 0.1))) if text and text.strip() else None,
            {"mini": own},
            {"mini": [float(np.float32(draw.normal(0.2, 0.1))) for _ in own]},
            failed=i == 9,
        )
        for i, (text, own) in enumerate(zip(raw, captions, strict=True))
    ]


def annotated(made: list[Made], encoder: Letters, **options: Any) -> HandMade:
    here = HandMade(fresh_folder(), {"00000": made[:12], "00001": made[12:]})
    settings = AnnotateSettings(method="agreement", captions="mini", **options)

    def stages() -> list[Any]:
        return [agreement_stage(here.store, "agreement", settings, encoder)]

    run_job(Job(stages, here.pool.shards, here.store), 1.0)
    names = ["raw", "mini"]
    scored = {SCORER: names, "dfn": names}
    here.columns = columns_of(names, scored, SCORER, {"agreement": ["value", "k"]})
    return here


def column(here: HandMade) -> list[dict[str, Any]]:
    tables = [here.store.read_table(f"columns/agreement/0000{i}.parquet") for i in (0, 1)]
    return [row for table in tables for row in table.to_pylist()]


def test_phrases_are_removed_in_order_whatever_their_case() -> None:
    assert without_phrases("A Photo of a dog, STOCK PHOTO") == "a dog,"
    assert without_phrases("photography of an image") == "graphy of"
    assert without_phrases("a+b (c)", ["A+B"]) == "(c)"


def test_the_value_is_the_largest_cosine_over_the_captions_and_0_for_an_empty_one() -> None:
    made, encoder = samples(), Letters()
    rows = column(annotated(made, encoder))
    assert [row["uid"] for row in rows] == [one.uid for one in made]
    for one, row in zip(made, rows, strict=True):
        if one.failed:
            assert (row["status"], row["reason"]) == ("failed", "not_an_image")
        elif not (one.raw or "").strip() or not one.captions["mini"]:
            reason = "no_caption" if (one.raw or "").strip() else "no_text"
            assert (row["status"], row["reason"], row["value"]) == ("dropped", reason, None)
        else:
            value, k = plain(one.raw or "", one.captions["mini"])
            assert row["value"] == pytest.approx(value, abs=1e-6)
            assert row["k"] == k
    assert [rows[i]["value"] for i in (2, 6)] == [0, 0]  # the best caption is empty


def test_each_distinct_text_of_a_shard_is_encoded_once_and_all_rows_are_counted() -> None:
    made, encoder = samples(), Letters()
    here = annotated(made, encoder)
    markers = [here.store.read_marker(f"columns/agreement/0000{i}") for i in (0, 1)]
    assert [marker and (marker.rows_in, marker.counts.total) for marker in markers] == [
        (12, 12),
        (len(made) - 12, len(made) - 12),
    ]
    shards = [made[:12], made[12:]]
    texts = [
        {without_phrases(text) for one in some for text in (one.raw, *one.captions["mini"])}
        for some in ([m for m in s if not m.failed and (m.raw or "").strip()] for s in shards)
        for some in [[m for m in some if m.captions["mini"]]]
    ]
    assert len(encoder.seen) == sum(map(len, texts))


def test_every_sample_of_a_source_with_several_captions_has_one_row() -> None:
    """Some have no first caption, or a failed row after it."""
    texts = [["", "a cat"], ["a dog", ""], ["a boat", "a ship"], ["", ""]]
    made = [Made(f"{i:032x}", "a cat", 0.1, {"mini": ["a cat"]}) for i in range(len(texts))]
    here = HandMade(fresh_folder(), {"00000": made})
    rows = [
        row
        for one, some in zip(made, texts, strict=True)
        for row in caption_rows(Row(one.uid, one.uid), [Caption(text) for text in some])
    ]
    rows.insert(2, Row(made[1].uid, made[1].uid, FAILED, "model_error", "broken"))
    here.put("captions/mini/00000", rows, CAPTION_FIELDS)
    settings = AnnotateSettings(method="agreement", source="mini", captions="mini")
    stage = agreement_stage(here.store, "agreement", settings, Letters())
    (counts,) = run_job(Job(lambda: [stage], here.pool.shards, here.store), 1.0)
    found = here.store.read_table("columns/agreement/00000.parquet").to_pylist()
    assert [row["uid"] for row in found] == [one.uid for one in made]
    assert [row["reason"] for row in found] == ["no_text", None, None, "empty_caption"]
    assert counts.total == len(made)


def test_a_text_that_the_encoder_refuses_fails_its_sample_alone() -> None:
    made = samples()
    made[0] = Made(made[0].uid, "a broken text", 0.1, {"mini": ["a dog"]}, {"mini": [0.1]})
    rows = column(annotated(made, Letters()))
    assert (rows[0]["reason"], rows[0]["detail"]) == ("model_error", "ValueError: no such text")
    assert rows[1]["status"] == OK


def test_a_large_shard_is_compared_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = column(annotated(samples(), Letters()))
    held: list[int] = []
    row_of = agreement._row

    def noted(row: Row, pair: Any, vectors: Any) -> Row:
        held.append(len(vectors))
        return row_of(row, pair, vectors)

    monkeypatch.setattr(agreement, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr(agreement, "_row", noted)
    assert column(annotated(samples(), Letters())) == expected
    assert max(held) <= 4 * (1 + 8)  # vectors of 4 texts with 8 captions each


def test_the_progress_counts_samples_and_not_their_texts() -> None:
    here = annotated(samples(), Letters())
    settings = AnnotateSettings(method="agreement", captions="mini")
    stage = agreement_stage(here.store, "again", settings, Letters())
    counted: list[int] = []

    def run_shard(shard: Shard, out: PartWriter) -> None:
        stage.run_shard(shard, out)
        counted.append(out.busy.images)

    watched = replace(stage, run_shard=run_shard)
    run_job(Job(lambda: [watched], here.pool.shards, here.store), 1.0)
    assert counted == [0, 0]


def test_a_call_of_the_encoder_has_at_most_a_batch_of_texts() -> None:
    calls: list[list[str]] = []

    class Noted(Letters):
        def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
            calls.append(list(inputs))
            return super().encode_tokens(inputs)

    annotated(samples(), Noted(), encode_batch=8)
    assert max(map(len, calls)) == 8


def test_phrases_can_be_chosen() -> None:
    rows = column(annotated(samples(), Letters(), phrases=["red"]))
    expected = float(letters("A Photo Of a  apple") @ letters("a photo of a  table"))
    assert rows[0]["value"] == pytest.approx(expected, abs=1e-6)


def uids(here: HandMade, recipe: str, **parameters: Any) -> list[tuple[int, str]]:
    here.mix(load_recipe(recipe, parameters), "out")
    return [(int(row["uid"], 16), row["source"]) for row in here.rows()]


def top(values: np.ndarray, fraction: float) -> np.ndarray:
    """Return which of the values, float32 with NaN for none, DataComp's rule keeps."""
    n = int(len(values) * fraction)
    return values >= -np.sort(-values[~np.isnan(values)])[n]


def test_the_recipes_select_what_numpy_selects() -> None:
    made = samples()
    here = annotated(made, Letters())
    for name in ("raw", "mini"):  # the data filtering network's scores
        for shard in ("00000", "00001"):
            source = here.store.path(f"scores/{SCORER}/{name}/{shard}")
            with here.store.draft(f"scores/dfn/{name}/{shard}") as draft:
                marker = here.store.read_marker(f"scores/{SCORER}/{name}/{shard}")
                assert marker is not None
                draft.write_table(
                    f"{draft.part}.parquet",
                    here.store.read_table(f"scores/{SCORER}/{name}/{shard}.parquet"),
                )
                draft.commit(marker)
            assert source
    good = np.array([i for i, one in enumerate(made) if not one.failed])
    rows = column(here)
    nan = float("nan")
    value = np.array([nan if rows[i]["value"] is None else rows[i]["value"] for i in good])
    score = np.array([nan if made[i].raw_score is None else made[i].raw_score for i in good])
    mini = np.array([(made[i].scores["mini"] or [nan])[0] for i in good])
    normalised = [(x - np.nanmin(x)) / (np.nanmax(x) - np.nanmin(x)) for x in (value, score)]
    both = (normalised[0] / 2 + normalised[1] / 2).astype(np.float32)

    def raw(kept: np.ndarray) -> list[tuple[int, str]]:
        return [(int(i), "raw") for i in good[kept]]

    assert uids(here, "sieve", fraction=0.4) == raw(top(value.astype(np.float32), 0.4))
    assert uids(here, "sieve+clip", fraction=0.4) == raw(top(both, 0.4))
    assert uids(here, "dfn", fraction=0.2) == raw(top(score.astype(np.float32), 0.2))
    expected = sorted(
        raw(top(score.astype(np.float32), 0.3))
        + [(int(i), "mini") for i in good[top(mini.astype(np.float32), 0.3)]],
        key=lambda one: (one[0], one[1] == "mini"),
    )
    assert uids(here, "translated+raw", fraction=0.3, translated="mini") == expected


def test_the_command_annotates_once_and_again_only_for_changed_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pool(tmp_path / "pool", shards=2, samples=3)
    monkeypatch.chdir(tmp_path)

    def captions(text: str) -> None:
        lines = [f"{shard * 100 + row:032x},{text} {row}" for shard in (0, 1) for row in range(3)]
        (tmp_path / "c.csv").write_text("\n".join(["uid,text", *lines]))
        command = "import captions c.csv --pool pool --work w --source blip --force"
        assert main(command.split()) == 0

    def modified() -> list[int]:
        folder = tmp_path / "w/columns/agreement"
        return [path.stat().st_mtime_ns for path in sorted(folder.glob("*.parquet"))]

    captions("a picture")
    annotate = ["annotate", "--work", "w", "--method", "agreement", "--captions", "blip"]
    assert main(annotate) == 0
    before = modified()
    assert main(annotate) == 0
    assert modified() == before
    captions("a dog")
    assert main(annotate) == 0
    assert all(new > old for new, old in zip(modified(), before, strict=True))
    assert main(["mix", "--work", "w", "--recipe", "sieve", "--fraction", "0.5"]) == 0
    work = open_workspace("pool", "w")
    table = work.store.read_table("columns/agreement/00000.parquet")
    from capmix.mini.text_tower import text_tower

    vectors = text_tower().encode(["picture 0", "a dog 0"])
    assert table["value"].to_pylist()[0] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)
    marker = work.store.read_marker("columns/agreement/00000")
    assert marker is not None
    assert marker.config["phrases"] == list(PHRASES)
    assert json.loads(json.dumps(marker.config)) == marker.config


def test_other_settings_overwrite_values_only_with_force(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))
    work.annotate(method="agreement", captions="raw")
    with pytest.raises(UserError, match="created with different settings.*--force"):
        work.annotate(method="agreement", captions="raw", phrases=[])
    command = ["annotate", "--work", str(tmp_path / "work"), "--method", "agreement"]
    assert main([*command, "--captions", "raw", "--phrases", ""]) == 2
    assert main([*command, "--captions", "raw", "--phrases", "", "--force"]) == 0
    assert work.annotate(method="agreement", captions="raw", phrases=[]).ok


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, "agreement needs --captions SOURCE"),
        ({"captions": "blip3"}, "no captions of source 'blip3'"),
        ({"captions": "raw", "prefix": "query: "}, "--prefix: --model mini does not support it"),
        ({"captions": "raw", "model": "no/such"}, "sentence encoder no/such"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, options: dict[str, Any], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))
    with pytest.raises(UserError, match=error) as caught:
        work.annotate(method="agreement", **options)
    assert "\n" not in str(caught.value)
