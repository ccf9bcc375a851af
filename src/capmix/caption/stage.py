"""Caption a shard: writes `captions/<source>/<shard>.parquet`, one row per sample and caption.

Columns beside the status: `k` (number of the caption, from 0), `text`, `finish`, and `flags`, a
list of what is wrong with the caption (see flags.py).
"""

import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from capmix.caption.captioner import Caption, Captioner
from capmix.caption.flags import caption_flags
from capmix.engine.stage import PartWriter, Stage
from capmix.errors import UserError
from capmix.models.image_pass import embeddings_folder, read_embeddings
from capmix.models.index import bad_row, pool_inputs
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.storage.rows import DROPPED, OK, Row, table_of
from capmix.storage.store import Store

FIELDS = [
    ("k", pa.int32()),
    ("text", pa.string()),
    ("finish", pa.string()),
    ("flags", pa.list_(pa.string())),
]
SOURCE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


def captions_folder(source: str) -> str:
    return f"captions/{source}"


def check_source_name(source: str) -> None:
    """Raise UserError unless `source` can name a folder and a column."""
    if source == "raw":
        raise UserError("source raw is the pool's own text: choose another name")
    if not SOURCE_NAME.fullmatch(source):
        raise UserError(
            f"source {source!r}: expected a lower-case letter, then letters, digits or '_'"
        )


def caption_stage(
    store: Store, captioner: Captioner, source: str, language: str | None = None
) -> Stage:
    """The stage in which `captioner` writes the captions of `source` from saved embeddings."""
    folder = embeddings_folder(captioner.encoder.name)

    def inputs(shard: Shard) -> dict[str, str]:
        return {folder: store.fingerprint(f"{folder}/{shard.name}")}

    def run_shard(shard: Shard, out: PartWriter) -> None:
        samples, embeddings = read_embeddings(store, f"{folder}/{shard.name}")
        good = [row.uid or "" for row in samples if row.status == OK]
        size = captioner.encoder.batch_size * 8
        captions: list[list[Caption]] = []
        for start in range(0, len(good), size):
            part = slice(start, start + size)
            captions += captioner.caption(embeddings[part], good[part], source)
        written = iter(captions)
        rows: list[Row] = []
        for row in samples:
            out.count_in()
            if row.status == OK:
                rows += caption_rows(row, next(written), None, language)
                count_row(out, rows[-1])
            else:
                rows.append(row)
                out.count_failed(row.reason or "")
        out.write_table(table_of(rows, FIELDS))

    config = {"source": source, **captioner.settings, **asked_language(language)}
    return Stage(f"caption {source}", captions_folder(source), config, inputs, run_shard, (folder,))


def asked_language(language: str | None) -> dict[str, str]:
    """What a marker says of the language that captions were asked to be in: nothing if none."""
    return {"language": language} if language else {}


def field_stage(pool: Pool, field: str, source: str) -> Stage:
    """The stage that takes `source` from a field of the samples' json instead of a model.

    A list of strings becomes one caption, joined by ", ".
    """

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows = []
        for sample in pool.read(shard):
            out.count_in()
            rows.append(_field_row(sample, field))
            count_row(out, rows[-1])
        out.write_table(table_of(rows, FIELDS))

    config = {"source": source, "model": f"field:{field}"}
    return Stage(f"caption {source}", captions_folder(source), config, pool_inputs, run_shard)


def _field_row(sample: Sample | BadSample, field: str) -> Row:
    if isinstance(sample, BadSample):
        return bad_row(sample)
    value = sample.metadata.get(field)
    if isinstance(value, list):
        value = ", ".join(item for item in value if isinstance(item, str))
    text = str(value or "").encode("utf-8", "replace").decode("utf-8").strip()
    return caption_rows(Row(sample.uid, sample.key), [Caption(text)])[0]


def caption_rows(
    row: Row, captions: list[Caption], prompt: str | None = None, language: str | None = None
) -> list[Row]:
    """A row for each caption of the sample that `row` names; one dropped row if all are empty.

    What no encoding can hold, a lone half of a surrogate pair, becomes "?".
    """
    kept = []
    for k, caption in enumerate(captions):
        if caption.text:
            text = caption.text.encode("utf-8", "replace").decode("utf-8")
            flags = caption_flags(text, caption.finish, prompt, language)
            kept.append(Row(row.uid, row.key, values=(k, text, caption.finish, flags)))
    return kept or [Row(row.uid, row.key, DROPPED, "empty_caption", "the caption is empty")]


def count_row(out: PartWriter, row: Row) -> None:
    """Count one sample by its row."""
    count: Callable[[str], Any] = out.count_dropped if row.status == DROPPED else out.count_failed
    if row.reason:
        count(row.reason)
    else:
        out.count_ok()
