"""The columns that recipes can use, read from the parts one shard at a time.

uid, shard, key       the sample
width, height, bytes, sha256    its image as stored (pixels, bytes)
original_width, original_height    its image before a downloader resized it, if the pool has this
draw                  uniform in [0, 1), a function of seed and uid only
raw_text, raw_score   the pool's own text and its similarity
S_text, S_score       the same for the source S: its first caption
S_flags, S_finish     see caption/flags.py
S_truncated           whether the text was too long for the scorer, which then ignored its end
S_kJ_...              the J-th of several captions (from 0); S_best_...: the one that scores highest
S_score_NAME          by the scorer NAME, if there are several ('-' and '.' become '_')
COLUMN                any other column of a metadata pool
NAME_COLUMN           a column that `capmix annotate` wrote as NAME
field.F               the field F of the samples' JSON (models/fields.py); also F if no other column
                      has this name

storage/names.py rejects names that would make two column names equal; columns_of raises for those
that exist already.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.mix.parts import Parts, is_of_scores
from capmix.storage.layout import (
    ANNOTATIONS,
    FIELDS,
    RAW,
    SAMPLES,
    annotation_folder,
    scores_folder,
    texts_folder,
)
from capmix.storage.names import scorer_suffix
from capmix.storage.rows import OK
from capmix.storage.store import Store

SAMPLE_FIELDS = ("width", "height", "bytes", "sha256")
ORIGINAL_FIELDS = ("original_width", "original_height")  # null if the index has none
CAPTION_FIELDS = ("text", "flags", "finish", "k")
SCORE_FIELDS = ("score", "truncated")
MAX_CAPTIONS = 64  # S_k0 to S_k63
FIRST, BEST = 0, -1
FIELD = "field."  # no name of a source or annotation has a dot
# Fields of these names are always written with FIELD, even if the pool has no such column yet.
NOT_OF_FIELDS = frozenset(
    (
        *("uid", "key", "shard", "draw", "repeat_draw", "nothing", "text", "field"),
        *("status", "reason", "detail", "xxh3", *SAMPLE_FIELDS, *ORIGINAL_FIELDS),
    )
)
PREFIXES_NOT_OF_FIELDS = (f"{RAW}_", "list_", "capmix_")


@dataclass(frozen=True)
class Column:
    """Where a column is stored: a folder of parts, and a field of these parts.

    `pick` selects one of several captions of a sample: its number, or BEST for the one with the
    highest score in the folder `judge`. It is None if a sample has only one row.
    """

    folder: str
    field: str
    pick: int | None = None
    judge: str | None = None


def folders_of(columns: Iterable[Column]) -> set[str]:
    """Return the folders of parts that these columns are read from."""
    found = {SAMPLES}
    for column in columns:
        found.add(column.folder)
        if column.judge is not None:  # BEST needs the scores and their texts
            found |= {column.judge, texts_folder(column.judge.rpartition("/")[2])}
    return found


def is_text(column: Column | None) -> bool:
    """Return whether a column holds the texts of a source, not a field or annotation that is also
    named `text`."""
    return (
        column is not None
        and column.field == "text"
        and column.folder != FIELDS
        and not column.folder.startswith(f"{ANNOTATIONS}/")
    )


def source_names(source: str) -> dict[str, int]:
    """Return the names by which clauses can refer to `source`, and the caption that each selects:
    its number, or BEST."""
    if source == "raw":
        return {source: FIRST}
    numbered = {f"{source}_k{k}": k for k in range(MAX_CAPTIONS)}
    return {source: FIRST, f"{source}_best": BEST} | numbered


def columns_of(
    sources: Sequence[str],
    scored: Mapping[str, Sequence[str]],
    scorer: str | None,
    annotations: Mapping[str, Sequence[str]],
    of_pool: Sequence[str] = SAMPLE_FIELDS,
) -> dict[str, Column]:
    """Return every column by name, without the fields of the samples' JSON.

    `of_pool` are the fields of the index, including a metadata pool's own columns. `scored` maps
    each scorer to the sources that it has scored. `scorer` is the one that S_score and BEST use.
    `annotations` maps each annotation to its fields. Raises UserError for a name that belongs to
    two of these.
    """
    found: dict[str, Column] = {}
    of_pool = [*of_pool, *ORIGINAL_FIELDS]
    _check_owners(sources, scored, annotations, of_pool)
    for source in sources:
        for name, pick in source_names(source).items():
            judge = None
            if pick == BEST:
                if source not in scored.get(scorer or "", ()):
                    continue
                judge = scores_folder(scorer or "", source)
            found |= _source_columns(source, name, pick, judge, scored, scorer)
    for annotation, fields in annotations.items():
        folder = annotation_folder(annotation)
        found |= {f"{annotation}_{field}": Column(folder, field) for field in fields}
    return {name: Column(SAMPLES, name) for name in of_pool} | found


def with_fields(columns: Mapping[str, Column], fields: Iterable[str]) -> dict[str, Column]:
    """Return the columns and the fields of the samples' JSON: each as field.NAME, and also as NAME
    if no column of capmix, of a source or of an annotation has this name."""
    taken = {name.lower() for name in columns} | NOT_OF_FIELDS
    found = dict(columns)
    for name in fields:
        column = Column(FIELDS, name)
        found[f"{FIELD}{name}"] = column
        if name.lower() not in taken and can_be_field(name):
            found[name] = column
    return found


def can_be_field(name: str) -> bool:
    """Return whether a name refers to a field of the samples' JSON if no column has this name."""
    lower = name.lower()
    is_other = lower in NOT_OF_FIELDS or lower.startswith(PREFIXES_NOT_OF_FIELDS)
    return name.startswith(FIELD) or not is_other


def lacking_fields(names: Iterable[str], columns: Mapping[str, Column]) -> set[str]:
    """Return the names that are not among `columns` but may be fields of other shards."""
    return {name for name in names if name not in columns and can_be_field(name)}


def other_owner(name: str, columns: Mapping[str, Column]) -> str | None:
    """Return what to write instead of an ambiguous `name`: one that is both a field and a column of
    a source or an annotation. None if it is unambiguous, as names reserved for capmix always are.
    """
    column, of_field = columns.get(name), columns.get(f"{FIELD}{name}")
    if column is None or of_field is None or column == of_field or column.folder == SAMPLES:
        return None
    if name.startswith(PREFIXES_NOT_OF_FIELDS):
        return None
    same = [one for one, known in columns.items() if known == column and one != name]
    other = f", or {same[0]} for what capmix wrote" if same else ""
    if column.folder.startswith(f"{ANNOTATIONS}/"):
        other = ", or rerun `capmix annotate` with another --name for what capmix wrote"
    return f"{FIELD}{name} for the field{other}"


def scored_sources(names: Iterable[str], sources: Iterable[str]) -> set[str]:
    """Return the sources whose scores the columns `names` need: for S_score, S_truncated and
    S_best_..., which is chosen by score. S_score_NAME, which names its scorer, does not count."""
    asked = set(names)
    found = set()
    for source in sources:
        for name, pick in source_names(source).items():
            of_scores = {f"{name}_{field}" for field in SCORE_FIELDS}
            if pick == BEST:
                of_scores |= {f"{name}_{field}" for field in CAPTION_FIELDS}
            if not asked.isdisjoint(of_scores):
                found.add(source)
    return found


def _check_owners(
    sources: Sequence[str],
    scored: Mapping[str, Sequence[str]],
    annotations: Mapping[str, Sequence[str]],
    of_pool: Sequence[str],
) -> None:
    """Raise UserError for a column name with two owners, even if the column has no values yet:
    otherwise the text of one source could be combined with the score of another."""
    claims = [(field, f"the pool's field {field!r}") for field in of_pool]
    for source in sources:
        for name in source_names(source):
            of_source = (*CAPTION_FIELDS, *SCORE_FIELDS)
            claims += [(f"{name}_{field}", f"source {source!r}") for field in of_source]
            for scorer in (one for one, of_one in scored.items() if source in of_one):
                owner = f"source {source!r} by scorer {scorer!r}"
                suffix = scorer_suffix(scorer)
                claims += [(f"{name}_{field}_{suffix}", owner) for field in SCORE_FIELDS]
    for annotation, fields in annotations.items():
        claims += [(f"{annotation}_{field}", f"annotation {annotation!r}") for field in fields]
    owners: dict[str, str] = {}
    for name, owner in claims:
        if owners.setdefault(name, owner) != owner:
            raise UserError(
                f"column name {name!r} belongs to {owners[name]} and to {owner}: write one of them "
                "under another name and delete the old one"
            )


def _source_columns(
    source: str,
    name: str,
    pick: int,
    judge: str | None,
    scored: Mapping[str, Sequence[str]],
    scorer: str | None,
) -> dict[str, Column]:
    fields = ("text",) if source == "raw" else CAPTION_FIELDS
    texts = Column(texts_folder(source), "text", None if source == "raw" else pick, judge)
    found = {f"{name}_{field}": replace(texts, field=field) for field in fields}
    for one, of_one in scored.items():
        if source in of_one:
            scores = replace(texts, folder=scores_folder(one, source))
            for field in SCORE_FIELDS:
                found[f"{name}_{field}_{scorer_suffix(one)}"] = replace(scores, field=field)
                if one == scorer:
                    found[f"{name}_{field}"] = replace(scores, field=field)
    return found


def read_samples(
    store: Store,
    shard: str,
    columns: Mapping[str, Column],
    parts: Parts,
    about: Sequence[str] = ("uid", "key"),
) -> pa.Table:
    """Read `about` and `columns` of the samples of a shard that are ok and not excluded, in pool
    order.

    Most parts have one row per sample in pool order, so that no join is needed; for the others,
    rows are looked up by uid. The uids of scores are not read if the markers (`parts`) declare that
    the scores match their texts row by row. NaN becomes null.
    """
    whole = shard in parts.whole
    fields = {column.field for column in columns.values() if column.folder == SAMPLES}
    folders = dict.fromkeys(column.folder for column in columns.values())
    needed = {*about} if whole else {*about, "status"}
    needed |= {"uid"} if set(folders) - {SAMPLES} else set()
    samples = _read(store, parts, SAMPLES, shard, needed, fields)
    uids_of = {SAMPLES: samples["uid"]} if "uid" in needed else {}
    found: dict[str, Any] = {name: samples[name] for name in about}
    for folder in sorted(folders, key=is_of_scores):
        here = {name: column for name, column in columns.items() if column.folder == folder}
        if folder == SAMPLES:
            found |= {name: samples[column.field] for name, column in here.items()}
            continue
        if folder == FIELDS:  # fields that this shard lacks are null
            asked = {column.field for column in here.values()}
            part = _aligned(_read(store, parts, FIELDS, shard, ["uid"], asked), samples["uid"])
            found |= {name: part[column.field] for name, column in here.items()}
            continue
        texts = uids_of.get(texts_folder(folder.rpartition("/")[2]))
        needed = _fields_needed(here.values())
        if texts is not None and folder in parts.following:
            part = _read(store, parts, folder, shard, needed - {"uid"}).append_column("uid", texts)
        else:
            part = _read(store, parts, folder, shard, needed)
        uids_of[folder] = part["uid"]
        for pick in dict.fromkeys((column.pick, column.judge) for column in here.values()):
            aligned = _aligned(_picked(store, parts, shard, part, *pick), samples["uid"])
            for name, column in here.items():
                if (column.pick, column.judge) == pick:
                    found[name] = aligned[column.field]
    table = pa.table({name: _without_nan(column) for name, column in found.items()})
    table = table if whole else table.filter(stays := pc.equal(samples["status"], OK))
    excluded = parts.excluded(shard)
    if excluded is None:
        return table
    return table.filter(pa.array(~excluded if whole else ~excluded[stays.to_numpy()]))


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace NaN, which SQL sorts as the largest number, by null."""
    if not pa.types.is_floating(column.type) or not pc.any(pc.is_nan(column)).as_py():
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def can_read_alone(column: Column) -> bool:
    """Return whether read_alone supports a column: it is read from one part, not from the index."""
    return column.folder not in (SAMPLES, FIELDS) and column.judge is None


def read_alone(store: Store, shard: str, column: Column, parts: Parts) -> pa.Array:
    """Read a column, and nothing else, of a shard in which every sample is ok."""
    part = _read(store, parts, column.folder, shard, _fields_needed([column]) - {"uid"})
    return one_array(_picked(store, parts, shard, part, column.pick, None)[column.field])


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as one array."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _fields_needed(columns: Iterable[Column]) -> set[str]:
    needed = {"uid"}
    for column in columns:
        needed |= {column.field, "k"} if column.pick is not None else {column.field}
    return needed


def _read(
    store: Store,
    parts: Parts,
    folder: str,
    shard: str,
    fields: Iterable[str],
    optional: Iterable[str] = (),
) -> pa.Table:
    """Read columns of a part; columns of `optional` that the part lacks are null."""
    part = f"{folder}/{shard}.parquet"
    record = parts.records.get(part)
    absent: set[str] = set()
    if optional:
        with store.open_table(part, record) as file:
            absent = set(optional) - set(file.schema_arrow.names)
    table = store.read_table(part, sorted({*fields, *optional} - absent), record)
    for name in sorted(absent):
        table = table.append_column(name, pa.nulls(len(table)))
    return table


def _picked(
    store: Store, parts: Parts, shard: str, part: pa.Table, pick: int | None, judge: str | None
) -> pa.Table:
    """Return one row per sample: the caption that `pick` selects.

    The rows of a sample are adjacent in `part`.
    """
    if pick is None or not len(part):
        return part
    if judge is None:
        highest = pc.max(part["k"]).as_py() or 0
        if pick == highest == 0:
            return part
        return part.filter(pc.equal(pc.fill_null(part["k"], 0), pick))
    scores = _read(store, parts, judge, shard, {"uid", "k", "score"})
    if not (scores["uid"].equals(part["uid"]) and scores["k"].equals(part["k"])):
        # Both have one row per caption, but captions that were not scored have no score row.
        keys = pa.table({"uid": part["uid"], "k": part["k"], "place": np.arange(len(part))})
        scores = keys.join(scores, ["uid", "k"], join_type="left outer").sort_by("place")
    values = pc.fill_null(scores["score"], -np.inf).to_numpy()
    uids = one_array(part["uid"])
    begins = np.ones(len(part), bool)
    same = pc.fill_null(pc.equal(uids[1:], uids[:-1]), False)
    begins[1:] = ~same.to_numpy(zero_copy_only=False)
    run = np.cumsum(begins) - 1
    highest_of_run = np.maximum.reduceat(values, np.flatnonzero(begins))
    is_highest = np.flatnonzero(values == highest_of_run[run])
    first = is_highest[np.unique(run[is_highest], return_index=True)[1]]
    return part.take(pa.array(first))


def _aligned(part: pa.Table, uids: pa.ChunkedArray) -> pa.Table:
    """Return the rows of `part` for `uids`, in their order; null for uids without a row."""
    if part["uid"].equals(uids):
        return part
    return part.take(pc.index_in(uids, value_set=one_array(part["uid"])))
