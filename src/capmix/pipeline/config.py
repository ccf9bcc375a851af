"""The pipeline file of `capmix run`: which stages to run, on what, with which settings."""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from capmix.caption.settings import CaptionSettings
from capmix.engine.settings import EngineSettings
from capmix.errors import UserError
from capmix.measure.settings import MeasureSettings
from capmix.mix.recipe import combinations, describe, load_recipe, parse_yaml
from capmix.score.settings import ScoreSettings
from capmix.train.scales import TrainSettings
from capmix.train.train import check_settings

STAGES = (
    "caption", "score", "measure", "mix", "export", "probe", "train", "evaluate", "report"
)  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MixSection(_Section):
    """`recipes`: a shipped name, a .yaml file, or a mapping with `recipe` and its parameters.

    A parameter that is a list stands for one subset for each of its values.
    """

    recipes: list[str | dict[str, Any]] = Field(min_length=1)
    seed: int = 0

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """Each recipe as its name or file, and its parameters."""
        found = []
        for entry in self.recipes:
            parameters = {"recipe": entry} if isinstance(entry, str) else dict(entry)
            recipe = parameters.pop("recipe", "")
            if not isinstance(recipe, str):
                raise UserError("mix: recipe: expected a name or a .yaml file")
            found += [(recipe, one) for one in combinations(parameters)]
        return found


class ExportSection(_Section):
    samples_per_shard: int = Field(10_000, ge=1)


class ProbeSection(_Section):
    """`evalsets`: paths of evaluation sets; `embedded` stands for the embedded ones."""

    seeds: list[int] = Field([0, 1, 2], min_length=1)
    evalsets: list[str] = Field(["embedded"], min_length=1)


class TrainSection(TrainSettings):
    """TrainSettings, with a run for each of `seeds` and recipes, straight from the pool.

    With `devices` over 1, each run is started by torchrun on so many GPUs of this machine.
    """

    seeds: list[int] = Field([0, 1, 2], min_length=1)
    devices: int = Field(1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _only_seeds(cls, value: Any) -> Any:
        if isinstance(value, dict) and "seed" in value:
            raise ValueError("unknown setting 'seed'; a grid has `seeds`, a list")
        return value

    def of_seed(self, seed: int) -> TrainSettings:
        return TrainSettings(**self.model_dump(exclude={"seeds", "seed", "devices"}), seed=seed)


class EvaluateSettings(_Section):
    """`evalsets`: the directory of evaluation sets, or `embedded`; `tasks` as in `capmix eval`."""

    evalsets: str = "embedded"
    tasks: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class ReportSettings(_Section):
    """`order`: recipe names that are expected to rise; the report says if they do."""

    examples_of: str | None = None
    baseline: str = "raw"
    order: list[str] = Field(default_factory=list)
    note: str = ""
    examples: int = Field(240, ge=0)


class Pipeline(_Section):
    """A whole run. A stage whose section is missing is not run.

    `pool` may be several, by name: the stages are run on each in a folder of its own below `work`.
    """

    pool: str | dict[str, str]
    work: str
    max_failures: float = Field(0.01, ge=0, le=1)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    caption: dict[str, CaptionSettings] = Field(default_factory=dict)
    score: ScoreSettings | None = None
    measure: MeasureSettings | None = None
    mix: MixSection | None = None
    export: ExportSection | None = None
    probe: ProbeSection | None = None
    train: TrainSection | None = None
    evaluate: EvaluateSettings | None = None
    report: ReportSettings | None = None

    def pools(self) -> dict[str, tuple[str, str]]:
        """Location and work directory of each pool by name; one that has none is called pool."""
        if isinstance(self.pool, str):
            return {"pool": (self.pool, self.work)}
        return {name: (place, f"{self.work}/{name}") for name, place in self.pool.items()}

    def score_settings(self) -> ScoreSettings:
        """The score section; by default raw and the sources of this file are scored."""
        settings = self.score or ScoreSettings()
        sources = settings.sources or ["raw", *self.caption]
        return settings.model_copy(update={"sources": sources})


NEEDS = {
    "export": "mix",
    "probe": "mix",
    "train": "mix",
    "evaluate": "train",
    "report": "score",
}


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
        if name not in Pipeline.model_fields:
            close = difflib.get_close_matches(str(name), STAGES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"pipeline {path}: unknown stage {name!r}{hint} "
                f"(stages: {', '.join(STAGES)}; settings: pool, work, max_failures, engine)"
            )
    # `measure:` with nothing behind it means the stage with its defaults.
    value = {k: ({} if v is None and k in STAGES else v) for k, v in value.items()}
    try:
        pipeline = Pipeline.model_validate(value | overrides)
    except ValidationError as error:
        raise UserError(f"pipeline {path}: {describe(error)}") from error
    for stage, needed in NEEDS.items():
        if getattr(pipeline, stage) is not None and getattr(pipeline, needed) is None:
            raise UserError(f"pipeline {path}: {stage} needs the stage {needed!r} in the file")
    _check_recipes(path, pipeline)
    _check_training(path, pipeline)
    return pipeline


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


def _check_recipes(path: str, pipeline: Pipeline) -> None:
    """A faulty recipe is found before the hours that captioning may take."""
    names: set[str] = set()
    for recipe, parameters in pipeline.mix.entries() if pipeline.mix else []:
        name = load_recipe(recipe, parameters).name
        if name in names:
            raise UserError(f"pipeline {path}: two recipes make the subset {name!r}; name one anew")
        names.add(name)
