"""Files are checked against their digests when they are read, and by `capmix verify`."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from capmix.errors import UserError
from capmix.storage.marker import Counts, Marker, marker_bytes, parse_marker
from capmix.storage.once import once
from capmix.storage.record import FileRecord, RecordingStream
from capmix.storage.store import Store

PART = "embeddings/m/image/00000"


def written(folder: Path, part: str = PART, value: float = 0.0) -> Store:
    store = Store(str(folder))
    with store.draft(part) as draft:
        draft.write_array(f"{part}.npy", np.full((50, 4), value, np.float16))
        draft.write_table(f"{part}.parquet", pa.table({"status": ["ok"] * 50}))
        draft.commit(Marker({}, {}, 50, Counts(50)))
    return store


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(bytes(data))


@given(st.lists(st.binary(max_size=40)))
def test_a_stream_records_what_went_through_it(pieces: list[bytes]) -> None:
    out = io.BytesIO()
    stream = RecordingStream(out)
    for piece in pieces:
        stream.write(piece)
    whole = b"".join(pieces)
    assert out.getvalue() == whole
    assert stream.record == FileRecord(len(whole), xxhash.xxh3_128(whole).hexdigest())


def test_a_flipped_bit_of_an_array_or_a_table_is_one_line(tmp_path: Path) -> None:
    store = written(tmp_path)
    assert len(store.read_array(f"{PART}.npy")) == 50
    assert len(store.read_table(f"{PART}.parquet")) == 50
    for suffix in ("npy", "parquet"):
        path = tmp_path / f"{PART}.{suffix}"
        flip(path, path.stat().st_size // 2)
        read = store.read_array if suffix == "npy" else store.read_table
        with pytest.raises(UserError, match="checksum mismatch") as told:
            read(f"{PART}.{suffix}")
        assert str(path) in str(told.value)
        assert "capmix verify --discard" in str(told.value)


def test_two_arrays_of_one_size_cannot_be_swapped(tmp_path: Path) -> None:
    other = "embeddings/m/image/00001"
    store = written(tmp_path)
    written(tmp_path, other, 1.0)
    here, there = (tmp_path / f"{one}.npy" for one in (PART, other))
    held = here.read_bytes()
    here.write_bytes(there.read_bytes())
    there.write_bytes(held)
    for part in (PART, other):
        with pytest.raises(UserError, match="checksum mismatch"):
            store.read_array(f"{part}.npy")


def test_a_file_that_changes_after_it_was_read_is_compared_again(tmp_path: Path) -> None:
    store = written(tmp_path)
    store.read_table(f"{PART}.parquet")
    path = tmp_path / f"{PART}.parquet"
    about = path.stat()
    flip(path, 40)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    with pytest.raises(UserError, match="checksum mismatch"):
        store.read_table(f"{PART}.parquet")


def test_pages_have_checksums_for_readers_without_a_digest(tmp_path: Path) -> None:
    store = written(tmp_path)
    path = tmp_path / f"{PART}.parquet"
    position = path.read_bytes().index(b"ok")
    flip(path, position)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.ParquetFile(path, page_checksum_verification=True).read()
    store.remove_marker(PART)
    with pytest.raises(UserError, match="no finished part"):
        store.read_table(f"{PART}.parquet")


@given(st.data())
def test_no_bit_of_a_marker_can_be_flipped_unnoticed(data: st.DataObject) -> None:
    counts = Counts(2)
    counts.failed["bad_json"] = 1
    marker = Marker({"pool": "a1"}, {"seed": 3}, 3, counts, {}, {"a.npy": FileRecord(7, "ab")})
    whole = marker_bytes(marker)
    assert parse_marker(whole, "a") == marker
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert parse_marker(bytes(flipped), "a") in (None, marker)


def test_markers_without_digests_still_count(tmp_path: Path) -> None:
    store = written(tmp_path)
    path = tmp_path / f".markers/{PART}.json"
    value = json.loads(path.read_text())
    files = {name: about["bytes"] for name, about in value["files"].items()}
    del value["check"]
    path.write_text(json.dumps(value | {"format": 1, "files": files}))
    assert store.is_done(PART, {}, {})
    assert len(store.read_array(f"{PART}.npy")) == 50
    marker = store.read_marker(PART)
    assert marker is not None
    assert marker.files[f"{PART}.npy"] == FileRecord(files[f"{PART}.npy"])


@pytest.mark.parametrize("harm", ["truncate", "delete", "swap", "flip"])
def test_a_part_that_is_not_by_shard_is_recomputed_if_its_file_has_changed(
    tmp_path: Path, harm: str
) -> None:
    store = Store(str(tmp_path))

    def make(value: int) -> bool:
        def of_value(draft: object) -> Marker:
            store_draft = draft
            store_draft.write_table(  # type: ignore[attr-defined]
                f"subsets/{value}.parquet", pa.table({"a": [value] * 9})
            )
            return Marker({}, {"value": value}, 9, Counts(9))

        return once(store, f"subsets/{value}", {}, {"value": value}, of_value)[1]

    assert make(1)
    assert make(2)
    assert not make(1)
    path, other = (tmp_path / f"subsets/{one}.parquet" for one in (1, 2))
    whole = path.read_bytes()
    if harm == "truncate":
        path.write_bytes(whole[:-1])
    elif harm == "delete":
        path.unlink()
    elif harm == "swap":
        path.write_bytes(other.read_bytes())
    else:
        flip(path, len(whole) // 2)
    assert make(1)
    assert path.read_bytes() == whole
    assert not make(2)
