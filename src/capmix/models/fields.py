"""Store the JSON fields of a pool's samples as typed columns: `fields/<shard>.parquet`.

The part has a row for each row of the index, with the sample's uid and a column for each field that
a recipe can name. In parquet and Lance pools with images, the columns of strings, numbers and
booleans are the fields. The index stage writes this part while it reads the shard. `field_stages`
writes it for shards indexed by an older capmix.

The type of a field in a shard is BOOLEAN, BIGINT, DOUBLE (if integers and other numbers are mixed,
and for integers of over 64 bits) or VARCHAR (if strings and other values are mixed; numbers are
then written as in JSON). Lists and objects are stored as JSON in a VARCHAR. A missing field is
stored as null. If the type differs between shards, `common_type` returns the type of the field.

The JSON is untrusted, so the stored fields are bounded. The marker counts what is left out, by
reason: names that are not identifiers, fields after the first MAX_FIELDS of a shard, strings of
over MAX_TEXT_BYTES, and strings after the first MAX_SHARD_BYTES of a shard.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from capmix.engine.stage import PartWriter, Stage
from capmix.pool.pool import Pool
from capmix.pool.sample import BadSample, Sample, Shard
from capmix.storage.draft import Draft, MadeMeanwhileError
from capmix.storage.layout import FIELDS, SAMPLES
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store

CONFIG = {"rules": 1}  # version of the conversion from values to columns
TYPES = "types"  # key in the marker: SQL type by field
BOOLEAN, BIGINT, DOUBLE, VARCHAR = "BOOLEAN", "BIGINT", "DOUBLE", "VARCHAR"
ARROW = {BOOLEAN: pa.bool_(), BIGINT: pa.int64(), DOUBLE: pa.float64(), VARCHAR: pa.string()}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
UID = "uid"  # column of every part, which a field cannot overwrite
MAX_FIELDS = 100
MAX_TEXT_BYTES = 1 << 15
MAX_SHARD_BYTES = 1 << 26
AT_ONCE = 1024  # samples; with fewer, the call to Arrow takes longer than converting the values
JSON_AT_ONCE = 1 << 23  # bytes
NESTED_BYTES = 1 << 16  # estimate for a list or an object whose JSON size is unknown
SQL_TYPES = {bool: BOOLEAN, int: BIGINT, float: DOUBLE, str: VARCHAR}
SQL = {kind: name for name, kind in ARROW.items()}
# Reasons for leaving out a field or a value.
NO_NAME = "not an identifier"
TOO_MANY = f"more than {MAX_FIELDS} fields"
TOO_LONG = f"over {MAX_TEXT_BYTES:,} bytes"
SHARD_FULL = f"after {MAX_SHARD_BYTES:,} bytes of a shard"
UNREAD = ("unreadable_shard", "unreadable_file")


@dataclass
class _Field:
    """The values of one field in chunks of rows, and their types.

    A chunk whose values have several types is a list.
    """

    chunks: list[pa.Array | list[Any]] = field(default_factory=list)
    types: set[str] = field(default_factory=set)


@dataclass
class FieldColumns:
    """Collects the fields of a shard's samples, in the order of the index.

    Samples are buffered and converted to columns in batches of up to AT_ONCE, because Arrow
    converts a list of values of one type in one call.
    """

    uids: list[str | None] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    _found: dict[str, _Field] = field(default_factory=dict)
    _buffer: list[Mapping[str, Any]] = field(default_factory=list)
    _json: int = 0
    _texts: int = 0

    def add(self, sample: Sample | BadSample) -> None:
        """Add the next sample; a BadSample gets a row of nulls."""
        if isinstance(sample, BadSample):
            self.uids.append(None)
            self._buffer.append({})
        else:
            self.uids.append(sample.uid)
            self._buffer.append(sample.metadata)
            self._json += _size(sample)
        if len(self._buffer) >= AT_ONCE or self._json > JSON_AT_ONCE:
            self._flush()

    @property
    def types(self) -> dict[str, str]:
        """The SQL type of each field that has a value."""
        self._flush()
        return {name: _type_of(one.types) for name, one in self._found.items() if one.types}

    def table(self) -> pa.Table:
        """Return a table of uid and fields, in order of first appearance.

        The table has no rows if the shard has no fields.
        """
        types = self.types
        uids = self.uids if types else []
        columns: dict[str, Any] = {UID: pa.array(uids, pa.string())}
        for name, type_ in types.items():
            chunks = self._found[name].chunks
            columns[name] = pa.chunked_array([as_array(one, type_) for one in chunks])
        return pa.table(columns)

    def _flush(self) -> None:
        """Convert the buffered samples to columns."""
        samples, self._buffer, self._json = self._buffer, [], 0
        if not samples:
            return
        before = len(self.uids) - len(samples)
        for about in samples:
            for name in about:
                if name not in self._found and name != UID:
                    self._add_field(name, before)
        for name, known in self._found.items():
            values = [about.get(name) for about in samples]
            known.chunks.append(self._column(values, known.types))

    def _add_field(self, name: str, before: int) -> None:
        """Register a field at its first appearance, after `before` rows."""
        if not NAME.fullmatch(name):
            self.left_out[NO_NAME] += 1
        elif len(self._found) >= MAX_FIELDS:
            self.left_out[TOO_MANY] += 1
        else:
            self._found[name] = _Field([pa.nulls(before)] if before else [])

    def _column(self, values: list[Any], types: set[str]) -> pa.Array | list[Any]:
        """Convert the values of one field, and add their types to `types`."""
        kinds = set(map(type, values)) - {NoneType}
        if not kinds:
            return pa.nulls(len(values))
        if len(kinds) == 1:
            with suppress(ValueError, OverflowError, pa.ArrowException):
                found = self._plain(values, next(iter(kinds)))
                types.add(SQL[found.type])
                return found
        known = [None if one is None else self._value(one) for one in values]
        types |= {SQL_TYPES[type(one)] for one in known if one is not None}
        return known

    def _plain(self, values: list[Any], kind: type) -> pa.Array:
        """Convert values of one type in one call.

        Raises ValueError or pa.ArrowException if they must be checked one by one.
        """
        found = pa.array(values, ARROW[SQL_TYPES[kind]] if kind in SQL_TYPES else pa.null())
        if kind is float and not pc.all(pc.is_finite(found)).as_py():
            raise ValueError("not finite")
        if kind is str:
            lengths = pc.binary_length(found)
            longest, total = pc.max(lengths).as_py(), pc.sum(lengths).as_py()
            if longest > MAX_TEXT_BYTES or self._texts + total > MAX_SHARD_BYTES:
                raise ValueError("too long")
            self._texts += total
        return found

    def _value(self, value: Any) -> Any:
        """Return the boolean, number or string to store for a value; None if it is left out."""
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value if -(2**63) <= value < 2**63 else _as_double(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        data = value.encode("utf-8", "replace") if isinstance(value, str) else _json_of(value)
        if len(data) > MAX_TEXT_BYTES:
            self.left_out[TOO_LONG] += 1
            return None
        if self._texts + len(data) > MAX_SHARD_BYTES:
            self.left_out[SHARD_FULL] += 1
            return None
        self._texts += len(data)
        return data.decode()


def as_array(values: pa.Array | list[Any], type_: str) -> pa.Array:
    """Convert values to `type_`, which must be able to represent them."""
    kind = ARROW[type_]
    if isinstance(values, list):
        return pa.array([as_type(one, type_) for one in values], kind)
    if values.type == kind or pa.types.is_null(values.type):
        return values.cast(kind)
    if type_ == VARCHAR:
        return pa.array([as_type(one, type_) for one in values.to_pylist()], kind)
    return values.cast(kind, safe=False)  # large integers are rounded


def _size(sample: Sample) -> int:
    """Estimate the size of a sample's JSON in bytes."""
    if sample.members:
        return len(sample.members.get("json", b""))
    sizes = (
        len(one) if isinstance(one, str) else NESTED_BYTES if isinstance(one, list | dict) else 8
        for one in sample.metadata.values()
    )
    return sum(sizes)


def _json_of(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except (TypeError, ValueError):  # integers of over 64 bits, lone surrogates
        return json.dumps(value, separators=(",", ":")).encode()


def common_type(one: str, other: str) -> str:
    """Return the type that can represent the values of both types."""
    if one == other:
        return one
    return DOUBLE if {one, other} == {BIGINT, DOUBLE} else VARCHAR


def as_type(value: Any, type_: str) -> Any:
    """Convert a value to the type of its column."""
    if value is None:
        return None
    if type_ == DOUBLE:
        return _as_double(value)
    if type_ == VARCHAR and not isinstance(value, str):
        return json.dumps(value)
    return value


def types_of(marker: Marker | None) -> dict[str, str]:
    """Return the SQL types of the fields in a part; an empty dict if the part is missing."""
    found = {} if marker is None else marker.extra.get(TYPES)
    if not isinstance(found, dict):
        return {}
    return {str(name): type_ for name, type_ in found.items() if type_ in ARROW}


def _type_of(types: set[str]) -> str:
    first, *others = sorted(types)
    for other in others:
        first = common_type(first, other)
    return first


def _as_double(value: Any) -> float | None:
    try:
        return float(value)
    except OverflowError:  # an integer of over 1,024 bits
        return None


def write_fields(draft: Draft, shard: Shard, columns: FieldColumns) -> None:
    """Write the fields of a shard as a separate part, in the store of the index's `draft`.

    If another process has written the part meanwhile, that part is kept.
    """
    beside = Draft(draft.store, f"{FIELDS}/{shard.name}")
    try:
        table = columns.table()
        beside.write_table(f"{beside.part}.parquet", table)
        counts = Counts(ok=len(columns.uids))
        beside.commit(
            Marker(
                {"pool": shard.fingerprint},
                CONFIG,
                len(columns.uids),
                counts,
                _extra(columns),
                columns=tuple(table.column_names),
            )
        )
    except MadeMeanwhileError:
        pass
    finally:
        beside.discard()


def field_stages(pool: Pool, store: Store) -> list[Stage]:
    """Return the stage that writes the fields of shards that were indexed without them."""

    def run_shard(shard: Shard, out: PartWriter) -> None:
        columns = FieldColumns()
        known = store.read_marker(f"{SAMPLES}/{shard.name}")
        failed: Mapping[str, int] = known.counts.failed if known else {}
        for sample in pool.read(shard):
            if isinstance(sample, BadSample) and sample.reason in UNREAD and not failed:
                raise OSError(sample.detail)
            out.count_in()
            out.count_ok()
            columns.add(sample)
        out.extra = _extra(columns)
        out.write_table(columns.table())

    def inputs(shard: Shard) -> dict[str, str]:
        return {"pool": shard.fingerprint}

    return [Stage("fields", FIELDS, CONFIG, inputs, run_shard)]


def _extra(columns: FieldColumns) -> dict[str, Any]:
    return {TYPES: columns.types, "left_out": dict(columns.left_out)}
