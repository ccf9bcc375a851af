"""The jobs behind the commands, for Python: caption, score, measure, mix and export one pool.

from capmix import jobs
work = jobs.open_work("./pool", "./work")
jobs.caption(work, "mini")
jobs.score(work)
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from capmix.annotate import imported as import_columns
from capmix.annotate.annotate import AnnotateSettings, Method
from capmix.annotate.annotate import annotate as annotate_samples
from capmix.annotate.imported import Imported
from capmix.caption.captioners import FIELD, caption_stages
from capmix.caption.captioners import needs_gpu as captioner_needs_gpu
from capmix.caption.flags import check_language
from capmix.caption.settings import CaptionSettings
from capmix.caption.stage import captions_folder, check_source_name
from capmix.engine.stage import Stage
from capmix.errors import UserError
from capmix.export.export import SAMPLES_PER_SHARD, Form
from capmix.export.export import export as export_subset
from capmix.measure.measure import measure as measure_texts
from capmix.measure.settings import MeasureSettings
from capmix.mix.mix import MixSettings, Summary
from capmix.mix.mix import mix as mix_subset
from capmix.mix.recipe import load_recipe
from capmix.models.image_pass import ImageEncoder, embed_stage
from capmix.pool import EMBEDDED, Pool
from capmix.score.scorers import make_scorer, score_stages
from capmix.score.scorers import needs_gpu as scorer_needs_gpu
from capmix.score.settings import ScoreSettings
from capmix.storage.store import Counts
from capmix.train.pairs import PoolSubset
from capmix.train.scales import TrainSettings
from capmix.work import Work as Work  # for callers of these jobs
from capmix.work import has_mini, require_mini
from capmix.work import open_work as open_work
from capmix.work import reopen_work as reopen_work

if TYPE_CHECKING:
    from capmix.report.page import PageSettings

SCORER_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


def caption(work: Work, source: str, settings: CaptionSettings = CaptionSettings()) -> Counts:
    """Write the captions of `source`; see CaptionSettings for the models and how they are named."""
    check_source_name(source)
    work.need_images("caption")
    if settings.language:
        check_language(settings.language)
    if settings.model == "mini":
        require_mini()
    work.index()
    make_stages = partial(caption_stages, work.pool, work.store, source, settings)
    counts = work.run(make_stages, protect=True, needs_gpu=captioner_needs_gpu(settings))[-1]
    if settings.model.startswith(FIELD) and not counts.ok:
        raise UserError(
            f"caption {source}: no sample has a text in its field "
            f"{settings.model.removeprefix(FIELD)!r}; --force with the right name replaces this"
        )
    return counts


def score(work: Work, settings: ScoreSettings = ScoreSettings()) -> dict[str, Counts]:
    """Score the texts of each source against their images; see ScoreSettings."""
    work.need_images("score")
    sources = settings.sources or work.sources()
    for source in sources:
        if source not in work.sources():
            raise UserError(f"no captions of source {source!r}: run `capmix caption` for it first")
    if settings.model == "mini":
        require_mini()
    work.index()
    make_stages = partial(score_stages, work.pool, work.store, sources, settings)
    counts = work.run(make_stages, needs_gpu=scorer_needs_gpu(settings))
    return dict(zip(sources, counts[-len(sources) :], strict=True))


def import_captions(
    work: Work, files: Sequence[str], source: str, uid_column: str, text_column: str
) -> Imported:
    """Take the captions of `source` from CSV or parquet files, by uid."""
    check_source_name(source)
    _refuse_captions(work, source)
    work.index()
    return import_columns.import_captions(
        work.store, work.pool, files, source, uid_column, text_column
    )


def import_scores(
    work: Work, files: Sequence[str], source: str, scorer: str, uid_column: str, column: str
) -> Imported:
    """Take the scores of `source` by `scorer` from CSV or parquet files, by uid."""
    if source not in work.sources():
        raise UserError(f"no captions of source {source!r}: import or write them first")
    if not SCORER_NAME.fullmatch(scorer):
        raise UserError(f"--scorer {scorer!r}: expected lower-case letters, digits, '-' and '.'")
    work.index()
    return import_columns.import_scores(
        work.store, work.pool, files, scorer, source, uid_column, column
    )


def _refuse_captions(work: Work, source: str) -> None:
    for part in work.store.parts(captions_folder(source)) if not work.force else ():
        marker = work.store.read_marker(part)
        if marker is not None and "import" not in marker.config:
            raise UserError(
                f"{work.store.path(captions_folder(source))} holds captions that a model wrote. "
                "Choose another --source, or pass --force to write over them."
            )


def measure(
    work: Work,
    scorer: str | None = None,
    sources: Sequence[str] | None = None,
    settings: MeasureSettings = MeasureSettings(),
    scoring: ScoreSettings = ScoreSettings(),
) -> dict[str, Any]:
    """Measures of raw and of every source (or of `sources`); see measure.measure.

    `scoring` names the model whose text tower finds topics; the embedded one by default, where it
    is installed.
    """
    work.index()
    chosen = work.known_sources(sources)
    name = work.scorer(scorer)
    scored = [source for source in work.scored(name) if source in chosen] if name else []
    encoder = None
    wanted = settings.topics or settings.references
    if wanted and (scoring.model != "mini" or has_mini()):
        encoder = make_scorer(scoring)
    return measure_texts(work.store, work.pool, name, chosen, scored, settings, encoder)


def mix(
    work: Work,
    recipe: str,
    parameters: dict[str, Any] | None = None,
    scorer: str | None = None,
    settings: MixSettings = MixSettings(),
    output: str | None = None,
    changes: dict[str, Any] | None = None,
) -> Summary:
    """Apply a shipped recipe or a recipe file; writes `subsets/<name>.parquet`.

    `changes` are a condition `where` for every clause, or a column `distinct` (see Recipe).
    """
    work.index()
    loaded = load_recipe(recipe, parameters, changes)
    if changes and output is None:
        raise UserError(f"recipe {loaded.name} with changes: name what comes of it with --out")
    return mix_subset(work.store, work.pool, loaded, work.columns(scorer), settings, output)


def annotate(
    work: Work,
    method: Method,
    name: str | None = None,
    settings: AnnotateSettings = AnnotateSettings(),
    scoring: ScoreSettings = ScoreSettings(),
    embeddings: str | None = None,
) -> Counts:
    """Columns for recipes, computed from saved embeddings; see AnnotateSettings.

    `embeddings` names those below embeddings/ (default: the only ones); `scoring` the model that
    cliploss encodes texts with, which must be the one that made them.
    """
    have = work.store.folders("embeddings")
    chosen = embeddings or (have[0] if len(have) == 1 else "")
    if chosen not in have:
        raise UserError(
            f"--embeddings {chosen}: expected one of {', '.join(have) or 'none'} in "
            f"{work.store.root}/embeddings. `capmix score --save-embeddings` writes them."
        )
    scorer = make_scorer(scoring) if method == "cliploss" else None
    if scorer is not None and scorer.encoder.name != chosen:
        raise UserError(
            f"cliploss: --model {scoring.model} has not made the embeddings {chosen!r}; name the "
            "model that has"
        )
    called = name or method
    check_source_name(called)
    return annotate_samples(work.store, work.pool, method, called, chosen, settings, scorer)


def export(
    work: Work,
    subset: str,
    directory: str,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    form: Form = "webdataset",
) -> Counts:
    """Write a subset as shards of images and texts; see export.export for the forms."""
    if form != "csv":
        work.need_images("export (csv needs none)")
    return export_subset(
        work.store,
        work.pool,
        subset,
        directory,
        samples_per_shard,
        work.max_failures,
        form,
        work.sources(),
        work.engine,
    )


def training_source(work: Work, subset: str, settings: TrainSettings) -> PoolSubset:
    """A subset of a pool to train on, without writing it anywhere; see train.train."""
    work.need_images("train")
    sources = list(settings.texts)
    for source in sources:
        if source not in work.sources():
            raise UserError(f"--texts: no captions of source {source!r} in {work.store.location}")
    return PoolSubset(work.pool, work.store, subset, sources)


def probe(
    work: Work,
    subsets: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    evalsets: Sequence[str] = (EMBEDDED,),
) -> dict[str, list[Any]]:
    """Train a probe of each subset and seed, and evaluate it; `embedded` stands for the embedded
    test sets. Returns the results of each subset, one a seed."""
    work.need_images("probe")
    encoder = work.mini_encoder
    from capmix.evaluate.evalset import embedded_evalsets
    from capmix.evaluate.other_sets import open_evalset
    from capmix.probe.evalset import load_features
    from capmix.probe.evaluate import evaluate
    from capmix.probe.fit import train_probes

    work.run(partial(_embeddings, work.pool, encoder))
    folders: list[str] = []
    for name in evalsets:
        folders += embedded_evalsets() if name == EMBEDDED else [name]
    opened = [open_evalset(folder) for folder in folders]
    if len({one.name for one in opened}) < len(opened):
        raise UserError(f"probe: two evaluation sets have the same name in {', '.join(folders)}")
    sets = [load_features(work.store, one, encoder) for one in opened]
    found: dict[str, list[Any]] = {}
    for subset in subsets:
        probes = train_probes(work.store, subset, seeds, encoder)
        found[subset] = [evaluate(work.store, one, sets) for one in probes]
    return found


def _embeddings(pool: Pool, encoder: ImageEncoder) -> list[Stage]:
    return [embed_stage(pool, encoder)]


def report(
    work: Work,
    out: str | None = None,
    scorer: str | None = None,
    recipes: Sequence[str] | None = None,
    results: str | None = None,
    figures: str | None = None,
    settings: "PageSettings | None" = None,
) -> tuple[str, list[str]]:
    """Write the HTML page about what the work directory holds; returns its path and the table.

    `recipes` names the subsets to show (default: all), `results` the directory of a grid of trained
    runs (default: the work directory), `figures` a directory for PDF, PNG and CSV files of the
    figures.
    """
    from capmix.report.compare import compare, verdict
    from capmix.report.gather import gather
    from capmix.report.page import PAGE, PageSettings, write_page
    from capmix.report.table import results_table

    work.index()
    page = settings or PageSettings()
    found = gather(work, work.scorer(scorer), recipes, results)
    rows = compare(found.probes, page.baseline) if found.probes else []
    made = write_page(found, rows, out, page)
    path = out or work.store.path(PAGE)
    if figures is not None:
        from capmix.report.draw import write_figures

        write_figures(made, figures)
    if not rows:
        return path, []
    return path, [
        *results_table(found, rows, page.baseline),
        "",
        *verdict(rows, page.order),
    ]
