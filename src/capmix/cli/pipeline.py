"""The commands that run a pipeline file: run and demo."""

from typing import Annotated

from cyclopts import Parameter

from capmix.cli.options import DryRun, command, only
from capmix.cli.output import show
from capmix.engine.settings import RunSettings
from capmix.errors import UserError
from capmix.pool.settings import SelectSettings


@command
def run(
    pipeline: Annotated[str | None, Parameter(help="YAML file; see examples/.")] = None,
    /,
    *,
    work: Annotated[
        str | None,
        Parameter(help="Work directory (default: `work` of the file).", show_default=False),
    ] = None,
    schema: Annotated[
        bool,
        Parameter(help="Print the JSON Schema of pipeline files.", negative="", show_default=False),
    ] = False,
    samples: SelectSettings,
    dry_run: DryRun = False,
    runs: Annotated[RunSettings, only("force", "retry_failed")],
) -> None:
    """Run the stages of a pipeline file; finished stages are skipped, interrupted ones resume."""
    if schema:
        import json

        from capmix.pipeline.config import Pipeline

        show(json.dumps(Pipeline.model_json_schema(by_alias=True), indent=2).splitlines())
        return
    if pipeline is None:
        raise UserError("run: expected a pipeline file, for example examples/pool.yaml")
    _run_file(pipeline, work, runs, samples, dry_run)


@command
def demo(
    *,
    work: Annotated[
        str | None, Parameter(help="Work directory (default: capmix-demo).", show_default=False)
    ] = None,
) -> None:
    """Run every stage on the embedded pool and models: no GPU, no network."""
    from capmix.evaluation.embedded import PACKAGE
    from capmix.mini.weights import MINI_PACKAGES
    from capmix.models.registry import require
    from capmix.pipeline.run import demo_file

    require([*MINI_PACKAGES, "jinja2", PACKAGE], "demo", "demo")
    _run_file(demo_file(), work, RunSettings(), SelectSettings())


def _run_file(
    path: str,
    work: str | None,
    runs: RunSettings,
    samples: SelectSettings,
    dry_run: bool = False,
) -> None:
    from capmix.pipeline.config import load_pipeline
    from capmix.pipeline.run import forecast_pipeline, run_pipeline

    pipeline = load_pipeline(path, **({"work": work} if work else {}))
    if dry_run:
        show(forecast_pipeline(pipeline, runs, samples))
        return
    found = run_pipeline(pipeline, runs, samples)
    show([*found.lines, *(f"report: {page}" for page in found.reports)])
