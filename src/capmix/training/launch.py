"""Train in a separate process, on one device or on several GPUs with torchrun.

`python -m capmix.training.launch FILE` reads the settings, data and directory from a JSON file. It
writes result.json next to it: the checkpoint, or the error for the user.
"""

import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from capmix.engine import messages
from capmix.engine.settings import MAX_FAILURES
from capmix.errors import UserError
from capmix.models.registry import missing_module
from capmix.pool import Pool, open_pool
from capmix.storage.filesystem import storage_errors, storage_message
from capmix.storage.names import no_captions
from capmix.storage.store import Store
from capmix.training.cost import check_cost
from capmix.training.pairs import ExportedShards, PairSource, PoolSubset
from capmix.training.scales import TrainSettings
from capmix.training.threads import share_cores
from capmix.training.train import check_settings, place, train

RESULT = "result.json"


@dataclass(frozen=True)
class TrainingData:
    """The training data: directories of exported shards, or a subset of a pool."""

    directories: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    pool: str | list[str] = ""
    work: str = ""
    subset: str = ""
    follow_links: bool = False

    @classmethod
    def of_subset(cls, pool: Pool, store: Store, subset: str) -> "TrainingData":
        """Describe a subset of an open pool."""
        place, work = list(pool.locations), store.location
        return cls(pool=place, work=work, subset=subset, follow_links=pool.follow_links)

    def source(self, settings: TrainSettings) -> PairSource:
        """Open the data. Raises UserError if the texts of a source are missing."""
        if self.weights is not None and len(self.weights) != len(self.directories):
            raise UserError(
                f"train: {len(self.weights)} weights for {len(self.directories)} directories; "
                "expected one per directory of exported shards"
            )
        if self.directories:
            wants_captions = bool(settings.texts)
            return ExportedShards(self.directories, self.weights, wants_captions, self.follow_links)
        pool = open_pool(self.pool, self.follow_links)
        return pool_source(pool, Store(self.work), self.subset, settings)


def pool_source(pool: Pool, store: Store, subset: str, settings: TrainSettings) -> PoolSubset:
    """Return the pairs of a subset, read directly from the pool.

    Raises UserError if the pool has no images or cannot be read by data workers, or if the texts of
    a source are missing.
    """
    from capmix.mix.catalog import Catalog

    pool.need_images("train")
    if settings.data_workers and not pool.survives_fork:
        raise UserError(
            f"train: pool {pool.location} is a Lance dataset, in which data workers can hang; pass "
            "--workers 0, or train on the output of `capmix export`"
        )
    have = Catalog(pool, store).sources()
    for source in settings.texts:
        if source not in have:
            raise UserError(f"--texts: {no_captions(source, have)}")
    return PoolSubset(pool, store, subset, list(settings.texts))


def look_up(find: Callable[[], PairSource], settings: TrainSettings) -> PairSource:
    """Return the source that `find` opens, with its shards and identity already looked up.

    Data workers are forked, and the S3 client hangs in a fork of a process that has used it
    (storage/s3.py). With data workers, another process therefore does the look-up, and `find` must
    be picklable. Raises UserError for systems without fork and, before the look-up, for invalid
    settings; errors of `find` are propagated.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UserError("train: needs a system with fork, such as Linux, macOS or WSL")
    check_settings(settings)
    if not settings.data_workers:
        return find()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as other:
        try:
            return other.submit(_looked_up, find).result()
        except BrokenProcessPool as error:
            raise UserError(
                "train: the process that lists the data was killed, probably for lack of memory"
            ) from error


def _looked_up(find: Callable[[], PairSource]) -> PairSource:
    source = find()
    source.look_up()
    return source


def launch(
    settings: TrainSettings,
    data: TrainingData,
    out: str,
    max_failures: float = MAX_FAILURES,
    devices: int = 1,
    checks_cost: bool = False,
    beside: "SideBySide | None" = None,
) -> str:
    """Train in `devices` new processes; return the checkpoint's path.

    With `beside`, other runs train at the same time: this one uses its share of the cores.

    Raises UserError with the reason if the training fails (see train.train) and, with
    `checks_cost`, if it takes too long or too much memory (see cost.py).
    """
    with tempfile.TemporaryDirectory(prefix="capmix-train-") as folder:
        path = Path(folder) / "job.json"
        job = {
            "settings": settings.model_dump(mode="json"),
            "data": vars(data),
            "out": str(Path(out).resolve()),
            "max_failures": max_failures,
            "messages": messages.current() and vars(messages.current()),
            "checks_cost": checks_cost,
            "title": f"train {Path(out).name}" if beside else "train",
            "processes": beside.count if beside else 1,
        }
        path.write_text(json.dumps(job), "utf-8")
        command = [sys.executable, "-m"]
        if devices > 1:
            command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
            command += ["-m"]
        command += ["capmix.training.launch", str(path)]
        code = beside.run(command) if beside else subprocess.run(command).returncode  # noqa: S603
        result = _result(path)
    if "checkpoint" in result:
        return str(result["checkpoint"])
    raise UserError(
        result.get("error") or f"train {out}: the training process exited with code {code}"
    )


@dataclass
class SideBySide:
    """Child processes that train at the same time, at most `count`; all end with `stop`."""

    count: int
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    _is_over: bool = False

    def run(self, command: list[str]) -> int:
        """Run a command to its end, unless `stop` was called; return its exit code."""
        with self._lock:
            if self._is_over:
                return 130
            child = subprocess.Popen(command)  # noqa: S603
            self._running.append(child)
        try:
            return child.wait()
        finally:
            with self._lock:
                self._running.remove(child)

    def stop(self) -> None:
        with self._lock:
            self._is_over = True
            for child in self._running:
                child.terminate()


def _result(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.with_name(RESULT).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def main(path: str) -> int:
    """Run the child process of `launch`; return its exit code."""
    job = json.loads(Path(path).read_text("utf-8"))
    if job["messages"]:
        messages.show(messages.MessageForm(**job["messages"]))
    settings = TrainSettings(**job["settings"])
    try:
        source = look_up(partial(TrainingData(**job["data"]).source, settings), settings)
        if job["checks_cost"]:
            check_cost(settings, job["out"])
        share_cores(job["processes"])
        checkpoint = train(settings, source, job["out"], job["max_failures"], job["title"])
        result = {"checkpoint": checkpoint}
    except UserError as error:
        result = {"error": str(error)}
    except ImportError as error:
        result = {"error": missing_module(error)}
    except storage_errors() as error:
        result = {"error": storage_message(error)}
    if "error" in result or place()[0] == 0:
        Path(path).with_name(RESULT).write_text(json.dumps(result), "utf-8")
    return 0 if "checkpoint" in result else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
