"""Lists of the files that an export wrote, so that a later export removes no others.

`.manifest/<shard>.txt` lists the files of one output shard, `.manifest/export.txt` the files of the
whole export. Each line is `<digest> <bytes> <name>`, with the digest as in markers and the name
percent-encoded. A shard's list is written before its marker. A file that differs from its line was
changed by the user and is kept. `.manifest/<shard>.found.txt` lists files that existed before the
export with the right bytes: they are pushed and verified, but never removed.
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
    """The directory of an export; lists every file written through it.

    If the user has changed a file of the whole export (for example README.md), it is kept, and the
    new one is written beside it as `<stem>.new<suffix>`. A directory that `is_shared` may hold the
    user's own files from the start.
    """

    kind = "export --out"

    def __init__(self, location: str, scratch: str | None = None, is_shared: bool = False):
        super().__init__(location, EXPORT_MARKERS, scratch)
        self._is_shared = is_shared
        self._lines: dict[str, bytearray] = {}  # by unfinished shard

    @contextlib.contextmanager
    def writing(self, name: str, sync: bool = True) -> Iterator[RecordingStream]:
        """Like Store.writing; also list the file."""
        if name in WHOLE:
            name = self._free(name)
        with super().writing(name, sync) as stream:
            yield stream
        self._list(name, stream.record)

    def write_card(self, card: bytes) -> None:
        """Write README.md, or README.new.md if the user has changed README.md."""
        written = FileRecord(len(card), digest_of(card))
        if self.is_as_written(EXPORT_CARD, written):  # a killed run may not have listed it
            self._list(EXPORT_CARD, written)
        else:
            self.write_bytes(EXPORT_CARD, card)

    def prepare_marker(self, part: str, marker: Marker) -> str:
        """Like Store.prepare_marker; first write the list of the output shard's files."""
        for name, record in marker.files.items():
            self._list(name, record)
        lines = self._lines.pop(part, bytearray()).splitlines(keepends=True)
        once = dict.fromkeys(map(bytes, lines))  # a retry lists the same files twice
        self.write_bytes(_list_of(part), b"".join(once))
        return super().prepare_marker(part, marker)

    @contextlib.contextmanager
    def journal(self, part: str) -> Iterator[Callable[[str, FileRecord], None]]:
        """Open the list of an output shard on a local disk; yield a function that adds a file.

        Call it before each file is written, so that files of a killed run are listed too.
        """
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
        """List the existing files that an output shard needs, except those written by a killed run
        of the same export."""
        own = self.written(_list_of(part))
        lines = [_line(name, record) for name, record in found.items() if name not in own]
        if lines:
            self.write_bytes(_list_of_found(part), b"".join(lines))
        else:
            self.remove(_list_of_found(part))

    def lists(self) -> list[str]:
        """Return the names of the lists of files that the export wrote."""
        return self._lists(LIST)

    def lists_of_found(self) -> list[str]:
        """Return the names of the lists of files that existed before the export."""
        return self._lists(LIST_OF_FOUND)

    def _lists(self, pattern: re.Pattern[str]) -> list[str]:
        found = files_below(self.fs, self.path(EXPORT_FILES))
        names = (path[len(self.root) + 1 :] for path in found)
        return sorted(filter(pattern.fullmatch, names))

    def lacks_files(self, part: str) -> bool:
        """Return whether any file of an output shard is missing."""
        lists = (_list_of(part), _list_of_found(part))
        return any(self.size(name) < 0 for one in lists for name in self.written(one))

    def make_folder(self, name: str) -> None:
        """Create a folder on a local disk."""
        os.makedirs(self.path(name), exist_ok=True)

    def written(self, manifest: str) -> dict[str, FileRecord]:
        """Return the files in a list, or {} if the list does not exist.

        Lines in another format are skipped.
        """
        try:
            text = self.read_bytes(manifest).decode("utf-8", "replace")
        except ABSENT:
            return {}
        found = (LINE.fullmatch(line) for line in text.splitlines())
        return {unquote(one[3]): FileRecord(int(one[2]), one[1]) for one in found if one}

    def is_as_written(self, name: str, written: FileRecord, size: int | None = None) -> bool:
        """Return whether a file is unchanged; `size` is its current size, if known."""
        if (self.size(name) if size is None else size) != written.size:
            return False
        with contextlib.suppress(*ABSENT):
            return self.digest(name) == written
        return False

    def _free(self, name: str) -> str:
        """Return `name`, or the first `.new` variant that does not replace a user's file."""
        known = self.written(WHOLE_LIST)
        stem, _, suffix = name.partition(".")
        others = (f"{stem}.new{n if n > 1 else ''}.{suffix}" for n in itertools.count(1))
        names = itertools.chain((name,), others)
        free = next(one for one in names if self._is_free(one, known))
        if free != name:
            log.warning(
                "kept %s, which has changed or was not written by capmix; the new file is %s",
                self.path(name),
                self.path(free),
            )
        return free

    def _is_free(self, name: str, known: dict[str, FileRecord]) -> bool:
        if self.size(name) < 0:
            return True
        if name in known:
            return self.is_as_written(name, known[name])
        # capmix 0.1 wrote no lists; of its files, users are meant to edit only the card.
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
