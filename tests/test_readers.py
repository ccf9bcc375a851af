"""Other tools can read the folders of a work directory as tables."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as arrow
import pytest
from samples import write_pool

from capmix.workspace import open_workspace

SAMPLES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("readers")
    pool = write_pool(place / "pool", 2, 4)
    for path in list(pool.glob("*.tar")):  # shards in folders, as in some pools
        (pool / path.stem).mkdir()
        path.rename(pool / path.stem / path.name)
    work = open_workspace(str(pool), str(place / "work"))
    work.caption("blip2", model="field:caption")
    return str(place / "work/captions/blip2")


def with_pandas(folder: str) -> int:
    import pandas as pd

    return len(pd.read_parquet(folder))


def with_arrow(folder: str) -> int:
    return int(arrow.dataset(folder).count_rows())


def with_polars(folder: str) -> int:
    import polars as pl

    return len(pl.read_parquet(folder))


def with_duckdb(folder: str) -> int:
    import duckdb

    return len(duckdb.sql(f"from '{folder}/**/*.parquet'").fetchall())


def with_datasets(folder: str) -> int:
    import datasets

    cache = str(Path(folder).parents[2] / "cache")
    loaded = datasets.load_dataset("parquet", data_dir=folder, cache_dir=cache)
    return len(loaded["train"])


@pytest.mark.parametrize("read", [with_pandas, with_arrow, with_polars, with_duckdb, with_datasets])
def test_a_source_is_one_table(folder: str, read: Callable[[str], int]) -> None:
    assert read(folder) == SAMPLES
