"""Export a subset as shards of a fixed number of samples, written by several processes.

Each output shard is one unit of work and is finished once its marker exists, so a killed export
resumes. The number of processes does not affect the output.

Formats:
- `webdataset`: tars for open_clip, DataComp and other readers of img2dataset's tars
- `datacomp`: tars with unchanged members, as DataComp's resharder writes them
- `parquet`: embedded images, for Hugging Face datasets
- `lance`: the same columns as a Lance dataset
- `jsonl`: image files by uid with .txt files, JSON lines and a list for LLaVA
- `csv`: uid and text, no images
- `files`, `kohya`, `llava`, `imagefolder`: image files under their original names (files.py)
"""

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from capmix.engine.local import cores
from capmix.engine.run import run_job
from capmix.engine.settings import MAX_FAILURES, EngineSettings
from capmix.engine.stage import PartWriter, Stage
from capmix.engine.worker import Job
from capmix.errors import UserError
from capmix.export.card import dataset_card
from capmix.export.claim import claim, refuse_foreign
from capmix.export.files import FilesExport, check_settings, write_files
from capmix.export.lance import commit_dataset, data_file, withdraw_dataset, write_lance
from capmix.export.llava import Conversation, write_llava
from capmix.export.manifest import ExportTarget
from capmix.export.names import file_names
from capmix.export.push import open_dataset, push
from capmix.export.samples import chosen_samples, refuse_changed
from capmix.export.settings import FORMS, ExportSettings, Form
from capmix.export.sidecars import write_sidecars
from capmix.export.tables import parquet_schema, write_images, write_parquet
from capmix.export.webdataset import write_tar
from capmix.mix.mix import Summary
from capmix.mix.subset import SubsetRows
from capmix.pool import Pool, Shard
from capmix.pool.lance import need_lance
from capmix.storage import legacy
from capmix.storage.filesystem import is_within
from capmix.storage.layout import (
    MARKERS,
    RAW,
    RUNNING,
    SCORES,
    SCRATCH,
    SHARDS,
    scores_folder,
    texts_folder,
)
from capmix.storage.marker import Counts
from capmix.storage.record import Sink
from capmix.storage.store import Store, as_lines

log = logging.getLogger(__name__)

TARS = ("webdataset", "datacomp")
SAMPLES_PER_PROCESS = 2_000  # about as many are written while a process starts
# Bump when columns change: readers of these formats need the same columns in every shard.
LAYOUT: dict[Form, dict[str, int]] = {form: {"layout": 2} for form in ("parquet", "lance", "jsonl")}


@dataclass(frozen=True)
class Export:
    """One export; can be pickled and sent to another process."""

    pool: Pool
    store: Store
    target: ExportTarget
    rows: SubsetRows
    form: Form
    samples_per_shard: int
    sources: tuple[str, ...]


def export(
    store: Store,
    pool: Pool,
    subset: str,
    directory: str | None = None,
    settings: ExportSettings = ExportSettings(),
    sources: Sequence[str] = ("raw",),
    max_failures: float = MAX_FAILURES,
    engine: EngineSettings = EngineSettings(),
) -> Counts:
    """Export `subsets/<subset>.parquet` to `directory`, skipping finished shards.

    With `settings.sidecars`, write text files beside the pool's images instead. With
    `settings.push`, upload the export; `directory` then defaults to `shards/<subset>` in the work
    directory. `sources` are the sources whose captions are included in addition to the selected
    one. Raises UserError if the directory holds other files, or if the share of rows whose images
    are missing exceeds `max_failures`.
    """
    _check_options(settings, directory)
    if settings.sidecars:
        rows = _usable(store, pool, subset, needs_pool=True)
        return write_sidecars(store, pool, rows, settings, max_failures)
    directory = directory or store.path(f"{SHARDS}/{subset}")
    form = settings.format
    if form == "datacomp" and not pool.is_tars:
        raise UserError(f"--format datacomp requires a pool of tars; {pool.location} has none")
    if form == "lance":
        need_lance("--format lance")
    rows = _usable(store, pool, subset, needs_pool=form != "csv")
    target = _target(store, pool, rows, directory, settings)
    # Check access to the Hub before an earlier export is removed.
    dataset = open_dataset(settings.push, settings.private) if settings.push else None
    claim(target, _about(rows, settings, sources), is_shared=form in FORMS)
    engine = with_processes(engine, rows.copies)
    counts, notes = _write(store, pool, target, rows, settings, sources, engine, max_failures)
    _write_card(store, pool, target, rows, sources, form, notes)
    if dataset is not None:
        push(target, dataset, settings.overwrite)
    return counts


def with_processes(engine: EngineSettings, samples: int) -> EngineSettings:
    """Return the engine with up to one process per core, unless the number is given."""
    if engine.name != "local" or engine.workers is not None:
        return engine
    count = min(cores(), samples // SAMPLES_PER_PROCESS)
    return engine.model_copy(update={"workers": count}) if count > 1 else engine


def _check_options(settings: ExportSettings, directory: str | None) -> None:
    """Raise UserError for options that conflict with the directory; see also ExportSettings."""
    if settings.sidecars and (directory is not None or settings.push):
        raise UserError("--sidecars writes beside the pool's images; remove --out and --push")
    if not settings.sidecars and not settings.push and directory is None:
        raise UserError("export requires --out DIR, --push USER/NAME or --sidecars")
    if settings.push and directory is not None and "://" in directory:
        raise UserError(f"--push requires a local --out; {directory} is remote")


def _usable(store: Store, pool: Pool, subset: str, needs_pool: bool) -> SubsetRows:
    """Return the subset's rows. Raises UserError if its texts or images are missing or changed."""
    rows = SubsetRows.pinned(store, subset)
    rows.refuse_changed()
    rows.refuse_stale()
    if needs_pool:
        rows.refuse_gone(pool)
    return rows


def _about(rows: SubsetRows, settings: ExportSettings, sources: Sequence[str]) -> dict[str, Any]:
    """Return what identifies the export: subset, format, sources and number of shards."""
    form, size = settings.format, settings.samples_per_shard
    about: dict[str, Any] = {
        **LAYOUT.get(form, {}),
        "subset": rows.fingerprint,
        "form": form,
        "sources": list(sources),
    }
    if form in FORMS:
        return about | {"text_suffix": settings.text_suffix, "shards": len(rows.shard_names())}
    shards = 0 if form == "csv" else -(-rows.copies // size)
    return about | {"samples_per_shard": size, "shards": shards}


def _target(
    store: Store, pool: Pool, rows: SubsetRows, directory: str, settings: ExportSettings
) -> ExportTarget:
    """Return the target directory, after removing partial files of killed processes.

    Raises UserError if the directory cannot hold an export.
    """
    form = settings.format
    if is_within(directory, pool.location):
        raise UserError(
            f"--out {directory} is inside the pool {pool.location}; name another directory"
        )
    if _is_of_parts(directory, store):
        raise UserError(
            f"--out {directory} holds parts of the work directory {store.location}; name another "
            f"directory, for example {store.path(SHARDS)}/{rows.name}"
        )
    target = ExportTarget(directory, store.scratch_place, is_shared=form in FORMS)
    if form in FORMS:
        check_settings(pool, target, settings)
    if settings.push and not target.is_local:
        raise UserError("--push requires a local directory; name one with --out")
    refuse_foreign(target, is_shared=form in FORMS)
    target.sweep()
    return target


def _write(
    store: Store,
    pool: Pool,
    target: ExportTarget,
    rows: SubsetRows,
    settings: ExportSettings,
    sources: Sequence[str],
    engine: EngineSettings,
    max_failures: float,
) -> tuple[Counts, list[str]]:
    """Write the export; return the counts and notes for the card."""
    if settings.format == "csv":
        return _write_csv(target, rows), []
    if settings.format in FORMS:
        names, shards = file_names(rows, pool), tuple(rows.shard_names())
        files = FilesExport(pool, store, target, rows, settings, tuple(sources), names, shards)
        return write_files(files, engine, max_failures)
    size = settings.samples_per_shard
    work = Export(pool, store, target, rows, settings.format, size, tuple(sources))
    return _write_shards(work, rows, engine, max_failures)


def _write_card(
    store: Store,
    pool: Pool,
    target: ExportTarget,
    rows: SubsetRows,
    sources: Sequence[str],
    form: Form,
    notes: Sequence[str],
) -> None:
    marker = store.read_marker(rows.part)
    if marker is None:
        rows.refuse_changed()
    assert marker is not None
    summary = Summary(**marker.extra["summary"])
    models = _models(store, pool, sources)
    card = dataset_card(rows.name, summary, marker.config["recipe"], models, form, notes)
    target.write_card(card.encode("utf-8", "replace"))


def _is_of_parts(directory: str, store: Store) -> bool:
    """Return whether a directory contains the work directory or is in one of its part folders."""
    folders = (*legacy.MARKED, MARKERS, RUNNING, SCRATCH)
    return is_within(store.root, directory) or any(
        is_within(directory, store.path(name)) for name in folders
    )


def _write_shards(
    work: Export, rows: SubsetRows, engine: EngineSettings, max_failures: float
) -> tuple[Counts, list[str]]:
    """Write all shards and the export's tables; return the counts and notes for the card."""
    shards, target = _output_shards(rows, work), work.target
    job = Job(partial(_export_stages, work), shards, target, retry=True)
    if engine.name == "local" and len(shards) < 2:
        engine = EngineSettings()
    (counts,) = run_job(job, max_failures, engine)
    rows_of: dict[str, int] = {}
    notes: list[str] = []
    with target.listed([""]):
        for shard in shards:
            marker = target.read_marker(shard.name)
            assert marker is not None
            rows_of[shard.name] = marker.counts.ok
    if work.form in TARS:
        target.write_json("sizes.json", {f"{name}.tar": ok for name, ok in rows_of.items()})
    if work.form == "lance":
        commit_dataset(target, parquet_schema(work.sources), rows_of)
    if work.form == "jsonl":
        with target.writing("metadata.jsonl") as stream, target.writing("llava.json") as llava:
            lines = (target.read_bytes(f"{shard.name}.jsonl") for shard in shards)
            replaced = write_llava(llava, map(_conversation, _tee(stream, lines)))
        if replaced:
            notes.append(f"`<image>` was replaced by `[image]` in {replaced:,} captions.")
            log.warning("export %s: %s", work.rows.name, notes[-1])
    return counts, notes


def _conversation(line: bytes) -> Conversation:
    about = json.loads(line)
    return Conversation(about["id"], about["file_name"], about["text"])


def _tee(stream: Sink, shards: Iterable[bytes]) -> Iterator[bytes]:
    """Yield each line of each shard after writing it to `stream`."""
    for data in shards:
        stream.write(data)
        yield from data.splitlines()


def _output_shards(rows: SubsetRows, work: Export) -> list[Shard]:
    stamp = f"{work.form}, {work.samples_per_shard}"
    count = range(0, rows.copies, work.samples_per_shard)
    return [Shard(f"{i:08d}", stamp) for i in range(len(count))]


def _export_stages(work: Export) -> list[Stage]:
    pool, store, target = work.pool, work.store, work.target
    rows, size = work.rows, work.samples_per_shard
    by_name = {shard.name: shard for shard in pool.shards}

    def copies_of(shard: Shard) -> tuple[int, int]:
        start = int(shard.name) * size
        return start, min(start + size, rows.copies)

    def run_shard(shard: Shard, out: PartWriter) -> None:
        start, stop = copies_of(shard)
        used = [by_name[name] for name in rows.shards(start, stop)]
        for one in used:
            refuse_changed(store, one)
        copies = stop - start
        out.count_in(copies)
        failed: Counter[str] = Counter()
        chosen = rows.between(start, stop)
        samples = chosen_samples(pool, store, chosen, used, work.sources, failed)
        name = _file_name(work.form, shard.name)
        rows.refuse_changed()
        if work.form == "lance":
            withdraw_dataset(target)
        with out.draft.writing(name) as stream:
            if work.form in TARS:
                written = write_tar(stream, samples, untouched=work.form == "datacomp")
            elif work.form == "parquet":
                written = write_parquet(stream, samples, parquet_schema(work.sources))
            elif work.form == "lance":
                written = write_lance(target, stream, samples, parquet_schema(work.sources))
            else:
                written = write_images(target, f"images/{shard.name}", stream, samples)
        if work.form in TARS:
            stats = {"count": copies, "successes": written}
            out.draft.write_bytes(f"{shard.name}_stats.json", as_lines(stats))
        rows.refuse_changed()
        out.count_ok(written)
        failed["image_gone"] = copies - written - failed.total()
        for reason in failed.elements():
            out.count_failed(reason)

    def inputs(shard: Shard) -> dict[str, str]:
        used = [by_name[name] for name in rows.shards(*copies_of(shard))]
        found = {"subset": rows.fingerprint} | {f"pool/{one.name}": one.fingerprint for one in used}
        for folder in dict.fromkeys(texts_folder(source) for source in work.sources):
            for one in used:
                found[f"{folder}/{one.name}"] = store.fingerprint(f"{folder}/{one.name}")
        return found

    config = {"size": size, "form": work.form, "sources": list(work.sources)}
    config |= LAYOUT.get(work.form, {})
    return [Stage(f"export {work.rows.name}", "", config, inputs, run_shard)]


def _file_name(form: Form, shard: str) -> str:
    if form in TARS:
        return f"{shard}.tar"
    if form == "lance":
        return data_file(shard)
    return f"data/train-{shard}.parquet" if form == "parquet" else f"{shard}.jsonl"


def _write_csv(target: Store, rows: SubsetRows) -> Counts:
    counts = Counts()
    columns = ["uid", "text", "source", "k", "score", "weight", "key"]
    with target.writing("captions.csv") as stream:
        stream.write(_csv([[*columns[:-1], "filename"]]))
        for table in rows.batches():
            stream.write(_csv(zip(*(table[name].to_pylist() for name in columns), strict=True)))
            counts.ok += len(table)
    log.info("export %s: %s rows", rows.name, f"{counts.ok:,}")
    return counts


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(rows)
    return lines.getvalue().encode("utf-8", "replace")


def _models(store: Store, pool: Pool, sources: Sequence[str]) -> dict[str, str]:
    """Return the models of each source's captions and of each scorer, from the first shard's
    markers."""
    first = pool.shards[0].name
    folders = {f"captions of {one}": texts_folder(one) for one in sources if one != "raw"}
    folders |= {f"scores {one}": scores_folder(one, RAW) for one in store.folders(SCORES)}
    found = {}
    for what, folder in folders.items():
        marker = store.read_marker(f"{folder}/{first}")
        if marker is not None:
            shown = {k: v for k, v in marker.config.items() if k not in ("source", "digest")}
            found[what] = ", ".join(f"{k} {v}" for k, v in shown.items())
    return found
