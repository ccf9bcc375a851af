"""Write samples as a Lance dataset: one data file per output shard, and a single commit.

Data files are parts like those of the other formats, written by any number of processes. A
directory is a Lance dataset once it has a manifest that names its data files. The manifest is
written last, and removed before a data file is replaced. It is always the manifest of version 1;
later changes to the dataset add further versions.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from capmix.errors import UserError
from capmix.export.samples import Chosen
from capmix.export.tables import ROW_GROUP, parquet_row
from capmix.pool.lance import DATA, VERSIONS, need_lance
from capmix.storage.record import Sink
from capmix.storage.store import Store

FORMAT = "2.1"  # data file version; supports fast random access
TRANSACTIONS = "_transactions"
# Manifest of version 1. Lance counts names down from 2**64 - 1, so that the latest is listed first.
MANIFEST = f"{VERSIONS}/{2**64 - 2}.manifest"


def data_file(shard: str) -> str:
    """Return the path of an output shard's data file within the dataset."""
    return f"{DATA}/train-{shard}.lance"


def write_lance(target: Store, stream: Sink, samples: Iterable[Chosen], schema: pa.Schema) -> int:
    """Write all copies of all samples to one data file; return the number of rows."""
    need_lance("--format lance")
    from lance.file import LanceFileWriter

    written = 0
    waiting: list[dict[str, Any]] = []
    with target.scratch() as folder:
        path = f"{folder}/data.lance"
        with LanceFileWriter(path, schema, version=FORMAT) as writer:
            for chosen in samples:
                waiting += [parquet_row(chosen, copy, schema) for copy in chosen.copies]
                if len(waiting) >= ROW_GROUP:
                    writer.write_batch(pa.Table.from_pylist(waiting, schema))
                    written, waiting = written + len(waiting), []
            writer.write_batch(pa.Table.from_pylist(waiting, schema))
        with open(path, "rb") as file:
            shutil.copyfileobj(file, stream)
    return written + len(waiting)


def withdraw_dataset(target: Store) -> None:
    """Remove the manifest, so that a data file can be replaced.

    Raises UserError if the dataset has versions that capmix did not write.
    """
    refuse_added_versions(target)
    target.remove(MANIFEST)


def refuse_added_versions(target: Store) -> None:
    """Raise UserError if the dataset has versions that capmix did not write, since they refer to
    its data files."""
    found = [name for name in target.files(VERSIONS) if name.endswith(".manifest")]
    others = [name for name in found if name != MANIFEST]
    if others:
        raise UserError(
            f"--out {target.location}: the Lance dataset has a version that capmix did not write "
            f"({others[0]}) and whose data files would be replaced; name another --out"
        )


def commit_dataset(target: Store, schema: pa.Schema, rows: Mapping[str, int]) -> None:
    """Commit the data files of all output shards as one dataset, unless that is done already.

    `rows` maps each output shard to its number of rows.
    """
    if target.exists(MANIFEST):
        return
    need_lance("--format lance")
    from lance import LanceDataset, LanceOperation
    from lance.fragment import DataFile, FragmentMetadata, write_fragments

    with target.scratch() as folder:
        row = pa.Table.from_pylist([dict.fromkeys(schema.names)], schema)
        (like,) = write_fragments(row, folder, mode="create", data_storage_version=FORMAT)
        columns = like.files[0]
        fragments = [
            FragmentMetadata(
                id=number,
                files=[
                    DataFile(
                        os.path.basename(data_file(shard)),
                        columns.fields,
                        columns.column_indices,
                        columns.file_major_version,
                        columns.file_minor_version,
                        target.size(data_file(shard)),
                    )
                ],
                physical_rows=count,
            )
            for number, (shard, count) in enumerate((s, n) for s, n in rows.items() if n)
        ]
        LanceDataset.commit(folder, LanceOperation.Overwrite(schema, fragments))
        for name in (*_names(folder, TRANSACTIONS), MANIFEST):
            with open(f"{folder}/{name}", "rb") as file:
                target.write_bytes(name, file.read())


def _names(folder: str, below: str) -> list[str]:
    return [f"{below}/{name}" for name in sorted(os.listdir(f"{folder}/{below}"))]
