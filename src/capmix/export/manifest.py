"""Which files an export wrote, so that a later one touches no others.

`.manifest/<shard>.txt` lists the files of one output shard, `.manifest/export.txt` those of the
whole: `<digest> <bytes> <name>` a line, as markers have them, names as in URLs. A shard's list is
written before its marker. A file that differs from its line was changed by somebody and is theirs.
`.manifest/<shard>.found.txt` lists in the same way files that the export needs and others own, who
had put them there with the same bytes: they are pushed and verified, but never removed.
"""

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote, unquote

from capmix.export.lance import MANIFEST
from capmix.storage.filesystem import files_below
from capmix.storage.layout import EXPORT_CARD, EXPORT_FILES, EXPORT_MARKERS
from capmix.storage.marker import Marker
from capmix.storage.record import FileRecord, RecordingStream, digest_of
from capmix.storage.store import ABSENT, Store

log = logging.getLogger(__name__)

WHOLE = (
    "sizes.json",
    "metadata.jsonl",
    "llava.json",
    "captions.csv",
    "metadata.json",
    "train/metadata.parquet",
    EXPORT_CARD,
)
LIST = re.compile(rf"{re.escape(EXPORT_FILES)}/(\d{{8}}|export)\.txt")
LIST_OF_FOUND = re.compile(rf"{re.escape(EXPORT_FILES)}/\d{{8}}\.found\.txt")
WHOLE_LIST = f"{EXPORT_FILES}/export.txt"
DATASET = re.compile(rf"{re.escape(MANIFEST)}|_transactions/0-[0-9a-f-]{{36}}\.txn")  # Lance's
OF_SHARD = re.compile(rf"(?:data/train-|images/|{EXPORT_MARKERS}/)?(\d{{8}})[./_]")
NEW = re.compile(r"\.new\d*(?=\.)")
LINE = re.compile(r"([0-9a-f]{32}) (\d{1,18}) (\S+)")


class ExportTarget(Store):
    """The directory of an export; lists every file that is written through it.

    A file of the whole export that somebody has changed is kept, and the new one is written beside
    it as `<stem>.new<suffix>`. A directory that `is_shared` may hold files of others from the
    start.
    """

    kind = "export --out"

    def __init__(self, location: str, scratch: str | None = None, is_shared: bool = False):
        super().__init__(location, EXPORT_MARKERS, scratch)
        self._is_shared = is_shared
        self._lines: dict[str, bytearray] = {}  # by shard that is not finished

    @contextlib.contextmanager
    def writing(self, name: str, sync: bool = True) -> Iterator[RecordingStream]:
        """As Store.writing; the file is listed."""
        if name in WHOLE:
            name = self._free(name)
        with super().writing(name, sync) as stream:
            yield stream
        self._list(name, stream.record)

    def write_card(self, card: bytes) -> None:
        """Write README.md, but beside one that is not as capmix wrote it."""
        written = FileRecord(len(card), digest_of(card))
        if self.is_as_written(EXPORT_CARD, written):  # a killed run may not have listed it
            self._list(EXPORT_CARD, written)
        else:
            self.write_bytes(EXPORT_CARD, card)

    def prepare_marker(self, part: str, marker: Marker) -> str:
        """As Store.prepare_marker; the files of the output shard are listed first."""
        for name, record in marker.files.items():
            self._list(name, record)
        lines = self._lines.pop(part, bytearray()).splitlines(keepends=True)
        once = dict.fromkeys(map(bytes, lines))  # a second attempt writes what the first has
        self.write_bytes(_list_of(part), b"".join(once))
        return super().prepare_marker(part, marker)

    @contextlib.contextmanager
    def journal(self, part: str) -> Iterator[Callable[[str, FileRecord], None]]:
        """Within the block, files of an output shard on a local disk are listed, by what is given,
        before they are written: those of a killed run stay known."""
        manifest = _list_of(part)
        self._lines[part] = bytearray().join(_line(*one) for one in self.written(manifest).items())
        self.make_folder(EXPORT_FILES)
        with self.reporting_errors(manifest), open(self.path(manifest), "ab", buffering=0) as list_:

            def note(name: str, written: FileRecord) -> None:
                line = _line(name, written)
                self._lines[part].extend(line)
                list_.write(line)

            yield note

    def list_found(self, part: str, found: Mapping[str, FileRecord]) -> None:
        """List files that an output shard needs and that were there; not those that a killed run
        has written."""
        own = self.written(_list_of(part))
        lines = [_line(name, record) for name, record in found.items() if name not in own]
        if lines:
            self.write_bytes(_list_of_found(part), b"".join(lines))
        else:
            self.remove(_list_of_found(part))

    def lists(self) -> list[str]:
        """The lists of files that the export has written."""
        return self._lists(LIST)

    def lists_of_found(self) -> list[str]:
        """The lists of files that others had put there."""
        return self._lists(LIST_OF_FOUND)

    def _lists(self, pattern: re.Pattern[str]) -> list[str]:
        found = files_below(self.fs, self.path(EXPORT_FILES))
        names = (path[len(self.root) + 1 :] for path in found)
        return sorted(filter(pattern.fullmatch, names))

    def lacks_files(self, part: str) -> bool:
        """Whether a file that an output shard needs is gone."""
        lists = (_list_of(part), _list_of_found(part))
        return any(self.size(name) < 0 for one in lists for name in self.written(one))

    def make_folder(self, name: str) -> None:
        """Make a folder on a local disk."""
        os.makedirs(self.path(name), exist_ok=True)

    def written(self, manifest: str) -> dict[str, FileRecord]:
        """The files that a list names; none where there is no list. Lines that are none of capmix's
        are left out."""
        try:
            text = self.read_bytes(manifest).decode("utf-8", "replace")
        except ABSENT:
            return {}
        found = (LINE.fullmatch(line) for line in text.splitlines())
        return {unquote(one[3]): FileRecord(int(one[2]), one[1]) for one in found if one}

    def is_as_written(self, name: str, written: FileRecord, size: int | None = None) -> bool:
        """Whether a file is still what was written; `size` is its size, where that is known."""
        if (self.size(name) if size is None else size) != written.size:
            return False
        with contextlib.suppress(*ABSENT):
            return self.digest(name) == written
        return False

    def _free(self, name: str) -> str:
        """`name`, or the first name beside it that holds nothing of others."""
        known = self.written(WHOLE_LIST)
        stem, _, suffix = name.partition(".")
        others = (f"{stem}.new{n if n > 1 else ''}.{suffix}" for n in itertools.count(1))
        names = itertools.chain((name,), others)
        free = next(one for one in names if self._is_free(one, known))
        if free != name:
            log.warning(
                "%s is not as capmix wrote it and is kept; the new one is %s",
                self.path(name),
                self.path(free),
            )
        return free

    def _is_free(self, name: str, known: dict[str, FileRecord]) -> bool:
        if self.size(name) < 0:
            return True
        if name in known:
            return self.is_as_written(name, known[name])
        # capmix 0.1 listed nothing; of its files the card alone is there to be filled in.
        return name in WHOLE and name != EXPORT_CARD and not self._is_shared

    def _list(self, name: str, written: FileRecord) -> None:
        shard = OF_SHARD.match(name)
        if shard:
            self._lines.setdefault(shard[1], bytearray()).extend(_line(name, written))
        elif NEW.sub("", name) in WHOLE or DATASET.fullmatch(name):
            known = self.written(WHOLE_LIST) | {name: written}
            self.write_bytes(WHOLE_LIST, b"".join(_line(*one) for one in sorted(known.items())))


def _list_of(part: str) -> str:
    return f"{EXPORT_FILES}/{part}.txt"


def _list_of_found(part: str) -> str:
    return f"{EXPORT_FILES}/{part}.found.txt"


def _line(name: str, written: FileRecord) -> bytes:
    return f"{written.digest} {written.size} {quote(name)}\n".encode()
