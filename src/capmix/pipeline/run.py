"""Run the stages of a pipeline file in order; what is done is skipped."""

import sys
import time

from capmix import jobs
from capmix.errors import UserError
from capmix.mix.mix import MixSettings, Summary
from capmix.mix.recipe import load_recipe
from capmix.pipeline.config import Pipeline
from capmix.pipeline.grid import Cell, check_training, run_cells, write_tables
from capmix.pool import embedded_folder

DEMO = "demo.yaml"


def demo_file() -> str:
    """The pipeline file of `capmix demo`."""
    return str(embedded_folder() / DEMO)


def run_pipeline(pipeline: Pipeline, force: bool = False, retry_failed: bool = False) -> list[str]:
    """Run every stage that the file has, on each of its pools. Returns the reports' paths."""
    _check_evalsets(pipeline)
    cells: list[Cell] = []
    reports: list[tuple[jobs.Work, list[Summary]]] = []
    probes: dict[tuple[str, str], float] = {}
    for name, (pool, directory) in pipeline.pools().items():
        how = pipeline.max_failures, force, pipeline.engine, retry_failed
        work = jobs.open_work(pool, directory, *how)
        if pipeline.train is not None and pipeline.mix is not None:
            names = [load_recipe(*entry).name for entry in pipeline.mix.entries()]
            check_training(work, pipeline.train, list(pipeline.caption), names)
        subsets = _make_subsets(work, pipeline)
        for subset, average in _probe(work, pipeline, subsets).items():
            probes[name, subset] = average
        if pipeline.train is not None:
            cells += run_cells(work, name, subsets, pipeline.train, pipeline.evaluate)
        if pipeline.report is not None:
            reports.append((work, subsets))
    if cells:
        print("\n".join(write_tables(cells, pipeline.work, probes)))
    return [_report(work, pipeline, subsets) for work, subsets in reports]


def _check_evalsets(pipeline: Pipeline) -> None:
    """Look for the evaluation sets before anything is made. Raises UserError for broken ones."""
    if pipeline.evaluate is None:
        return
    from capmix.evaluate.results import fetch_command, open_sets

    found, missing, broken = open_sets(pipeline.evaluate.tasks, pipeline.evaluate.evalsets)
    told = (
        f"{len(missing)} sets are not there. {fetch_command(missing, pipeline.evaluate.evalsets)}"
    )
    if broken or not found:
        raise UserError(f"evaluate: {'; '.join(broken) or told}")
    if missing:
        print(f"evaluate: {told}", file=sys.stderr)


def _make_subsets(work: jobs.Work, pipeline: Pipeline) -> list[Summary]:
    for source, settings in pipeline.caption.items():
        jobs.caption(work, source, settings)
    if pipeline.score is not None:
        jobs.score(work, pipeline.score_settings())
    scorer = _scorer(pipeline)
    if pipeline.measure is not None:
        jobs.measure(work, scorer, settings=pipeline.measure)
    found: list[Summary] = []
    if pipeline.mix is None:
        return found
    for recipe, parameters in pipeline.mix.entries():
        mixing = MixSettings(seed=pipeline.mix.seed)
        summary = jobs.mix(work, recipe, parameters, scorer, mixing)
        print("\n".join(summary.lines()), file=sys.stderr)
        found.append(summary)
    if pipeline.export is not None:
        for summary in found:
            shards = work.store.path(f"shards/{summary.name}")
            jobs.export(work, summary.name, shards, pipeline.export.samples_per_shard)
    return found


def _scorer(pipeline: Pipeline) -> str | None:
    return pipeline.score_settings().name if pipeline.score is not None else None


def _probe(work: jobs.Work, pipeline: Pipeline, subsets: list[Summary]) -> dict[str, float]:
    """The average of each subset's probes in percent."""
    if pipeline.probe is None:
        return {}
    from capmix.report.compare import compare

    started = time.monotonic()
    names = [summary.name for summary in subsets]
    results = jobs.probe(work, names, pipeline.probe.seeds, pipeline.probe.evalsets)
    seconds = time.monotonic() - started
    print(f"probe: {len(names)} subsets, {seconds:.1f} s", file=sys.stderr)
    return {row.name: row.average.mean for row in compare(results, baseline="")}


def _report(work: jobs.Work, pipeline: Pipeline, subsets: list[Summary]) -> str:
    from capmix.report.page import PageSettings

    assert pipeline.report is not None
    names = [summary.name for summary in subsets]
    page = PageSettings(**pipeline.report.model_dump())
    path, table = jobs.report(
        work,
        None,
        _scorer(pipeline),
        names,
        results=pipeline.work if pipeline.train else None,
        settings=page,
    )
    if table:
        print("\n".join(table))
    return path
