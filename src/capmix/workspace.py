"""The Python API: a pool, its work directory, and every operation on them.

Each command of the command line calls this module. Keyword arguments of the methods are the
command's options: `--captions-per-image 4` is `captions_per_image=4`. All methods raise UserError,
with a one-line message, for errors that the caller can fix; finished work is kept.
"""

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from capmix.annotate.settings import (
    AGREEMENT,
    CONCEPTS,
    DEFAULT_NAMES,
    IMAGE,
    TEXT_AREA,
    AnnotateSettings,
    ImportSettings,
)
from capmix.caption.settings import CaptionSettings
from capmix.engine.local import cores
from capmix.engine.run import run_job
from capmix.engine.settings import EngineSettings, RunSettings
from capmix.engine.stage import Stage, missing
from capmix.engine.worker import Job, MakeStages
from capmix.errors import UserError
from capmix.evaluation.settings import EvaluateSettings
from capmix.export.settings import ExportSettings
from capmix.measure.settings import MeasureSettings
from capmix.mix.catalog import Catalog
from capmix.mix.settings import MixSettings
from capmix.models.image_pass import ImageEncoder, embed_stage
from capmix.models.index import index_stages
from capmix.models.known import MINI, chosen_model
from capmix.models.registry import (
    CAPTIONERS,
    ENCODERS,
    REWRITERS,
    SCORERS,
    check_backend,
    is_ready,
    needs_gpu,
    require,
)
from capmix.models.shared_read import MakeFromPool, with_index
from capmix.pool import EMBEDDED, Pool, open_pool, shown_location
from capmix.pool.selection import Selection
from capmix.pool.settings import OpenSettings, PoolSettings, SelectSettings
from capmix.probe.settings import ProbeSettings, TowerSettings
from capmix.report.settings import ReportSettings
from capmix.rewrite.settings import RewriteSettings
from capmix.score.settings import ScoreSettings
from capmix.settings.base import (
    Settings,
    changed,
    did_you_mean,
    distribute,
    make,
    options_of,
    with_options,
)
from capmix.settings.counted import counted
from capmix.settings.tables import table_html
from capmix.storage.json_text import parse_object
from capmix.storage.layout import (
    ABOUT,
    ANNOTATIONS,
    EMBEDDINGS,
    RAW,
    SAMPLES,
    SCORES,
    SUBSETS,
    captions_folder,
    part_name,
)
from capmix.storage.marker import Counts
from capmix.storage.names import (
    MASKED,
    check_annotation_name,
    check_scorer_name,
    check_shard_names,
    check_source_name,
)
from capmix.storage.store import Store
from capmix.storage.work_directory import LINKS, find_work, known_pool
from capmix.training.scales import TrainSettings
from capmix.tune.settings import TuneSettings

if TYPE_CHECKING:
    import duckdb

    from capmix.annotate.imported import Imported
    from capmix.caption.in_memory import Image
    from capmix.evaluation.results import Evaluated
    from capmix.inspect.clean import Cleaned
    from capmix.inspect.forecast import Forecast, Site
    from capmix.inspect.metadata import PoolCoverage
    from capmix.inspect.show import Gallery
    from capmix.inspect.status import Status
    from capmix.inspect.verify import Verified
    from capmix.measure.subset_topics import TopicCoverage
    from capmix.mix.columns import Column
    from capmix.mix.mix import Summary
    from capmix.mix.subset import SubsetRows
    from capmix.pool import Shard
    from capmix.probe.evaluate import ProbeResult
    from capmix.probe.towers import Towers
    from capmix.tune.results import Tuning

log = logging.getLogger(__name__)
Kind = TypeVar("Kind", bound=Settings)
Named = TypeVar("Named", CaptionSettings, ScoreSettings, MeasureSettings, AnnotateSettings)
TEXTS_PER_WORKER = 50_000  # a worker process that reads only texts takes a second to start
FIELD = "field:"  # prefix of captioners that copy a field of the samples' JSON
Place = str | os.PathLike[str]


@dataclass
class _Index:
    """State of the index in this process: the number of rows, None before the pool is listed."""

    rows: int | None = None
    max_failures: float = 1.0
    retried_by: RunSettings | None = None


@dataclass(frozen=True)
class Workspace:
    """A pool and its work directory. Create one with `capmix.open`.

    Attributes:
        pool: The image-text samples; never modified.
        store: The work directory.
        engine: Default engine options: local or Ray, number of workers, devices.
        runs: Default run options: failure budget, retries, overwriting of existing parts.

    Methods accept engine and run options as keywords, which override the defaults for that call.
    """

    pool: Pool
    store: Store
    engine: EngineSettings = field(default_factory=EngineSettings)
    runs: RunSettings = field(default_factory=RunSettings)
    _index: _Index = field(default_factory=_Index, repr=False)

    @cached_property
    def catalog(self) -> Catalog:
        """The contents of the work directory: sources, scorers, columns and subsets."""
        return Catalog(self.pool, self.store)

    @with_options(EngineSettings, RunSettings)
    def using(self, **options: Any) -> "Workspace":
        """Return the same workspace with different engine and run options."""
        engine, runs = distribute(options, "using", (EngineSettings, RunSettings))
        return replace(
            self,
            engine=changed(self.engine, engine, "using"),
            runs=changed(self.runs, runs, "using"),
        )

    def sources(self) -> list[str]:
        """Return the names of all sources: raw, and every source with captions."""
        return self.catalog.sources()

    def subsets(self) -> list[str]:
        """Return the sorted names of all subsets."""
        return self.catalog.subsets()

    def subset(self, name: str) -> "Subset":
        """Return the subset of this name. Raises UserError if it does not exist."""
        if self.store.read_marker(f"{SUBSETS}/{name}") is None:
            hint = did_you_mean(name, self.subsets())
            raise UserError(
                f"no subset {name!r} in {self.store.location}{hint or ': run `capmix mix` first'}"
            )
        return Subset(self, name)

    def status(self) -> "Status":
        """Return the progress of every stage.

        That is parts done, missing and stale, rows, bytes and settings, as well as active
        processes, disk usage and the next command to run.
        """
        from capmix.inspect.status import status

        return status(self.pool, self.store)

    def coverage(self, metadata: Place | Sequence[Place]) -> "PoolCoverage":
        """Return how many rows of the metadata that the pool comes from are in the pool, by uid.

        Lists the pool's samples first if they are not listed yet.

        Args:
            metadata: Parquet files with a column `uid`, patterns, or folders of such files.

        Raises:
            UserError: If a file does not exist, or has no uids.
        """
        from capmix.inspect.metadata import pool_coverage

        self.index()
        return pool_coverage(self.store, self.pool, _places(metadata))

    def clean(
        self,
        subsets: str | Sequence[str] = (),
        sources: str | Sequence[str] = (),
        yes: bool = False,
    ) -> "Cleaned":
        """List files that can be removed; with `yes`, remove them.

        Args:
            subsets: Subsets to remove, with their probes.
            sources: Sources to remove, with everything computed from them. Without subsets and
                sources, leftovers are removed.
            yes: Remove the files instead of only listing them.

        Raises:
            UserError: For an unknown name, or while another run is active.
        """
        from capmix.inspect.clean import clean

        of_subsets, of_sources = (
            [one] if isinstance(one, str) else one for one in (subsets, sources)
        )
        return clean(self.pool, self.store, of_subsets, of_sources, yes)

    def verify(
        self,
        exports: Place | Sequence[Place] = (),
        images: bool = False,
        discard: bool = False,
    ) -> "Verified":
        """Read every file of the work directory and compare it with its marker's digest.

        Args:
            exports: Directories of exported shards to verify as well.
            images: Also read the whole pool and compare its samples with the index.
            discard: Mark damaged parts as missing, so that the next run recomputes them.

        Raises:
            UserError: If one of `exports` is not an export.
            OSError: If the storage fails.
        """
        from capmix.inspect.verify import verify

        return verify(self.store, self.pool if images else None, _places(exports), discard)

    def index(self) -> Counts | None:
        """List the pool's samples. Other methods call this when they need the index.

        `caption` and `score` of all samples list a new pool while they read its images.

        Returns:
            The counts of samples, or None if this process has already listed the pool within the
            current failure budget.

        Raises:
            UserError: If the pool has no samples, or too many failed.
        """
        listed, runs = self._index, self.runs
        is_retried = not runs.retry_failed or listed.retried_by is runs
        if listed.rows and is_retried and listed.max_failures <= runs.max_failures:
            return None
        (counts,) = self.run(partial(index_stages, self.pool))
        self._note_index(counts)
        return counts

    def _note_index(self, counts: Counts) -> None:
        """Remember that this process has listed the pool. Raises UserError if it has no samples."""
        listed, runs = self._index, self.runs
        if not counts.total:
            shards = counted(len(self.pool.shards), "shard")
            raise UserError(f"pool {self.pool.location}: no samples in {shards}")
        listed.rows, listed.max_failures = counts.total, runs.max_failures
        listed.retried_by = runs if runs.retry_failed else listed.retried_by

    def select(self, samples: SelectSettings) -> "tuple[Workspace, Selection | None]":
        """Resolve the selection of samples for a stage, and index their shards.

        With a limit, only as many shards are indexed as are needed to reach it.

        Returns:
            The workspace with the shards that contain the samples, and the selection; None as the
            selection means all samples.

        Raises:
            UserError: If no sample matches.
        """
        if samples == SelectSettings():
            self.index()
            return self, None
        from capmix.mix.choose import Chooser, growing
        from capmix.mix.columns import lacking_fields

        chooser = Chooser(self.store, samples)
        shards, seen, looked_at = self.pool.shards, 0, 0
        for some in growing(shards) if samples.limit else [shards]:
            self._list(some)
            seen += len(some)
            part = self.of_shards(shards[:seen])
            columns = part.recipe_columns(chooser.names) if chooser.names else {}
            if (lacking := lacking_fields(chooser.names, columns)) and seen < len(shards):
                where = f"no sample of the first {seen:,} of {len(shards):,} shards has it"
                log.info("--where: looking for the field %s: %s", min(lacking), where)
                continue
            chooser.look_at(part.pool, columns, part.pool.shards[looked_at:])
            looked_at = seen
            if chooser.is_full:
                break
        if seen < len(shards):
            self.of_shards(shards[:seen]).index()  # the failure budget covers all indexed shards
        else:
            self.index()
        selection = chooser.selection()
        return self.of_shards(chooser.shards(self.pool)), selection

    def _to_read(
        self, samples: SelectSettings, captions: str = ""
    ) -> "tuple[Workspace, Selection | None, bool]":
        """Like `select`, for a stage that reads all images: it can index the pool in the same read.

        Also returns whether the shards are indexed. `captions` is the folder of the stage's parts
        if it keeps captions of unchanged images, which are found by the index: shards that may have
        some are indexed here.
        """
        if samples != SelectSettings() or self.runs.retry_failed or self._is_listed():
            return *self.select(samples), True
        captioned = set(self.store.parts(captions)) if captions else set()
        if captioned and self.pool.is_folder:  # images may have moved from any shard to any other
            return *self.select(samples), True
        (index,) = index_stages(self.pool)
        some = [one for one in self.pool.shards if part_name(captions, one.name) in captioned]
        if some and missing(index, some, self.store):
            self._list(some)
        return self, None, False

    def _is_listed(self) -> bool:
        """Return whether all shards have a part in the index, which may be out of date."""
        if self._index.rows:
            return True
        listed = set(self.store.parts(SAMPLES))
        return all(part_name(SAMPLES, shard.name) in listed for shard in self.pool.shards)

    def _read(
        self,
        make: MakeFromPool,
        is_indexed: bool,
        protected: "Sequence[Shard]" = (),
        needs_gpu: bool = False,
    ) -> list[Counts]:
        """Run the stages that `make` creates from the pool, and index the pool in the same read.

        Raises UserError if the pool has no samples; see `run`.
        """
        if is_indexed:
            return self.run(partial(make, self.pool), protected, needs_gpu)
        counts = self.run(partial(with_index, self.pool, self.store, make), protected, needs_gpu)
        self._note_index(counts[0])
        return counts

    def of_shards(self, shards: "Sequence[Shard]") -> "Workspace":
        """Return the same workspace with the pool restricted to these shards."""
        return replace(self, pool=replace(self.pool, shards=list(shards)), _index=_Index())

    @with_options(CaptionSettings, SelectSettings, EngineSettings, RunSettings)
    def caption(
        self,
        source: str,
        settings: CaptionSettings | None = None,
        samples: SelectSettings | None = None,
        **options: Any,
    ) -> Counts:
        """Write captions for every image, or for selected samples.

        Existing parts with the same settings are kept.

        Args:
            source: Name of the captions, for example "blip2".
            settings: Captioning settings; keywords override them.
            samples: Selection of samples (default: all); keywords override it.
            **options: Options of `capmix caption`, listed below.

        Returns:
            The counts of samples.

        Raises:
            UserError: If parts with different settings exist and `force` is not set, if the failure
                budget is exceeded, or if the model is not available.
        """
        from capmix.caption.captioners import caption_stages
        from capmix.caption.carried import carried

        options, samples = _samples(options, samples)
        chosen, work = self._captioning(source, settings, options)
        on_gpu = needs_gpu(CAPTIONERS, chosen)
        part, selection, is_indexed = work._to_read(samples, captions_folder(source))
        make = partial(
            caption_stages, store=work.store, source=source, settings=chosen, selection=selection
        )
        with carried(work.store, work.pool, source):
            counts = part._read(make, is_indexed, work.pool.shards, on_gpu)[-1]
        if chosen.model.startswith(FIELD) and not counts.ok:
            name = chosen.model.removeprefix(FIELD)
            raise UserError(
                f"caption {source}: no sample has a text in its field {name!r}; rerun with "
                "the right name and --force"
            )
        return counts

    @with_options(CaptionSettings, SelectSettings, EngineSettings, RunSettings)
    def forecast_caption(
        self,
        source: str,
        settings: CaptionSettings | None = None,
        samples: SelectSettings | None = None,
        **options: Any,
    ) -> "Forecast":
        """Estimate work, time and bytes of `caption` by timing a few images; write no captions.

        Accepts the same arguments as `caption`.
        """
        from capmix.inspect.forecast import forecast_captions

        options, samples = _samples(options, samples)
        chosen, work = self._captioning(source, settings, options)
        return forecast_captions(work._site(samples, captions_folder(source)), source, chosen)

    def _captioning(
        self, source: str, settings: CaptionSettings | None, options: Mapping[str, Any]
    ) -> "tuple[CaptionSettings, Workspace]":
        from capmix.caption.flags import check_language

        chosen, work = self._with("caption", CaptionSettings, settings, options)
        check_source_name(source)
        work.pool.need_images("caption")
        chosen = work._with_model(chosen, CAPTIONERS, "caption")
        if chosen.language:
            check_language(chosen.language)
        return chosen, work

    @with_options(RewriteSettings, SelectSettings, EngineSettings, RunSettings)
    def rewrite(
        self,
        source: str,
        settings: RewriteSettings | None = None,
        samples: SelectSettings | None = None,
        **options: Any,
    ) -> Counts:
        """Rewrite the texts of some sources into a new source, without reading images.

        Existing parts with the same settings and the same input texts are kept.

        Args:
            source: Name of the new texts, for example "fused".
            settings: Rewriting settings; keywords override them.
            samples: Selection of samples (default: all); keywords override it.
            **options: Options of `capmix rewrite`, listed below; `model` is required.

        Returns:
            The counts of samples.

        Raises:
            UserError: If an input source has no texts, if parts with different settings exist and
                `force` is not set, if the failure budget is exceeded, or if the model is not
                available.
        """
        from capmix.rewrite.rewriters import rewrite_stages

        options, samples = _samples(options, samples)
        chosen, work = self._rewriting(source, settings, options)
        part, selection = work.select(samples)
        make = partial(rewrite_stages, part.pool, work.store, source, chosen, selection=selection)
        (counts,) = part.run(make, work.pool.shards, needs_gpu(REWRITERS, chosen))
        return counts

    def _rewriting(
        self, source: str, settings: RewriteSettings | None, options: Mapping[str, Any]
    ) -> "tuple[RewriteSettings, Workspace]":
        """Return the checked settings, and the workspace with its engine and run options."""
        from capmix.caption.flags import check_language
        from capmix.rewrite.inputs import check_prompts

        chosen, work = self._with("rewrite", RewriteSettings, settings, options)
        check_source_name(source)
        work.catalog.known_sources(chosen.from_)
        if source in chosen.from_:
            raise UserError(f"rewrite: --source {source} is also in --from; choose another name")
        check_prompts(chosen)
        if chosen.language:
            check_language(chosen.language)
        if work.engine.name == "local":
            check_backend(REWRITERS, chosen.model, chosen)
        return chosen, work

    @with_options(ScoreSettings, SelectSettings, EngineSettings, RunSettings)
    def score(
        self,
        settings: ScoreSettings | None = None,
        samples: SelectSettings | None = None,
        **options: Any,
    ) -> dict[str, Counts]:
        """Compute the image-text similarity of the texts of some or all sources.

        Scores are float32 cosine similarities. Existing parts with the same settings are kept.

        Args:
            settings: Scoring settings; keywords override them.
            samples: Selection of samples (default: all); keywords override it.
            **options: Options of `capmix score`, listed below.

        Returns:
            The counts of texts by source.

        Raises:
            UserError: For a source without captions, if the failure budget is exceeded, or if the
                model is not available.
        """
        from capmix.score.scorers import score_stages

        options, samples = _samples(options, samples)
        chosen, sources, work = self._scoring(settings, options)
        on_gpu = needs_gpu(SCORERS, chosen)
        part, selection, is_indexed = work._to_read(samples)
        make = partial(
            score_stages, store=work.store, sources=sources, settings=chosen, selection=selection
        )
        counts = part._read(make, is_indexed, needs_gpu=on_gpu)
        return dict(zip(sources, counts[-len(sources) :], strict=True))

    @with_options(ScoreSettings, SelectSettings, EngineSettings, RunSettings)
    def forecast_score(
        self,
        settings: ScoreSettings | None = None,
        samples: SelectSettings | None = None,
        planned: bool = False,
        **options: Any,
    ) -> "Forecast":
        """Estimate work, time and bytes of `score` by timing a few images; write no scores.

        Accepts the same arguments as `score`. With `planned`, the sources need not exist yet.
        """
        from capmix.inspect.forecast import forecast_scores

        options, samples = _samples(options, samples)
        chosen, sources, work = self._scoring(settings, options, planned)
        return forecast_scores(work._site(samples, SCORES), sources, chosen)

    def _scoring(
        self, settings: ScoreSettings | None, options: Mapping[str, Any], planned: bool = False
    ) -> "tuple[ScoreSettings, list[str], Workspace]":
        """Return the settings with their model, the sources to score, and the workspace."""
        from capmix.score.scorers import check_preprocess

        chosen, work = self._with("score", ScoreSettings, settings, options)
        sources = list(chosen.sources or ()) if planned else work._to_score(chosen)
        if chosen.model:
            check_preprocess(chosen)
        return work._with_model(chosen, SCORERS, "score"), sources, work

    def _to_score(self, chosen: ScoreSettings) -> list[str]:
        """Return the sources to score. Raises UserError for a source without captions."""
        self.pool.need_images("score")
        known = self.catalog.known_sources(chosen.sources or None)
        return list(chosen.sources or known)

    def _site(self, samples: SelectSettings, folder: str) -> "Site":
        """Return the site for a forecast of a stage that writes to `folder`.

        A new pool may be large, so samples are indexed only if some are selected or parts exist.
        """
        from capmix.inspect.forecast import Site

        work, selection = self, None
        if samples != SelectSettings() or self.store.parts(folder):
            work, selection = self.select(samples)
        return Site(work.pool, self.pool, work.store, selection, work.engine, work.runs)

    @with_options(ImportSettings, RunSettings)
    def import_captions(
        self, files: Place | Sequence[Place], settings: ImportSettings | None = None, **options: Any
    ) -> "Imported":
        """Import precomputed captions from CSV or parquet files, joined on uid.

        Args:
            files: Paths or patterns of files.
            settings: Import settings; keywords override them.
            **options: Options of `capmix import captions`, listed below; `source` is required.

        Raises:
            UserError: If the source has captions that a model wrote and `force` is not set, or if a
                file cannot be read.
        """
        from capmix.annotate.imported import import_captions

        chosen, work = self._with("import", ImportSettings, settings, options, (RunSettings,))
        check_source_name(chosen.source)
        work._refuse_captions(chosen.source)
        work.index()
        columns = chosen.uid_column, chosen.text_column
        return import_captions(
            work.store, work.pool, _places(files), chosen.source, *columns, work.runs.force
        )

    @with_options(ImportSettings, RunSettings)
    def import_scores(
        self, files: Place | Sequence[Place], settings: ImportSettings | None = None, **options: Any
    ) -> "Imported":
        """Import precomputed scores of a source from CSV or parquet files, joined on uid.

        Args:
            files: Paths or patterns of files.
            settings: Import settings; keywords override them.
            **options: Options of `capmix import scores`, listed below; `source` is required.

        Raises:
            UserError: If the source has no captions, or if a file cannot be read.
        """
        from capmix.annotate.imported import import_scores

        chosen, work = self._with("import", ImportSettings, settings, options, (RunSettings,))
        work.catalog.known_sources([chosen.source])
        check_scorer_name(chosen.scorer, work.store.folders(SCORES))
        work.index()
        columns = chosen.uid_column, chosen.column
        return import_scores(
            work.store, work.pool, _places(files), chosen.scorer, chosen.source, *columns
        )

    @with_options(AnnotateSettings, EngineSettings, RunSettings)
    def annotate(self, settings: AnnotateSettings | None = None, **options: Any) -> Counts:
        """Compute columns for recipes from saved embeddings, texts or images.

        Args:
            settings: Annotation settings; keywords override them.
            **options: Options of `capmix annotate`, listed below; `method` is required.

        Returns:
            The counts of samples.

        Raises:
            UserError: If the embeddings do not exist; `score` with `save_embeddings=True` writes
                them. For concepts, if there is no metadata list, or if the source has no texts.
                For methods that read images, if the failure budget is exceeded.
        """
        chosen, work = self._with("annotate", AnnotateSettings, settings, options)
        name = chosen.name or DEFAULT_NAMES.get(chosen.method, chosen.method)
        check_annotation_name(name)
        annotate = {
            AGREEMENT: work._agreement,
            CONCEPTS: work._balance,
            IMAGE: work._annotate_images,
            TEXT_AREA: work._text_area,
        }.get(chosen.method, work._annotate_vectors)
        return annotate(chosen, name)

    def _annotate_vectors(self, chosen: AnnotateSettings, name: str) -> Counts:
        """Compute columns from saved embeddings; see annotate/annotate.py."""
        from capmix.annotate.annotate import annotate
        from capmix.score.scorers import make_scorer

        have = self.store.folders(EMBEDDINGS)
        whole = [one for one in have if not one.endswith(MASKED)] or have
        embeddings = chosen.embeddings or (whole[0] if len(whole) == 1 else "")
        if embeddings not in have:
            found = f"found {', '.join(have)}" if have else "found none"
            wanted = f"--embeddings {embeddings}" if embeddings else "--embeddings"
            raise UserError(
                f"annotate: {wanted}: {found} in {self.store.root}/{EMBEDDINGS}; "
                "run `capmix score --save-embeddings` first"
            )
        scorer = None
        if chosen.method == "cliploss":
            scoring = self._borrowed_scorer(chosen, "annotate")
            chosen = chosen.model_copy(update={"model": scoring.model})
            scorer = make_scorer(scoring)
            if scorer.encoder.name != embeddings:
                raise UserError(
                    f"cliploss: the embeddings {embeddings!r} are not of --model {chosen.model}; "
                    "pass the model that computed them"
                )
        return annotate(self.store, self.pool, name, embeddings, chosen, scorer)

    def _balance(self, chosen: AnnotateSettings, name: str) -> Counts:
        """Balance the texts of a source over metadata entries, in three passes over the shards."""
        from capmix.annotate.concept_matches import match_stages
        from capmix.annotate.concepts import concept_stages, count_entries, metadata_list
        from capmix.engine.mapped import mapper

        require(["ahocorasick_rs"], "annotate concepts", "concepts")
        self.index()
        self.catalog.known_sources([chosen.source])
        work = self._in_processes()
        mappers = partial(mapper, work.engine, is_long=bool(work.engine.workers))
        with mappers() as mapped:
            metadata_list(work.store, work.pool.shards, name, chosen, mapped)
        # Outside of a mapper, whose Ray actors hold the resources that the run needs.
        work.run(partial(match_stages, work.store, name, chosen.source, chosen.matching))
        with mappers() as mapped:
            count_entries(work.store, work.pool.shards, name, chosen, mapped)
        (counts,) = work.run(partial(concept_stages, work.store, name, chosen))
        return counts

    def _in_processes(self) -> "Workspace":
        """Return the workspace with a worker process per core, if the pool is large enough."""
        if self.engine.workers or self.engine.name != "local" or not self._index.rows:
            return self
        workers = min(cores(), len(self.pool.shards), self._index.rows // TEXTS_PER_WORKER)
        return self.using(workers=workers) if workers > 1 else self

    def _annotate_images(self, chosen: AnnotateSettings, name: str) -> Counts:
        """Compute the columns of `--method image` in one pass over the images, then the groups."""
        from capmix.annotate.image_groups import annotate_groups
        from capmix.annotate.image_stage import image_stages

        require(["imagehash"], "annotate image", "images")
        self.pool.need_images("annotate --method image")
        part, _, is_indexed = self._to_read(SelectSettings())
        counts = part._read(partial(image_stages, name=name), is_indexed)[-1]
        annotate_groups(self.store, self.pool.shards, name, chosen.distance)
        return counts

    def _agreement(self, chosen: AnnotateSettings, name: str) -> Counts:
        """Compare texts with captions; see annotate/agreement.py."""
        from capmix.annotate.agreement import agreement_stages, encoder_settings

        if chosen.captions is None:
            raise UserError("annotate: agreement needs --captions SOURCE: the captions to compare")
        self.catalog.known_sources([chosen.source, chosen.captions])
        self.index()
        make = partial(agreement_stages, self.store, name, chosen)
        return self.run(make, self.pool.shards, needs_gpu(ENCODERS, encoder_settings(chosen)))[0]

    def _text_area(self, chosen: AnnotateSettings, name: str) -> Counts:
        """Find the text in all images; see annotate/text_area.py."""
        from capmix.annotate.text_area import text_area_stages
        from capmix.models.text_detector import check_detector

        self.pool.need_images("annotate --method text_area")
        if self.engine.name == "local":
            check_detector()
        part, _, is_indexed = self._to_read(SelectSettings())
        make = partial(text_area_stages, name=name, side=chosen.side)
        return part._read(make, is_indexed, self.pool.shards)[-1]

    @with_options(MeasureSettings, EngineSettings, RunSettings)
    def measure(self, settings: MeasureSettings | None = None, **options: Any) -> dict[str, Any]:
        """Measure diversity, noise and topics of texts by source.

        Args:
            settings: Measure settings; keywords override them.
            **options: Options of `capmix measure`, listed below.

        Returns:
            The measures `population`, `sampled`, `references` and `coverage`; see
            measure/measure.py.
        """
        from capmix.measure.measure import measure
        from capmix.score.scorers import make_scorer

        chosen, work = self._with("measure", MeasureSettings, settings, options)
        work.index()
        sources = work.catalog.known_sources(chosen.sources or None)
        scorer = work.catalog.scorer(chosen.scorer)
        scored = [one for one in work.catalog.scored(scorer) if one in sources] if scorer else []
        encoder = None
        wants_model = bool(chosen.topics or chosen.references)
        is_demo = not chosen.model and work.pool.location == EMBEDDED and is_ready(SCORERS, MINI)
        if wants_model and (chosen.model or is_demo):
            scoring = work._borrowed_scorer(chosen, "measure")
            chosen = chosen.model_copy(update={"model": scoring.model})
            encoder = make_scorer(scoring)
        return measure(work.store, work.pool, scorer, sources, scored, chosen, encoder, work.engine)

    @with_options(MixSettings, EngineSettings, RunSettings)
    def mix(
        self,
        recipe: str,
        settings: MixSettings | None = None,
        parameters: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Apply a recipe and write the selected subset.

        Args:
            recipe: Name of a shipped recipe, or path of a .yaml file.
            settings: Mix settings; keywords override them.
            parameters: Parameters of the recipe; needed for parameters with the name of an option.
            **options: Options of `capmix mix`, listed below. Other keywords are parameters of the
                recipe, for example `fraction=0.3`.

        Returns:
            The Subset. If a parameter is a list, one subset is written per value (for several
            lists, per combination), and a list of Subsets is returned.

        Raises:
            UserError: For an invalid recipe or parameter, and if the recipe needs missing columns.
        """
        from capmix.mix.excluded import names_of_exclusion
        from capmix.mix.mix import mix
        from capmix.mix.plan import names_of
        from capmix.mix.recipe import combinations, load_recipe

        given, filled = _split(options, MixSettings, EngineSettings, RunSettings)
        filled |= parameters or {}
        chosen, work = self._with("mix", MixSettings, settings, given)
        runs = combinations(filled)
        loaded = [load_recipe(recipe, one, chosen.changes) for one in runs]
        names = [chosen.out or one.name for one in loaded]
        if len(set(names)) < len(names):
            raise UserError(
                f"several subsets would have the name {names[0]}; mix them one by one, each with "
                "its own --out"
            )
        if chosen.changes and chosen.out is None:
            raise UserError(
                "--where/--distinct change the recipe; give the result a name with --out"
            )
        work.index()
        asked = names_of_exclusion(chosen.exclude).union(*map(names_of, loaded))
        columns = work.recipe_columns(asked, chosen.scorer)
        subsets = [
            Subset(work, mix(work.store, work.pool, one, columns, chosen, name, work.engine).name)
            for one, name in zip(loaded, names, strict=True)
        ]
        is_sweep = any(isinstance(value, list) for value in filled.values())
        return subsets if is_sweep else subsets[0]

    @with_options(ExportSettings, EngineSettings, RunSettings)
    def export(
        self,
        subset: "Subset | str",
        out: Place | None = None,
        settings: ExportSettings | None = None,
        **options: Any,
    ) -> Counts:
        """Write a subset as shards, tables or image files.

        Args:
            subset: A Subset or its name.
            out: Directory or URL; None with `sidecars=True`, which writes texts next to the pool's
                images.
            settings: Export settings; keywords override them.
            **options: Options of `capmix export`, listed below.

        Returns:
            The counts of rows.

        Raises:
            UserError: If `out` is inside the pool, or the failure budget is exceeded.
        """
        from capmix.export.export import export

        chosen, work = self._with("export", ExportSettings, settings, options)
        if chosen.format != "csv":
            work.pool.need_images("export in a format other than csv")
        if out is not None and (inside := work.pool.holds(os.fspath(out))):
            raise UserError(
                f"--out {os.fspath(out)} is inside the pool {inside}; choose another directory"
            )
        return export(
            work.store,
            work.pool,
            subset.name if isinstance(subset, Subset) else subset,
            None if out is None else os.fspath(out),
            chosen,
            work.sources(),
            work.runs.max_failures,
            work.engine,
        )

    @with_options(ProbeSettings, RunSettings)
    def probe(
        self, settings: ProbeSettings | None = None, **options: Any
    ) -> "dict[str, list[ProbeResult]]":
        """Train small probes of frozen embeddings on each subset, and evaluate them.

        Args:
            settings: Probe settings; keywords override them.
            **options: Options of `capmix probe`, listed below.

        Returns:
            The results by subset, one per seed.

        Raises:
            UserError: If there are no subsets, or a dependency or an evaluation set is missing.
        """
        chosen, work = self._with("probe", ProbeSettings, settings, options, (RunSettings,))
        subsets = work.subsets() if chosen.subsets is None else chosen.subsets
        if not subsets:
            raise UserError(f"no subsets in {work.store.location}: run `capmix mix` first")
        towers = work._towers(chosen, "probe")
        from capmix.probe.run import open_sets, probe_subset

        sets = open_sets(work.store, chosen.evalsets, towers, chosen, "probe")
        return {
            subset: probe_subset(work.store, subset, chosen.seeds, sets, towers, chosen)
            for subset in subsets
        }

    def _towers(self, chosen: TowerSettings, what: str) -> "Towers":
        """Return the towers of a probe; the embedded tower's embeddings are computed if missing.

        Raises UserError if a package is missing, or if there are no embeddings of another encoder.
        """
        from capmix.probe.towers import check_packages, make_towers

        check_packages(chosen, what)
        towers = make_towers(self.store, chosen)
        if towers.images.is_embedded:
            from capmix.mini.image_tower import LiteTower

            self.pool.need_images(what)
            self.run(partial(_embeddings, self.pool, LiteTower()))
        return towers

    @with_options(TuneSettings, RunSettings)
    def tune(
        self,
        recipe: str,
        settings: TuneSettings | None = None,
        parameters: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Tuning":
        """Choose a recipe's parameters with probes, and report on images not used to choose.

        Args:
            recipe: Name of a shipped recipe, or path of a .yaml file.
            settings: Tune settings; keywords override them.
            parameters: The search space by parameter: a list of values, or a tuple (low, high) for
                all numbers in between; needed for parameters with the name of an option.
            **options: Options of `capmix tune`, listed below. Other keywords are parameters of the
                recipe, for example `fraction=(0.05, 0.9)`.

        Returns:
            The candidates with their averages, and the chosen one; its subset is already mixed.

        Raises:
            UserError: For an unknown parameter, a budget that is too small, missing embeddings or
                evaluation sets, or if a baseline cannot be mixed.
        """
        from capmix.mix.recipe import NAME
        from capmix.tune.space import space_of

        given, filled = _split(options, TuneSettings, RunSettings)
        space = space_of(filled | dict(parameters or {}))
        chosen, work = self._with("tune", TuneSettings, settings, given, (RunSettings,))
        from capmix.tune.tune import plan, tune

        plan(recipe, space, chosen)
        name = chosen.out or Path(recipe).stem
        if not NAME.fullmatch(name):
            raise UserError(f"tune: --out {name}: expected letters, digits and . _ + -")
        towers = work._towers(chosen, "tune")
        from capmix.probe.run import open_sets
        from capmix.tune.split import apart, halves

        dev = open_sets(work.store, chosen.evalsets, towers, chosen, "tune")
        if chosen.held_out is None:
            sides = halves(dev, chosen.seed)
        else:
            sides = apart(dev, open_sets(work.store, chosen.held_out, towers, chosen, "tune"))

        def mix(recipe: str, parameters: Mapping[str, Any], out: str) -> int:
            scorer = chosen.scorer if recipe != RAW else None
            return len(work.mix(recipe, parameters=parameters, out=out, scorer=scorer))

        return tune(work.store, name, recipe, space, chosen, towers, sides, mix)

    @with_options(ReportSettings, RunSettings)
    def report(
        self, settings: ReportSettings | None = None, **options: Any
    ) -> tuple[str, list[str]]:
        """Write an HTML report about the work directory.

        Args:
            settings: Report settings; keywords override them.
            **options: Options of `capmix report`, listed below.

        Returns:
            The path of the page, and the table of results as lines of text.

        Raises:
            UserError: For an unknown subset or scorer, or if a package is missing.
        """
        chosen, work = self._with("report", ReportSettings, settings, options, (RunSettings,))
        require(chosen.packages(), "report", "report")
        from capmix.report.compare import compare, verdict
        from capmix.report.gather import gather
        from capmix.report.headline import headline_lines
        from capmix.report.page import PAGE, write_page
        from capmix.report.table import results_table

        work.index()
        scorer = work.catalog.scorer(chosen.scorer)
        found = gather(work.catalog, scorer, chosen.recipes, chosen.results)
        rows = compare(found.probes, chosen.baseline) if found.probes else []
        figures = write_page(found, rows, chosen.out, chosen)
        if chosen.figures is not None:
            from capmix.report.draw import write_figures

            write_figures(figures, chosen.figures)
        path = chosen.out or work.store.path(PAGE)
        summary = headline_lines(found, rows, chosen.baseline)
        if not rows:
            return path, summary
        table = results_table(found, rows, chosen.baseline)
        return path, [*table, "", *verdict(rows, chosen.order), "", *summary]

    def table(
        self,
        sources: str | Sequence[str] | None = None,
        columns: str | Sequence[str] | None = None,
        scorer: str | None = None,
        shards: str | Sequence[str] | None = None,
        where: str | None = None,
        limit: int | None = None,
    ) -> pa.Table:
        """Return a table with one row per sample.

        Columns are uid, key, shard, and for each source S: S_text, S_score and S_flags (of the
        first caption, if there are several). Samples that failed in the index are left out.

        All rows are in memory: about 100 bytes per sample plus the texts, or some 3 GB for the
        paper's 12.8 million samples with two sources. `batches` and `relation` hold one shard at a
        time.

        Args:
            sources: Sources to include (default: all).
            columns: Additional columns: names of `columns()`, patterns such as "clusters_*", and
                further captions as S_k1_text, S_k2_text, ... Default: the columns of annotations
                if `sources` is not given, otherwise none.
            scorer: Scorer of the scores (default: the only scorer, or the only one not imported).
            shards: Names or patterns of shards, for example "0000*" (default: all).
            where: Condition in the recipe language, for example "raw_score < 0.2".
            limit: Return only the first rows; shards after them are not opened.

        Raises:
            UserError: For unknown names and invalid conditions.
        """
        return self.batches(sources, columns, scorer, shards, where, limit).read_all()

    def batches(
        self,
        sources: str | Sequence[str] | None = None,
        columns: str | Sequence[str] | None = None,
        scorer: str | None = None,
        shards: str | Sequence[str] | None = None,
        where: str | None = None,
        limit: int | None = None,
    ) -> pa.RecordBatchReader:
        """Return the rows of `table` as a stream of record batches, one per shard.

        With `where`, the keys of all matching samples are also in memory. Accepts the same
        arguments as `table`.
        """
        from capmix.inspect.table import TableRequest, read_batches

        asked = TableRequest(sources, columns, scorer, shards, where, limit)
        if names := asked.names():
            self.recipe_columns(names, scorer)
        return read_batches(self.catalog, asked, self._list)

    def relation(
        self,
        sources: str | Sequence[str] | None = None,
        columns: str | Sequence[str] | None = None,
        scorer: str | None = None,
        shards: str | Sequence[str] | None = None,
        where: str | None = None,
        limit: int | None = None,
    ) -> "duckdb.DuckDBPyRelation":
        """Return the rows of `table` as a DuckDB relation that can be read once.

        Accepts the same arguments as `table`.
        """
        import duckdb

        return duckdb.from_arrow(self.batches(sources, columns, scorer, shards, where, limit))

    def recipe_columns(
        self, names: Collection[str], scorer: str | None = None
    ) -> "dict[str, Column]":
        """Return the recipe columns needed for `names`; see Catalog.columns.

        If an older capmix wrote the index without the fields of the samples' JSON, these are listed
        first.
        """
        from capmix.models.fields import field_stages

        found = self.catalog.columns(scorer, names)
        if self.catalog.lacks_fields(names, found):
            log.info("listing the fields of the samples' JSON, which the index lacks")
            self.run(partial(field_stages, self.pool, self.store))
            found = self.catalog.columns(scorer, names)
        return found

    def run(
        self,
        make_stages: MakeStages,
        protected: "Sequence[Shard]" = (),
        needs_gpu: bool = False,
    ) -> list[Counts]:
        """Compute the missing parts of some stages.

        Args:
            make_stages: Function that returns the stages; with more than this process, a
                functools.partial of a module-level function, since it is pickled.
            protected: Shards whose existing parts with different settings are an error unless
                `force` is set.
            needs_gpu: Whether the stages need a GPU.

        Returns:
            The counts of each stage.

        Raises:
            UserError: If the failure budget is exceeded.
        """
        job = Job(
            make_stages,
            self.pool.shards,
            self.store,
            () if self.runs.force else protected,
            self.runs.retry_failed,
            needs_gpu,
        )
        return run_job(job, self.runs.max_failures, self.engine, self._index.rows)

    def _with(
        self,
        place: str,
        kind: type[Kind],
        settings: Kind | None,
        options: Mapping[str, Any],
        others: Sequence[type[Settings]] = (EngineSettings, RunSettings),
    ) -> "tuple[Kind, Workspace]":
        """Return the settings of a call, and the workspace with its engine and run options."""
        ours, *shares = distribute(options, place, (kind, *others))
        chosen = make(kind, ours, place) if settings is None else changed(settings, ours, place)
        work = self
        for share, other in zip(shares, others, strict=True):
            new = {name: value for name, value in share.items() if name not in ours}
            if other is EngineSettings:
                work = replace(work, engine=changed(work.engine, new, place))
            else:
                work = replace(work, runs=changed(work.runs, new, place))
        return chosen, work

    def _with_model(self, chosen: Named, group: str, what: str) -> Named:
        """Return the settings with the command's model filled in.

        Raises UserError if there is no model, or if it is not available on this computer; with Ray,
        the workers check this.
        """
        model = chosen_model(group, chosen.model, self.pool.location, what)
        chosen = chosen.model_copy(update={"model": model})
        if self.engine.name == "local":
            check_backend(group, model, chosen)
        return chosen

    def _borrowed_scorer(
        self, chosen: AnnotateSettings | MeasureSettings, what: str
    ) -> ScoreSettings:
        """Return the settings of the scorer that another command uses; see _with_model."""
        settings = ScoreSettings(model=chosen.model, device=chosen.device)
        return self._with_model(settings, SCORERS, what)

    def _refuse_captions(self, source: str) -> None:
        for part in self.store.parts(captions_folder(source)) if not self.runs.force else ():
            marker = self.store.read_marker(part)
            if marker is None or self.store.is_gone(part, marker):
                continue
            if "import" not in marker.config:
                raise UserError(
                    f"{self.store.path(captions_folder(source))} holds captions that a model "
                    "wrote. Choose another --source, or pass --force to overwrite them."
                )

    def columns(self, scorer: str | None = None) -> list[str]:
        """Return the names of all columns of `table` and recipes, without numbered captions."""
        from capmix.inspect.table import column_names

        self.index()
        return column_names(self.catalog, scorer)

    def show(
        self,
        n: int = 8,
        sources: str | Sequence[str] | None = None,
        subset: str | None = None,
        where: str | None = None,
        shards: str | Sequence[str] | None = None,
        seed: int = 0,
        scorer: str | None = None,
    ) -> "Gallery":
        """Return a gallery of random samples with their texts, for display in a notebook.

        Samples are drawn from four shards, or more if these have too few matching samples, so that
        a large pool is not read in full.

        Args:
            n: Number of samples, 1 to 100.
            sources: Sources to show (default: all; with `subset`, only its own texts).
            subset: Show samples of this subset, with its texts marked.
            where: Condition in the recipe language, for example "raw_score < 0.2".
            shards: Names or patterns of shards.
            seed: Random seed of the draw.
            scorer: Scorer of the scores (default: the only scorer, or the only one not imported).
        """
        from capmix.inspect.show import show
        from capmix.inspect.table import TableRequest

        asked = TableRequest(sources, None, scorer, shards, where)
        name = None if subset is None else self.subset(subset).name
        tolerant = self.using(max_failures=1.0)  # showing samples accepts any number of failures
        return show(self.catalog, tolerant._list, n, asked, seed, name)

    @with_options(CaptionSettings)
    def caption_images(
        self, images: "Sequence[Image]", source: str | None = None, **options: Any
    ) -> list[Any]:
        """Caption images in memory; see `capmix.caption_images`.

        Args:
            images: The images.
            source: Use the model and the sampling options of this source's captions; keywords
                override them.
            **options: Options of `capmix caption`, listed below.

        Raises:
            UserError: If the model of `source` has changed since.
        """
        from capmix.caption.in_memory import caption_images, caption_like

        if source is None:
            return caption_images(images, **options)
        return caption_like(self.store, source, images, **options)

    def results(self) -> pa.Table:
        """Return the results of all training runs of `capmix run` and of all probes.

        Each row is a run or probe: of, subset, seed, samples, and a column per metric, as a
        fraction. Columns are named `SET/METRIC`, or `SET` for the main metric.
        """
        from capmix.inspect.results import work_table

        return work_table(self.store)

    def _list(self, shards: "Sequence[Shard]") -> None:
        """List the samples of some shards, or of all shards like `index`.

        The failure budget applies to the whole pool, so it is not checked for some shards.
        """
        if self._index.rows or len(shards) == len(self.pool.shards):
            self.index()
            return
        part = self.of_shards(shards).using(max_failures=1.0)
        part.run(partial(index_stages, part.pool))

    def __repr__(self) -> str:
        shards = counted(len(self.pool.shards), "shard")
        return f"Workspace({self.pool.location!r}, {shards}, work={self.store.location!r})"

    def _repr_html_(self) -> str:
        """Summarize the contents by listing folders; `status` is slower for a large pool."""
        found = {
            "sources": self.sources(),
            "scorers": self.store.folders(SCORES),
            "annotations": self.store.folders(ANNOTATIONS),
            "subsets": self.subsets(),
        }
        rows = [[name, ", ".join(names) or "none"] for name, names in found.items()]
        return table_html([], rows, "ll", title=repr(self))


@dataclass(frozen=True)
class Subset:
    """The rows selected by a recipe: sample, source and caption of each."""

    workspace: Workspace
    name: str

    @cached_property
    def summary(self) -> "Summary":
        """Rows by clause, thresholds and mean scores."""
        from capmix.mix.mix import Summary

        marker = self.workspace.store.read_marker(f"{SUBSETS}/{self.name}")
        if marker is None:
            raise UserError(f"no subset {self.name!r} in {self.workspace.store.location}")
        return Summary(**marker.extra["summary"])

    def __len__(self) -> int:
        """Return the number of rows; each counts once, regardless of its weight."""
        return self.summary.kept

    def table(self) -> pa.Table:
        """Return the rows as a table.

        Columns are uid, shard, key, source, k, text, score, weight (how often the row counts) and
        copy. Raises UserError if a text has changed since the subset was mixed.
        """
        return pa.concat_tables(self.batches())

    def batches(self) -> Iterator[pa.Table]:
        """Yield the rows of `table` in batches."""
        return self._rows.batches()

    def topics(self) -> "TopicCoverage":
        """Return how many of the subset's texts are in each topic of `Workspace.measure`.

        Counts the rows whose samples are in the random sample of `measure`. For example,
        `subset.topics().covered(10)` is the number of topics with at least 10 of these rows. Raises
        UserError if no topics were measured, or if a text has changed since the subset was mixed.
        """
        from capmix.measure.subset_topics import MeasuredTopics

        return MeasuredTopics.read(self.workspace.store).of(self._rows)

    def write(self, path: Place) -> int:
        """Write the rows of `table` to a parquet file in batches, and return their number.

        Raises UserError if `path` does not end in .parquet.
        """
        from capmix.mix.subset import write_parquet

        place = os.fspath(path)
        if not place.endswith(".parquet"):
            raise UserError(f"{place}: expected a .parquet file name")
        return write_parquet(self._rows, place)

    def to_pandas(self, limit: int | None = None) -> Any:
        """Return the rows of `table`, or the first `limit` of them, as a pandas DataFrame.

        All rows are in memory: 0.1 to 0.5 kB per row. Raises UserError if pandas is not installed.
        """
        from capmix.inspect.table import first_rows

        require(["pandas"], "to_pandas")
        return first_rows(self.batches(), limit).to_pandas()

    def show(
        self,
        n: int = 8,
        sources: str | Sequence[str] | None = None,
        where: str | None = None,
        shards: str | Sequence[str] | None = None,
        seed: int = 0,
        scorer: str | None = None,
    ) -> "Gallery":
        """Return a gallery of the subset's samples with the selected texts; see `Workspace.show`.

        With `sources`, the texts of these sources are also shown.
        """
        return self.workspace.show(n, sources, self.name, where, shards, seed, scorer)

    def __repr__(self) -> str:
        try:
            return f"Subset({self.name!r}, {counted(len(self), 'row')})"
        except (UserError, OSError):  # removed or damaged since
            return f"Subset({self.name!r})"

    def _repr_html_(self) -> str:
        about, rows = self.summary, []
        rows += [[clause, f"{count:,}"] for clause, count in about.by_clause.items()]
        rows += [[f"left out: {why}", f"{count:,}"] for why, count in about.dropped.items()]
        rows += [[text, f"{value}"] for text, value in about.thresholds.items()]
        rows += [
            [f"mean score of {source}", f"{value:.4f}"]
            for source, value in about.mean_score.items()
            if value is not None
        ]
        share = f"{about.share_synthetic:.1%} synthetic"
        kept = f"{counted(about.kept, 'row')} of {counted(about.rows_in, 'sample')}"
        title = f"{self.name}: {kept}, {share}"
        return table_html([], rows, "lr", title=title)

    @property
    def _rows(self) -> "SubsetRows":
        from capmix.mix.subset import SubsetRows

        return SubsetRows.pinned(self.workspace.store, self.name)

    @with_options(ExportSettings, EngineSettings, RunSettings)
    def export(
        self, out: Place | None = None, settings: ExportSettings | None = None, **options: Any
    ) -> Counts:
        """Write the subset as shards, tables or image files; see `Workspace.export`."""
        return self.workspace.export(self.name, out, settings, **options)


@dataclass(frozen=True)
class Run:
    """The directory of a training run."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def checkpoint(self) -> Path:
        """Path of the newest checkpoint, which may not exist yet."""
        from capmix.training.run import RunFolder

        return RunFolder(self.path).checkpoint

    def metrics(self) -> list[dict[str, Any]]:
        """Return one mapping per logged step: epoch, step, samples, loss, learning_rate, ...

        An incomplete last line is left out. Raises UserError if another line is damaged.
        """
        from capmix.training.run import RunFolder

        file = RunFolder(self.path).metrics
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(parse_object(line))
            except ValueError as error:
                raise UserError(f"{file}: line {number} is damaged ({error})") from error
        return found

    def results(self) -> pa.Table:
        """Return one row per task of the last `evaluate`.

        Columns are task, dataset, metric, its value, precision, and every metric; values are
        fractions. Raises UserError if the run has not been evaluated.
        """
        from capmix.inspect.results import run_table

        return run_table(self.path)

    def class_results(self) -> pa.Table:
        """Return one row per task and class of the last `evaluate`.

        Columns are task, class (line number in classnames.txt, from 0), name, group, images, acc1
        and acc5, which are fractions or null. Raises UserError if the run has not been evaluated.
        """
        from capmix.inspect.results import run_class_table

        return run_class_table(self.path)

    @with_options(EvaluateSettings)
    def evaluate(self, evalsets: Place | None = None, **options: Any) -> "Evaluated":
        """Evaluate the run zero-shot; see `capmix.evaluate`."""
        if evalsets is not None:
            options["evalsets"] = os.fspath(evalsets)
        return evaluate(self.path, **options)


@with_options(OpenSettings, EngineSettings, RunSettings)
def open_workspace(
    pool: Place | Sequence[Place] | None = None, work: Place | None = None, **options: Any
) -> Workspace:
    """Open a pool and its work directory, which is created if necessary.

    Args:
        pool: Directory or URL (s3://, gs://, hf://, http://) of tars, images or parquet files, a
            pattern such as `{00000..00041}.tar` or `*.tar`, several of these, or `embedded` for the
            demo pool. Default: the pool recorded in the work directory.
        work: Directory or URL. Default: CAPMIX_WORK, or the work directory that contains the
            current directory.
        **options: Options of reading, engine and runs, listed below; `engine` may also be
            EngineSettings.

    Returns:
        The workspace.

    Raises:
        UserError: If the pool has no shards, or if the work directory is inside the pool or belongs
            to another pool.
    """
    given = options.pop("engine") if isinstance(options.get("engine"), EngineSettings) else None
    kinds = (OpenSettings, EngineSettings, RunSettings)
    reading, engine, runs = distribute(options, "open", kinds)
    chosen = make(OpenSettings, reading, "open")
    given_pool = [] if pool is None else _places(pool)
    place = find_work(None if work is None else os.fspath(work))
    scratch = None if chosen.scratch is None else os.path.expanduser(chosen.scratch)
    store = Store(place, scratch=scratch)
    known = known_pool(store, place)
    if not given_pool and known is None:
        raise UserError(f"work directory {place} has no {ABOUT}; pass its pool")
    locations = [_location(one) for one in given_pool] or (known.locations if known else [])
    follow_links = chosen.follow_links
    if follow_links is None:
        follow_links = bool(known and known.follows_links)
    opened = open_pool(given_pool or locations, follow_links)
    if (inside := opened.holds(place, is_work=True)) and locations != [EMBEDDED]:
        raise UserError(
            f"work directory {place} is inside the pool {inside}; outputs would be read back as "
            "input. Choose another --work"
        )
    if scratch is not None and ("://" in scratch or opened.holds(scratch, is_work=True)):
        raise UserError(f"--scratch {scratch}: expected a local directory outside the pool")
    if store.is_local:
        check_shard_names(shard.name for shard in opened.shards)
    store.sweep()
    if known is not None and sorted(known.locations) != sorted(locations):
        several = len(known.locations) > 1 or len(locations) > 1
        hint = ", or quote the pattern so that the shell does not expand it" if several else ""
        raise UserError(
            f"work directory {place} belongs to the pool {shown_location(known.locations)}, not to "
            f"{shown_location(locations)}. Choose another --work{hint}; if the pool was moved, "
            f"delete {place}/{ABOUT} first."
        )
    if known is None or known.follows_links != follow_links:
        about = locations[0] if len(locations) == 1 else locations
        store.write_json(ABOUT, {"pool": about, **({LINKS: True} if follow_links else {})})
    return Workspace(
        opened,
        store,
        changed(given or EngineSettings(), engine, "open"),
        make(RunSettings, runs, "open"),
    )


@with_options(PoolSettings, TrainSettings, RunSettings)
def train(
    data: Subset | Place | Sequence[Place],
    out: Place,
    settings: TrainSettings | None = None,
    devices: int = 1,
    weights: Sequence[float] | None = None,
    yes: bool = False,
    **options: Any,
) -> Run:
    """Train CLIP with open_clip in a separate process, or resume the run in `out`.

    Args:
        data: A Subset, read directly from its pool, or one or more directories of exported shards.
        out: Directory of the run.
        settings: Training settings; keywords override them.
        devices: Number of GPUs of this computer.
        weights: Sampling weight of each directory's tars.
        yes: Start even if the run takes days on this CPU or exceeds the available memory.
        **options: Options of `capmix train`, listed below.

    Returns:
        The finished run.

    Raises:
        UserError: For invalid data or settings, if the run is too expensive and `yes` is not set,
            or if training fails.
    """
    from capmix.training.launch import TrainingData, launch

    kinds = (PoolSettings, TrainSettings, RunSettings)
    reading, ours, runs = distribute(options, "train", kinds)
    links = make(PoolSettings, reading, "train")
    chosen = changed(settings or TrainSettings(), ours, "train")
    limits = make(RunSettings, runs, "train")
    if isinstance(data, Subset):
        if weights is not None:
            raise UserError("train: weights need directories of exported shards, not a subset")
        work = data.workspace
        source = TrainingData.of_subset(work.pool, work.store, data.name)
    else:
        own = None if weights is None else list(weights)
        source = TrainingData(_places(data), own, follow_links=bool(links.follow_links))
    launch(chosen, source, os.fspath(out), limits.max_failures, devices, checks_cost=not yes)
    return Run(Path(out).resolve())


@with_options(EvaluateSettings)
def evaluate(model: Place, settings: EvaluateSettings | None = None, **options: Any) -> "Evaluated":
    """Evaluate a run or an open_clip model zero-shot.

    Results are also written to the run's directory, or to `out`. Those per class are
    `to_class_table()` of what is returned.

    Args:
        model: Directory of a run, or an open_clip model as ARCHITECTURE/TAG.
        settings: Evaluation settings; keywords override them.
        **options: Options of `capmix eval`, listed below.

    Raises:
        UserError: If the model cannot be loaded.
    """
    from capmix.evaluation.results import evaluate as evaluate_model

    chosen = changed(settings or EvaluateSettings(), options, "eval")
    return evaluate_model(
        os.fspath(model),
        chosen.tasks,
        chosen.evalsets,
        chosen.out,
        chosen.device,
        chosen.dtype,
        chosen.classes,
    )


def _samples(
    options: Mapping[str, Any], given: SelectSettings | None
) -> tuple[dict[str, Any], SelectSettings]:
    """Split off the options that select samples, which override `given`; return both parts."""
    ours, others = _split(options, SelectSettings)
    return others, changed(given or SelectSettings(), ours, "select")


def _split(
    options: Mapping[str, Any], *kinds: type[Settings]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of these kinds, and all others."""
    names = {name for kind in kinds for name in options_of(kind)}
    ours = {name: value for name, value in options.items() if name in names}
    return ours, {name: value for name, value in options.items() if name not in names}


def _embeddings(pool: Pool, encoder: ImageEncoder) -> list[Stage]:
    return [embed_stage(pool, encoder)]


def _places(given: Place | Sequence[Place]) -> list[str]:
    """Return one or several paths as a list of strings."""
    several = [given] if isinstance(given, str | os.PathLike) else given
    return [os.fspath(one) for one in several]


def _location(pool: str) -> str:
    return pool if pool == EMBEDDED or "://" in pool else str(Path(pool).resolve())
