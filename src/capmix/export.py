"""Write a subset as WebDataset shards: image bytes untouched, `.txt` the chosen caption.

Keys are `<uid>-<repeat>` as DataComp's resharder names them. `.json` holds the original fields
plus `caption` (the chosen one), `caption_raw` and the choice. `sizes.json` beside the shards tells
open_clip how many samples each holds. The same subset gives the same bytes.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any, BinaryIO

from capmix.engine.local import MAX_FAILURES, run_stage
from capmix.engine.stage import PartWriter, Stage
from capmix.errors import UserError
from capmix.mix.mix import FOLDER as SUBSETS
from capmix.pool import Pool, Sample, Shard
from capmix.store import Counts, Store

SAMPLES_PER_SHARD = 10_000
ABOUT = "_capmix_export.json"
OURS = re.compile(r"\d{8}\.tar|sizes\.json|_markers|_capmix_export\.json")


def export(
    store: Store,
    pool: Pool,
    subset: str,
    directory: str,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    max_failures: float = MAX_FAILURES,
) -> Counts:
    """Export `subsets/<subset>.parquet` to `directory`; finished shards are not written again.

    Raises UserError where the directory holds something else, or a subset row's image is gone.
    """
    name = f"{SUBSETS}/{subset}"
    if not store.fingerprint(name):
        raise UserError(f"no subset {subset!r} in {store.location}: run `capmix mix` first")
    about = {"subset": store.fingerprint(name), "samples_per_shard": samples_per_shard}
    target = Store(directory)
    target.sweep()
    _claim(target, about)
    rows = store.read_table(f"{name}.parquet").to_pylist()
    cuts = range(0, len(rows), samples_per_shard)
    shards = [Shard(f"{i:08d}", str(about)) for i in range(len(cuts))]
    stage = _export_stage(pool, target, rows, samples_per_shard, subset)
    counts = run_stage(stage, shards, target, max_failures)
    sizes = {}
    for shard in shards:
        marker = target.read_marker(stage.part(shard))
        assert marker is not None
        sizes[f"{shard.name}.tar"] = marker.counts.ok
    target.write_json("sizes.json", sizes)
    return counts


def _claim(target: Store, about: dict[str, Any]) -> None:
    """Make sure that the directory is new or is an export of ours; of an older one, clear it."""
    known = target.read_json(ABOUT)
    if known == about:
        return
    held = target.fs.ls(target.root, detail=False) if target.fs.exists(target.root) else []
    if held and known is None:
        raise UserError(f"{target.location} holds something else: export to an empty directory")
    for path in held:
        if OURS.fullmatch(path.rpartition("/")[2]):
            target.fs.rm(path, recursive=True)
    target.write_json(ABOUT, about)


def _export_stage(
    pool: Pool, target: Store, rows: list[dict[str, Any]], size: int, subset: str
) -> Stage:
    by_name = {shard.name: shard for shard in pool.shards}

    def run_shard(shard: Shard, out: PartWriter) -> None:
        start = int(shard.name) * size
        wanted = rows[start : start + size]
        out.count_in(len(wanted))
        with target.writing(f"{shard.name}.tar") as stream:
            found = _write_tar(stream, wanted, pool, by_name)
        out.count_ok(found)
        for _ in range(len(wanted) - found):
            out.count_failed("image_gone")

    def inputs(shard: Shard) -> dict[str, str]:
        start = int(shard.name) * size
        used = dict.fromkeys(row["shard"] for row in rows[start : start + size])
        return {"subset": shard.fingerprint} | {f"pool/{n}": by_name[n].fingerprint for n in used}

    return Stage(f"export {subset}", "_markers", {"size": size}, inputs, run_shard)


def _write_tar(
    stream: BinaryIO, rows: list[dict[str, Any]], pool: Pool, by_name: dict[str, Shard]
) -> int:
    """Write the samples that `rows` name, in their order; returns how many were there."""
    found = 0
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for sample, row in _matched(rows, pool, by_name):
            key = f"{row['uid']}-0"
            fields = sample.metadata | {
                "uid": row["uid"],
                "caption": row["text"],
                "caption_raw": sample.text,
                "caption_source": row["source"],
                "caption_score": row["score"],
            }
            _add(archive, f"{key}.{sample.suffix}", sample.image)
            _add(archive, f"{key}.json", json.dumps(fields).encode())
            _add(archive, f"{key}.txt", row["text"].encode("utf-8"))
            found += 1
    return found


def _matched(
    rows: list[dict[str, Any]], pool: Pool, by_name: dict[str, Shard]
) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """Rows lie in pool order, so each input shard is streamed once and only as far as needed."""
    for shard, here in groupby(rows, key=lambda row: str(row["shard"])):
        wanted = {row["uid"]: row for row in here}
        for sample in pool.read(by_name[shard]):
            if not wanted:
                break
            row = wanted.pop(sample.uid, None) if isinstance(sample, Sample) else None
            if row is not None:
                assert isinstance(sample, Sample)
                yield sample, row


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    archive.addfile(member, io.BytesIO(data))
