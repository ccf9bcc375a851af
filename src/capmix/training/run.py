"""The directory of a training run, which only one process trains in at a time.

- run.json: model, settings and data of the run
- counts.json: ok and failed samples per epoch
- failures.jsonl: the failed samples
- bpe_merges.txt.gz: the model's own BPE merges, if it has some
- position-<rank>.json: where each epoch ended in the sample stream, without resampling
- metrics.jsonl: metrics of steps
- out.log: open_clip's log
- checkpoints/epoch_latest.pt: the checkpoint from which the run resumes
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
from capmix.models.trained_run import ABOUT, CHECKPOINT, MERGES, damaged, read_about
from capmix.models.vocabulary import merges_path, with_merges
from capmix.settings.base import defaults_of
from capmix.storage.compare import same_settings
from capmix.storage.json_text import parse_object
from capmix.training.scales import LOSS_WEIGHTS, TrainSettings

try:
    import fcntl
except ImportError:  # Windows, where training is not supported (launch.look_up)
    fcntl = None  # type: ignore[assignment]

COUNTS, LOCK = "counts.json", "run.lock"
MERGES_PART = "bpe_merges.tmp"
METRICS, FAILURES = "metrics.jsonl", "failures.jsonl"
POSITION = "position-{}.json"
DIGESTS = {"tokenizer", "weights"}
BEFORE_STARTING = {ABOUT, "run.tmp", LOCK, MERGES, MERGES_PART}


@dataclass(frozen=True)
class RunFolder:
    """A run in a local directory, which may not exist yet. Its log lines begin with `title`."""

    path: Path
    title: str = "train"

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
        """Read run.json; None if it does not exist. Raises UserError if it is damaged."""
        return read_about(self.path)

    def refuse_others(self, about: dict[str, Any]) -> None:
        """Raise UserError if the directory has other contents than the run `about`."""
        known = self.about()
        held = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
        if held <= BEFORE_STARTING:  # no training has started
            return
        if known is None:
            raise UserError(
                f"--out {self.path}: is not a training run and not empty; choose a new directory"
            )
        others = [key for key in about if not _same(known, about, key)]
        if others:
            raise UserError(
                f"--out {self.path}: contains a run with different {', '.join(others)}. Choose "
                "another directory or remove this one. A run resumes with the same settings and "
                "data."
            )

    def is_other(self, about: dict[str, Any]) -> bool:
        """Return whether the directory contains a run other than `about`."""
        known = self.about()
        return known is not None and not all(_same(known, about, key) for key in about)

    def remove(self) -> None:
        """Remove the run. Raises UserError if a process is training in the directory."""
        with self._locked():
            aside = self.path.with_name(f".{self.path.name}.removed")
            shutil.rmtree(aside, ignore_errors=True)
            self.path.rename(aside)
        shutil.rmtree(aside)

    @contextlib.contextmanager
    def claimed(self, about: dict[str, Any]) -> Iterator[None]:
        """Lock the directory for this run. Raises UserError if it is in use or has another run."""
        self.refuse_others(about)
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._counts()  # a damaged file is reported before hours of training
            self._write(ABOUT, about)
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, which is released when this process ends, even if data workers live on."""
        with (self.path / LOCK).open("a") as stream:
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"--out {self.path}: another process is training there") from error
            yield

    def keep_merges(self, config: dict[str, Any] | None) -> None:
        """Copy the BPE merges of a config into the directory, so that it can be used by itself."""
        file = merges_path(config) if config is not None else None
        if file is not None:
            temporary = self.path / MERGES_PART
            shutil.copyfile(file, temporary)
            os.replace(temporary, self.path / MERGES)

    def finish(self, about: dict[str, Any]) -> None:
        self._write(ABOUT, about | {"finished": True})

    @property
    def finished(self) -> bool:
        return bool((self.about() or {}).get("finished"))

    def note_counts(self, epoch: int, ok: int, failed: int) -> None:
        """Record the samples of an epoch; remove later epochs, left by an interrupted run."""
        earlier = {k: v for k, v in self._counts().items() if int(k) < epoch}
        self._write(COUNTS, earlier | {str(epoch): [ok, failed]})

    def note_position(self, rank: int, epoch: int, record: dict[str, Any]) -> None:
        """Record where an epoch ended in the sample stream of one device (passes.py)."""
        name = POSITION.format(rank)
        earlier = {k: v for k, v in self._read(name).items() if int(k) < epoch}
        self._write(name, earlier | {str(epoch): record})

    def position(self, rank: int, epoch: int) -> dict[str, Any] | None:
        """Return the position that note_position recorded for an epoch, or None."""
        record: dict[str, Any] | None = self._read(POSITION.format(rank)).get(str(epoch))
        return record

    def check_failures(self, max_failures: float) -> None:
        """Raise UserError if more than the fraction `max_failures` of all samples failed."""
        counts = self._counts().values()
        ok, failed = sum(one[0] for one in counts), sum(one[1] for one in counts)
        if ok + failed and failed / (ok + failed) > max_failures:
            raise UserError(
                f"train {self.path}: finished, but {failed:,} of {ok + failed:,} samples failed, "
                f"more than the limit of {max_failures:.1%}; see {FAILURES} there"
            )

    def _counts(self) -> dict[str, list[int]]:
        counts = self._read(COUNTS)
        if not all(map(_is_pair, counts.values())):
            error = ValueError("expected counts of ok and failed samples by epoch")
            raise damaged(self.path, COUNTS, error)
        return counts

    def _read(self, name: str) -> dict[str, Any]:
        """Read a JSON object with values by epoch. Raises UserError if the file is damaged."""
        try:
            found = parse_object((self.path / name).read_bytes())
            if not all(epoch.isdecimal() for epoch in found):
                raise ValueError("expected epoch numbers as keys")
        except FileNotFoundError:
            return {}
        except (IsADirectoryError, ValueError) as error:
            raise damaged(self.path, name, error) from error
        return found

    def _write(self, name: str, value: dict[str, Any]) -> None:
        temporary = (self.path / name).with_suffix(".tmp")
        temporary.write_text(json.dumps(value, indent=1), "utf-8")
        os.replace(temporary, self.path / name)


def _is_pair(value: Any) -> bool:
    """Return whether a value is a pair of counts."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(one) is int and 0 <= one < 2**63 for one in value)
    )


def _same(known: dict[str, Any], about: dict[str, Any], key: str) -> bool:
    """Compare an entry of two run.json files, ignoring what newer versions of capmix add.

    These are settings at their default, fields of the scale, which follow from the settings, and
    digests of files. The path of the merges is ignored, as their digest identifies them.
    """
    if key in DIGESTS and key not in known:
        return True
    before, now = known.get(key), about[key]
    if key == "scale" and isinstance(before, dict):
        now = {name: value for name, value in now.items() if name in before}
    if key == "config":
        before, now = _without_merges_path(before), _without_merges_path(now)
    defaults = {}
    if key == "settings" and isinstance(before, dict):
        before, defaults = without_default_weights(before), defaults_of(TrainSettings)
    return same_settings(before, now, defaults)


def without_default_weights(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings in which a loss weight that equals open_clip's default is not set."""
    usual = {name for name, value in LOSS_WEIGHTS.items() if settings.get(name) == value}
    return settings | dict.fromkeys(usual)


def _without_merges_path(config: Any) -> Any:
    has_path = isinstance(config, dict) and merges_path(config) is not None
    return with_merges(config, "") if has_path else config
