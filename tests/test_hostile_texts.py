"""Unusual texts of web pools pass through all stages as counted rows, without a crash."""

import json
from pathlib import Path

from samples import image_bytes, tar_bytes

from capmix.caption.captioner import Caption
from capmix.caption.fields import FIELDS
from capmix.caption.settings import CaptionSettings
from capmix.caption.stage import caption_rows
from capmix.score.settings import ScoreSettings
from capmix.storage.rows import Row, table_of
from capmix.workspace import open_workspace

LONG = "very long text " * 6_667  # 100,005 characters
HALF_PAIR = r'"half \ud83d a pair"'  # as JSON
TEXTS = [json.dumps(LONG), HALF_PAIR, r'"nul \u0000 inside"', '""', "null", "7", r'"\u202eright"']


def test_texts_of_a_pool(tmp_path: Path) -> None:
    members = []
    for i, text in enumerate(TEXTS):
        record = f'{{"uid": "{i:032x}", "caption": {text}, "other": {text}}}'
        members += [(f"{i}.jpg", image_bytes(i)), (f"{i}.json", record.encode())]
    (tmp_path / "p").mkdir()
    (tmp_path / "p/00000.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"), max_failures=1.0)
    counts = work.caption("other", CaptionSettings(model="field:other"))
    assert (counts.ok, dict(counts.dropped)) == (5, {"empty_caption": 2})
    scored = work.score(ScoreSettings(model="mini", sources=["raw", "other"]))
    assert (scored["raw"].ok, dict(scored["raw"].dropped)) == (4, {"no_text": 3})
    assert work.measure()["population"]["sources"]["other"]["flags"] == {"loop": 1}
    work.mix("raw", out="all")
    work.export("all", str(tmp_path / "out"))
    subset = work.subset("all").table()
    texts = set(subset.column("text").to_pylist())
    assert {LONG, "half ? a pair", "nul \x00 inside", "\u202eright"} <= texts


def test_texts_of_a_model() -> None:
    captions = [Caption("half \ud83d a pair"), Caption("nul \x00 inside"), Caption(LONG)]
    table = table_of(caption_rows(Row("u", "k"), captions), FIELDS)
    assert table.column("text").to_pylist() == ["half ? a pair", "nul \x00 inside", LONG]
    assert table.column("flags").to_pylist() == [[], [], ["loop"]]
