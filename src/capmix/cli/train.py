"""The commands that train and evaluate: train, eval, evalsets, probe, tune."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from pydantic import ConfigDict

from capmix.cli.options import Pool, Work, command, group_named
from capmix.cli.output import show
from capmix.cli.stages import RECIPE, Budget, open_place, recipe_parameters
from capmix.engine.settings import RunSettings
from capmix.errors import UserError
from capmix.evaluation.settings import EvaluateSettings
from capmix.pool.settings import OpenSettings, PoolSettings
from capmix.probe.settings import ProbeSettings
from capmix.settings.base import option
from capmix.settings.counted import counted
from capmix.settings.values import Paths, PathWeights
from capmix.training.scales import TrainSettings
from capmix.tune.settings import TuneSettings

if TYPE_CHECKING:
    from capmix.training.launch import TrainingData
    from capmix.training.pairs import PairSource

DATA = "Data"


class DataSettings(PoolSettings):
    """The training data: exported shards, or a subset of a pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Paths | None = option(
        None, "Directory of exported tars; separate several with ::.", group=DATA, metavar="DIR"
    )
    data_weights: PathWeights | None = option(
        None,
        "Sampling weight of each directory's tars, separated by ::.",
        group=DATA,
        metavar="W::...",
    )
    pool: str | None = option(
        None, "With --subset: the pool (default: the work directory's).", group=DATA
    )
    work: str | None = option(
        None,
        "With --subset: the work directory (default: CAPMIX_WORK, or the one that contains the "
        "current directory).",
        group=DATA,
    )
    subset: str | None = option(
        None, "Train on this subset of `capmix mix`, read directly from the pool.", group=DATA
    )


@command
def train(
    *,
    out: Annotated[str, Parameter(help="Directory of the run; an existing run resumes.")],
    data: DataSettings,
    settings: TrainSettings,
    runs: Budget,
    yes: Annotated[
        bool,
        Parameter(
            help="Start even if the run takes days on this CPU or exceeds the available memory.",
            negative="",
            show_default=False,
        ),
    ] = False,
) -> None:
    """Train CLIP with open_clip's trainer and DataComp's settings."""
    from capmix.training.cost import check_cost
    from capmix.training.launch import look_up
    from capmix.training.train import train as train_run

    source = look_up(partial(_source, data, settings, runs), settings)
    if not yes:
        check_cost(settings, out)
    show([str(train_run(settings, source, out, runs.max_failures))])


def _source(data: DataSettings, settings: TrainSettings, runs: RunSettings) -> "PairSource":
    return _data(data, runs).source(settings)


def _data(given: DataSettings, runs: RunSettings) -> "TrainingData":
    from capmix.training.launch import TrainingData

    if given.data and given.subset is None and given.pool is None and given.work is None:
        weights, links = given.data_weights or None, bool(given.follow_links)
        return TrainingData(given.data, weights, follow_links=links)
    if given.data or given.data_weights or given.subset is None:
        raise UserError("train: pass --data SHARDS, or --pool POOL --work WORK --subset NAME")
    reading = OpenSettings(follow_links=given.follow_links)
    work = open_place(given.pool, given.work, reading, runs)
    return TrainingData.of_subset(work.pool, work.store, given.subset)


@command
def eval(
    model: Annotated[
        str, Parameter(help="Directory of a run, or an open_clip model as ARCHITECTURE/TAG.")
    ],
    /,
    *,
    settings: EvaluateSettings,
) -> None:
    """Evaluate a run or an open_clip model zero-shot."""
    from capmix.evaluation.results import fetch_command, results_folder
    from capmix.workspace import evaluate

    found = evaluate(model, settings)
    show(found.text())
    if found.lines:
        if settings.classes:
            show(found.class_lines())
        show([f"results: {results_folder(model, settings.out)}"])
    if found.missing:
        how = fetch_command(found.missing, settings.evalsets)
        show([f"{counted(len(found.missing), 'evaluation set')} not found; run `{how}`"])
    if found.broken:
        raise UserError("; ".join(found.broken))
    if not found.lines:
        raise UserError(f"eval: no evaluation sets found in {settings.evalsets}")


@command
def evalsets(
    action: Annotated[
        Literal["list", "fetch"],
        Parameter(help="list: print all tasks; fetch: download their data."),
    ],
    /,
    *,
    tasks: Annotated[
        str, Parameter(help="Comma-separated task keys, or datacomp for all 40.")
    ] = "datacomp",
    out: Annotated[str, Parameter(help="Directory that holds the evaluation sets.")] = "evalsets",
) -> None:
    """List DataComp's evaluation sets, or fetch them from the Hub."""
    from pathlib import Path

    from capmix.evaluation.fetch import fetch
    from capmix.evaluation.tasks import EvalTask, chosen_tasks
    from capmix.settings.tables import table_lines

    chosen = chosen_tasks(tasks)
    unknown = [task for task in chosen if not isinstance(task, EvalTask)]
    if unknown:
        raise UserError(
            f"--tasks: {unknown[0]!r} is not a DataComp task; run `capmix evalsets list`"
        )
    known = [task for task in chosen if isinstance(task, EvalTask)]
    if action == "fetch":
        for folder in fetch(known, out):
            show([str(folder)])
        return
    rows = []
    for task in known:
        exists = any((Path(out) / name).exists() for name in task.folders)
        metric = task.main_metric or "no main metric"
        state = "found" if exists else "missing"
        rows.append([state, task.key, counted(task.images, "image"), metric, task.hub])
    show(table_lines([], rows, "llrll"))


@command
def probe(
    pool: Pool = None,
    *,
    work: Work = None,
    reading: OpenSettings,
    settings: ProbeSettings,
    runs: Budget,
) -> None:
    """Rank subsets with small projections of frozen embeddings, in seconds per subset.

    A proxy for training; docs/evaluation.md reports how well the two agree.
    """
    from capmix.report.ranking import ranking

    results = open_place(pool, work, reading, runs).probe(settings)
    show(ranking(results))


@command
def tune(
    pool: Pool = None,
    *,
    work: Work = None,
    reading: OpenSettings,
    recipe: Annotated[
        str, Parameter(help="Name of a shipped recipe (see `capmix recipes`) or a .yaml file.")
    ],
    fraction: Annotated[
        str | None,
        Parameter(
            help="Fractions of the pool to try: 0.05..0.9 for all in between, or 0.1,0.3,0.5.",
            group=group_named(RECIPE),
        ),
    ] = None,
    synthetic: Annotated[
        str | None,
        Parameter(
            help="Synthetic sources to try, comma-separated.",
            group=group_named(RECIPE),
        ),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            help="Values of another parameter to try: a,b or LOW..HIGH. May be repeated.",
            group=group_named(RECIPE),
            negative="",
            metavar="NAME=VALUES",
        ),
    ] = None,
    settings: TuneSettings,
    runs: Budget,
) -> None:
    """Choose a recipe's parameters with probes, and report on images not used to choose."""
    from capmix.tune.space import parse_values

    given = recipe_parameters(parameters, fraction, synthetic)
    space = {name: parse_values(text) for name, text in given.items()}
    found = open_place(pool, work, reading, runs).tune(recipe, settings, space)
    show(found.lines())
