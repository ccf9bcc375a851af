"""Write image files under their paths and names in the pool.

One shard of the pool is one unit of work, so that all texts of an image are written together. Each
file is listed in `.manifest/` before it is put in place, so a killed export can resume and a later
export can identify the files that capmix wrote. Existing files are kept. `_markers/<shard>.jsonl`
has one line per image; the tables for kohya, LLaVA and imagefolder are built from these lines.
"""

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import orjson

from capmix.engine.run import run_job
from capmix.engine.settings import EngineSettings
from capmix.engine.stage import PartWriter, Stage
from capmix.engine.worker import Job
from capmix.errors import UserError
from capmix.export.folder import Make, TargetFolder, hard_link
from capmix.export.imagefolder import FOLDER as IMAGEFOLDER
from capmix.export.imagefolder import write_imagefolder
from capmix.export.kohya import caption_lines, write_kohya
from capmix.export.llava import conversations, write_llava
from capmix.export.manifest import ExportTarget
from capmix.export.names import FileNames
from capmix.export.samples import Chosen, chosen_samples, refuse_changed
from capmix.export.settings import ExportSettings
from capmix.mix.subset import SubsetRows
from capmix.pool import Pool, Shard
from capmix.pool.sample import IMAGE_SUFFIXES
from capmix.storage.layout import EXPORT_MARKERS, texts_folder
from capmix.storage.marker import Counts
from capmix.storage.record import FileRecord, digest_of
from capmix.storage.store import Store

log = logging.getLogger(__name__)

KEPT = "kept_existing"
TextOf = Callable[[Sequence[Mapping[str, Any]]], str]


@dataclass(frozen=True)
class FilesExport:
    """One export of image files; can be pickled and sent to another process."""

    pool: Pool
    store: Store
    target: ExportTarget
    rows: SubsetRows
    settings: ExportSettings
    sources: tuple[str, ...]
    names: FileNames
    shards: tuple[str, ...]  # names of pool shards

    @property
    def text_of(self) -> TextOf | None:
        """The function that formats an image's text file; None for formats without text files."""
        return {"files": plain_text, "kohya": caption_lines}.get(self.settings.format)

    @property
    def folder(self) -> str:
        """The folder of the images, with a trailing slash; "" for the export's root."""
        return f"{IMAGEFOLDER}/" if self.settings.format == "imagefolder" else ""


def plain_text(texts: Sequence[Mapping[str, Any]]) -> str:
    """Return a single text unchanged, or several texts one per line."""
    if len(texts) == 1:
        return str(texts[0]["text"])
    return "".join(f"{' '.join(one['text'].split())}\n" for one in texts)


def check_settings(pool: Pool, target: ExportTarget, settings: ExportSettings) -> None:
    """Raise UserError for options that the pool or the target does not support."""
    check_text_suffix(settings.text_suffix)
    if not target.is_local:
        raise UserError(
            f"--format {settings.format} requires a local --out, not {target.location}; "
            "export to a local directory and copy it, or choose another format"
        )
    if settings.link and not (pool.is_folder and pool.is_local):
        raise UserError(
            f"--link hard requires a local folder of image files; {pool.location} is not one"
        )


def check_text_suffix(suffix: str) -> None:
    """Raise UserError for a suffix that image or JSON files use."""
    if suffix.lower() in (".json", *(f".{one}" for one in IMAGE_SUFFIXES)):
        raise UserError(
            f"--text-suffix {suffix} is a suffix of image or JSON files; use .txt or .caption"
        )


def write_files(
    work: FilesExport, engine: EngineSettings, max_failures: float
) -> tuple[Counts, list[str]]:
    """Write all images and the format's table; return the counts and notes for the card."""
    target = work.target
    stamp = work.settings.format
    shards = [Shard(f"{number:08d}", stamp) for number in range(len(work.shards))]
    _remove_incomplete_markers(target, shards)
    if engine.name == "local" and len(shards) < 2:
        engine = EngineSettings()
    job = Job(partial(files_stages, work), shards, target, retry=True)
    (counts,) = run_job(job, max_failures, engine)
    _report(work, shards, counts)
    lines = partial(_lines, target, shards)
    notes: list[str] = []
    if work.settings.format == "kohya":
        with target.writing("metadata.json") as stream:
            write_kohya(stream, lines())
    elif work.settings.format == "imagefolder":
        target.make_folder(IMAGEFOLDER)
        with target.writing(f"{IMAGEFOLDER}/metadata.parquet") as stream:
            write_imagefolder(stream, lines(), work.sources)
    elif work.settings.format == "llava":
        with target.writing("llava.json") as stream:
            replaced = write_llava(stream, conversations(lines()))
        if replaced:
            notes.append(f"`<image>` was replaced by `[image]` in {replaced:,} captions.")
            log.warning("export %s: %s", work.rows.name, notes[-1])
    return counts, notes


def files_stages(work: FilesExport) -> list[Stage]:
    """Return the single stage, which writes the images of one pool shard."""
    pool, store, rows = work.pool, work.store, work.rows
    by_name = {shard.name: shard for shard in pool.shards}

    def run_shard(shard: Shard, out: PartWriter) -> None:
        of_pool = by_name[work.shards[int(shard.name)]]
        refuse_changed(store, of_pool)
        chosen = rows.of_shard(of_pool.name)
        copies = sum(chosen["times"].to_pylist())
        out.count_in(copies)
        failed: Counter[str] = Counter()
        samples = chosen_samples(pool, store, chosen, [of_pool], work.sources, failed)
        rows.refuse_changed()
        found = _ShardFiles(work, of_pool.name, shard.name)
        with (
            out.draft.writing(f"{EXPORT_MARKERS}/{shard.name}.jsonl") as stream,
            work.target.journal(shard.name) as found.note,
        ):
            for _, of_sample in groupby(samples, lambda one: one.sample.key):
                together = list(of_sample)
                count = sum(len(one.copies) for one in together)
                line = found.write(together)
                if line is None:
                    for _ in range(count):
                        out.count_dropped(KEPT)
                    continue
                stream.write(orjson.dumps(line) + b"\n")
                out.count_ok(count)
        rows.refuse_changed()
        work.target.list_found(shard.name, found.found)
        out.extra |= {"renamed": found.renamed, "kept": found.kept}
        failed["image_gone"] = copies - out.counts.total - failed.total()
        for reason in failed.elements():
            out.count_failed(reason)

    def inputs(shard: Shard) -> dict[str, str]:
        one = by_name[work.shards[int(shard.name)]]
        found = {"subset": rows.fingerprint, f"pool/{one.name}": one.fingerprint}
        for folder in dict.fromkeys(texts_folder(source) for source in work.sources):
            found[f"{folder}/{one.name}"] = store.fingerprint(f"{folder}/{one.name}")
        return found

    settings = work.settings
    config = {
        "form": settings.format,
        "sources": list(work.sources),
        "text_suffix": settings.text_suffix,
        "link": settings.link,
        "overwrite": settings.overwrite,
    }
    return [Stage(f"export {rows.name}", "", config, inputs, run_shard)]


Note = Callable[[str, FileRecord], None]


@dataclass
class _ShardFiles:
    """State of one shard while its files are written.

    `renamed` is [count, first pool name, first written name], `kept` is [count, first name].
    `found` has the files that existed already with the right bytes.
    """

    work: FilesExport
    shard: str  # name of the pool shard
    part: str
    note: Note = field(default=lambda name, record: None)
    renamed: list[Any] = field(default_factory=lambda: [0, "", ""])
    kept: list[Any] = field(default_factory=lambda: [0, ""])
    found: dict[str, FileRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._key_is_name = self.work.pool.is_folder
        self._folder = TargetFolder(self.work.target.root, self.work.settings.overwrite)

    def write(self, chosen: Sequence[Chosen]) -> dict[str, Any] | None:
        """Write one sample, given all its rows.

        Return the values for the tables, or None if the user's own files are in the way.
        """
        sample = chosen[0].sample
        name = self.work.names.of(self.shard, sample, self._key_is_name)
        texts = [
            {one: row.row[one] for one in ("text", "source", "k", "score")}
            | {"weight": len(row.copies)}
            for row in chosen
        ]
        path = f"{self.work.folder}{name}"
        make = self._maker(sample.key, sample.image)
        files: list[tuple[str, bytes, Make | None]] = [(path, sample.image, make)]
        if self.work.text_of is not None:
            text = self.work.text_of(texts).encode("utf-8", "replace")
            files.append((self._beside(path), text, None))
        # Check all names before writing: a new image beside a user's text would get that text.
        if any(self._is_in_the_way(one, data) for one, data, _ in files):
            return None
        if not all(self._put(*one) for one in files):
            return None
        in_pool = sample.key if self._key_is_name else f"{self.shard}/{sample.key}.{sample.suffix}"
        if name != in_pool:
            example = self.renamed[1:] if self.renamed[0] else (in_pool, name)
            self.renamed = [self.renamed[0] + 1, *example]
        return {
            "file_name": name,
            "uid": sample.uid,
            "filename": chosen[0].filename,
            "texts": texts,
            "captions": chosen[0].captions,
        }

    def _beside(self, path: str) -> str:
        return f"{path.rpartition('.')[0]}{self.work.settings.text_suffix}"

    def _is_in_the_way(self, name: str, data: bytes) -> bool:
        with self.work.target.reporting_errors(name):
            is_kept = self._folder.would_keep(name, data)
        if is_kept:
            self._count_kept(name)
        return is_kept

    def _put(self, name: str, data: bytes, make: Make | None = None) -> bool:
        record = FileRecord(len(data), digest_of(data))
        with self.work.target.reporting_errors(name):
            put = self._folder.put(name, data, make, lambda: self.note(name, record))
        if put in ("kept", "linked"):  # it appeared after the check in `write`
            self._count_kept(name)
            return False
        if put == "same":
            self.found[name] = record
        return True

    def _count_kept(self, name: str) -> None:
        self.kept = [self.kept[0] + 1, self.kept[1] or name]

    def _maker(self, key: str, data: bytes) -> Make | None:
        if not self.work.settings.link:
            return None
        return _with_link_errors(hard_link(self.work.pool.path(key), data), key)


def _with_link_errors(make: Make, key: str) -> Make:
    def made(folder: int, name: str) -> None:
        try:
            make(folder, name)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            raise UserError(
                f"--link hard: cannot link {key} ({os.strerror(error.errno)}); name an --out on "
                "the pool's file system, or remove --link"
            ) from error

    return made


def _remove_incomplete_markers(target: ExportTarget, shards: Sequence[Shard]) -> None:
    """Remove the markers of shards that must be rewritten: those with missing files, and those
    where the user's files were kept, since these may have been moved since."""
    for shard in shards:
        marker = target.read_marker(shard.name)
        if marker is None:
            continue
        if marker.counts.dropped[KEPT] or target.lacks_files(shard.name):
            target.remove_marker(shard.name)


def _report(work: FilesExport, shards: Sequence[Shard], counts: Counts) -> None:
    """Log one line about kept files and one about renamed images."""
    extras = [marker.extra for shard in shards if (marker := work.target.read_marker(shard.name))]
    kept, example = _sum([one["kept"] for one in extras])
    if kept:
        log.warning(
            "export %s: kept %s existing files (first: %s) and dropped the %s samples that they "
            "belong to; use --overwrite to replace them (files behind links are never replaced)",
            work.rows.name,
            f"{kept:,}",
            example[0],
            f"{counts.dropped[KEPT]:,}",
        )
    renamed, names = _sum([one["renamed"] for one in extras])
    if renamed:
        log.warning(
            "export %s: renamed %s images whose names are unsafe, or differ from another name only "
            "in case or suffix (first: %r to %r)",
            work.rows.name,
            f"{renamed:,}",
            names[0],
            names[1],
        )


def _sum(found: Sequence[Sequence[Any]]) -> tuple[int, Sequence[str]]:
    """Return the total count and the first example."""
    counted = [one for one in found if one[0]]
    return sum(one[0] for one in counted), counted[0][1:] if counted else ()


def _lines(target: ExportTarget, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        data = target.read_part_bytes(f"{EXPORT_MARKERS}/{shard.name}.jsonl", shard.name)
        yield from map(orjson.loads, data.splitlines())
