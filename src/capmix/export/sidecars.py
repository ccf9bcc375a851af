"""Write text files beside the images of a pool.

A rerun compares each file with its text, so no record of earlier runs is needed.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from capmix.engine.budget import allowed_failures, reasons
from capmix.errors import UserError
from capmix.export.files import KEPT, check_text_suffix, plain_text
from capmix.export.folder import Put, TargetFolder
from capmix.export.kohya import caption_lines
from capmix.export.settings import ExportSettings
from capmix.mix.subset import SubsetRows
from capmix.pool import Pool
from capmix.pool.local import SIDECARS
from capmix.storage.filesystem import is_final
from capmix.storage.layout import SAMPLES
from capmix.storage.marker import Counts
from capmix.storage.store import Store

log = logging.getLogger(__name__)

SHARED, LINKED = "shares_text_file", "linked_folder"
REASONS = {"kept": KEPT, "linked": LINKED}
WHY = {  # warnings about dropped images; arguments: count and first example
    KEPT: "kept %s existing files with other texts (first: %s); use --overwrite to replace them "
    "(their texts are then lost)",
    LINKED: "no text was written for %s images in linked folders (first: %s); export these folders "
    "as a separate pool",
    SHARED: "no text was written for %s images that share a text file with another image and have "
    "a different text (first: %s)",
}


def write_sidecars(
    store: Store, pool: Pool, rows: SubsetRows, settings: ExportSettings, max_failures: float
) -> Counts:
    """Write the texts of a subset beside their images; return counts of images.

    Several texts are written one per line, with format kohya in its syntax. If two images share a
    text file (a.jpg, a.png) and have other texts, the first image's text is written. Raises
    UserError if the pool is not a local folder of images, or if too many images are missing.
    """
    check_text_suffix(settings.text_suffix)
    if not pool.is_folder or not pool.is_local:
        raise UserError(
            f"--sidecars requires a local folder of image files, and {pool.location} is not one; "
            "use --format files --out DIR"
        )
    text_of = caption_lines if settings.format == "kohya" else plain_text
    found = _Sidecars(pool, settings)
    for key, size, about in _images(store, rows):
        if reason := _changed(pool.path(key), size):
            found.count(reason, key, is_failure=True)
        else:
            found.write(key, text_of(about))
    rows.refuse_changed()
    _report(rows.name, found)
    if found.written and settings.text_suffix in SIDECARS:
        log.warning(
            "export %s: the written files are now the pool's raw texts, so the next command will "
            "reread the pool; use --text-suffix .caption to avoid this",
            rows.name,
        )
    _check(rows.name, found, max_failures)
    return found.counts


@dataclass
class _Sidecars:
    """State while text files are written.

    `examples` has the first file per reason, `texts` the text of each file.
    """

    pool: Pool
    settings: ExportSettings
    counts: Counts = field(default_factory=Counts)
    written: int = 0
    examples: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    _swept: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        roots = (place.root for place in self.pool.places)
        self._folders = {root: TargetFolder(root, self.settings.overwrite) for root in roots}

    def count(self, reason: str, name: str, is_failure: bool = False) -> None:
        """Count an image for which this run writes no text."""
        (self.counts.failed if is_failure else self.counts.dropped)[reason] += 1
        self.examples.setdefault(reason, name)

    def write(self, key: str, text: str) -> None:
        """Write the text of an image."""
        name = f"{key.rpartition('.')[0]}{self.settings.text_suffix}"
        if self.texts.setdefault(name, text) != text:
            self.count(SHARED, key)
            return
        place, inner = self.pool.place_of(name)
        folder = self._folders[place.root]
        self._sweep(folder, inner.rpartition("/")[0])
        put = _put(folder, inner, text)
        if put in REASONS:
            self.count(REASONS[put], name if put == "kept" else key)
            return
        self.written += put == "written"
        self.counts.ok += 1

    def _sweep(self, folder: TargetFolder, inner: str) -> None:
        path = f"{folder.root}/{inner}"
        if path not in self._swept:
            self._swept.add(path)
            with suppress(OSError):  # the write that follows reports the error
                folder.sweep(inner)


def _report(subset: str, found: _Sidecars) -> None:
    counts = found.counts
    log.info("export %s: %s text files written, %s up to date", subset, f"{found.written:,}",
             f"{counts.ok - found.written:,}")  # fmt: skip
    for reason, why in WHY.items():
        if count := counts.dropped[reason]:
            log.warning("export %s: " + why, subset, f"{count:,}", found.examples[reason])


def _check(subset: str, found: _Sidecars, max_failures: float) -> None:
    """Log images that are missing or changed; raise UserError if there are too many."""
    counts = found.counts
    failed = counts.failed.total()
    if not failed:
        return
    example = next(found.examples[reason] for reason in sorted(counts.failed))
    report = (
        f"export {subset}: no text was written for {failed:,} of {counts.total:,} images that are "
        f"missing or have changed since they were indexed ({reasons(counts.failed)}; first: "
        f"{example}). Rerun `capmix mix`"
    )
    if failed > allowed_failures(counts.total, max_failures):
        raise UserError(f"{report}, or allow more than {max_failures:.1%} with --max-failures")
    log.warning("%s", report)


def _put(folder: TargetFolder, name: str, text: str) -> Put:
    data = text.encode("utf-8", "replace")
    try:
        return folder.put(name, data, ignore_last_breaks=True)
    except OSError as error:
        if not is_final(error):
            raise
        why = error.strerror or error
        raise UserError(f"cannot write {folder.root}/{name}: {why}") from error


def _images(
    store: Store, rows: SubsetRows
) -> Iterator[tuple[str, int | None, list[dict[str, Any]]]]:
    """Yield the key, the indexed size in bytes and the texts of each image."""
    for table in rows.batches():
        for shard in dict.fromkeys(table["shard"].to_pylist()):
            index = store.read_table(f"{SAMPLES}/{shard}.parquet", ["key", "bytes"])
            sizes = dict(zip(index["key"].to_pylist(), index["bytes"].to_pylist(), strict=True))
            for key, about in _texts(table.filter(pc.equal(table["shard"], shard))).items():
                yield key, sizes.get(key), about


def _texts(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.select(["key", "text", "weight"]).to_pylist():
        found.setdefault(row["key"], []).append(row)
    return found


def _changed(path: str, size: int | None) -> str:
    """Return the reason code if an image is missing or its size differs from the index, else ""."""
    try:
        now = os.stat(path).st_size
    except OSError:
        return "image_gone"
    return "changed_sample" if size is not None and now != size else ""
