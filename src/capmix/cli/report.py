"""The commands that measure and show: measure, report, view."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capmix.work import Work

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_measure(measure: argparse.ArgumentParser) -> None:
    measure.add_argument("--scorer", help="whose scores (default: the only one there is)")
    measure.add_argument("--sources", help="comma-separated (default: all)")
    measure.add_argument(
        "--sketch", action="store_true", help="count with HyperLogLog, in fixed memory"
    )
    measure.add_argument(
        "--sample", type=int, default=20_000, help="samples for nouns, topics and the report"
    )
    measure.add_argument(
        "--references", help="COCO or NoCaps annotations, or source:NAME: CIDEr and others"
    )
    measure.add_argument(
        "--java",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="use pycocoevalcap's tokeniser and METEOR where Java is installed",
    )
    measure.add_argument("--topics", type=int, default=20, help="clusters of texts; 0 for none")
    measure.add_argument("--map-points", type=int, default=1_000, help="texts of each source")
    measure.add_argument(
        "--model", default="mini", help="whose text tower finds topics, as in score"
    )
    measure.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    measure.add_argument("--seed", type=int, default=0)
    measure.set_defaults(run=_measure)


def _measure(options: argparse.Namespace) -> None:
    from capmix import jobs
    from capmix.cli.options import settings_of
    from capmix.measure.lines import measure_lines
    from capmix.measure.settings import MeasureSettings
    from capmix.score.settings import ScoreSettings

    found = jobs.measure(
        _work(options),
        options.scorer,
        options.sources.split(",") if options.sources else None,
        settings_of(MeasureSettings, options),
        ScoreSettings(model=options.model, device=options.device),
    )
    print("\n".join(measure_lines(found)))


def add_report(commands: "Commands") -> None:
    report = commands.add_parser(
        "report",
        help="write an HTML page about a work directory",
        description="Write one HTML file that needs no network, about what a work directory holds.",
    )
    _on_work(report)
    report.add_argument("--out", help="the page (default: WORK/report/report.html)")
    report.add_argument("--recipes", help="subsets to show, comma-separated (default: all)")
    report.add_argument("--results", help="directory of `capmix run` with trained runs")
    report.add_argument("--figures", help="directory for PDF, PNG and CSV files of the figures")
    report.add_argument("--examples", type=_count, default=240, help="samples in the page")
    report.add_argument("--examples-of", help="the subset that is shown first")
    report.add_argument("--baseline", default="raw", help="the subset to compare with")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from capmix import jobs
    from capmix.report.page import PageSettings

    settings = PageSettings(
        examples_of=options.examples_of, baseline=options.baseline, examples=options.examples
    )
    recipes = options.recipes.split(",") if options.recipes else None
    path, table = jobs.report(
        _work(options),
        options.out,
        options.scorer,
        recipes,
        options.results,
        options.figures,
        settings,
    )
    print("\n".join([*table, f"report: {path}"]))


def add_view(commands: "Commands") -> None:
    view = commands.add_parser(
        "view",
        help="the report as a page of this machine, for pools of any size",
        description="Serve the report on 127.0.0.1, with samples read from the pool on demand.",
    )
    _on_work(view)
    view.add_argument("--port", type=int, default=0, help="default: any free one")
    view.add_argument("--results", help="directory of `capmix run` with trained runs")
    view.set_defaults(run=_view)


def _view(options: argparse.Namespace) -> None:
    from capmix.report.view import serve

    serve(_work(options), options.scorer, options.results, options.port)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number")
    return int(text)


def _on_work(command: argparse.ArgumentParser) -> None:
    command.add_argument("pool", nargs="?", help="default: the one that the work directory is of")
    command.add_argument("--work", required=True)
    command.add_argument("--scorer", help="whose scores (default: the only one there is)")


def _work(options: argparse.Namespace) -> "Work":
    from capmix import jobs

    if options.pool is None:
        return jobs.reopen_work(options.work)
    return jobs.open_work(options.pool, options.work)
