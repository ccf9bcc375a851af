"""Markers: the JSON files that mark parts as finished and record what they were created from."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, Field

from capmix.settings.printable import printable
from capmix.storage import legacy
from capmix.storage.json_text import parse_json, parse_object
from capmix.storage.record import FileRecord, as_json, digest_of, records_of

FORMAT = 2  # 1: file sizes without digests; markers of capmix 0.1 have no format number
UNFINGERPRINTED = ("provenance", "upgraded", "check")


@dataclass
class Counts:
    """Rows of a part that are ok, dropped (by reason) and failed (by reason)."""

    ok: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.ok + self.dropped.total() + self.failed.total()

    def add(self, other: "Counts") -> None:
        self.ok += other.ok
        self.dropped.update(other.dropped)
        self.failed.update(other.failed)

    def __repr__(self) -> str:
        shown = [f"{self.ok:,} ok"]
        for name, reasons in (("dropped", self.dropped), ("failed", self.failed)):
            if reasons:
                by_reason = ", ".join(
                    f"{printable(why)} {n:,}" for why, n in sorted(reasons.items())
                )
                shown.append(f"{reasons.total():,} {name} ({by_reason})")
        return f"Counts({', '.join(shown)})"

    def _repr_html_(self) -> str:
        from capmix.settings.tables import table_html

        rows = [["ok", "", f"{self.ok:,}"]]
        for name, reasons in (("dropped", self.dropped), ("failed", self.failed)):
            rows += [[name, why, f"{n:,}"] for why, n in sorted(reasons.items())]
        return table_html(["rows", "reason", "count"], rows, "ll")


Count = Annotated[int, Field(ge=0, lt=2**63)]


class _UncheckedCounts(BaseModel, strict=True):
    ok: Count
    dropped: dict[str, Count]
    failed: dict[str, Count]


class _Unchecked(BaseModel, strict=True):
    """Fields of a marker without a checksum; `columns` is None in markers of capmix 0.1."""

    inputs: dict[str, str]
    config: dict[str, Any]
    rows_in: Count
    counts: _UncheckedCounts
    extra: dict[str, Any] = {}
    files: dict[str, Count] = {}
    columns: list[str] | None = None
    provenance: dict[str, Any] = {}
    format: Count = 0
    upgraded: str = ""


@dataclass(frozen=True)
class Marker:
    """Description of a finished part: what it was created from, and its counts.

    `inputs` maps each input's name to its fingerprint; `config` holds every setting that the
    part's content depends on. `rows_in` is counted where rows enter the stage and `counts` where
    they leave it: the two must agree. `files` are the part's files, `columns` the columns of its
    table. `provenance` (versions, device, batch size) does not affect whether the part is valid.
    `upgraded` is the fingerprint of the part before columns were added; it remains the fingerprint,
    so that parts that depend on this one stay valid.
    """

    inputs: dict[str, str]
    config: dict[str, Any]
    rows_in: int
    counts: Counts
    extra: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    upgraded: str = ""

    def columns_missing(self, wanted: Sequence[str]) -> list[str]:
        """Return the columns in `wanted` that the part lacks; empty if the marker names none."""
        return [name for name in wanted if self.columns and name not in self.columns]

    @property
    def bytes(self) -> int:
        """Total size of the part's files."""
        return sum(one.size for one in self.files.values())


def marker_bytes(marker: Marker) -> bytes:
    """Serialize a marker, with a checksum of its content in `check`.

    Raises ValueError if its counts do not add up.
    """
    if marker.counts.total != marker.rows_in:
        raise ValueError(f"{marker.rows_in} rows in, but {marker.counts.total} accounted for")
    counts = {
        "ok": marker.counts.ok,
        "dropped": dict(marker.counts.dropped),
        "failed": dict(marker.counts.failed),
    }
    value = vars(marker) | {"counts": counts, "files": as_json(marker.files)}
    if not marker.upgraded:
        del value["upgraded"]
    value["check"] = _check(json.loads(json.dumps(value)))  # of the value that is read back
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def parse_marker(data: bytes, part: str) -> Marker | None:
    """Parse the marker of `part`; None if it is damaged in any way."""
    try:
        return _marker_of(parse_object(data), part)
    except ValueError:
        return None


def digest_and_marker(data: bytes, part: str) -> tuple[str, Marker | None]:
    """Return marker_digest and parse_marker of `data`, but parse the JSON only once."""
    try:
        value = parse_object(data)
    except ValueError:
        return marker_digest(data), None
    digest = _digest_of(dict(value), data)
    return digest, _marker_of(value, part)


def _marker_of(value: dict[str, Any], part: str) -> Marker | None:
    """Return the marker in `value`, which is modified; None if it is damaged."""
    try:
        if "check" not in value:  # written by an older version of capmix
            value = _Unchecked.model_validate(value).model_dump()
            is_of_its_time = value["format"] < FORMAT and (
                not value["format"] or value["columns"] is not None
            )
            if not is_of_its_time:
                return None
        elif value.pop("check") != _check(value):
            return None
        about_rows = value["counts"]
        counts = Counts(
            about_rows["ok"], Counter(about_rows["dropped"]), Counter(about_rows["failed"])
        )
        if counts.total != value["rows_in"]:
            return None
        return Marker(
            value["inputs"],
            value["config"],
            value["rows_in"],
            counts,
            value["extra"],
            records_of(value["files"]),
            tuple(value["columns"]) if value["format"] else legacy.columns_of(part),
            value["provenance"],
            value["format"],
            value.get("upgraded", ""),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def marker_digest(data: bytes) -> str:
    """Return the fingerprint of a marker: 32 hex digits of its content without the provenance.

    Parts that were created in the same way on different machines have the same fingerprint.
    """
    with contextlib.suppress(ValueError, AttributeError, TypeError):  # if damaged: hash its bytes
        return _digest_of(parse_json(data), data)
    return _hashed(data)


def _digest_of(value: dict[str, Any], data: bytes) -> str:
    if "provenance" not in value:  # written by capmix 0.1
        return _hashed(data)
    if upgraded := value.get("upgraded"):
        return str(upgraded)
    for name in UNFINGERPRINTED:
        value.pop(name, None)
    return _hashed(json.dumps(value, sort_keys=True).encode())


def _hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _check(value: dict[str, Any]) -> str:
    return digest_of(json.dumps(value, sort_keys=True).encode())
