"""Ways to mix: raw where its score is in the top 30 %, else a synthetic caption above that score.

    python benchmarks/mix_rivals.py WAY FOLDER

FOLDER is what benchmarks/mix.py generates. Each way is a process of its own, as a user would run
it. All but DataComp's read the parts of a work directory side by side, and make sure that their
uids are the same, row by row: a part may lack rows or have them in another order.

    capmix            references: what `capmix mix` writes
    capmix-texts      the same with --texts
    polars, duckdb    uid, source and score of each row
    polars-texts, duckdb-texts    the same with key and text
    datacomp          the steps of DataComp's clip_score baseline for the raw texts alone: scores of
                      all files for the threshold, then uid and score of all files, uids to pairs
                      of numbers, sort, save (apply_filter.py)
"""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FRACTION = 0.3


def main() -> None:
    way, folder = sys.argv[1:]
    name, _, texts = way.partition("-")
    ways = {"capmix": mix_capmix, "polars": mix_polars, "duckdb": mix_duckdb, "datacomp": datacomp}
    ways[name](folder, texts == "texts")


def mix_capmix(folder: str, texts: bool) -> None:
    from capmix.mix.columns import columns_of
    from capmix.mix.mix import mix
    from capmix.mix.recipe import load_recipe
    from capmix.mix.settings import MixSettings
    from capmix.pool import Shard
    from capmix.storage.store import Store

    @dataclass
    class Shards:
        """What a mix needs of a pool: the names of its shards."""

        shards: list[Shard]
        has_images: bool = True

    parameters: dict[str, Any] = {"synthetic": "blip2", "fraction": FRACTION}
    recipe = load_recipe("raw-top+synthetic-above", parameters)
    names = sorted(os.listdir(f"{folder}/samples"))
    pool = Shards([Shard(name.removesuffix(".parquet"), "") for name in names])
    columns = columns_of(["raw", "blip2"], {"clip": ["raw", "blip2"]}, "clip", {})
    settings = MixSettings(texts=True) if texts else MixSettings()
    summary = mix(Store(folder), pool, recipe, columns, settings)  # type: ignore[arg-type]
    print(summary.kept)


def mix_polars(folder: str, texts: bool) -> None:
    """Whole columns in memory: a lazy frame that joins files side by side takes three times as
    long with Polars 2.1."""
    import polars as pl

    def part(name: str, *columns: str) -> pl.DataFrame:
        return pl.read_parquet(f"{folder}/{name}/*.parquet", columns=list(columns))

    raw = part("scores/clip/raw", "uid", "score")
    synthetic = part("scores/clip/blip2", "uid", "score")
    assert (raw["uid"] == synthetic["uid"]).all()
    threshold = raw["score"].top_k(int(len(raw) * FRACTION) + 1).min()
    columns = {"uid": raw["uid"], "raw": raw["score"], "synthetic": synthetic["score"]}
    is_raw = pl.col("raw") >= threshold
    chosen = [
        pl.col("uid"),
        pl.when(is_raw).then(pl.lit("raw")).otherwise(pl.lit("blip2")).alias("source"),
        pl.when(is_raw).then("raw").otherwise("synthetic").alias("score"),
    ]
    if texts:
        samples, captions = (
            part("samples", "uid", "key", "text"),
            part("captions/blip2", "uid", "text"),
        )
        assert (raw["uid"] == samples["uid"]).all()
        assert (raw["uid"] == captions["uid"]).all()
        columns |= {"key": samples["key"], "text": samples["text"], "caption": captions["text"]}
        text = pl.when(is_raw).then("text").otherwise("caption").alias("chosen")
        chosen += [pl.col("key"), text]
    rows = pl.DataFrame(columns).lazy().filter(is_raw | (pl.col("synthetic") >= threshold))
    found = rows.select(chosen).collect()
    found.write_parquet(f"{folder}/polars.parquet")
    print(len(found))


def mix_duckdb(folder: str, texts: bool) -> None:
    import duckdb

    def part(name: str) -> str:
        return f"read_parquet('{folder}/{name}/*.parquet')"

    def first_row(sql: str) -> tuple[Any, ...]:
        found: tuple[Any, ...] = connection.sql(sql).fetchall()[0]
        return found

    raw, synthetic = part("scores/clip/raw"), part("scores/clip/blip2")
    connection = duckdb.connect()
    connection.execute("set enable_progress_bar = false")
    (count,) = first_row(f"select count(*) from {raw}")
    # A quantile reads least: an order with a limit keeps as many rows as the limit.
    (threshold,) = first_row(
        f"select -quantile_disc(-score, {(int(count * FRACTION) + 0.5) / count!r}) from {raw}"
    )
    tables = f"{raw} r positional join {synthetic} s"
    is_raw, same, more = f"r.score >= {threshold!r}::float", "r.uid = s.uid", ""
    if texts:
        tables += f" positional join {part('samples')} t positional join {part('captions/blip2')} c"
        same += " and r.uid = t.uid and r.uid = c.uid"
        more = f", t.key, case when {is_raw} then t.text else c.text end as text"
    out = f"{folder}/duckdb.parquet"
    connection.execute(
        f"copy (select r.uid, case when {is_raw} then 'raw' else 'blip2' end as source, "
        f"case when {is_raw} then r.score else s.score end as score, {same} as same{more} "
        f"from {tables} where {is_raw} or s.score >= {threshold!r}::float or not ({same})) "
        f"to '{out}' (format parquet)"
    )
    kept, is_same = first_row(f"select count(*), bool_and(same) from '{out}'")
    assert is_same
    print(kept)


def datacomp(folder: str, texts: bool) -> None:
    names = sorted(os.listdir(f"{folder}/scores/clip/raw"))
    files = [f"{folder}/scores/clip/raw/{name}" for name in names]
    workers = min(len(os.sched_getaffinity(0)), len(names))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        scores = np.concatenate(list(pool.imap_unordered(_scores, files)))
        threshold = -np.sort(-scores)[int(len(scores) * FRACTION)]
        kept = pool.imap_unordered(_uids_above, [(file, threshold) for file in files])
        uids = np.concatenate(list(kept))
    uids.sort()
    np.save(Path(folder) / "subset.npy", uids)
    print(len(uids))


def _scores(file: str) -> np.ndarray:
    import pandas as pd

    return pd.read_parquet(file, columns=["score"])["score"].to_numpy()


def _uids_above(work: tuple[str, float]) -> np.ndarray:
    import pandas as pd

    file, threshold = work
    table = pd.read_parquet(file, columns=["uid", "score"])
    uids = table[table["score"] >= threshold]["uid"].to_numpy()
    return np.array([(int(u[:16], 16), int(u[16:32], 16)) for u in uids], np.dtype("u8,u8"))


if __name__ == "__main__":
    main()
