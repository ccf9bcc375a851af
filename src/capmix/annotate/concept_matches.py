"""Match the texts of a source against metadata entries: `matches/<name>/<shard>.parquet`.

Column in addition to the status: `entries`, the numbers of the distinct entries in the first text
of the sample, ascending. An entry is in a text if the text, with a space added at both ends,
contains the entry between spaces (MetaCLIP, arXiv 2309.16671, section 3).
"""

from collections.abc import Sequence

import pyarrow as pa

from capmix.annotate.entries import entry_form, kept_entries
from capmix.engine.stage import PartWriter, Stage
from capmix.pool import Shard
from capmix.storage.first_texts import first_texts
from capmix.storage.layout import entries_part, matches_folder, texts_folder
from capmix.storage.rows import DROPPED, OK, STATUS, column_names
from capmix.storage.store import Store

FIELDS = [("entries", pa.list_(pa.int32()))]
NO_TEXT = "no_text"


class Matcher:
    """Finds entries in texts, all at once (Aho-Corasick). Loads ahocorasick_rs."""

    def __init__(self, entries: Sequence[str], matching: str):
        from ahocorasick_rs import BytesAhoCorasick

        self._matching = matching
        self._automaton = BytesAhoCorasick([_padded(entry) for entry in entries])

    def find(self, text: str) -> list[int]:
        """Return the numbers of the distinct entries in `text`, ascending."""
        text = entry_form(text, self._matching)
        # Overlapping: neighbours share a space, and an entry may be part of another.
        found = self._automaton.find_matches_as_indexes(_padded(text), overlapping=True)
        return sorted({number for number, _, _ in found})


def _padded(text: str) -> bytes:
    return f" {text} ".encode()


def match_stages(store: Store, name: str, source: str, matching: str) -> list[Stage]:
    """Return the stage that matches the texts of `source` with the entries of annotation `name`."""
    texts, entries = texts_folder(source), entries_part(name)
    known: list[Matcher] = []

    def inputs(shard: Shard) -> dict[str, str]:
        part = f"{texts}/{shard.name}"
        return {texts: store.fingerprint(part)}

    def run_shard(shard: Shard, out: PartWriter) -> None:
        if not known:  # the automaton of a long list takes seconds to build
            known.append(Matcher(kept_entries(store, name), matching))
        _match(store, f"{texts}/{shard.name}", known[0], out)

    config = {"source": source, "matching": matching, "entries": store.fingerprint(entries)}
    return [
        Stage(
            f"match {name}",
            matches_folder(name),
            config,
            inputs,
            run_shard,
            reads=(texts,),
            columns=column_names(FIELDS),
        )
    ]


def _match(store: Store, part: str, matcher: Matcher, out: PartWriter) -> None:
    table = first_texts(store, part)
    status, texts = table["status"].to_pylist(), table["text"].to_pylist()
    reasons = table["reason"].to_pylist()
    found: list[list[int] | None] = [None] * len(table)
    for row, text in enumerate(texts):
        if status[row] == OK and not (text or "").strip():
            status[row], reasons[row] = DROPPED, NO_TEXT
        elif status[row] == OK:
            found[row] = matcher.find(text)
        out.count(status[row], reasons[row])
    columns = {name: table[name] for name in STATUS}
    columns["status"], columns["reason"] = pa.array(status), pa.array(reasons, pa.string())
    columns["entries"] = pa.array(found, FIELDS[0][1])
    out.write_table(pa.table(columns))
