"""The first text of every sample of a part: one row per sample."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import fresh_folder

from capmix.caption.captioner import Caption
from capmix.caption.fields import NEEDED as FIELDS
from capmix.caption.stage import caption_rows
from capmix.storage.first_texts import first_texts
from capmix.storage.marker import Counts, Marker
from capmix.storage.rows import DROPPED, FAILED, OK, Row, table_of
from capmix.storage.store import Store

PART = "captions/blip2/00000"


def written(store: Store, rows: list[Row]) -> Store:
    with store.draft(PART) as draft:
        draft.write_table(f"{PART}.parquet", table_of(rows, FIELDS))
        draft.commit(Marker({}, {}, len(rows), Counts(len(rows))))
    return store


# The captions of each sample, and whether a failed row follows them; None: an unreadable sample.
SAMPLES = st.lists(
    st.none() | st.tuples(st.lists(st.sampled_from(["", "a car", "zebra"])), st.booleans())
)


@given(SAMPLES)
def test_every_sample_has_one_row(samples: list[tuple[list[str], bool] | None]) -> None:
    rows, expected = [], []
    for number, one in enumerate(samples):
        if one is None:
            rows.append(Row(None, str(number), FAILED, "not_an_image", "broken"))
            expected.append((None, str(number), FAILED, None))
            continue
        uid, (texts, has_failed) = f"{number:032x}", one
        here = caption_rows(Row(uid, str(number)), [Caption(text) for text in texts])
        here = here if any(texts) or not has_failed else []
        failed = Row(uid, str(number), FAILED, "model_error", "no caption 7")
        rows += [*here, *([failed] if has_failed else [])]
        status = OK if any(texts) else FAILED if has_failed else DROPPED
        first = (texts or [""])[0] or None
        expected.append((uid, str(number), status, first))
    table = first_texts(written(Store(str(fresh_folder())), rows), PART)
    columns = (table[name].to_pylist() for name in ("uid", "key", "status", "text"))
    assert list(zip(*columns, strict=True)) == expected


def test_texts_without_a_number_are_first(tmp_path: Path) -> None:
    rows = [Row("a", "a", values=(None, "a car", "stop", []))]
    assert first_texts(written(Store(str(tmp_path)), rows), PART)["text"].to_pylist() == ["a car"]


@pytest.mark.parametrize("status", [FAILED, DROPPED])
def test_a_row_that_is_not_ok_keeps_its_reason(tmp_path: Path, status: str) -> None:
    rows = [Row("a", "a", status, "why", "because"), Row("b", "b", status, "why", "because")]
    table = first_texts(written(Store(str(tmp_path)), rows), PART)
    assert table["reason"].to_pylist() == ["why", "why"]
    assert "k" not in table.column_names
