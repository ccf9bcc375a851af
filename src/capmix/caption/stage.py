"""Caption a shard: write `captions/<source>/<shard>.parquet`, one row per sample and caption.

Columns in addition to the status: `k` (caption number, from 0), `text`, `finish`, `flags` (faults
of the caption, see flags.py) and `image_hash` (the first 64 bits of the image's sha256, null if the
captioner read an embedding).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from capmix.caption.captioner import Caption, Captioner
from capmix.caption.fields import DEFAULTS, FIELDS, NEEDED
from capmix.caption.flags import caption_flags
from capmix.engine.stage import PartWriter, Stage
from capmix.models.image_pass import read_embeddings
from capmix.models.selected import LargerParts, SelectedSamples, not_selected
from capmix.pool import Shard
from capmix.pool.selection import Selection
from capmix.storage.layout import captions_folder, embeddings_folder
from capmix.storage.rows import DROPPED, OK, Row, column_names, table_of, with_columns
from capmix.storage.store import Store


def caption_stage(
    store: Store,
    captioner: Captioner,
    source: str,
    language: str | None = None,
    selection: Selection | None = None,
) -> Stage:
    """Return the stage in which `captioner` captions `source` from saved embeddings."""
    folder = embeddings_folder(captioner.encoder.name)

    def inputs(shard: Shard) -> dict[str, str]:
        known = {folder: store.fingerprint(f"{folder}/{shard.name}")}
        return known | (selection.inputs(shard.name) if selection else {})

    def run_shard(shard: Shard, out: PartWriter) -> None:
        samples, embeddings = read_embeddings(store, f"{folder}/{shard.name}")
        samples, embeddings = _selected(samples, embeddings, shard, selection)
        good = [row.uid or "" for row in samples if row.status == OK]
        size = captioner.encoder.batch_size * 8
        captions: list[list[Caption]] = []
        for start in range(0, len(good), size):
            part = slice(start, start + size)
            with out.busy.working(len(good[part])):
                captions += captioner.caption(embeddings[part], good[part], source)
        written = iter(captions)
        rows: list[Row] = []
        for row in samples:
            out.count_in()
            if row.status == OK:
                rows += caption_rows(row, next(written), None, language)
            else:
                rows.append(row)
            count_row(out, rows[-1])
        out.write_table(table_of(rows, FIELDS))

    config = {"source": source, **captioner.settings, **asked_language(language)}
    own = captions_folder(source)
    reuse = None
    if selection is not None:
        samples = SelectedSamples(store, selection)
        reuse = LargerParts(samples, own, config, DEFAULTS, inputs)
    return Stage(
        f"caption {source}",
        own,
        config,
        inputs,
        run_shard,
        (folder,),
        defaults=DEFAULTS,
        columns=column_names(NEEDED),
        upgrade=with_columns(FIELDS),
        provenance=getattr(captioner, "provenance", {}),
        reuse=reuse,
    )


def asked_language(language: str | None) -> dict[str, str]:
    """Return the marker entry of the expected language; empty if there is none."""
    return {"language": language} if language else {}


def _selected(
    samples: list[Row], embeddings: np.ndarray, shard: Shard, selection: Selection | None
) -> tuple[list[Row], np.ndarray]:
    """Mark samples outside the selection as dropped; return the rows and the ok embeddings."""
    if selection is None or not selection.fingerprint(shard.name):
        return samples, embeddings
    chosen = selection.rows(shard.name, len(samples)).tolist()
    kept = [one for row, one in zip(samples, chosen, strict=True) if row.status == OK]
    found = [
        row if one or row.status != OK else not_selected(row.uid, row.key)
        for row, one in zip(samples, chosen, strict=True)
    ]
    return found, embeddings[np.array(kept, bool)]


def caption_rows(
    row: Row,
    captions: list[Caption],
    prompt: str | Sequence[str | None] | None = None,
    language: str | None = None,
    image: int | None = None,
) -> list[Row]:
    """Return a row for each nonempty caption of a sample; one dropped row if all are empty.

    `prompt` is that of all captions, or one per caption, for the flag `prompt_echo`. `row`
    has the sample's uid and key, `image` is the image's hash. Lone surrogates, which UTF-8 cannot
    encode, become "?".
    """
    kept = []
    for k, caption in enumerate(captions):
        if caption.text:
            text = caption.text.encode("utf-8", "replace").decode("utf-8")
            own = prompt if isinstance(prompt, str | None) else prompt[k]
            flags = caption_flags(text, caption.finish, own, language)
            kept.append(Row(row.uid, row.key, values=(k, text, caption.finish, flags, image)))
    return kept or [Row(row.uid, row.key, DROPPED, "empty_caption", "the caption is empty")]


def count_row(out: PartWriter, row: Row) -> None:
    """Count one sample by the status of its row."""
    count: Callable[[str], Any] = out.count_dropped if row.status == DROPPED else out.count_failed
    if row.reason:
        count(row.reason)
    else:
        out.count_ok()
