"""Names of samples: their names in the pool, and safe names for writing them to disk.

Names in a pool are untrusted. Written names stay below the export's folder, are printable, and are
unique on every file system, including case-insensitive ones.
"""

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from capmix.mix.subset import SubsetRows
from capmix.pool import Pool, Sample
from capmix.storage.layout import EXPORT_ABOUT, EXPORT_CARD, EXPORT_FILES, EXPORT_MARKERS

OWN = {name.casefold() for name in (EXPORT_ABOUT, EXPORT_CARD, EXPORT_FILES, EXPORT_MARKERS)}
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows devices
LONGEST_PATH = 1000  # bytes; leaves room for temporary names within PATH_MAX (4096)
LONGEST_PART = 200  # bytes; leaves room for suffixes within NAME_MAX (255)
DEEPEST = 32  # folders


def pool_name(sample: Sample, key_is_name: bool) -> str:
    """Return the name of a sample's image in the pool.

    In a folder, this is the path below it. In tars, parquet files and Lance datasets, it is the
    field `filename` if present, so that a name survives several exports; otherwise the member's
    name (in tables: the row's number).
    """
    if key_is_name:
        return sample.key
    known = sample.metadata.get("filename")
    if isinstance(known, str) and 0 < len(known) <= LONGEST_PATH:
        return known.encode("utf-8", "replace").decode()  # JSON can hold lone surrogates
    return f"{sample.key}.{sample.suffix}"


@dataclass(frozen=True)
class FileNames:
    """Where each sample of a subset is written.

    `others` maps (shard, key) to a substitute stem if an earlier sample uses the original one.
    """

    others: Mapping[tuple[str, str], str]

    def of(self, shard: str, sample: Sample, key_is_name: bool) -> str:
        """Return the path of a sample's image, with forward slashes."""
        stem = self.others.get((shard, sample.key)) or file_stem(shard, sample.key, key_is_name)
        ending = sample.key.rpartition(".")[2] if key_is_name else sample.suffix
        return f"{stem}.{ending}"


def file_names(rows: SubsetRows, pool: Pool) -> FileNames:
    """Return the file names for all samples of a subset.

    Names that differ only in case or suffix (a.jpg, A.jpg, a.png) would share a file or a text: the
    first in pool order keeps the name, further ones get `-2` and so on. Memory use is 8 bytes per
    name.
    """
    hashes = np.fromiter((_hash(stem) for *_, stem in _stems(rows, pool)), np.uint64)
    hashes.sort()
    twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    others: dict[tuple[str, str], str] = {}
    seen: set[int] = set()
    if not twice:
        return FileNames(others)

    def is_free(stem: str) -> bool:
        place = np.searchsorted(hashes, np.uint64(_hash(stem)))
        is_known = place < len(hashes) and int(hashes[place]) == _hash(stem)
        return not is_known and _hash(stem) not in seen

    for shard, key, stem in _stems(rows, pool):
        if _hash(stem) not in twice:
            continue
        if _hash(stem) in seen:
            candidates = (f"{stem}-{number}" for number in itertools.count(2))
            others[shard, key] = stem = next(one for one in candidates if is_free(one))
        seen.add(_hash(stem))
    return FileNames(others)


def file_stem(shard: str, key: str, key_is_name: bool) -> str:
    """Return the path of a sample's image without dot and suffix.

    This is its path in a folder pool; otherwise `<shard>/<key>`, since shards can share keys.
    """
    return safe_name(key.rpartition(".")[0] if key_is_name else f"{shard}/{key}")


def safe_name(name: str) -> str:
    """Return a safe relative path; safe names are returned unchanged.

    Replaces `..`, hidden and unprintable parts, Windows device names and the names of capmix's own
    files.
    """
    parts = [_safe_part(part) for part in name.split("/") if part not in ("", ".")] or ["_"]
    if parts[0].casefold() in OWN:
        parts[0] = f"_{parts[0]}"
    path = "/".join(parts)
    if len(parts) > DEEPEST or len(path.encode()) > LONGEST_PATH:
        return f"long/{_digest(name)}"
    return path


def _safe_part(part: str) -> str:
    safe = "".join(one if one.isprintable() and one != "\\" else "_" for one in part)
    if safe.startswith(".") or DEVICES.fullmatch(safe):
        safe = f"_{safe}"
    if len(safe.encode()) > LONGEST_PART:
        safe = safe.encode()[: LONGEST_PART - 20].decode("utf-8", "ignore") + f"-{_digest(part)}"
    return safe


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _stems(rows: SubsetRows, pool: Pool) -> Iterator[tuple[str, str, str]]:
    """Yield shard, key and stem of each sample once."""
    for table in rows.batches():
        for shard, key in _samples(table):
            yield shard, key, file_stem(shard, key, pool.is_folder)


def _samples(table: pa.Table) -> dict[tuple[str, str], None]:
    pairs = zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True)
    return dict.fromkeys(pairs)


def _hash(stem: str) -> int:
    """Return a hash that is equal for names that some file systems treat as identical."""
    same = unicodedata.normalize("NFC", stem).casefold()
    return int(xxhash.xxh3_64_intdigest(same.encode()))
