"""Progress of a training run: log lines for the user, and metrics as JSON lines."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from capmix.storage.json_text import parse_json
from capmix.storage.store import Store
from capmix.training.stream import SampleTally

log = logging.getLogger(__name__)

LOSS = "train/loss"
COCA_LOSSES = ("contrastive_loss", "caption_loss")  # weighted terms of a CoCa's loss


class Waiting(Protocol):
    """An object that measures the seconds spent waiting for its batches."""

    seconds: float


@dataclass(frozen=True)
class OptimizerSteps:
    """The optimizer steps of a run.

    `sizes` are the sizes of a device's batches in an epoch. `accumulated` batches form one step.
    """

    sizes: Sequence[int]
    accumulated: int
    world_size: int
    epochs: int

    @property
    def per_epoch(self) -> int:
        return len(self.sizes) // self.accumulated

    @property
    def total(self) -> int:
        return self.per_epoch * self.epochs

    def samples(self, steps: int) -> int:
        """Return the number of samples seen after `steps` steps of the run."""
        epochs, rest = divmod(steps, self.per_epoch)
        seen = [0, *accumulate(self.sizes)]
        whole = seen[self.per_epoch * self.accumulated]
        return self.world_size * (epochs * whole + seen[rest * self.accumulated])


@dataclass
class Progress:
    """Writes a line of metrics.jsonl and a log line for each logged step of open_clip's trainer.

    The trainer calls it as a TensorBoard writer (add_scalar); values are also passed to `writer`.
    `names` maps metric names of the trainer to ours. The metric `data_wait` is the fraction of the
    time since the previous line that was spent waiting for data.
    """

    file: Path
    steps: OptimizerSteps
    loader: Waiting
    tally: SampleTally
    writer: Any = None
    names: Mapping[str, str] = field(default_factory=dict)
    title: str = "train"
    _started: float = field(default_factory=time.monotonic)
    _first_step: int | None = None
    _last: tuple[float, float] = (0.0, 0.0)
    _numbers: dict[str, float] = field(default_factory=dict)

    def resume_at(self, epoch: int) -> None:
        """Remove the lines of steps that will be repeated, and incomplete lines left by a kill."""
        self._last = time.monotonic(), self.loader.seconds
        if not self.file.exists():
            return
        kept = [line for line in self.file.read_text("utf-8").splitlines() if _is_of(line, epoch)]
        lines = "".join(f"{line}\n" for line in kept)
        Store(str(self.file.parent)).write_bytes(self.file.name, lines.encode())

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)
        name = self.names.get(name, name)
        self._numbers[name.removeprefix("train/")] = value
        if name == LOSS:  # the last value of a step
            self._write(step, self._numbers)
            self._numbers = {}

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        now = time.monotonic()
        seconds = now - self._last[0]
        waited, self._last = self.loader.seconds - self._last[1], (now, self.loader.seconds)
        if self._first_step is None:
            self._first_step, self._started = step, now
        done = step + 1
        # CLIP has a contrastive loss too, which equals its loss.
        is_coca = all(name in numbers for name in COCA_LOSSES)
        terms = {name: round(numbers[name], 6) for name in COCA_LOSSES} if is_coca else {}
        line = {
            "epoch": step // self.steps.per_epoch,
            "step": done,
            "samples": self.steps.samples(done),
            "loss": round(numbers["loss"], 6),
            **terms,
            "learning_rate": numbers["lr"],
            "logit_scale": round(numbers["scale"], 4),
            "samples_per_second": round(numbers["samples_per_second"], 1),
            "data_wait": round(waited / max(seconds, 1e-9), 4),
            "failed": self.tally.failed,
        }
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        since = done - self._first_step - 1
        shown = f" ({', '.join(f'{k[:-5]} {v:.4f}' for k, v in terms.items())})" if terms else ""
        left = (now - self._started) / since * (self.steps.total - done) if since else None
        log.info(
            "%s",
            f"{self.title}: step {done:,} of {self.steps.total:,}, loss {line['loss']:.4f}{shown}, "
            f"{line['samples_per_second']:,.0f} samples/s"
            f"{'' if left is None else f', {timedelta(seconds=round(left))} left'}, "
            f"{line['failed']:,} failed",
        )


def _is_of(line: str, before: int) -> bool:
    try:
        return bool(parse_json(line)["epoch"] < before)
    except (ValueError, KeyError, TypeError):
        return False
