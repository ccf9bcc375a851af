"""What a training run says while it runs: a line now and then, and metrics as JSON lines."""

import json
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from capmix.train.stream import Tally

LOSS = "train/loss"


@dataclass
class Progress:
    """Takes the numbers that open_clip's trainer hands to a TensorBoard writer (add_scalar), writes
    one line of metrics.jsonl for each step that is logged, and hands them on to `writer`.

    `data_wait` is the share of a step's time that the device waited for data.
    """

    file: Path
    steps: int
    steps_per_epoch: int
    samples_per_step: int
    tally: Tally
    writer: Any = None
    _started: float = field(default_factory=time.monotonic)
    _first_step: int | None = None
    _numbers: dict[str, float] = field(default_factory=dict)

    def resume_at(self, epoch: int) -> None:
        """Drop the lines of steps that are made again."""
        if not self.file.exists():
            return
        lines = self.file.read_text("utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["epoch"] < epoch]
        self.file.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)
        self._numbers[name.removeprefix("train/")] = value
        if name == LOSS:  # the last that a step gives
            self._write(step, self._numbers)
            self._numbers = {}

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        seconds = time.monotonic() - self._started
        if self._first_step is None:
            self._first_step, self._started, seconds = step, time.monotonic(), 0.0
        done = step + 1
        line = {
            "epoch": step // self.steps_per_epoch,
            "step": done,
            "samples": done * self.samples_per_step,
            "loss": round(numbers["loss"], 6),
            "learning_rate": numbers["lr"],
            "logit_scale": round(numbers["scale"], 4),
            "samples_per_second": round(numbers["samples_per_second"], 1),
            "data_wait": round(numbers["data_time"] / max(numbers["batch_time"], 1e-9), 4),
            "failed": self.tally.failed,
        }
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        since = done - self._first_step - 1
        left = f", {_time(seconds / since * (self.steps - done))} left" if since else ""
        print(
            f"train: step {done:,} of {self.steps:,}, loss {line['loss']:.4f}, "
            f"{line['samples_per_second']:,.0f} samples/s{left}, {line['failed']:,} failed",
            file=sys.stderr,
        )


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
