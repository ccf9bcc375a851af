"""Databases of data that does not fit in memory."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import write_pool

from capmix.storage.database import scratch_database
from capmix.workspace import open_workspace


def test_a_path_may_contain_quotes(tmp_path: Path) -> None:
    place = tmp_path / "a 'quoted'; \"path\""
    pool = write_pool(place / "pool")
    work = open_workspace(str(pool), place / "work", max_failures=1.0)
    uids = [row["uid"] for row in work.table().to_pylist()]
    rows = pa.table({"uid": uids, "text": [f"picture {n}" for n in range(len(uids))]})
    pq.write_table(rows, place / "c.parquet")
    assert work.coverage(place / "c.parquet").total.in_pool == len(uids)
    assert work.import_captions(place / "c.parquet", source="given").matched == len(uids)
    assert work.annotate(method="concepts", frequent=1, source="given").ok == len(uids)
    assert work.measure(sources="given")
    work.mix("raw")
    assert len(work.subset("raw")) == len(uids)


def test_what_exceeds_the_memory_is_written_to_the_folder(tmp_path: Path) -> None:
    with scratch_database(tmp_path, memory="16MB", threads=1) as connection:
        connection.execute("create table t as select sha256(range::varchar) s from range(1000000)")
        assert list(tmp_path.rglob("*.tmp*"))
    with (
        pytest.raises(duckdb.Error),
        scratch_database(tmp_path, memory="1KB", threads=1) as connection,
    ):
        connection.execute("create table t as select sha256(range::varchar) s from range(1000000)")
