"""Recipes: which text each sample gets, as an ordered list of clauses in a YAML file."""

import itertools
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from capmix.engine.settings import EngineSettings, RunSettings
from capmix.errors import UserError, reason
from capmix.mix import template
from capmix.mix.sampling import Sampling
from capmix.mix.settings import MixSettings
from capmix.settings.base import SHORT, describe, did_you_mean, options_of
from capmix.settings.yaml import parse_yaml
from capmix.storage.compare import ANY

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
MAX_COMBINATIONS = 10_000
MAX_TEMPLATE = 10_000  # characters
MAX_REPEATS = 10_000  # of a row; uid lists usually repeat a uid only a few times
OPTIONS = {name for one in (MixSettings, EngineSettings, RunSettings) for name in options_of(one)}
PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")  # not a regex's {4}


class Clause(BaseModel):
    """One clause: a sample gets the text of `source` if `where` holds and the source has a text.

    `weight` (SQL) is how often the row counts: 2.3 means twice, and a third time for three samples
    in ten. With a template `text` (see template.py), the row has the composed text but still counts
    as one of `source`. The clause then holds if everything that the template uses exists, even if
    the source itself has no text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str
    where: str = "true"
    weight: str = "1"
    text: str | None = None

    @field_validator("text")
    @classmethod
    def _check_text(cls, text: str | None) -> str | None:
        if text is not None:
            if len(text) > MAX_TEMPLATE:
                raise ValueError(f"the template has more than {MAX_TEMPLATE:,} characters")
            template.expressions(text)
        return text

    @field_validator("weight", mode="before")
    @classmethod
    def _as_sql(cls, weight: Any) -> Any:
        return str(weight) if isinstance(weight, int | float) else weight


class Recipe(BaseModel):
    """A mixing strategy. Each sample uses the first clause that holds; it is left out if none does.

    - where: condition added to that of every clause.
    - keep: "all" keeps one row per clause that holds, "first" only the first one.
    - distinct: a column. Of the kept samples with the same value, only the first in the pool stays.
    - max_repeats: most times that a row counts, whatever its weight.
    - parameters: values of the `{placeholders}` in name and clauses; `{percent}` is 100 * fraction.
    - without_text: a clause whose source has no text does not hold ("drop"), or holds with an empty
      text ("keep").
    - shuffle: exchange the chosen texts between the chosen samples, as a control.
    - sample: draw the rows in batches, with repeats (see sampling.py), instead of using each once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    about: str
    reference: str = ""
    parameters: dict[str, str | float] = Field(default_factory=dict)
    clauses: list[Clause] = Field(min_length=1, max_length=100)
    where: str = "true"
    keep: Literal["first", "all"] = "first"
    without_text: Literal["drop", "keep"] = "drop"
    distinct: str | None = None
    max_repeats: int = Field(10, ge=1, le=MAX_REPEATS)
    shuffle: bool = False
    sample: Sampling | None = None

    @field_validator("parameters", mode="before")
    @classmethod
    def _check_parameters(cls, parameters: Any) -> Any:
        for name, value in (parameters or {}).items():
            if name in OPTIONS:
                raise ValueError(f"{name} is an option of `capmix mix`; rename the parameter")
            if name == "fraction":
                check_fraction(value)
            elif isinstance(value, str) and not re.fullmatch(r"\w+", value):
                raise ValueError(f"{name} {value!r}: expected letters, digits and '_'")
        return parameters or {}

    @model_validator(mode="after")
    def _check_shuffle(self) -> "Recipe":
        if self.shuffle and self.keep == "all":
            raise ValueError(
                "shuffle cannot be combined with keep: all: a sample could get back "
                "a text of its own"
            )
        return self

    @model_validator(mode="after")
    def _check_sample(self) -> "Recipe":
        if self.sample is not None and any(clause.weight != "1" for clause in self.clauses):
            raise ValueError("sample cannot be combined with weight: it draws the repeats itself")
        return self

    def filled(self) -> "Recipe":
        """Return this recipe with all placeholders replaced by the values of its parameters."""
        values = dict(self.parameters)
        if self.sample is not None:  # other recipes keep the names that their subsets have
            values = {name: _whole(value) for name, value in values.items()}
        if "fraction" in values:
            values["percent"] = f"{float(values['fraction']) * 100:g}"

        def fill(text: str) -> str:
            return PLACEHOLDER.sub(lambda match: str(values[match.group(1)]), text)

        try:
            clauses = [
                Clause(
                    source=fill(clause.source),
                    where=fill(_both(clause.where, self.where)),
                    weight=fill(clause.weight),
                    text=clause.text and template.filled(clause.text, fill, set(values)),
                )
                for clause in self.clauses
            ]
            distinct = self.distinct and fill(self.distinct)
            name = fill(self.name)
            sample = self.sample and self.sample.filled(fill)
        except KeyError as error:
            known = ", ".join(sorted(values)) or "none"
            raise UserError(
                f"recipe {self.name}: no parameter {error} (its parameters: {known})"
            ) from error
        except ValueError as error:
            raise UserError(f"recipe {self.name}: sample: {error}") from error
        if not NAME.fullmatch(name):
            raise UserError(f"recipe name {name!r}: expected letters, digits and . _ + -")
        filled = {"name": name, "clauses": clauses, "where": "true", "distinct": distinct}
        return self.model_copy(update=filled | {"sample": sample})


def _whole(value: str | float) -> str | float:
    """Return whole numbers, such as numbers of rows, as int."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def recipe_defaults() -> dict[str, Any]:
    """Return the defaults of a recipe's fields and of a clause's; descriptions do not count."""

    def of(kind: type[BaseModel]) -> dict[str, Any]:
        fields = {name: one for name, one in kind.model_fields.items() if not one.is_required()}
        return {n: one.get_default(call_default_factory=True) for n, one in fields.items()}

    return of(Recipe) | {"about": ANY, "reference": ANY, "clauses": [of(Clause)]}


def _both(clause: str, recipe: str) -> str:
    """Join two conditions with `and`, leaving out those that are `true`."""
    wanted = [condition for condition in (clause, recipe) if condition != "true"]
    return " and ".join(wanted if len(wanted) < 2 else (f"({one})" for one in wanted)) or "true"


def check_fraction(value: Any) -> float:
    """Raise ValueError unless `value` is a number in (0, 1]."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        raise ValueError(
            f"fraction {SHORT.repr(value)}: expected a number above 0 and at most 1, for "
            "example 0.3 for 30%"
        )
    return float(value)


def load_recipe(
    name_or_path: str,
    parameters: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> Recipe:
    """Load a shipped recipe by name, or a recipe from a .yaml file, and fill in its parameters.

    `parameters` override the recipe's defaults. `changes` can add a condition `where` to every
    clause, and replace `distinct`. A recipe with `base` starts from the shipped recipe of that name
    and overrides the fields that it sets itself. Raises UserError if the recipe does not exist or
    is invalid.
    """
    value = _with_base(name_or_path)
    defaults = value["parameters"]
    unknown = sorted(set(parameters or {}) - set(defaults))
    if unknown:
        known = ", ".join(sorted(defaults)) or "none"
        raise UserError(
            f"recipe {name_or_path}: no parameter {unknown[0]!r} (its parameters: {known})"
        )
    value |= {"parameters": defaults | (parameters or {})}
    if changes and "where" in changes:
        changes = changes | {"where": _both(str(value.get("where", "true")), changes["where"])}
    value |= changes or {}
    try:
        recipe = Recipe.model_validate(value)
    except ValidationError as error:
        raise UserError(f"recipe {name_or_path}: {describe(error)}") from error
    return recipe.filled()


def combinations(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all combinations of parameter values; a list is a choice of several values.

    Raises UserError for more than MAX_COMBINATIONS.
    """
    names = list(sweep)
    values = [value if isinstance(value, list) else [value] for value in sweep.values()]
    if math.prod(map(len, values)) > MAX_COMBINATIONS:
        raise UserError(f"mix: the sweep has more than {MAX_COMBINATIONS:,} subsets")
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that ship with capmix, sorted."""
    folder = resources.files("capmix.mix") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())


def _with_base(name_or_path: str) -> dict[str, Any]:
    """Return the fields of a recipe merged over those of its base, with the parameters of both."""
    value = _recipe_value(name_or_path)
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise UserError(f"recipe {name_or_path}: parameters: expected names with their defaults")
    base = value.pop("base", None)
    if base is None:
        return value | {"parameters": parameters}
    if not isinstance(base, str):
        raise UserError(f"recipe {name_or_path}: base: expected the name of a shipped recipe")
    if base not in shipped_recipes() or base == name_or_path:
        raise UserError(f"recipe {name_or_path}: base {base!r} is not a shipped recipe")
    under = _with_base(base)
    return under | value | {"parameters": under["parameters"] | parameters}


def _recipe_value(name_or_path: str) -> dict[str, Any]:
    value = parse_yaml(_recipe_text(name_or_path), f"recipe {name_or_path}")
    if not isinstance(value, dict):
        raise UserError(f"recipe {name_or_path}: expected name, about and clauses")
    return value


def _recipe_text(name_or_path: str) -> str:
    if name_or_path in shipped_recipes():
        file = resources.files("capmix.mix") / "recipes" / f"{name_or_path}.yaml"
        return file.read_text("utf-8")
    if not name_or_path.endswith((".yaml", ".yml")):
        names = shipped_recipes()
        hint = did_you_mean(name_or_path, names)
        expected = hint or f": expected a .yaml file or one of {', '.join(names)}"
        raise UserError(f"no recipe {name_or_path!r}{expected}")
    try:
        return Path(name_or_path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"recipe {name_or_path}: {reason(error)}") from error
