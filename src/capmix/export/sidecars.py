"""Write text files beside the images of a pool, and nothing else.

A rerun compares each file with its text, so that nothing has to be kept about earlier runs.
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
WHY = {  # of images that are dropped: how many, and the first
    KEPT: "kept %s files that have another text, such as %s; --overwrite replaces them, and the "
    "texts in them are lost",
    LINKED: "%s images are in folders that a link leads to, such as %s: nothing is written there. "
    "Name these folders as a pool of their own",
    SHARED: "%s images share their text file with another one and have another text, which is not "
    "written, such as %s",
}


def write_sidecars(
    store: Store, pool: Pool, rows: SubsetRows, settings: ExportSettings, max_failures: float
) -> Counts:
    """Write the texts of a subset beside the images that they are of; counts of images.

    Of several texts there is one per line, with format kohya as it reads them. Where two images
    would share a file (a.jpg, a.png) and have different texts, the first one's is written. Raises
    UserError for a pool that is no local folder of images, and where too many images are gone.
    """
    check_text_suffix(settings.text_suffix)
    if not pool.is_folder or not pool.is_local:
        raise UserError(
            f"--sidecars: pool {pool.location} is no local folder of image files; use "
            "--format files --out DIR"
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
            "export %s: the files are the pool's raw texts now, and the next command reads the "
            "pool again; --text-suffix .caption leaves it as it is",
            rows.name,
        )
    _check(rows.name, found, max_failures)
    return found.counts


@dataclass
class _Sidecars:
    """The text files under way. `examples` has the first file that each reason concerns, `texts`
    what each file holds."""

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
        """Count an image without a text of this run."""
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
            with suppress(OSError):  # writing there reports what is wrong
                folder.sweep(inner)


def _report(subset: str, found: _Sidecars) -> None:
    counts = found.counts
    log.info("export %s: %s text files written, %s there before", subset, f"{found.written:,}",
             f"{counts.ok - found.written:,}")  # fmt: skip
    for reason, why in WHY.items():
        if count := counts.dropped[reason]:
            log.warning("export %s: " + why, subset, f"{count:,}", found.examples[reason])


def _check(subset: str, found: _Sidecars, max_failures: float) -> None:
    """Report images that are gone or changed; raise UserError where they are too many."""
    counts = found.counts
    failed = counts.failed.total()
    if not failed:
        return
    example = next(found.examples[reason] for reason in sorted(counts.failed))
    told = (
        f"export {subset}: {failed:,} of {counts.total:,} images got no text "
        f"({reasons(counts.failed)}), such as {example}: they are gone, or are not those that were "
        "indexed. Run `capmix mix` again"
    )
    if failed > allowed_failures(counts.total, max_failures):
        raise UserError(f"{told}, or allow more than {max_failures:.1%} with --max-failures")
    log.warning("%s", told)


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
    """Key, bytes in the index and texts of each image."""
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
    """Why an image is not the one that was indexed; "" where it is, as far as its size tells."""
    try:
        now = os.stat(path).st_size
    except OSError:
        return "image_gone"
    return "changed_sample" if size is not None and now != size else ""
