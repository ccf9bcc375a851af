"""Rewrite a shard: read texts of other sources, write `captions/<source>/<shard>.parquet`.

The columns are those of captions (caption/stage.py), so that every command reads the texts as any
other source. `image_hash` is null: no image is read. `finish` is `copied` for a text that was
copied unchanged.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from capmix.caption.captioner import Caption
from capmix.caption.fields import FIELDS
from capmix.caption.partial import (
    SAMPLE_ERRORS,
    CaptionEntry,
    captions_entry,
    earlier_entries,
    failure_entry,
    note_hang,
    of_sample_error,
)
from capmix.caption.prompts import MISSING_TEXT, TEMPLATE_FORMAT
from capmix.caption.stage import asked_language, caption_rows, count_row
from capmix.engine.batches import Batches, SampleError, batched
from capmix.engine.prefetch import Finished
from capmix.engine.read_ahead import read_ahead
from capmix.engine.stage import PartWriter, Stage
from capmix.models.device import alone_on_its_core
from capmix.models.selected import LargerParts, SelectedSamples, not_selected
from capmix.pool import Pool, Shard
from capmix.pool.selection import Selection
from capmix.prompts.template import FORMAT
from capmix.rewrite.inputs import InputMaker, SampleInputs
from capmix.rewrite.rewriter import (
    PREPARES_INPUTS,
    PREPARES_REQUESTS,
    PREPARES_TEXTS,
    Rewriter,
    TextRequest,
)
from capmix.rewrite.settings import RewriteSettings
from capmix.rewrite.texts import SampleTexts, read_texts, text_folders, text_inputs
from capmix.settings.base import defaults_of
from capmix.storage.layout import captions_folder
from capmix.storage.rows import DROPPED, FAILED, OK, Row, column_names, table_of, with_columns
from capmix.storage.store import Store

DEFAULTS = defaults_of(RewriteSettings)
# Batches that are prepared ahead, and whose texts are sorted by length. Requests of vLLM start when
# they are prepared, and are kept when they are collected: so many batches are lost with a process.
WINDOW = 16
COPIED = "copied"
# Counts of samples in a marker's `extra`, besides those of copied texts (inputs.py).
SKIPPED = "missing_skipped"
LONGER, EMPTY, CUT = "with_more_texts", "with_empty_texts", "with_cut_texts"


@dataclass(slots=True)
class _Task:
    """A sample to rewrite. `digest` is of everything that the texts depend on but the settings."""

    place: int
    row: Row
    request: TextRequest
    digest: str
    is_alone: bool = False
    prepared: Any = None

    @property
    def name(self) -> tuple[str, str, str]:
        """The name of its entry in the partial part."""
        return self.row.key, self.row.uid or "", self.digest


def rewrite_stage(
    pool: Pool,
    store: Store,
    rewriter: Rewriter,
    make_inputs: InputMaker,
    source: str,
    settings: RewriteSettings,
    selection: Selection | None = None,
    cut: Callable[[str], str] | None = None,
) -> Stage:
    """Return the stage in which `rewriter` writes the texts of `source`.

    `make_inputs` makes its inputs from the texts of `settings.from_`. With `selection`, other
    samples are dropped. `cut` shortens the written texts that are too long.
    """
    sources, number = settings.from_, settings.number
    batches = Batches(settings.batch_timeout)
    selected = SelectedSamples(store, selection) if selection else None

    def inputs(shard: Shard) -> dict[str, str]:
        known = text_inputs(store, shard, sources)
        return known | (selection.inputs(shard.name) if selection else {})

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows: dict[int, list[Row]] = {}
        notes: Counter[str] = Counter()
        earlier = earlier_entries(out, f"rewrite {source}: shard {shard.name}", "sample")
        chosen = selected.of(shard.name) if selected else None
        samples = read_texts(store, pool, shard, sources)
        tasks: list[_Task] = []
        for place, sample in enumerate(samples):
            row = sample.row
            is_redone = out.keys is None or (row.key in out.keys and row.uid is not None)
            if chosen is not None and row.uid not in chosen and row.status == OK:
                found: list[Row] | _Task = [not_selected(row.uid, row.key)]
            elif row.status != OK:
                found = [row]
            else:
                found = _planned(place, sample, make_inputs(sample), source, settings, notes)
            if not is_redone:
                continue
            out.count_in()
            if isinstance(found, _Task):
                tasks.append(found)
            else:
                rows[place] = found
                count_row(out, found[-1] if found else _missing(row, ()))

        def add(task: _Task, captions: list[Caption] | SampleError) -> None:
            if isinstance(captions, SampleError):
                of_sample = [
                    Row(task.row.uid, task.row.key, FAILED, captions.reason, str(captions))
                ]
            else:
                notes[LONGER] += len(captions) > number
                notes[EMPTY] += not all(one.text for one in captions[:number])
                written = captions[:number]
                if cut is not None:
                    fitting = [_fitting(one, cut) for one in written]
                    notes[CUT] += fitting != written
                    written = fitting
                of_sample = caption_rows(task.row, written, None, settings.language)
            rows[task.place] = of_sample
            count_row(out, of_sample[-1])

        waiting = []
        for task in tasks:
            entry = earlier.get(task.row.key)
            if entry is None or entry[:3] != task.name:
                waiting.append(task)
            elif entry.is_done:
                add(task, entry.result(0))
                out.resumed += entry.captions is not None
            else:
                task.is_alone = True
                waiting.append(task)
        for some in _windows(rewriter, waiting, out):
            _rewrite(rewriter, batches, some, out, add)
        out.extra |= _merged(store, out, notes)
        out.write_table(table_of([row for place in sorted(rows) for row in rows[place]], FIELDS))

    config = {
        "source": source,
        "from": list(sources),
        "prompt": list(settings.templates) or None,
        "preset": settings.preset,
        **({TEMPLATE_FORMAT: FORMAT} if settings.templates else {}),
        "missing": settings.missing,
        "target": settings.target,
        **_language_model(settings.target),
        **rewriter.settings,
        **asked_language(settings.language),
    }
    folder = captions_folder(source)
    return Stage(
        f"rewrite {source}",
        folder,
        config,
        inputs,
        run_shard,
        text_folders(sources),
        by_sample=True,
        defaults=DEFAULTS,
        columns=column_names(FIELDS),
        upgrade=with_columns(FIELDS),
        provenance=getattr(rewriter, "provenance", {}),
        reuse=LargerParts(selected, folder, config, DEFAULTS, inputs) if selected else None,
    )


def _language_model(target: str | None) -> dict[str, str]:
    """Return the marker entry of the model that detects languages, unless it is the default."""
    if target is None:
        return {}
    from capmix.mix.functions import own_language_model

    found = own_language_model()
    return {"language_model": found} if found else {}


def _planned(
    place: int,
    sample: SampleTexts,
    found: SampleInputs,
    source: str,
    settings: RewriteSettings,
    notes: Counter[str],
) -> "list[Row] | _Task":
    """Return the task of a sample, or its rows if there is nothing to rewrite."""
    row = sample.row
    if found.copied is not None:
        notes[found.reason] += 1
        return caption_rows(row, [Caption(found.copied, COPIED)], None, settings.language)
    if found.is_unknown:
        detail = f"the model does not translate from {found.language!r}"
        return [Row(row.uid, row.key, DROPPED, "unknown_language", detail)]
    if not found.texts:
        notes[SKIPPED] += settings.missing == "skip"
        return [] if settings.missing == "skip" else [_missing(row, found.missing)]
    request = TextRequest(sample.name, found.texts, source, found.language)
    about = json.dumps([request.name, request.language, *request.texts]).encode()
    return _Task(place, row, request, hashlib.sha256(about).hexdigest()[:16])


def _fitting(caption: Caption, cut: Callable[[str], str]) -> Caption:
    """Return the caption, or its beginning that fits, which is unfinished (`length`)."""
    text = cut(caption.text)
    return caption if text == caption.text else replace(caption, text=text, finish="length")


def _missing(row: Row, names: Sequence[str]) -> Row:
    return Row(row.uid, row.key, DROPPED, MISSING_TEXT, f"no text of {', '.join(names)}")


def _windows(
    rewriter: Rewriter, tasks: Sequence[_Task], out: PartWriter
) -> Iterator[list[tuple[_Task, Finished[Any]]]]:
    """Yield some tasks at a time, each with the outcome of `prepare`, which may be a SampleError.

    Texts are kept at once: a run that is killed need not repeat their requests. Failures are not
    kept: a server may be back when the run is repeated.
    """
    kind = getattr(rewriter, "prepares", PREPARES_INPUTS)
    size = rewriter.batch_size * WINDOW

    def prepare(task: _Task) -> Any:
        try:
            found = rewriter.prepare(task.request)
        except SampleError as error:
            found = error
        except SAMPLE_ERRORS as error:
            found = of_sample_error(error)
        if kind == PREPARES_TEXTS and not isinstance(found, SampleError):
            out.partial.add([_entry(task, found)])
        return found

    ahead = read_ahead(tasks, prepare, rewriter.workers, size, alone_on_its_core())
    at_once = {PREPARES_TEXTS: 1, PREPARES_REQUESTS: rewriter.batch_size}.get(kind, size)
    yield from batched(ahead, at_once)


def _rewrite(
    rewriter: Rewriter,
    batches: Batches,
    window: Sequence[tuple[_Task, Finished[Any]]],
    out: PartWriter,
    add: Any,
) -> None:
    """Rewrite a window, longest texts first, and keep the results in the partial part."""
    ready: list[_Task] = []
    for task, finished in window:
        found = finished.result()
        if isinstance(found, SampleError):
            add(task, found)
        elif getattr(rewriter, "prepares", PREPARES_INPUTS) == PREPARES_TEXTS:
            out.busy.images += 1
            add(task, found)
        else:
            task.prepared = found
            ready.append(task)
    ready.sort(key=lambda task: (not task.is_alone, -task.request.size, task.place))
    alone = sum(task.is_alone for task in ready)
    groups = [[task] for task in ready[:alone]] + list(batched(ready[alone:], rewriter.batch_size))

    def on_hang(hung: Sequence[_Task]) -> None:
        note_hang(out, batches, (one.name for one in hung))

    for some in groups:
        with out.busy.working(len(some)):
            found = batches.run(partial(_texts, rewriter), some, on_hang)
        out.partial.add([_entry(task, one) for task, one in zip(some, found, strict=True)])
        for task, one in zip(some, found, strict=True):
            add(task, one)
            task.prepared = None


def _texts(rewriter: Rewriter, some: Sequence[_Task]) -> Sequence[list[Caption]]:
    return rewriter.rewrite([one.prepared for one in some], [one.request for one in some])


def _entry(task: _Task, found: list[Caption] | SampleError) -> CaptionEntry:
    if isinstance(found, SampleError):
        return failure_entry(*task.name, found.reason, str(found))
    return captions_entry(*task.name, found)


def _merged(store: Store, out: PartWriter, notes: Counter[str]) -> dict[str, int]:
    """Return the counts for the marker.

    If only failed samples were rewritten, the counts of outputs are added to those of the part.
    """
    if out.keys is not None:
        marker = store.read_marker(out.part)
        for name in (LONGER, EMPTY, CUT) if marker is not None else ():
            earlier = marker.extra.get(name, 0) if marker is not None else 0
            notes[name] += earlier if isinstance(earlier, int) else 0
    return {name: count for name, count in sorted(notes.items()) if count}
