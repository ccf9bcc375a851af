"""Write samples as a Lance dataset: a data file per output shard, and one commit of all of them.

Data files are parts like those of other forms, written by any number of processes. A directory is
a Lance dataset once it has a manifest, which names its data files: it is written last, and removed
before a data file is replaced. It is always that of version 1; whoever changes the dataset adds
versions.
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

FORMAT = "2.1"  # of data files: what random access is made for
TRANSACTIONS = "_transactions"
MANIFEST = f"{VERSIONS}/{2**64 - 2}.manifest"  # of version 1, so that the latest is listed first


def data_file(shard: str) -> str:
    """The name of an output shard's data file in the dataset."""
    return f"{DATA}/train-{shard}.lance"


def write_lance(target: Store, stream: Sink, samples: Iterable[Chosen], schema: pa.Schema) -> int:
    """Write every copy of every sample as one data file; returns how many there were."""
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
    """Make the directory no dataset, before one of its data files is replaced.

    Raises UserError as refuse_added_versions does.
    """
    refuse_added_versions(target)
    target.remove(MANIFEST)


def refuse_added_versions(target: Store) -> None:
    """Raise UserError where somebody has added versions to the dataset, which need its files."""
    found = [name for name in target.files(VERSIONS) if name.endswith(".manifest")]
    others = [name for name in found if name != MANIFEST]
    if others:
        raise UserError(
            f"--out {target.location}: the Lance dataset has a version that capmix did not write "
            f"({others[0]}), of data files that the export would replace; name another --out"
        )


def commit_dataset(target: Store, schema: pa.Schema, rows: Mapping[str, int]) -> None:
    """Declare the data files of output shards to be one dataset; `rows` has how many are in each.

    Does nothing where that is done.
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
