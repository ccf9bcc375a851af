"""The pipeline file of `capmix run`: which stages to run, on what, with which settings.

A section has the options of the command of its name, with underscores for dashes.
"""

import difflib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from capmix.annotate.settings import AnnotateSettings, ImportSettings
from capmix.caption.settings import CaptionSettings
from capmix.engine.settings import MAX_FAILURES, EngineSettings
from capmix.errors import UserError
from capmix.evaluation.settings import EvaluateSettings
from capmix.export.settings import ExportSettings
from capmix.measure.settings import MeasureSettings
from capmix.mix.recipe import combinations, load_recipe
from capmix.mix.settings import MixSettings
from capmix.models.known import chosen_model
from capmix.models.registry import CAPTIONERS, SCORERS
from capmix.pool import EMBEDDED
from capmix.pool.settings import OpenSettings, SelectSettings
from capmix.probe.settings import ProbeSettings
from capmix.report.settings import ReportSettings
from capmix.score.settings import ScoreSettings
from capmix.settings.base import describe
from capmix.settings.values import Names
from capmix.settings.yaml import parse_yaml
from capmix.training.scales import TrainSettings
from capmix.training.train import check_settings

NamesModel = TypeVar("NamesModel", CaptionSettings, ScoreSettings)
STAGES = (
    "import", "caption", "score", "annotate", "measure", "mix", "export", "probe", "train",
    "evaluate", "report",
)  # fmt: skip
SETTINGS = ("pool", "work", "follow_links", "scratch", "max_failures", "engine")


class CaptionSection(CaptionSettings, SelectSettings):
    """One source, and the samples that it is written for."""

    def settings(self) -> CaptionSettings:
        """The options of captioning alone."""
        return CaptionSettings(**self.model_dump(include=set(CaptionSettings.model_fields)))

    def samples(self) -> SelectSettings:
        """The samples."""
        return SelectSettings(**self.model_dump(include=set(SelectSettings.model_fields)))


class ImportSection(ImportSettings):
    """One import; `kind` and `files` are the arguments of `capmix import`."""

    kind: str = Field(pattern="^(captions|scores)$", description="captions or scores.")
    files: Names = Field(min_length=1, description="CSV or parquet files, or patterns.")

    def settings(self) -> ImportSettings:
        """The options alone."""
        return ImportSettings(**self.model_dump(exclude={"kind", "files"}))


class MixSection(MixSettings):
    """The subsets to make; options here are those of every recipe that does not have its own."""

    recipes: list[str | dict[str, Any]] = Field(
        min_length=1,
        description="A shipped recipe's name, a .yaml file, or a mapping with `recipe`, its "
        "parameters and options of `capmix mix`. A parameter that is a list stands for one subset "
        "per value.",
    )

    def entries(self) -> list[tuple[str, dict[str, Any], MixSettings]]:
        """Each recipe as its name or file, its parameters and its options. Raises UserError."""
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
    """A run for each of `seeds` and recipes, straight from the pool.

    With `devices` over 1, each run is started by torchrun on so many GPUs of this machine.
    """

    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    devices: int = Field(1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _only_seeds(cls, value: Any) -> Any:
        if isinstance(value, dict) and "seed" in value:
            raise ValueError("unknown setting 'seed'; a grid has `seeds`, a list")
        return value

    def of_seed(self, seed: int) -> TrainSettings:
        """The settings of one run."""
        return TrainSettings(**self.model_dump(exclude={"seeds", "seed", "devices"}), seed=seed)


class EvaluateSection(EvaluateSettings):
    """The sets that every run is evaluated on."""

    evalsets: str = Field("embedded", description="Directory of evaluation sets, or `embedded`.")
    out: None = Field(None, description="Results are in the directories of the runs.")


class Pipeline(OpenSettings):
    """A whole run. A stage whose section is missing is not run.

    `pool` may be several, by name: the stages are run on each in a folder of its own below `work`.
    """

    pool: str | dict[str, str] = Field(description="Directory or URL; or several, by name.")
    work: str = Field(description="Work directory.")
    max_failures: float = Field(
        MAX_FAILURES, ge=0, le=1, description="Stop when more than this fraction of rows failed."
    )
    engine: EngineSettings = Field(default_factory=EngineSettings)
    imports: list[ImportSection] = Field(default_factory=list, alias="import")
    caption: dict[str, CaptionSection] = Field(
        default_factory=dict, description="Captioning by source name."
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

    def pools(self) -> dict[str, tuple[str, str]]:
        """Location and work directory of each pool by name; one that has none is called pool."""
        if isinstance(self.pool, str):
            return {"pool": (self.pool, self.work)}
        return {name: (place, f"{self.work}/{name}") for name, place in self.pool.items()}

    def score_settings(self) -> ScoreSettings:
        """The score section; by default raw and the sources of this file are scored."""
        settings = self.score or ScoreSettings()
        imported = [one.source for one in self.imports if one.kind == "captions"]
        sources = settings.sources or ["raw", *imported, *self.caption]
        return settings.model_copy(update={"sources": list(dict.fromkeys(sources))})


NEEDS = {"export": "mix", "probe": "mix", "train": "mix", "evaluate": "train"}


def load_pipeline(path: str, **overrides: Any) -> Pipeline:
    """Read and check a pipeline file. Raises UserError that names the file and the faulty place.

    Relative paths of pool, work and evaluation sets count from the directory of the command.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"pipeline {path}: {error}") from error
    value = parse_yaml(text, f"pipeline {path}")
    if not isinstance(value, dict):
        raise UserError(f"pipeline {path}: expected a mapping with pool, work and stages")
    for name in value:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise UserError(f"pipeline {path}: expected stages and settings, found a {kind}")
        if name not in (*STAGES, *SETTINGS):
            close = difflib.get_close_matches(str(name), STAGES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"pipeline {path}: unknown stage {name!r}{hint} "
                f"(stages: {', '.join(STAGES)}; settings: {', '.join(SETTINGS)})"
            )
    # `measure:` with nothing behind it means the stage with its defaults.
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
    _check_recipes(path, pipeline)
    _check_report(path, pipeline)
    _check_training(path, pipeline)
    return _with_models(path, pipeline)


def _with_models(path: str, pipeline: Pipeline) -> Pipeline:
    """A model that is not named is one of the embedded pool alone: found here, before any stage."""
    places = [place for place, _ in pipeline.pools().values()]
    pool = next((place for place in places if place != EMBEDDED), EMBEDDED)

    def named(group: str, section: NamesModel, place: str) -> NamesModel:
        model = section.model or chosen_model(group, "", pool, f"pipeline {path}: {place}", "model")
        return section.model_copy(update={"model": model})

    captioners = {
        source: named(CAPTIONERS, section, f"caption.{source}")
        for source, section in pipeline.caption.items()
    }
    scorer = pipeline.score and named(SCORERS, pipeline.score, "score")
    return pipeline.model_copy(update={"caption": captioners, "score": scorer})


def _check_training(path: str, pipeline: Pipeline) -> None:
    """So are a model or a batch that do not fit, before the days that runs may take."""
    if pipeline.train is None:
        return
    try:
        settings = pipeline.train.of_seed(0)
        check_settings(settings)
        settings.device_batch(pipeline.train.devices)
    except UserError as error:
        raise UserError(f"pipeline {path}: {error}") from error


def _check_report(path: str, pipeline: Pipeline) -> None:
    """Each pool has a report of its own; two in one file would be one."""
    page = pipeline.report
    if page is not None and (page.out or page.figures) and len(pipeline.pools()) > 1:
        raise UserError(
            f"pipeline {path}: report: out and figures are for one pool; with several, leave them "
            "out: each report is in its pool's work directory"
        )


def _check_recipes(path: str, pipeline: Pipeline) -> None:
    """A faulty recipe is found before the hours that captioning may take."""
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
