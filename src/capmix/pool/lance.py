"""Read a Lance dataset: each fragment is a shard, each row a sample.

The columns are those of parquet pools. The key of a row is its position in the fragment, which
does not change when other rows are deleted. Files outside the dataset's directory are never read:
additional base paths and blobs stored by reference are rejected.
"""

import glob
import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa

from capmix.errors import UserError
from capmix.pool.parquet import ParquetForm, read_rows
from capmix.pool.sample import BadSample, Sample

SUFFIX = ".lance"
DATA, DELETIONS, VERSIONS = "data", "_deletions", "_versions"
NAME_DIGITS = 8
ROW_ADDRESS = "_rowaddr"
ROW_BITS = 32  # low bits of a row address: the position; the high bits are the fragment's number
ROWS_AT_ONCE = 1  # 16 large images would take 2.5 GB; one row at a time costs 0.1 ms per row
BUFFER = 1 << 25  # bytes; Lance's read-ahead buffer
DELETION_SUFFIX = {"array": "arrow", "bitmap": "bin"}
BLOB = b"lance-encoding:blob"


@dataclass(frozen=True)
class Fragment:
    """A fragment of a dataset.

    `about` changes whenever the fragment's rows change. `files` are relative to the dataset's
    directory.
    """

    name: str
    about: str
    files: list[str]


def need_lance(what: str) -> ModuleType:
    """Import and return the lance package. Raises UserError if it is not installed."""
    os.environ.setdefault("LANCE_LOG", "error")  # by default Lance logs notes to stderr
    try:
        import lance
    except ImportError as error:
        message = f"{what}: Lance is not installed: pip install 'capmix[lance]'"
        raise UserError(message) from error
    module: ModuleType = lance
    return module


def is_dataset(path: str, is_local: bool) -> bool:
    """Whether a directory is a Lance dataset. Remote directories are judged only by their name."""
    if path.rstrip("/").endswith(SUFFIX):
        return not is_local or os.path.isdir(path)
    manifests = f"{glob.escape(path)}/{VERSIONS}/*.manifest"
    return is_local and next(glob.iglob(manifests), None) is not None


def list_fragments(location: str, root: str) -> tuple[int, list[Fragment]]:
    """Return the version and the fragments of the dataset in the local directory `root`.

    Raises UserError if it is not a dataset, has no image column or no rows, or refers to data
    outside its directory.
    """
    lance = need_lance(f"pool {location}")
    try:
        dataset = _opened(lance, root)
        schema = dataset.schema
        form = ParquetForm.of(schema)
        described = [(one.fragment_id, one.metadata.to_json()) for one in dataset.get_fragments()]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"pool {location}: cannot read the Lance dataset: {error}") from error
    if form.image is None:
        raise UserError(
            f"pool {location}: the Lance dataset has no column of image bytes, only "
            f"{schema.names}; expected a binary column such as `image`"
        )
    if _is_blob(schema.field(form.image)):
        raise UserError(
            f"pool {location}: column {form.image!r} holds Lance blobs; rewrite it as plain binary"
        )
    found = [_fragment(location, *one, schema.to_string()) for one in described]
    if not found:
        raise UserError(f"pool {location}: the Lance dataset has no rows")
    return dataset.version, found


def _is_blob(column: pa.Field) -> bool:
    parts = column.type if pa.types.is_struct(column.type) else ()
    return any(BLOB in (one.metadata or {}) for one in (column, *parts))


def _fragment(location: str, number: int, about: dict[str, Any], schema: str) -> Fragment:
    files = [f"{DATA}/{one['path']}" for one in about["files"]]
    if deletion := about.get("deletion_file"):
        suffix = DELETION_SUFFIX.get(deletion["file_type"].lower(), "")
        name = f"{number}-{deletion['read_version']}-{deletion['id']}.{suffix}"
        files.append(f"{DELETIONS}/{name}")
    parts = [*about["files"], *([deletion] if deletion else [])]
    is_elsewhere = any(one.get("base_id") is not None for one in parts)
    is_outside = any(".." in name.split("/") or "\\" in name for name in files)
    if is_elsewhere or is_outside or about.get("overlays") or not about["files"]:
        raise UserError(
            f"pool {location}: fragment {number} of the Lance dataset refers to data outside its "
            "directory; rewrite the dataset into one directory"
        )
    stamp = json.dumps([about, schema], sort_keys=True)
    return Fragment(f"{number:0{NAME_DIGITS}d}", stamp, files)


def read_fragment(
    root: str, version: int, shard: str, keys: Container[str] | None = None
) -> Iterator[Sample | BadSample]:
    """Yield a fragment's samples in row order; with `keys`, only the samples with these keys.

    Raises OSError or pa.ArrowException if the fragment cannot be read.
    """
    dataset = _opened(need_lance(root), root, version)
    fragment = dataset.get_fragment(int(shard))
    if fragment is None:
        raise pa.ArrowInvalid(f"no fragment {shard} in version {version}")
    form = ParquetForm.of(dataset.schema)

    def batches() -> Iterator[pa.RecordBatch]:
        yield from fragment.to_batches(
            columns=form.needed(dataset.schema),
            batch_size=ROWS_AT_ONCE,
            batch_readahead=1,
            io_buffer_size=BUFFER,
            with_row_address=True,
        )

    return read_rows(_numbered(batches()), form, shard, keys)


def _numbered(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Sequence[int], pa.RecordBatch]]:
    for batch in _checked(batches):
        numbers = [one & ((1 << ROW_BITS) - 1) for one in batch[ROW_ADDRESS].to_pylist()]
        yield numbers, batch.drop_columns([ROW_ADDRESS])


def _opened(lance: ModuleType, root: str, version: int | None = None) -> Any:
    return next(_checked(lance.dataset(root, version=one) for one in (version,)))


def _checked(found: Iterable[Any]) -> Iterator[Any]:
    """Yield from `found`, turning Lance's errors into OSError or ArrowInvalid with one line.

    A panic in Lance's Rust code arrives as a PanicException, which is a BaseException but not an
    Exception.
    """
    try:
        yield from found
    except OSError as error:
        raise OSError(error.errno, _line(error)) from error
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise pa.ArrowInvalid(_line(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise pa.ArrowInvalid(_line(error)) from error


def _line(error: BaseException) -> str:
    return f"{str(error).strip().partition(chr(10))[0]:.300}"
