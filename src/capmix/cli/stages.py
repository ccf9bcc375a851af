"""The commands that prepare a pool: caption, rewrite, score, import, ... up to export."""

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from capmix.annotate.settings import AnnotateSettings, ImportSettings
from capmix.caption.settings import CaptionSettings
from capmix.cli.options import DryRun, Pool, Work, command, group_named, only
from capmix.cli.output import show
from capmix.engine.settings import EngineSettings, RunSettings
from capmix.export.settings import ExportSettings
from capmix.measure.settings import MeasureSettings
from capmix.mix.settings import MixSettings
from capmix.pool.settings import OpenSettings, SelectSettings
from capmix.rewrite.settings import RewriteSettings
from capmix.score.settings import ScoreSettings
from capmix.settings.values import split_pairs, split_values
from capmix.workspace import Workspace, open_workspace

RECIPE = "Recipe"
Budget = Annotated[RunSettings, only("max_failures")]
BudgetAndRetry = Annotated[RunSettings, only("max_failures", "retry_failed")]
BudgetAndForce = Annotated[RunSettings, only("max_failures", "force")]


def open_place(
    pool: list[str] | str | None,
    work: str | None,
    reading: OpenSettings,
    runs: RunSettings,
    engine: EngineSettings | None = None,
) -> Workspace:
    """Open the workspace of a command."""
    options = dict(reading) | dict(runs)
    return open_workspace(pool, work, engine=engine or EngineSettings(), **options)


@command
def caption(
    pool: Pool = None,
    *,
    work: Work = None,
    reading: OpenSettings,
    source: Annotated[str, Parameter(help="Name for these captions, for example blip2.")],
    settings: CaptionSettings,
    samples: SelectSettings,
    dry_run: DryRun = False,
    engine: EngineSettings,
    runs: RunSettings,
) -> None:
    """Write captions for every image of a pool, or for selected samples."""
    opened = open_place(pool, work, reading, runs, engine)
    if dry_run:
        show(opened.forecast_caption(source, settings, samples).lines())
    else:
        opened.caption(source, settings, samples)


@command
def rewrite(
    pool: Pool = None,
    *,
    work: Work = None,
    reading: OpenSettings,
    source: Annotated[str, Parameter(help="Name for the new texts, for example fused.")],
    settings: RewriteSettings,
    samples: SelectSettings,
    engine: EngineSettings,
    runs: RunSettings,
) -> None:
    """Rewrite the texts of some sources into a new source; no image is read."""
    open_place(pool, work, reading, runs, engine).rewrite(source, settings, samples)


@command
def score(
    pool: Pool = None,
    *,
    work: Work = None,
    reading: OpenSettings,
    settings: ScoreSettings,
    samples: SelectSettings,
    dry_run: DryRun = False,
    engine: EngineSettings,
    runs: BudgetAndRetry,
) -> None:
    """Compute the image-text similarity of texts."""
    opened = open_place(pool, work, reading, runs, engine)
    if dry_run:
        show(opened.forecast_score(settings, samples).lines())
    else:
        opened.score(settings, samples)


@command
def import_(
    kind: Annotated[Literal["captions", "scores"], Parameter(help="What the files contain.")],
    files: Annotated[list[str], Parameter(help="CSV or parquet files, or patterns.")],
    /,
    *,
    pool: Annotated[
        list[str] | None,
        Parameter(help="Pool of a new work directory. May be repeated.", negative=""),
    ] = None,
    work: Work = None,
    reading: OpenSettings,
    settings: ImportSettings,
    runs: BudgetAndForce,
) -> None:
    """Import precomputed captions or scores, joined on uid."""
    opened = open_place(pool, work, reading, runs)
    if kind == "captions":
        found = opened.import_captions(files, settings)
    else:
        found = opened.import_scores(files, settings)
    show(found.lines())


@command
def annotate(
    pool: Pool = None,
    *,
    work: Work = None,
    reading: OpenSettings,
    settings: AnnotateSettings,
    engine: EngineSettings,
    runs: RunSettings,
) -> None:
    """Compute columns for recipes from saved embeddings, texts or images."""
    open_place(pool, work, reading, runs, engine).annotate(settings)


@command
def measure(
    pool: Pool = None,
    *,
    work: Work = None,
    reading: OpenSettings,
    settings: MeasureSettings,
    engine: EngineSettings,
    runs: Budget,
) -> None:
    """Measure diversity, noise and topics of texts by source."""
    from capmix.measure.lines import measure_lines

    found = open_place(pool, work, reading, runs, engine).measure(settings)
    show(measure_lines(found))


@command
def mix(
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
            help="Fraction of the pool, above 0 and at most 1; comma-separated values write one "
            "subset each.",
            group=group_named(RECIPE),
        ),
    ] = None,
    synthetic: Annotated[
        str | None,
        Parameter(
            help="The recipe's synthetic source; comma-separated names write one subset each.",
            group=group_named(RECIPE),
        ),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            help="Set another parameter of the recipe. May be repeated.",
            group=group_named(RECIPE),
            negative="",
            metavar="NAME=VALUE",
        ),
    ] = None,
    settings: MixSettings,
    engine: EngineSettings,
    runs: Budget,
    explain: Annotated[
        bool, Parameter(help="Print the SQL.", negative="", show_default=False)
    ] = False,
) -> None:
    """Apply a recipe and write the selected subset."""
    given = recipe_parameters(parameters, fraction, synthetic)
    sweep = {name: _values(text) for name, text in given.items()}
    found = open_place(pool, work, reading, runs, engine).mix(recipe, settings, sweep)
    for subset in found if isinstance(found, list) else [found]:
        show(subset.summary.lines())
        if explain:
            show(subset.summary.sql.split("\n"))


def recipe_parameters(
    pairs: list[str] | None, fraction: str | None, synthetic: str | None
) -> dict[str, str]:
    """Return the given parameters of a recipe as text. Raises UserError for a malformed --set."""
    from capmix.errors import UserError

    try:
        found: dict[str, str] = split_pairs(pairs or [])
    except ValueError as error:
        raise UserError(f"--set {error}") from error
    found |= {"fraction": fraction} if fraction is not None else {}
    found |= {"synthetic": synthetic} if synthetic is not None else {}
    return found


def _values(text: str) -> Any:
    """Parse one value, or a comma-separated list of values."""
    values = split_values(text)
    return values if len(values) > 1 else (values or [text])[0]


@command
def recipes() -> None:
    """List the shipped recipes."""
    from capmix.mix.recipe import load_recipe, shipped_recipes

    for name in shipped_recipes():
        recipe = load_recipe(name)
        show([name, f"    {' '.join(recipe.about.split())}"])
        if recipe.reference:
            show([f"    source: {recipe.reference}"])


@command
def export(
    pool: Pool = None,
    *,
    work: Work = None,
    reading: OpenSettings,
    subset: Annotated[str, Parameter(help="Name of the subset, from `capmix mix`.")],
    out: Annotated[
        str | None,
        Parameter(
            help="Directory or URL for the export (default: with --push, shards/SUBSET in the work "
            "directory; with --sidecars, none).",
            show_default=False,
        ),
    ] = None,
    settings: ExportSettings,
    engine: EngineSettings,
    runs: Budget,
) -> None:
    """Write a subset as shards, tables or image files, for trainers and the Hub."""
    open_place(pool, work, reading, runs, engine).export(subset, out, settings)
