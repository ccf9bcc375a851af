"""The JSON fields of a pool's samples as typed columns: `fields/<shard>.parquet`.

A row for each sample of the index, with its uid and a column for each field that a recipe can name.
The columns of parquet and Lance pools with images count as such fields. The index stage writes the
part beside its own while it reads the shard; `field_stages` makes it for shards that an older
capmix has indexed.

The type of a field in a shard is BOOLEAN, BIGINT, DOUBLE (for integers beside other numbers, and
for those of over 64 bits) or VARCHAR (for texts beside anything else, where a number is written as
in JSON). A list or an object is a VARCHAR of JSON. Null and a field that a sample lacks are alike.
`common_type` says what a field is in shards that have it in several types.

Anybody may have written the JSON, so what is kept of it is bounded, and what is left out is counted
by reason in the marker: names that are no identifiers, fields after the first MAX_FIELDS of a
shard, texts of over MAX_TEXT_BYTES, and texts after MAX_SHARD_BYTES of a shard.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from capmix.engine.stage import PartWriter, Stage
from capmix.pool.pool import Pool
from capmix.pool.sample import BadSample, Sample, Shard
from capmix.storage.draft import Draft, MadeMeanwhileError
from capmix.storage.layout import FIELDS, SAMPLES
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store

CONFIG = {"rules": 1}  # how values become columns
TYPES = "types"  # in the marker: SQL type by field
BOOLEAN, BIGINT, DOUBLE, VARCHAR = "BOOLEAN", "BIGINT", "DOUBLE", "VARCHAR"
ARROW = {BOOLEAN: pa.bool_(), BIGINT: pa.int64(), DOUBLE: pa.float64(), VARCHAR: pa.string()}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
OF_CAPMIX = "uid"  # is in every part
MAX_FIELDS = 100
MAX_TEXT_BYTES = 1 << 15
MAX_SHARD_BYTES = 1 << 26
UNREAD = ("unreadable_shard", "unreadable_file")


@dataclass
class _Values:
    """The values of one field: which rows have one, and the types that occur."""

    rows: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    types: set[str] = field(default_factory=set)


@dataclass
class FieldColumns:
    """Collects the fields of a shard's samples, in the order of the index."""

    uids: list[str | None] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    _found: dict[str, _Values] = field(default_factory=dict)
    _bytes: int = 0

    def add(self, sample: Sample | BadSample) -> None:
        """Take the next sample; of one that could not be read, nothing is known."""
        row = len(self.uids)
        if isinstance(sample, BadSample):
            self.uids.append(None)
            return
        self.uids.append(sample.uid)
        for name, value in sample.metadata.items():
            if value is not None and name != OF_CAPMIX:
                self._take(name, row, value)

    def _take(self, name: str, row: int, value: Any) -> None:
        found = self._found.get(name)
        if found is None:
            if not NAME.fullmatch(name):
                self.left_out["not an identifier"] += 1
                return
            if len(self._found) >= MAX_FIELDS:
                self.left_out[f"more than {MAX_FIELDS} fields"] += 1
                return
            found = self._found[name] = _Values()
        kind = type(value)
        if kind is int:
            type_ = BIGINT if -(2**63) <= value < 2**63 else DOUBLE
        elif kind is float:
            if not math.isfinite(value):
                return
            type_ = DOUBLE
        elif kind is bool:
            type_ = BOOLEAN
        else:
            text = self._text(value)
            if text is None:
                return
            type_, value = VARCHAR, text
        found.types.add(type_)
        found.rows.append(row)
        found.values.append(value)

    def _text(self, value: Any) -> str | None:
        """The text that a value is; None where it is too long to be kept."""
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        data = text.encode("utf-8", "replace")  # json strings can hold lone surrogates
        if len(data) > MAX_TEXT_BYTES:
            self.left_out[f"over {MAX_TEXT_BYTES:,} bytes"] += 1
            return None
        if self._bytes + len(data) > MAX_SHARD_BYTES:
            self.left_out[f"after {MAX_SHARD_BYTES:,} bytes of a shard"] += 1
            return None
        self._bytes += len(data)
        return data.decode()

    @property
    def types(self) -> dict[str, str]:
        """The SQL type of each field that has a value."""
        return {name: _type_of(one.types) for name, one in self._found.items() if one.types}

    def table(self) -> pa.Table:
        """uid, and the fields in the order in which they were met; no rows without any field."""
        types = self.types
        uids = self.uids if types else []
        columns = {OF_CAPMIX: pa.array(uids, pa.string())}
        for name, type_ in types.items():
            filled: list[Any] = [None] * len(uids)
            found = self._found[name]
            for row, value in zip(found.rows, found.values, strict=True):
                filled[row] = as_type(value, type_)
            columns[name] = pa.array(filled, ARROW[type_])
        return pa.table(columns)


def common_type(one: str, other: str) -> str:
    """The type that holds the values of both, of a field that two shards have in these."""
    if one == other:
        return one
    return DOUBLE if {one, other} == {BIGINT, DOUBLE} else VARCHAR


def as_type(value: Any, type_: str) -> Any:
    """A value as the type of its column holds it."""
    if type_ == DOUBLE:
        return _as_double(value)
    if type_ == VARCHAR and not isinstance(value, str | None):
        return json.dumps(value)
    return value


def types_of(marker: Marker | None) -> dict[str, str]:
    """The SQL types of the fields in a part; none of a part that is not there."""
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
    """Write the part of a shard beside another one that is made of the same reading."""
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
    """The one stage that makes the fields of shards that were indexed without them."""

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
