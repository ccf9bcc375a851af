"""Run the stages of a pipeline file in order; what is done is skipped."""

import sys
import time

from capmix import jobs
from capmix.config import Pipeline
from capmix.mix.mix import MixSettings
from capmix.pool import embedded_folder

DEMO = "demo.yaml"


def demo_file() -> str:
    """The pipeline file of `capmix demo`."""
    return str(embedded_folder() / DEMO)


def run_pipeline(pipeline: Pipeline, force: bool = False) -> str | None:
    """Run every stage that the file has. Returns the report's path where one was written."""
    work = jobs.open_work(pipeline.pool, pipeline.work, pipeline.max_failures, force)
    for source, settings in pipeline.caption.items():
        jobs.caption(work, source, settings)
    if pipeline.score is not None:
        jobs.score(work, pipeline.score_settings())
    scorer = pipeline.score_settings().name if pipeline.score is not None else None
    if pipeline.measure is not None:
        jobs.measure(work, scorer)
    names = _make_subsets(work, pipeline, scorer)
    if pipeline.export is not None:
        for name in names:
            size = pipeline.export.samples_per_shard
            jobs.export(work, name, _shards(work, name), size)
    checkpoints = [one for name in names for one in _train(work, pipeline, name)]
    if pipeline.evaluate is not None:
        jobs.evaluate(work, checkpoints, pipeline.evaluate.evalsets)
    if pipeline.report is None:
        return None
    settings_of_page = pipeline.report.model_dump()
    path, table = jobs.report(work, scorer=scorer, recipes=names, **settings_of_page)
    if table:
        print("\n".join(table))
    return path


def _make_subsets(work: jobs.Work, pipeline: Pipeline, scorer: str | None) -> list[str]:
    names: list[str] = []
    if pipeline.mix is None:
        return names
    for recipe, parameters in pipeline.mix.entries():
        settings = MixSettings(seed=pipeline.mix.seed)
        summary = jobs.mix(work, recipe, parameters, scorer, settings)
        print("\n".join(summary.lines()), file=sys.stderr)
        names.append(summary.name)
    return names


def _shards(work: jobs.Work, name: str) -> str:
    return work.store.path(f"shards/{name}")


def _train(work: jobs.Work, pipeline: Pipeline, name: str) -> list[str]:
    if pipeline.train is None:
        return []
    started = time.monotonic()
    checkpoints = jobs.train(work, _shards(work, name), name, pipeline.train.seeds)
    seconds = time.monotonic() - started
    print(f"train {name}: {len(checkpoints)} seeds, {seconds:.1f} s", file=sys.stderr)
    return checkpoints
