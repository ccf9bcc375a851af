"""The inspection commands: status, clean, verify, failures, report, view, plan, models, doctor."""

import logging
import sys
from json import dumps
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from capmix.cli.options import Pool, Work, command
from capmix.cli.output import show
from capmix.engine.settings import RunSettings
from capmix.errors import UserError
from capmix.inspect.plan import PlanSettings
from capmix.models.registry import require
from capmix.pool.settings import OpenSettings
from capmix.report.settings import ReportSettings
from capmix.settings.counted import counted
from capmix.view.settings import VIEW_PACKAGES, ViewSettings

if TYPE_CHECKING:
    from capmix.inspect.metadata import PoolCoverage
    from capmix.inspect.status import Status

log = logging.getLogger(__name__)
ANY_FAILURES = RunSettings(max_failures=1.0)  # inspection accepts any number of failures


@command
def status(
    pool: Pool = None,
    *,
    work: Work = None,
    metadata: Annotated[
        list[str] | None,
        Parameter(
            help="Show instead how many rows of this metadata are in the pool, by uid: parquet "
            "files, a pattern or a folder. May be repeated.",
            negative="",
            consume_multiple=True,
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, Parameter(help="Print JSON.", negative="")] = False,
    reading: OpenSettings,
) -> None:
    """Show the progress of each stage: parts done, missing and stale, rows and bytes."""
    from capmix.cli.stages import open_place

    opened = open_place(pool, work, reading, ANY_FAILURES)
    found: PoolCoverage | Status = opened.coverage(metadata) if metadata else opened.status()
    show(dumps(found.as_json(), indent=2).splitlines() if json else found.lines())


@command
def clean(
    pool: Pool = None,
    *,
    work: Work = None,
    subset: Annotated[
        list[str] | None,
        Parameter(
            help="Remove this subset and its probes. May be repeated.",
            negative="",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        Parameter(
            help="Remove this source: its captions, its scores, and the subsets and measures "
            "computed from them. May be repeated.",
            negative="",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool, Parameter(help="Remove the files (default: only list them).", negative="")
    ] = False,
    reading: OpenSettings,
) -> None:
    """Show or remove leftovers, subsets and sources."""
    from capmix.cli.stages import open_place

    opened = open_place(pool, work, reading, ANY_FAILURES)
    show(opened.clean(subset or (), source or (), yes).lines())


@command
def verify(
    pool: Pool = None,
    *,
    work: Work = None,
    exports: Annotated[
        list[str] | None,
        Parameter(
            help="Also verify these directories of exported shards.",
            negative="",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        bool,
        Parameter(help="Also read the whole pool and compare it with the index.", negative=""),
    ] = False,
    discard: Annotated[
        bool,
        Parameter(
            help="Mark damaged parts as missing so that the next run recomputes them.",
            negative="",
        ),
    ] = False,
    reading: OpenSettings,
) -> None:
    """Compare every file with the digest recorded when it was written."""
    from capmix.cli.stages import open_place

    found = open_place(pool, work, reading, ANY_FAILURES).verify(exports or (), images, discard)
    show(found.lines())
    if found.changed_samples:
        raise UserError(
            f"verify: samples of the pool that differ from the index: {found.changed_samples:,}. "
            "Restore the shards; if the change is intended, `touch` them and the next command "
            "reindexes them"
        )
    if found.damaged and not discard:
        raise UserError(
            f"verify: {counted(len(found.damaged), 'damaged file')}; rerun with --discard, then "
            "run the commands listed above"
        )


@command
def failures(
    *,
    work: Work = None,
    stage: Annotated[
        str | None,
        Parameter(help="List one stage, by folder: captions/blip2, samples, ... (default: all)."),
    ] = None,
    status: Annotated[
        Literal["failed", "dropped"] | None,
        Parameter(help="List only failed or only dropped samples (default: both)."),
    ] = None,
    out: Annotated[
        str | None,
        Parameter(help="Write to this .csv file (default: tab-separated lines on stdout)."),
    ] = None,
) -> None:
    """List every failed and dropped sample of a work directory with its reason."""
    from capmix.inspect.failures import failures as find
    from capmix.inspect.failures import write_csv, write_lines
    from capmix.storage.store import Store
    from capmix.storage.work_directory import find_work

    found = find(Store(find_work(work)), stage, status)
    counts = write_csv(out, found) if out else write_lines(sys.stdout, found)
    for (folder, reason), number in sorted(counts.items()):
        log.info("%s: %s %s", folder, f"{number:,}", reason)
    if not counts:
        log.info("no failed or dropped samples")


@command
def report(
    pool: Pool = None, *, work: Work = None, reading: OpenSettings, settings: ReportSettings
) -> None:
    """Write a self-contained HTML report about a work directory."""
    from capmix.cli.stages import open_place

    path, table = open_place(pool, work, reading, ANY_FAILURES).report(settings)
    show([*table, f"report: {path}"])


@command
def view(
    pool: Pool = None, *, work: Work = None, reading: OpenSettings, settings: ViewSettings
) -> None:
    """Browse, edit and review captions in the browser; the server listens only on localhost."""
    require(VIEW_PACKAGES, "view", "view")
    from capmix.cli.stages import open_place
    from capmix.view.server import serve

    opened = open_place(pool, work, reading, ANY_FAILURES)
    serve(opened.catalog, settings, lambda place: show([place]))


@command
def plan(
    pool: Annotated[
        list[str],
        Parameter(
            help="A directory, URL or file (tars, images, parquet), a pattern, or several of "
            "these; `embedded` is the demo pool.",
            negative="",
        ),
    ],
    *,
    settings: PlanSettings,
) -> None:
    """Estimate hours, bytes and price of captioning and scoring by timing a few images."""
    from capmix.inspect.plan import plan as estimate

    show(estimate(pool, settings).lines())


@command
def models() -> None:
    """List the models with short names: size, GPU, licence, and whether each is downloaded."""
    from capmix.inspect.models import lines

    show(lines())


@command
def doctor() -> None:
    """Check optional dependencies and devices."""
    from capmix.inspect.doctor import lines

    show(lines())
