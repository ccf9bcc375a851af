"""Samples as a table: texts, scores, flags and annotations, of no more shards than are needed."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import pyarrow as pa

from capmix.errors import UserError
from capmix.mix.catalog import Catalog
from capmix.mix.columns import Column
from capmix.mix.condition import Condition
from capmix.mix.table import table_batches, table_columns
from capmix.pool import Pool, Shard
from capmix.settings.base import did_you_mean
from capmix.storage.layout import ANNOTATIONS, SAMPLES

Names = str | Sequence[str] | None
Index = Callable[[Sequence[Shard]], None]  # lists the samples of some shards
AT_ONCE = 64  # shards whose samples are listed together, at most
PATTERN = re.compile(r"[*?[]")
ALWAYS = ("uid", "key", "shard")


@dataclass(frozen=True)
class TableRequest:
    """Which columns of which samples are asked for; see Workspace.table."""

    sources: Names = None
    columns: Names = None
    scorer: str | None = None
    shards: Names = None
    where: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit: expected a number of at least 1, found {self.limit}")


def column_names(catalog: Catalog, scorer: str | None = None) -> list[str]:
    """Every column of recipes, without those of numbered captions (S_k1_text and on)."""
    return _shown(catalog.columns(scorer))


def read_batches(catalog: Catalog, asked: TableRequest, index: Index) -> pa.RecordBatchReader:
    """The rows that are asked for as a stream, in pool order; see table_batches for the types.

    One shard is in memory at a time. With a limit and no condition, shards behind the one that
    reaches it are not even listed. Raises UserError for names that are not there and for parts that
    are missing or stale.
    """
    shards = chosen_shards(catalog.pool, asked.shards)
    if asked.limit is not None and asked.where is None:
        shards = _enough(catalog, shards, asked.limit, index)
    else:
        index(shards)
    part = of_shards(catalog, shards)
    names = _asked_columns(part, asked)
    if asked.where is None and asked.limit is None:
        return table_batches(part, names, asked.scorer)
    condition = None
    if asked.where is not None:
        condition = Condition.of(asked.where, part.columns(asked.scorer))
    needed = dict.fromkeys([*names, *(condition.columns if condition else ())])
    reader = table_batches(part, list(needed), asked.scorer)
    kept = [*ALWAYS, *names]
    schema = pa.schema([reader.schema.field(name) for name in kept])
    batches = _bounded(reader, condition, kept, asked.limit)
    return pa.RecordBatchReader.from_batches(schema, batches)


def first_rows(tables: Iterable[pa.Table], limit: int | None) -> pa.Table:
    """The tables as one, or its first `limit` rows; what is behind them is not read."""
    if limit is None:
        return pa.concat_tables(tables)
    if limit < 1:
        raise UserError(f"limit: expected a number of at least 1, found {limit}")
    found: list[pa.Table] = []
    left = limit
    for table in tables:
        found.append(table.slice(0, left))
        left -= len(found[-1])
        if not left:
            break
    return pa.concat_tables(found)


def chosen_shards(pool: Pool, wanted: Names) -> list[Shard]:
    """The shards of these names or patterns (00000, 000*), in pool order; all for None.

    Raises UserError for a name or a pattern that no shard has.
    """
    if wanted is None:
        return list(pool.shards)
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    names = [shard.name for shard in pool.shards]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            hint = did_you_mean(pattern, names)
            raise UserError(f"no shard {pattern!r} in the pool {pool.location}{hint}")
    found = [one for one in pool.shards if any(_matches(one.name, p) for p in patterns)]
    if not found:
        raise UserError("shards: expected at least one name or pattern")
    return found


def of_shards(catalog: Catalog, shards: Sequence[Shard]) -> Catalog:
    """The same catalog as if the pool had these shards alone."""
    return Catalog(replace(catalog.pool, shards=list(shards)), catalog.store)


def growing(shards: Sequence[Shard], first: int = 1) -> Iterator[list[Shard]]:
    """The shards in groups that double in size, up to AT_ONCE."""
    begin, size = 0, first
    while begin < len(shards):
        yield list(shards[begin : begin + size])
        begin, size = begin + size, min(2 * size, AT_ONCE)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _enough(catalog: Catalog, shards: Sequence[Shard], rows: int, index: Index) -> list[Shard]:
    """The first of the shards that have so many samples together."""
    found, count = [], 0
    for group in growing(shards):
        index(group)
        for shard in group:
            found.append(shard)
            marker = catalog.store.read_marker(f"{SAMPLES}/{shard.name}")
            count += marker.counts.ok if marker is not None else 0
            if count >= rows:
                return found
    return found


def _asked_columns(catalog: Catalog, asked: TableRequest) -> list[str]:
    sources = [asked.sources] if isinstance(asked.sources, str) else asked.sources
    names = table_columns(catalog, catalog.known_sources(sources), asked.scorer)
    known = catalog.columns(asked.scorer)
    if asked.columns is None:
        more = [] if sources is not None else _annotations(known)
    else:
        columns = [asked.columns] if isinstance(asked.columns, str) else asked.columns
        more = [name for column in columns for name in _expanded(column, known)]
    return [name for name in dict.fromkeys([*names, *more]) if name not in ALWAYS]


def _expanded(column: str, known: dict[str, Column]) -> list[str]:
    if column in known or not PATTERN.search(column):
        return [column]
    found = [name for name in _shown(known) if fnmatchcase(name, column)]
    if not found:
        raise UserError(f"no column matches {column!r}; columns: {', '.join(_shown(known))}")
    return found


def _annotations(known: dict[str, Column]) -> list[str]:
    return [name for name, one in known.items() if one.folder.split("/")[0] == ANNOTATIONS]


def _shown(known: dict[str, Column]) -> list[str]:
    return [name for name, column in known.items() if f"_k{column.pick}_" not in name]


def _bounded(
    reader: pa.RecordBatchReader,
    condition: Condition | None,
    names: Sequence[str],
    limit: int | None,
) -> Iterator[pa.RecordBatch]:
    left = limit
    for batch in reader:
        table = pa.Table.from_batches([batch])
        table = (condition.rows_of(table) if condition else table).select(names).slice(0, left)
        if left is not None:
            left -= len(table)
        yield from table.combine_chunks().to_batches()
        if left == 0:
            return
