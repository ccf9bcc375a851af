"""The directory of a training run: what it is, that one process trains in it, what failed.

run.json says what the run was trained with; counts.json how many samples each epoch read and how
many failed; failures.jsonl names those; position-<rank>.json where each epoch ended in the stream
of samples, without resampling; metrics.jsonl has the numbers of steps; out.log is open_clip's;
checkpoints/epoch_latest.pt is where it goes on.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.settings.base import defaults_of
from capmix.storage.compare import same_settings
from capmix.storage.json_text import parse_object
from capmix.training.scales import TrainSettings

try:
    import fcntl
except ImportError:  # Windows, where nothing is trained (launch.look_up)
    fcntl = None  # type: ignore[assignment]

ABOUT, COUNTS, LOCK = "run.json", "counts.json", "run.lock"
METRICS, FAILURES = "metrics.jsonl", "failures.jsonl"
POSITION = "position-{}.json"
CHECKPOINT = "checkpoints/epoch_latest.pt"
BEFORE_STARTING = {ABOUT, "run.tmp", LOCK}


@dataclass(frozen=True)
class RunFolder:
    """A run in a local directory, which need not be there yet."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def failures(self) -> Path:
        return self.path / FAILURES

    def about(self) -> dict[str, Any] | None:
        """What run.json holds; None where there is none. Raises UserError where it is damaged."""
        try:
            return parse_object((self.path / ABOUT).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (IsADirectoryError, ValueError) as error:
            raise self._damaged(ABOUT, error) from error

    def refuse_others(self, about: dict[str, Any]) -> None:
        """Raise UserError where the directory holds something else than the run that `about` is."""
        known = self.about()
        held = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
        if held <= BEFORE_STARTING:  # nothing was trained
            return
        if known is None:
            raise UserError(f"--out {self.path}: holds something else; name a new directory")
        others = [key for key in about if not _same(known, about, key)]
        if others:
            raise UserError(
                f"--out {self.path}: holds a run with other {', '.join(others)}. Name another "
                "directory, or remove this one; with the same settings and data it resumes."
            )

    def is_other(self, about: dict[str, Any]) -> bool:
        """Whether a run lies here that is another than `about`."""
        known = self.about()
        return known is not None and not all(_same(known, about, key) for key in about)

    def remove(self) -> None:
        """Remove a run of ours. Raises UserError where a process trains there."""
        with self._locked():
            aside = self.path.with_name(f".{self.path.name}.removed")
            shutil.rmtree(aside, ignore_errors=True)
            self.path.rename(aside)
        shutil.rmtree(aside)

    @contextlib.contextmanager
    def claimed(self, about: dict[str, Any]) -> Iterator[None]:
        """Hold the directory against other processes."""
        self.refuse_others(about)
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._counts()  # a damaged file is reported before hours of training
            self._write(ABOUT, about)
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock goes when this process ends, whatever its data workers do."""
        with (self.path / LOCK).open("a") as stream:
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"--out {self.path}: another process trains there") from error
            yield

    def finish(self, about: dict[str, Any]) -> None:
        self._write(ABOUT, about | {"finished": True})

    @property
    def finished(self) -> bool:
        return bool((self.about() or {}).get("finished"))

    def note_counts(self, epoch: int, ok: int, failed: int) -> None:
        """Note the samples of an epoch; later ones, of a run that was broken off, are forgotten."""
        earlier = {k: v for k, v in self._counts().items() if int(k) < epoch}
        self._write(COUNTS, earlier | {str(epoch): [ok, failed]})

    def note_position(self, rank: int, epoch: int, record: dict[str, Any]) -> None:
        """Note where an epoch ended in the stream of samples of one device (passes.py)."""
        name = POSITION.format(rank)
        earlier = {k: v for k, v in self._read(name).items() if int(k) < epoch}
        self._write(name, earlier | {str(epoch): record})

    def position(self, rank: int, epoch: int) -> dict[str, Any] | None:
        """What note_position noted of an epoch; None for nothing."""
        record: dict[str, Any] | None = self._read(POSITION.format(rank)).get(str(epoch))
        return record

    def check_failures(self, max_failures: float) -> None:
        """Raise UserError where more than this share of all samples failed."""
        counts = self._counts().values()
        ok, failed = sum(one[0] for one in counts), sum(one[1] for one in counts)
        if ok + failed and failed / (ok + failed) > max_failures:
            raise UserError(
                f"train {self.path}: finished, but {failed:,} of {ok + failed:,} samples failed, "
                f"over the bound of {max_failures:.1%}; {FAILURES} there names them"
            )

    def _counts(self) -> dict[str, list[int]]:
        counts = self._read(COUNTS)
        if not all(map(_is_pair, counts.values())):
            error = ValueError("expected samples that are ok and failed by epoch")
            raise self._damaged(COUNTS, error)
        return counts

    def _read(self, name: str) -> dict[str, Any]:
        """An object of values by epoch. Raises UserError for a damaged file."""
        try:
            found = parse_object((self.path / name).read_bytes())
            if not all(epoch.isdecimal() for epoch in found):
                raise ValueError("expected numbers of epochs")
        except FileNotFoundError:
            return {}
        except (IsADirectoryError, ValueError) as error:
            raise self._damaged(name, error) from error
        return found

    def _damaged(self, name: str, error: Exception) -> UserError:
        why = "a directory" if isinstance(error, OSError) else error
        return UserError(
            f"run {self.path}: its {name} is damaged ({why}). Restore it, or train into another "
            "directory"
        )

    def _write(self, name: str, value: dict[str, Any]) -> None:
        temporary = (self.path / name).with_suffix(".tmp")
        temporary.write_text(json.dumps(value, indent=1), "utf-8")
        os.replace(temporary, self.path / name)


def _is_pair(value: Any) -> bool:
    """Whether a value is two counts."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(one) is int and 0 <= one < 2**63 for one in value)
    )


def _same(known: dict[str, Any], about: dict[str, Any], key: str) -> bool:
    """What a later capmix writes in addition is no difference: settings at their default, and
    fields of the scale, which follow from the settings."""
    before, now = known.get(key), about[key]
    if key == "scale" and isinstance(before, dict):
        now = {name: value for name, value in now.items() if name in before}
    defaults = defaults_of(TrainSettings) if key == "settings" else {}
    return same_settings(before, now, defaults)
