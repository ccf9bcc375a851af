"""Samples as a table of texts, scores, flags and annotations; reads as few shards as possible."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.mix.catalog import Catalog
from capmix.mix.choose import growing
from capmix.mix.columns import Column, lacking_fields, one_array
from capmix.mix.expression import parse
from capmix.mix.select import matching, names_in
from capmix.mix.table import table_batches, table_columns
from capmix.pool import Pool, Shard
from capmix.settings.base import did_you_mean
from capmix.storage.layout import ANNOTATIONS, SAMPLES

Names = str | Sequence[str] | None
Index = Callable[[Sequence[Shard]], None]  # indexes the samples of some shards
PATTERN = re.compile(r"[*?[]")
ALWAYS = ("uid", "key", "shard")
WHERE = "where"  # prefix of errors about a condition


@dataclass(frozen=True)
class TableRequest:
    """The requested columns and samples; see Workspace.table."""

    sources: Names = None
    columns: Names = None
    scorer: str | None = None
    shards: Names = None
    where: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit: expected a number of at least 1, found {self.limit}")

    def names(self) -> set[str]:
        """Return the columns named in `columns` and `where`.

        Raises UserError for conditions that are not valid in recipes.
        """
        columns = [self.columns] if isinstance(self.columns, str) else self.columns or ()
        found = {name for name in columns if not PATTERN.search(name)}
        return found | (names_in(self.where, WHERE) if self.where is not None else set())


def column_names(catalog: Catalog, scorer: str | None = None) -> list[str]:
    """Return all columns that recipes can use, except numbered captions (S_k1_text, ...)."""
    return _shown(catalog.columns(scorer))


def read_batches(
    catalog: Catalog,
    asked: TableRequest,
    index: Index,
    shards: Sequence[Shard] | None = None,
) -> pa.RecordBatchReader:
    """Stream the requested rows in pool order; see table_batches for the types.

    `shards` restricts the requested shards (default: all of them). One shard is in memory at a
    time. With a limit, shards after the one that reaches it are not indexed. A threshold in the
    condition is computed over the whole pool. The keys of matching samples are computed before the
    stream starts, because DuckDB crashes if it reads a stream that itself runs DuckDB. Raises
    UserError for unknown names and for missing or stale parts.
    """
    chosen = chosen_shards(catalog.pool, asked.shards) if shards is None else list(shards)
    keys: dict[str, pa.Array] | None = None
    if asked.where is not None:
        keys = _matching(catalog, asked, asked.where, chosen, index)
        chosen = [shard for shard in chosen if shard.name in keys] or chosen[:1]
    elif asked.limit is not None:
        chosen = _enough(catalog, chosen, asked.limit, index)
    else:
        index(chosen)
    part = of_shards(catalog, chosen)
    reader = table_batches(part, _asked_columns(part, asked), asked.scorer)
    if keys is None and asked.limit is None:
        return reader
    return pa.RecordBatchReader.from_batches(reader.schema, _bounded(reader, keys, asked.limit))


def has_threshold(where: str) -> bool:
    """Return whether a condition has thresholds or scales, which need the whole pool.

    Raises UserError for conditions that are not valid in recipes.
    """
    found = parse(where, f"{WHERE} {where!r}")
    return bool(found.thresholds or found.scales)


def first_rows(tables: Iterable[pa.Table], limit: int | None) -> pa.Table:
    """Concatenate the tables, up to `limit` rows; further tables are not read."""
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
    """Return the shards that match names or patterns (00000, 000*), in pool order; all for None.

    Raises UserError for a name or pattern that matches no shard.
    """
    if wanted is None:
        return list(pool.shards)
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    names = [shard.name for shard in pool.shards]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            hint = did_you_mean(pattern, names)
            raise UserError(f"no shard {pattern!r} in pool {pool.location}{hint}")
    found = [one for one in pool.shards if any(_matches(one.name, p) for p in patterns)]
    if not found:
        raise UserError("shards: expected at least one name or pattern")
    return found


def of_shards(catalog: Catalog, shards: Sequence[Shard]) -> Catalog:
    """Return the catalog restricted to some shards of the pool."""
    return Catalog(replace(catalog.pool, shards=list(shards)), catalog.store)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _enough(catalog: Catalog, shards: Sequence[Shard], rows: int, index: Index) -> list[Shard]:
    """Return the leading shards that together have at least `rows` samples."""
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
    known = catalog.columns(asked.scorer, asked.names())
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


def _matching(
    catalog: Catalog, asked: TableRequest, where: str, shards: Sequence[Shard], index: Index
) -> dict[str, pa.Array]:
    """Return the keys of matching samples by shard, stopping once the limit is reached.

    Shards without matches are omitted.
    """
    is_of_pool = has_threshold(where)
    if is_of_pool:
        index(catalog.pool.shards)
    found: dict[str, pa.Array] = {}
    left, seen, looked_at = asked.limit, 0, 0
    for group in growing(shards) if left is not None and not is_of_pool else [list(shards)]:
        index(group)
        seen += len(group)
        part = catalog if is_of_pool else of_shards(catalog, shards[:seen])
        names = names_in(where, WHERE)
        columns = part.columns(asked.scorer, names)
        if lacking_fields(names, columns) and seen < len(shards):
            continue
        some, looked_at = shards[looked_at:seen], seen
        for shard, samples in matching(part.store, part.pool, columns, where, some, WHERE):
            if len(samples):
                found[shard.name] = one_array(samples["key"])
            if left is not None:
                left -= len(samples)
                if left <= 0:
                    return found
    return found


def _bounded(
    reader: pa.RecordBatchReader, keys: dict[str, pa.Array] | None, limit: int | None
) -> Iterator[pa.RecordBatch]:
    left = limit
    for batch in reader:
        table = pa.Table.from_batches([batch])
        if keys is not None:
            of_shard = keys.get(batch["shard"][0].as_py(), pa.array([], pa.string()))
            table = table.filter(pc.is_in(table["key"], value_set=of_shard))
        table = table.slice(0, left)
        if left is not None:
            left -= len(table)
        yield from table.combine_chunks().to_batches()
        if left == 0:
            return
