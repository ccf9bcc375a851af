"""The first text of every sample of a source: its text k = 0, as `S_text` in recipes."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.storage.rows import OK, STATUS
from capmix.storage.store import Store


def first_texts(store: Store, part: str) -> pa.Table:
    """Return the status columns and the text of a part of texts, one row per sample.

    The text is null if a sample has none, or only others: its caption k = 0 is empty or failed.
    """
    file = f"{part}.parquet"
    with store.open_table(file) as opened:
        has_several = "k" in opened.schema_arrow.names
    table = store.read_table(file, [*STATUS, "text", *(["k"] if has_several else [])])
    if not has_several or not len(table):
        return table.select([*STATUS, "text"])
    uids = table["uid"].to_pylist()  # the rows of a sample are adjacent; unreadable ones have none
    is_new = np.array([a is None or a != b for a, b in zip(uids, [None, *uids[:-1]], strict=True)])
    is_ok, number = pc.equal(table["status"], OK), pc.fill_null(table["k"], 0)
    is_first = pc.and_(is_ok, pc.equal(number, 0)).to_numpy(zero_copy_only=False)
    rows, sample = np.flatnonzero(is_new), np.cumsum(is_new) - 1
    rows[sample[is_first]] = np.flatnonzero(is_first)
    texts = pc.if_else(pa.array(is_first), table["text"], pa.scalar(None, pa.string()))
    return table.select(STATUS).append_column("text", texts).take(pa.array(rows))
