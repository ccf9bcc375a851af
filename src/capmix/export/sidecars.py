"""Write text files beside the images of a pool, and nothing else.

A rerun compares each file with its text, so that nothing has to be kept about earlier runs.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from capmix.engine.budget import check_failures
from capmix.errors import UserError
from capmix.export.files import KEPT, check_text_suffix, plain_text
from capmix.export.folder import TargetFolder
from capmix.export.kohya import caption_lines
from capmix.export.names import keys_are_names
from capmix.export.settings import ExportSettings
from capmix.mix.subset import SubsetRows
from capmix.pool import Pool
from capmix.pool.local import SIDECARS
from capmix.storage.filesystem import is_final
from capmix.storage.layout import SAMPLES
from capmix.storage.marker import Counts
from capmix.storage.store import Store

log = logging.getLogger(__name__)

SHARED = "shares_text_file"


def write_sidecars(
    store: Store, pool: Pool, rows: SubsetRows, settings: ExportSettings, max_failures: float
) -> Counts:
    """Write the texts of a subset beside the images that they are of; counts of images.

    Of several texts there is one per line, with format kohya as it reads them. Where two images
    would share a file (a.jpg, a.png) and have different texts, the first one's is written. Raises
    UserError for a pool that is no local folder of images, and where too many images are gone.
    """
    check_text_suffix(settings.text_suffix)
    is_of_files = all(keys_are_names(pool, shard.name) for shard in pool.shards)
    if not is_of_files or not pool.is_local:
        raise UserError(
            f"--sidecars: pool {pool.location} is no local folder of image files; use "
            "--format files --out DIR"
        )
    text_of = caption_lines if settings.format == "kohya" else plain_text
    folders = {one.root: TargetFolder(one.root, settings.overwrite) for one in pool.places}
    counts, written = Counts(), 0
    kept = shared = ""
    texts: dict[str, str] = {}  # by file
    for key, size, about in _images(store, rows):
        if reason := _changed(pool.path(key), size):
            counts.failed[reason] += 1
            continue
        name, text = f"{key.rpartition('.')[0]}{settings.text_suffix}", text_of(about)
        if texts.setdefault(name, text) != text:
            counts.dropped[SHARED] += 1
            shared = shared or key
            continue
        place, inner = pool.place_of(name)
        put = _put(folders[place.root], inner, text)
        written += put == "written"
        if put == "kept":
            counts.dropped[KEPT] += 1
            kept = kept or name
        else:
            counts.ok += 1
    rows.refuse_changed()
    _report(rows.name, counts, written, kept, shared)
    if written and settings.text_suffix in SIDECARS:
        log.warning(
            "export %s: the files are the pool's raw texts now, and the next command reads the "
            "pool again; --text-suffix .caption leaves it as it is",
            rows.name,
        )
    check_failures(f"export {rows.name}", counts, max_failures, [f"Pool {pool.location}"])
    return counts


def _report(subset: str, counts: Counts, written: int, kept: str, shared: str) -> None:
    log.info("export %s: %s text files written, %s there before", subset, f"{written:,}",
             f"{counts.ok - written:,}")  # fmt: skip
    if kept:
        log.warning(
            "export %s: kept %s files that have another text, such as %s; --overwrite replaces "
            "them, and the texts in them are lost",
            subset,
            f"{counts.dropped[KEPT]:,}",
            kept,
        )
    if shared:
        log.warning(
            "export %s: %s images share their text file with another one and have another text, "
            "which is not written, such as %s",
            subset,
            f"{counts.dropped[SHARED]:,}",
            shared,
        )


def _put(folder: TargetFolder, name: str, text: str) -> str:
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
