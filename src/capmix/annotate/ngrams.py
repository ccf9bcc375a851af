"""Entries for a metadata list: lemmas of WordNet, and words and pairs of words of the pool.

MetaCLIP (arXiv 2309.16671, section 3.1) takes its entries from WordNet and from frequent words and
pairs of words (of Wikipedia; here, of the pool's own texts). A pair ab is taken if it is frequent,
and if its pointwise mutual information log2(n_ab N / (n_a n_b)) is high, with counts n in the texts
and their number of words N.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from capmix.annotate.entries import LONGEST, MOST_ENTRIES, entry_form
from capmix.engine.mapped import Mapper
from capmix.errors import UserError, reason
from capmix.pool import Shard
from capmix.storage.database import scratch_database
from capmix.storage.first_texts import first_texts
from capmix.storage.rows import OK
from capmix.storage.store import Store

MEMORY = "1GB"
LARGEST = 1 << 26  # bytes of an index file of WordNet
KINDS = ("noun", "verb", "adj", "adv")
FREQUENT = (
    "select word, sum(times)::bigint from {name} group by word having sum(times) >= {least} "
    "order by sum(times) desc, word limit {most}"
)


def wordnet_lemmas(folder: str) -> list[str]:
    """Return the lemmas in the index files of a WordNet folder (index.noun, ...), sorted.

    Raises UserError if there is no such file, or if one cannot be read.
    """
    found: set[str] = set()
    for path in [Path(folder) / f"index.{kind}" for kind in KINDS]:
        if not path.is_file():
            continue
        try:
            if path.stat().st_size > LARGEST:
                raise UserError(f"--wordnet {path}: larger than {LARGEST >> 20} MiB")
            lines = path.read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"--wordnet {path}: {reason(error)}") from error
        # The licence at the top is indented.
        found |= {line.split(" ", 1)[0] for line in lines if line and not line.startswith(" ")}
    if not found:
        names = ", ".join(f"index.{kind}" for kind in KINDS)
        raise UserError(f"--wordnet {folder}: no lemmas; expected a folder with {names}")
    return sorted(lemma.replace("_", " ") for lemma in found)


def frequent_ngrams(
    store: Store,
    shards: Sequence[Shard],
    texts: str,
    matching: str,
    least: int,
    bits: float,
    mapped: Mapper,
) -> list[str]:
    """Return words and pairs of words that occur at least `least` times in the folder `texts`.

    Pairs need a mutual information of at least `bits`. Words come first; both are sorted by
    count. Counts are kept on disk. Raises UserError if too many are frequent, or if the disk or
    memory is full.
    """
    try:
        with (
            store.scratch() as scratch,
            scratch_database(scratch, "ngrams.duckdb", MEMORY) as connection,
        ):
            of_words = partial(_words, store, texts, matching)
            words, total = _counted(connection, "words", of_words, shards, least, mapped)
            of_pairs = partial(_pairs, store, texts, matching, frozenset(words))
            pairs, _ = _counted(connection, "pairs", of_pairs, shards, least, mapped)
    except duckdb.Error as error:
        raise UserError(f"--frequent {least}: {str(error).splitlines()[0]}") from error

    def information(pair: str) -> float:
        first, second = pair.split(" ")
        return math.log2(pairs[pair] * total / (words[first] * words[second]))

    return [*words, *(pair for pair in pairs if information(pair) >= bits)]


def _counted(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    count: Callable[[Shard], tuple[list[str], list[int]]],
    shards: Sequence[Shard],
    least: int,
    mapped: Mapper,
) -> tuple[dict[str, int], int]:
    """Return what occurs at least `least` times, with its count, and the sum of all counts.

    Raises UserError if that is more than MOST_ENTRIES.
    """
    connection.execute(f"create table {name} (word varchar, times bigint)")
    total = 0
    for _, (found, times) in mapped(count, shards):
        total += sum(times)
        rows = pa.table(
            {"word": pa.array(found, pa.string()), "times": pa.array(times, pa.int64())}
        )
        connection.register("capmix_rows", rows)
        connection.execute(f"insert into {name} from capmix_rows")
        connection.unregister("capmix_rows")
    query = FREQUENT.format(name=name, least=least, most=MOST_ENTRIES + 1)
    frequent = connection.execute(query).fetchall()
    if len(frequent) > MOST_ENTRIES:
        raise UserError(
            f"--frequent {least}: more than {MOST_ENTRIES:,} {name}; use a larger number"
        )
    return dict(frequent), total


def _words(store: Store, texts: str, matching: str, shard: Shard) -> tuple[list[str], list[int]]:
    """Count the words of a shard's texts: what is between white space."""
    counts: Counter[str] = Counter()
    for words in _split(store, texts, matching, shard):
        counts.update(words)
    return _columns(counts)


def _pairs(
    store: Store, texts: str, matching: str, known: frozenset[str], shard: Shard
) -> tuple[list[str], list[int]]:
    """Count the pairs of adjacent words that are both among `known`."""
    counts: Counter[str] = Counter()
    for words in _split(store, texts, matching, shard):
        pairs = pairwise(word if word in known else None for word in words)
        counts.update(f"{a} {b}" for a, b in pairs if a is not None and b is not None)
    return _columns(counts)


def _columns(counts: Counter[str]) -> tuple[list[str], list[int]]:
    short = {word: count for word, count in counts.items() if len(word.encode()) <= LONGEST}
    return list(short), list(short.values())


def _split(store: Store, texts: str, matching: str, shard: Shard) -> Iterator[list[str]]:
    table = first_texts(store, f"{texts}/{shard.name}")
    for text in table.filter(pc.equal(table["status"], OK))["text"].to_pylist():
        if text:
            yield entry_form(text, matching).split()
