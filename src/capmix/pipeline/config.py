"""The pipeline file of `capmix run`: pools, stages and their settings.

A section has the options of the command of the same name, with underscores instead of dashes.
"""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from capmix.annotate.settings import AnnotateSettings, ImportSettings
from capmix.caption.settings import CaptionSettings
from capmix.engine.settings import MAX_FAILURES, EngineSettings
from capmix.errors import UserError, reason
from capmix.evaluation.settings import EvaluateSettings
from capmix.export.settings import ExportSettings
from capmix.measure.settings import MeasureSettings
from capmix.mix.recipe import combinations, load_recipe
from capmix.mix.settings import MixSettings
from capmix.models.known import chosen_model
from capmix.models.registry import CAPTIONERS, SCORERS
from capmix.pool import EMBEDDED, shown_location
from capmix.pool.settings import OpenSettings, SelectSettings
from capmix.probe.settings import ProbeSettings
from capmix.report.settings import ReportSettings
from capmix.rewrite.inputs import check_prompts
from capmix.rewrite.settings import RewriteSettings
from capmix.score.settings import ScoreSettings
from capmix.settings.base import Kind, Settings, describe, did_you_mean
from capmix.settings.values import Names
from capmix.settings.yaml import parse_yaml
from capmix.storage.names import check_source_name
from capmix.training.scales import TrainSettings
from capmix.training.train import check_settings

NamesModel = TypeVar("NamesModel", CaptionSettings, ScoreSettings)
STAGES = (
    "import", "caption", "rewrite", "score", "annotate", "measure", "mix", "export", "probe",
    "train", "evaluate", "report",
)  # fmt: skip
SETTINGS = ("pool", "work", "follow_links", "scratch", "max_failures", "engine")


class CaptionSection(CaptionSettings, SelectSettings):
    """The settings of one source, and the samples to caption."""


class RewriteSection(RewriteSettings, SelectSettings):
    """The settings of one source of rewritten texts, and the samples to rewrite."""


class ImportSection(ImportSettings):
    """One import; `kind` and `files` are the arguments of `capmix import`."""

    kind: str = Field(pattern="^(captions|scores)$", description="captions or scores.")
    files: Names = Field(min_length=1, description="CSV or parquet files, or patterns.")


def settings_of(section: Settings, kind: type[Kind]) -> Kind:
    """Return the options of one kind in a section that has further ones."""
    return kind(**section.model_dump(include=set(kind.model_fields)))


class MixSection(MixSettings):
    """The subsets to write. Options here apply to every recipe that does not set its own."""

    recipes: list[str | dict[str, Any]] = Field(
        min_length=1,
        description="Name of a shipped recipe, a .yaml file, or a mapping with `recipe`, its "
        "parameters and options of `capmix mix`. A list as a parameter writes one subset per "
        "value.",
    )

    def entries(self) -> list[tuple[str, dict[str, Any], MixSettings]]:
        """Return name or file, parameters and options of each recipe.

        Raises UserError for invalid options.
        """
        found = []
        common = self.model_dump(exclude={"recipes"})
        for entry in self.recipes:
            given = {"recipe": entry} if isinstance(entry, str) else dict(entry)
            recipe = given.pop("recipe", "")
            if not isinstance(recipe, str):
                raise UserError("mix: recipe: expected a name or a .yaml file")
            options = {name: given.pop(name) for name in MixSettings.model_fields if name in given}
            try:
                settings = MixSettings(**common | options)
            except ValidationError as error:
                raise UserError(f"mix: {recipe}: {describe(error)}") from error
            found += [(recipe, one, settings) for one in combinations(given)]
        return found


class TrainSection(TrainSettings):
    """One run per recipe and seed, trained directly on the pool.

    If `devices` is above 1, torchrun starts each run on that many GPUs of this computer. `parallel`
    runs train at the same time and share the cores, which suits small models on a CPU.
    """

    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    devices: int = Field(1, ge=1, description="GPUs of this computer per run.")
    parallel: int = Field(1, ge=1, description="Runs that train at the same time.")

    @model_validator(mode="before")
    @classmethod
    def _only_seeds(cls, value: Any) -> Any:
        if isinstance(value, dict) and "seed" in value:
            raise ValueError("unknown setting 'seed'; use `seeds`, a list")
        return value

    @model_validator(mode="after")
    def _one_kind_of_several(self) -> "TrainSection":
        if self.devices > 1 and self.parallel > 1:
            raise ValueError("parallel: needs `devices: 1`; runs on several GPUs train in turn")
        return self

    def of_seed(self, seed: int) -> TrainSettings:
        """Return the settings of the run with this seed."""
        own = {"seeds", "seed", "devices", "parallel"}
        return TrainSettings(**self.model_dump(exclude=own), seed=seed)


class EvaluateSection(EvaluateSettings):
    """The evaluation of every run."""

    evalsets: str = Field("embedded", description="Directory of evaluation sets, or `embedded`.")
    out: None = Field(None, description="Not supported: results are in the runs' directories.")


class Pipeline(OpenSettings):
    """A pipeline file. Stages without a section are skipped.

    `pool` may be a mapping of names to pools: the stages run on each, in a folder of that name
    in `work`.
    """

    pool: str | list[str] | dict[str, str | list[str]] = Field(
        description="Directory, URL or pattern, or a list of these; or a mapping of names to pools."
    )
    work: str = Field(description="Work directory.")
    max_failures: float = Field(
        MAX_FAILURES,
        ge=0,
        le=1,
        description="Stop when more than this fraction of rows failed. Up to 10 failed rows are "
        "always allowed if they are at most half of all rows; 0 allows none.",
    )
    engine: EngineSettings = Field(default_factory=EngineSettings)
    imports: list[ImportSection] = Field(default_factory=list, alias="import")
    caption: dict[str, CaptionSection] = Field(
        default_factory=dict, description="Captioning settings by source name."
    )
    rewrite: dict[str, RewriteSection] = Field(
        default_factory=dict,
        description="Rewriting settings by source name, in the order in which they run.",
    )
    score: ScoreSettings | None = None
    annotate: list[AnnotateSettings] = Field(default_factory=list)
    measure: MeasureSettings | None = None
    mix: MixSection | None = None
    export: ExportSettings | None = None
    probe: ProbeSettings | None = None
    train: TrainSection | None = None
    evaluate: EvaluateSection | None = None
    report: ReportSettings | None = None

    def pools(self) -> dict[str, tuple[str | list[str], str]]:
        """Return location and work directory of each pool by name; a single pool is named pool."""
        if isinstance(self.pool, str | list):
            return {"pool": (self.pool, self.work)}
        return {name: (place, f"{self.work}/{name}") for name, place in self.pool.items()}

    def score_settings(self) -> ScoreSettings:
        """Return the score section; `sources` defaults to raw and the sources of this file."""
        settings = self.score or ScoreSettings()
        imported = [one.source for one in self.imports if one.kind == "captions"]
        sources = settings.sources or ["raw", *imported, *self.caption, *self.rewrite]
        return settings.model_copy(update={"sources": list(dict.fromkeys(sources))})


NEEDS = {"export": "mix", "probe": "mix", "train": "mix", "evaluate": "train"}


def load_pipeline(file: str | Path, **overrides: Any) -> Pipeline:
    """Read and check a pipeline file, with top-level settings replaced by `overrides`.

    Relative paths of pool, work and evaluation sets are resolved against the current directory.
    Raises UserError that names the file and the invalid setting.
    """
    path = str(file)
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"pipeline {path}: {reason(error)}") from error
    value = parse_yaml(text, f"pipeline {path}")
    if not isinstance(value, dict):
        raise UserError(f"pipeline {path}: expected a mapping with pool, work and stages")
    for name in value:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise UserError(f"pipeline {path}: expected stages and settings, found a {kind}")
        if name not in (*STAGES, *SETTINGS):
            raise UserError(
                f"pipeline {path}: unknown stage {name!r}{did_you_mean(name, STAGES)} "
                f"(stages: {', '.join(STAGES)}; settings: {', '.join(SETTINGS)})"
            )
    # An empty section, such as `measure:`, runs the stage with its defaults.
    lists = ("import", "annotate")
    value = {k: ({} if v is None and k in STAGES else v) for k, v in value.items()}
    value |= {k: [value[k]] for k in lists if isinstance(value.get(k), dict)}
    try:
        pipeline = Pipeline.model_validate(value | overrides)
    except ValidationError as error:
        raise UserError(f"pipeline {path}: {describe(error)}") from error
    for stage, needed in NEEDS.items():
        if getattr(pipeline, stage) is not None and getattr(pipeline, needed) is None:
            raise UserError(f"pipeline {path}: {stage} needs the stage {needed!r} in the file")
    has_scores = pipeline.score is not None or any(one.kind == "scores" for one in pipeline.imports)
    if pipeline.report is not None and not has_scores:
        raise UserError(f"pipeline {path}: report needs the stage 'score' in the file")
    _check_rewriting(path, pipeline)
    _check_recipes(path, pipeline)
    _check_report(path, pipeline)
    _check_training(path, pipeline)
    return _with_models(path, pipeline)


def _with_models(path: str, pipeline: Pipeline) -> Pipeline:
    """Fill in the default models, which only the embedded pool has.

    Raises UserError for another pool without a model, before any stage runs.
    """
    places = [place for place, _ in pipeline.pools().values()]
    other = next((place for place in places if place != EMBEDDED), EMBEDDED)
    pool = other if isinstance(other, str) else shown_location(other)

    def named(group: str, section: NamesModel, place: str) -> NamesModel:
        model = section.model or chosen_model(group, "", pool, f"pipeline {path}: {place}", "model")
        return section.model_copy(update={"model": model})

    captioners = {
        source: named(CAPTIONERS, section, f"caption.{source}")
        for source, section in pipeline.caption.items()
    }
    scorer = pipeline.score and named(SCORERS, pipeline.score, "score")
    return pipeline.model_copy(update={"caption": captioners, "score": scorer})


def _check_rewriting(path: str, pipeline: Pipeline) -> None:
    """Raise UserError for an invalid prompt or source name before any stage runs."""
    for source, section in pipeline.rewrite.items():
        try:
            check_source_name(source)
            check_prompts(section)
        except UserError as error:
            raise UserError(f"pipeline {path}: rewrite.{source}: {error}") from error
        if source in pipeline.caption or source in section.from_:
            raise UserError(
                f"pipeline {path}: rewrite.{source}: the name of another source; choose a new one"
            )


def _check_training(path: str, pipeline: Pipeline) -> None:
    """Raise UserError for an invalid model or batch before any stage runs."""
    if pipeline.train is None:
        return
    try:
        settings = pipeline.train.of_seed(0)
        check_settings(settings)
        settings.device_batch(pipeline.train.devices)
    except UserError as error:
        raise UserError(f"pipeline {path}: {error}") from error


def _check_report(path: str, pipeline: Pipeline) -> None:
    """Raise UserError if several pools would write their reports to the same place."""
    page = pipeline.report
    if page is not None and (page.out or page.figures) and len(pipeline.pools()) > 1:
        raise UserError(
            f"pipeline {path}: report: out and figures need a single pool; remove them: with "
            "several pools, each report is written to its pool's work directory"
        )


def _check_recipes(path: str, pipeline: Pipeline) -> None:
    """Raise UserError for an invalid recipe before captioning, which may take hours."""
    names: set[str] = set()
    for recipe, parameters, settings in pipeline.mix.entries() if pipeline.mix else []:
        loaded = load_recipe(recipe, parameters, settings.changes)
        if settings.changes and settings.out is None:
            raise UserError(
                f"pipeline {path}: {recipe}: where/distinct change the recipe; give the subset a "
                "name with out"
            )
        name = settings.out or loaded.name
        if name in names:
            raise UserError(f"pipeline {path}: two recipes produce subset {name!r}; rename one")
        names.add(name)
