"""Run the stages of a pipeline file in order; finished stages are skipped."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from capmix.annotate.settings import ImportSettings
from capmix.caption.settings import CaptionSettings
from capmix.engine.settings import RunSettings
from capmix.errors import UserError
from capmix.evaluation.embedded import embedded_sets_folder
from capmix.mix.recipe import load_recipe
from capmix.models.registry import require
from capmix.pipeline.config import Pipeline, settings_of
from capmix.pipeline.grid import Cell, check_training, run_cells, write_tables
from capmix.pool import EMBEDDED, embedded_folder
from capmix.pool.settings import SelectSettings
from capmix.probe.towers import check_packages
from capmix.rewrite.settings import RewriteSettings
from capmix.settings.counted import counted
from capmix.storage.layout import SHARDS
from capmix.workspace import Subset, Workspace, open_workspace

log = logging.getLogger(__name__)
DEMO = "demo.yaml"
LATER = ("rewrite", "annotate", "measure", "mix", "export", "probe", "train", "evaluate", "report")


@dataclass(frozen=True)
class Outcome:
    """The printed result of a pipeline: lines of tables, and the paths of the reports."""

    lines: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)


def demo_file() -> str:
    """Return the path of the pipeline file of `capmix demo`."""
    return str(embedded_folder() / DEMO)


def run_pipeline(
    pipeline: Pipeline,
    runs: RunSettings = RunSettings(),
    samples: SelectSettings = SelectSettings(),
) -> Outcome:
    """Run every stage of the file on each of its pools.

    `runs` sets whether existing parts are overwritten and earlier failures retried; the budget of
    failures is the file's. `samples` selects what is captioned and scored; with a limit, the other
    stages also process only the shards that contain the selected samples.
    """
    _check_packages(pipeline)
    _check_evalsets(pipeline)
    found = Outcome()
    cells: list[Cell] = []
    reports: list[tuple[Workspace, list[Subset]]] = []
    probes: dict[tuple[str, str], float] = {}
    for name, (pool, directory) in pipeline.pools().items():
        work = _opened(pipeline, pool, directory, runs)
        if pipeline.train is not None and pipeline.mix is not None:
            captioned = [
                *pipeline.caption,
                *pipeline.rewrite,
                *(one.source for one in pipeline.imports),
            ]
            check_training(work, pipeline.train, captioned, _subset_names(pipeline))
        work, subsets = _make_subsets(work, pipeline, samples)
        for subset, average in _probe(work, pipeline, subsets).items():
            probes[name, subset] = average
        if pipeline.train is not None:
            cells += run_cells(work, name, subsets, pipeline.train, pipeline.evaluate)
        if pipeline.report is not None:
            reports.append((work, subsets))
    if cells:
        found.lines.extend(write_tables(cells, pipeline.work, probes))
    for work, subsets in reports:
        path, table = _report(work, pipeline, subsets)
        found.lines.extend(table)
        found.reports.append(path)
    return found


def _subset_names(pipeline: Pipeline) -> list[str]:
    assert pipeline.mix is not None
    return [
        settings.out or load_recipe(recipe, parameters, settings.changes).name
        for recipe, parameters, settings in pipeline.mix.entries()
    ]


def _check_packages(pipeline: Pipeline) -> None:
    """Raise UserError, before the first stage, if a package that the last ones need is missing."""
    if pipeline.report is not None:
        require(pipeline.report.packages(), "report", "report")
    if pipeline.probe is not None:
        check_packages(pipeline.probe, "probe")
        if EMBEDDED in pipeline.probe.evalsets:
            embedded_sets_folder()


def _check_evalsets(pipeline: Pipeline) -> None:
    """Open the evaluation sets before any stage runs.

    Raises UserError for an invalid set, and if none is found; warns about missing ones.
    """
    if pipeline.evaluate is None:
        return
    from capmix.evaluation.results import fetch_command, open_sets

    found, missing, broken = open_sets(pipeline.evaluate.tasks, pipeline.evaluate.evalsets)
    not_found = (
        f"{counted(len(missing), 'evaluation set')} not found; run "
        f"`{fetch_command(missing, pipeline.evaluate.evalsets)}`"
    )
    if broken or not found:
        raise UserError(f"evaluate: {'; '.join(broken) or not_found}")
    if missing:
        log.warning("evaluate: %s", not_found)


def forecast_pipeline(
    pipeline: Pipeline,
    runs: RunSettings = RunSettings(),
    samples: SelectSettings = SelectSettings(),
) -> list[str]:
    """Estimate captioning and scoring, and list the stages that would follow, as lines."""
    lines: list[str] = []
    for name, (pool, directory) in pipeline.pools().items():
        work = _opened(pipeline, pool, directory, runs)
        lines += [f"pool {name}: {work.pool.location}"] if len(pipeline.pools()) > 1 else []
        for source, section in pipeline.caption.items():
            chosen = _both(settings_of(section, SelectSettings), samples)
            lines += work.forecast_caption(
                source, settings_of(section, CaptionSettings), chosen
            ).lines()
        if pipeline.score is not None:
            some = _to_score(samples, _chosen(pipeline, samples))
            lines += work.forecast_score(pipeline.score_settings(), some, planned=True).lines()
    later = [one for one in LATER if getattr(pipeline, one)]
    return [*lines, f"then: {', '.join(later)} (not timed)"] if later else lines


def _opened(
    pipeline: Pipeline, pool: str | list[str], directory: str, runs: RunSettings
) -> Workspace:
    places = {"follow_links": pipeline.follow_links, "scratch": pipeline.scratch}
    runs = runs.model_copy(update={"max_failures": pipeline.max_failures})
    return open_workspace(pool, directory, engine=pipeline.engine, **places, **dict(runs))


def _limited(
    work: Workspace, samples: SelectSettings, chosen: Sequence[SelectSettings]
) -> tuple[Workspace, SelectSettings]:
    """Return the workspace of the following stages, and the samples to score.

    With a limit, the workspace has only the shards that contain captioned samples. If all sources
    were captioned for the same samples, these are scored.
    """
    several = list(dict.fromkeys(chosen)) or [samples]
    if all(one.limit is None for one in several):
        return work, samples
    names = {shard.name for one in several for shard in work.select(one)[0].pool.shards}
    shards = [shard for shard in work.pool.shards if shard.name in names]
    return work.of_shards(shards), _to_score(samples, chosen)


def _chosen(pipeline: Pipeline, samples: SelectSettings) -> list[SelectSettings]:
    """Return the samples to caption for each source."""
    return [_both(settings_of(one, SelectSettings), samples) for one in pipeline.caption.values()]


def _to_score(samples: SelectSettings, chosen: Sequence[SelectSettings]) -> SelectSettings:
    several = list(dict.fromkeys(chosen))
    return several[0] if len(several) == 1 and several[0].limit is not None else samples


def _both(of_file: SelectSettings, given: SelectSettings) -> SelectSettings:
    """Return the file's choice of samples, with the given options replacing the file's."""
    return of_file.model_copy(update=given.model_dump(exclude_none=True))


def _make_subsets(
    work: Workspace, pipeline: Pipeline, samples: SelectSettings
) -> tuple[Workspace, list[Subset]]:
    """Run the stages up to export; return the workspace of the following stages and the subsets."""
    for one in pipeline.imports:
        if one.kind == "captions":
            _log(work.import_captions(one.files, settings_of(one, ImportSettings)).lines())
    chosen = _chosen(pipeline, samples)
    for (source, section), some in zip(pipeline.caption.items(), chosen, strict=True):
        work.caption(source, settings_of(section, CaptionSettings), some)
    asked = samples
    work, samples = _limited(work, samples, chosen)
    for source, rewriting in pipeline.rewrite.items():
        work.rewrite(
            source,
            settings_of(rewriting, RewriteSettings),
            _both(settings_of(rewriting, SelectSettings), asked),
        )
    for one in pipeline.imports:
        if one.kind == "scores":
            _log(work.import_scores(one.files, settings_of(one, ImportSettings)).lines())
    if pipeline.score is not None:
        work.score(pipeline.score_settings(), samples)
    for annotation in pipeline.annotate:
        work.annotate(annotation)
    scorer = _scorer(pipeline)
    if pipeline.measure is not None:
        measuring = pipeline.measure.model_copy(
            update={"scorer": pipeline.measure.scorer or scorer}
        )
        work.measure(measuring)
    found: list[Subset] = []
    if pipeline.mix is None:
        return work, found
    for recipe, parameters, mixing in pipeline.mix.entries():
        mixing = mixing.model_copy(update={"scorer": mixing.scorer or scorer})
        subset: Subset = work.mix(recipe, mixing, parameters)
        _log(subset.summary.lines())
        found.append(subset)
    if pipeline.export is not None:
        for subset in found:
            subset.export(work.store.path(f"{SHARDS}/{subset.name}"), pipeline.export)
    return work, found


def _log(lines: list[str]) -> None:
    for line in lines:
        log.info("%s", line)


def _scorer(pipeline: Pipeline) -> str | None:
    return pipeline.score_settings().name if pipeline.score is not None else None


def _probe(work: Workspace, pipeline: Pipeline, subsets: list[Subset]) -> dict[str, float]:
    """Return the average probe accuracy of each subset in percent."""
    if pipeline.probe is None:
        return {}
    from capmix.report.compare import compare

    started = time.monotonic()
    names = pipeline.probe.subsets or [subset.name for subset in subsets]
    results = work.probe(pipeline.probe.model_copy(update={"subsets": names}))
    seconds = time.monotonic() - started
    log.info("probe: %d subsets, %.1f s", len(names), seconds)
    return {row.name: row.average.mean for row in compare(results, baseline="")}


def _report(work: Workspace, pipeline: Pipeline, subsets: list[Subset]) -> tuple[str, list[str]]:
    assert pipeline.report is not None
    page = pipeline.report
    return work.report(
        page.model_copy(
            update={
                "scorer": page.scorer or _scorer(pipeline),
                "recipes": page.recipes or [subset.name for subset in subsets],
                "results": page.results or (pipeline.work if pipeline.train else None),
            }
        )
    )
