"""Concept balancing (MetaCLIP, arXiv 2309.16671, section 3): thin out frequent concepts.

1. Match the texts with a list of metadata entries (concept_matches.py).
2. Count the texts of each entry e over the pool. The limit t is given, or it is the count at which
   the cumulative share of the matches, from the rarest entry on, reaches the share of the tail.
   p_e = t / max(count_e, t).
3. A text is kept if the draw of any of its entries is below p_e. The probability of that is
   1 - prod(1 - p_e). A draw is a function of seed, uid, source, k and the entry's words only.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.annotate.entries import checked_entries, kept_entries, read_entries
from capmix.annotate.ngrams import frequent_ngrams, wordnet_lemmas
from capmix.annotate.settings import AnnotateSettings
from capmix.annotate.vectors import fingerprints
from capmix.engine.mapped import Mapper
from capmix.engine.stage import PartWriter, Stage
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.storage.draft import Draft
from capmix.storage.layout import (
    annotation_folder,
    counts_part,
    entries_part,
    matches_folder,
    texts_folder,
)
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.rows import OK, STATUS, column_names
from capmix.storage.store import Store

log = logging.getLogger(__name__)

FIELDS = [("matches", pa.int32()), ("probability", pa.float32()), ("kept", pa.bool_())]
# SplitMix64 (Steele, Lea, Flood 2014).
INCREMENT, FIRST, SECOND = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


def limit_of_tail(counts: np.ndarray, tail: float) -> int:
    """Return the count at which the cumulative share of matches reaches `tail`; at least 1.

    `counts` (E,) are the texts per entry. Their shares are added from the rarest entry on.
    """
    rising = np.sort(counts[counts > 0])
    if not len(rising):
        return 1
    # Integers, so that a share that is reached exactly is not missed by rounding.
    reached = np.cumsum(rising) >= tail * rising.sum()
    return int(rising[np.argmax(reached)])


def probabilities(counts: np.ndarray, limit: int) -> np.ndarray:
    """Return p_e = limit / max(count_e, limit), float64 (E,)."""
    found: np.ndarray = limit / np.maximum(counts, limit)
    return found


def text_keys(seed: int, uids: Sequence[str], source: str) -> np.ndarray:
    """Return a key of each text, uint64 (N,): 64 bits of SHA-256 of seed, uid, source and k = 0."""
    names = (f"{seed}/{uid}/{source}/0".encode() for uid in uids)
    return _first_bits(b"".join(hashlib.sha256(name).digest()[:8] for name in names))


def entry_keys(entries: Sequence[str]) -> np.ndarray:
    """Return a key of each entry, uint64 (E,), that does not depend on the other entries."""
    return _first_bits(b"".join(hashlib.sha256(one.encode()).digest()[:8] for one in entries))


def draws(texts: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Return uniform numbers in [0, 1), float64 (M,), for pairs of a text's and an entry's key."""
    with np.errstate(over="ignore"):
        bits = _mixed(_mixed(texts) + entries * INCREMENT)
    found: np.ndarray = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return found


def _first_bits(digests: bytes) -> np.ndarray:
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser."""
    bits = (bits ^ (bits >> np.uint64(30))) * FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * SECOND
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


def metadata_list(
    store: Store, shards: Sequence[Shard], name: str, settings: AnnotateSettings, mapped: Mapper
) -> None:
    """Write `metadata/<name>/entries.parquet` from the settings: file, WordNet and texts.

    Raises UserError if there is no list, or if it is not valid.
    """
    part, matching, texts = entries_part(name), settings.matching, texts_folder(settings.source)
    given = [] if settings.entries is None else read_entries(settings.entries, matching)
    lemmas = [] if settings.wordnet is None else wordnet_lemmas(settings.wordnet)
    inputs: dict[str, str] = {}
    config: dict[str, Any] = {"given": _digest([*given, *lemmas]), "matching": matching}
    if settings.frequent is not None:
        inputs[texts] = _digest(fingerprints(store, [texts], shards))
        config |= {"source": settings.source, "frequent": settings.frequent, "pmi": settings.pmi}
    elif not given and not lemmas:
        raise UserError("annotate: concepts needs a list: pass --entries, --wordnet or --frequent")

    def write(draft: Draft) -> Marker:
        ngrams: list[str] = []
        if settings.frequent is not None:
            least, bits = settings.frequent, settings.pmi
            ngrams = frequent_ngrams(store, shards, texts, matching, least, bits, mapped)
        if not (given or lemmas or ngrams):
            raise UserError(f"--frequent {settings.frequent}: no word occurs so often; lower it")
        every = checked_entries([*given, *lemmas, *ngrams], matching, f"annotate {name}")
        draft.write_table(f"{part}.parquet", pa.table({"entry": pa.array(every, pa.string())}))
        return Marker(inputs, config, len(every), Counts(len(every)), columns=("entry",))

    once(store, part, inputs, config, write)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]


def count_entries(
    store: Store, shards: Sequence[Shard], name: str, settings: AnnotateSettings, mapped: Mapper
) -> None:
    """Write `metadata/<name>/counts.parquet`: entry, count and probability.

    The matches of all shards must be complete. Raises UserError if no text has an entry.
    """
    part, entries, folder = counts_part(name), entries_part(name), matches_folder(name)
    inputs = {entries: store.fingerprint(entries)}
    inputs[folder] = _digest(fingerprints(store, [folder], shards))
    config: dict[str, Any] = {"tail": settings.tail}
    if settings.limit:
        config = {"limit": settings.limit}

    def write(draft: Draft) -> Marker:
        names = kept_entries(store, name)
        counts = np.zeros(len(names), np.int64)
        for _, (numbers, times) in mapped(partial(_counts, store, name), shards):
            counts[numbers] += times
        limit = settings.limit or limit_of_tail(counts, settings.tail)
        columns = {"entry": names, "count": counts, "probability": probabilities(counts, limit)}
        draft.write_table(f"{part}.parquet", pa.table(columns))
        about = {"limit": limit, "matches": int(counts.sum()), "found": int((counts > 0).sum())}
        return Marker(inputs, config, len(names), Counts(len(names)), about, columns=tuple(columns))

    marker, _ = once(store, part, inputs, config, write)
    about = marker.extra
    if not about["matches"]:
        raise UserError(
            f"annotate {name}: no text of source {settings.source!r} contains an entry of the "
            "metadata list; check its language, or pass --matching words"
        )
    log.info(
        "annotate %s: %s of %s entries found, %s matches, limit %s texts per entry",
        name,
        f"{about['found']:,}",
        f"{marker.rows_in:,}",
        f"{about['matches']:,}",
        f"{about['limit']:,}",
    )


def _counts(store: Store, name: str, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the entries in a shard's texts, and the number of texts of each."""
    table = store.read_table(f"{matches_folder(name)}/{shard.name}.parquet", ["entries"])
    found = pc.list_flatten(table["entries"]).to_numpy()
    numbers, times = np.unique(found, return_counts=True)
    return numbers, times


def concept_stages(store: Store, name: str, settings: AnnotateSettings) -> list[Stage]:
    """Return the stage that writes the columns of annotation `name` from its matches and counts."""
    folder, texts = matches_folder(name), texts_folder(settings.source)
    known: list[tuple[np.ndarray, np.ndarray]] = []
    # One digest for all parts, as each depends on all texts: mix refuses parts of two runs.
    config: dict[str, Any] = {"method": settings.method, "source": settings.source}
    config |= {"seed": settings.seed}
    config |= {"values": store.fingerprint(counts_part(name))}

    def inputs(shard: Shard) -> dict[str, str]:
        parts = {folder: f"{folder}/{shard.name}", texts: f"{texts}/{shard.name}"}
        return {name: store.fingerprint(part) for name, part in parts.items()}

    def run_shard(shard: Shard, out: PartWriter) -> None:
        if not known:
            table = store.read_table(f"{counts_part(name)}.parquet", ["entry", "probability"])
            keys = entry_keys(table["entry"].to_pylist())
            known.append((keys, table["probability"].to_numpy()))
        table = store.read_table(f"{folder}/{shard.name}.parquet")
        _count_rows(table, out)
        columns = {one: table[one] for one in STATUS}
        columns |= _columns(table, *known[0], settings)
        out.write_table(pa.table(columns))

    return [
        Stage(
            f"annotate {name}",
            annotation_folder(name),
            config,
            inputs,
            run_shard,
            reads=(folder, texts),
            columns=column_names(FIELDS),
        )
    ]


def _count_rows(table: pa.Table, out: PartWriter) -> None:
    others = table.filter(pc.not_equal(table["status"], OK))  # per row only these few
    out.count_in(len(table) - len(others))
    out.count_ok(len(table) - len(others))
    for row in others.select(["status", "reason"]).to_pylist():
        out.count(row["status"], row["reason"])


def _columns(
    table: pa.Table, keys: np.ndarray, chances: np.ndarray, settings: AnnotateSettings
) -> dict[str, pa.Array]:
    """Return the columns of FIELDS; null in rows that are not ok."""
    entries = table["entries"].combine_chunks()
    is_ok = entries.is_valid().to_numpy(zero_copy_only=False)
    sizes = np.where(is_ok, pc.fill_null(pc.list_value_length(entries), 0).to_numpy(), 0)
    numbers = pc.list_flatten(entries).to_numpy()
    rows = np.repeat(np.arange(len(table)), sizes)
    uids = [uid or "" for uid in table["uid"].to_pylist()]
    of_texts = text_keys(settings.seed, uids, settings.source)
    hits = draws(of_texts[rows], keys[numbers]) < chances[numbers]
    kept = np.bincount(rows[hits], minlength=len(table)) > 0
    with np.errstate(divide="ignore"):  # log(0): an entry that is always kept
        logs = np.log1p(-chances[numbers])
    probability = 0.0 - np.expm1(np.bincount(rows, logs, len(table)))  # 0.0, not -0.0
    values = {"matches": sizes, "probability": probability, "kept": kept}
    return {
        one: pa.array(values[one], mask=~is_ok, from_pandas=False).cast(kind)
        for one, kind in FIELDS
    }
