"""Run the stages of a pipeline file in order; what is done is skipped."""

import sys
from collections.abc import Sequence
from pathlib import Path

from capmix import jobs
from capmix.config import Pipeline
from capmix.mix.mix import Summary
from capmix.pool import embedded_folder

DEMO = "demo.yaml"


def demo_file() -> str:
    """The pipeline file of `capmix demo`."""
    return str(embedded_folder() / DEMO)


def run_pipeline(pipeline: Pipeline, force: bool = False) -> str | None:
    """Run every stage that the file has. Returns the report's path where one was written."""
    work = jobs.open_work(pipeline.pool, pipeline.work, pipeline.max_failures, force)
    for source, settings in pipeline.caption.items():
        jobs.caption(work, source, **settings.model_dump())
    if pipeline.score is not None:
        jobs.score(work, pipeline.scored_sources(), pipeline.score.model)
    measures = jobs.measure(work) if pipeline.measure is not None else {}
    summaries = _mix(work, pipeline)
    results = _train_and_evaluate(work, pipeline, summaries)
    if pipeline.report is None:
        return None
    from capmix.report.report import report, results_table

    settings_of_report = pipeline.report.model_dump()
    out = report(
        work.store,
        work.pool,
        "mini",
        pipeline.scored_sources(),
        summaries,
        measures,
        results,
        str(Path(pipeline.work) / "report" / "report.html"),
        **settings_of_report,
    )
    return out


def _mix(work: jobs.Work, pipeline: Pipeline) -> list[Summary]:
    summaries = []
    for entry in pipeline.mix.recipes if pipeline.mix else ():
        parameters = {} if isinstance(entry, str) else dict(entry)
        recipe = entry if isinstance(entry, str) else str(parameters.pop("recipe", ""))
        summary = jobs.mix(work, recipe, parameters, seed=pipeline.mix.seed if pipeline.mix else 0)
        print("\n".join(summary.lines()), file=sys.stderr)
        summaries.append(summary)
    return summaries
