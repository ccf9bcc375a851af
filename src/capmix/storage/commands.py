"""The command that writes a folder of a work directory, for messages and `capmix status`."""

import shlex
from collections.abc import Mapping
from importlib import resources
from typing import Any

from capmix.prompts.presets import PRESETS
from capmix.storage.layout import (
    ANNOTATIONS,
    CAPTIONS,
    EMBEDDINGS,
    EVALSETS,
    FIELDS,
    MATCHES,
    MEASURES,
    METADATA,
    PROBE_RESULTS,
    PROBES,
    SAMPLES,
    SCORES,
    SUBSETS,
    TUNES,
)
from capmix.storage.names import annotate_command

# The folders that have parts by shard, and the depth of a stage's folder below each. The rest of a
# part's name is the shard's name, which may contain slashes itself.
DEPTHS = {SAMPLES: 0, FIELDS: 0, EMBEDDINGS: 2, CAPTIONS: 1, SCORES: 2, MATCHES: 1, ANNOTATIONS: 1}
INPUT_SOURCES, IMPORTED = "from", "import"  # in the settings of rewritten and of imported texts
VIEW = "capmix view"  # the model in the markers of what people wrote
VLLM, RUN = "vllm", "run:"
LONGEST_PROMPT = 80  # characters of a prompt that a command includes
# How to write the folders that have no command of their own.
OTHERS = {
    SAMPLES: "any command on the pool",
    FIELDS: "`capmix mix` with a recipe that names a field",
    EMBEDDINGS: "`capmix caption` or `capmix score --save-embeddings`",
    PROBES: "`capmix probe` or `capmix run`",
    PROBE_RESULTS: "`capmix probe` or `capmix run`",
    EVALSETS: "`capmix probe` or `capmix run`",
}
ALONE = {MEASURES: "capmix measure", TUNES: "capmix tune"}


def stage_folder(name: str) -> str:
    """Return the stage folder of a part; a stage folder is returned unchanged."""
    names = name.split("/")
    return "/".join(names[: DEPTHS.get(names[0], 0) + 1])


def how_to_write(name: str, config: Mapping[str, Any] | None = None) -> str:
    """Return what to run to write a part or a stage folder, with commands in backticks."""
    command = command_of(name, config)
    other = OTHERS.get(name.partition("/")[0], "the command that writes it")
    return f"`{command}`" if command else other


def command_of(name: str, config: Mapping[str, Any] | None = None, work: str = "") -> str:
    """Return the command that writes a part or a stage folder; "" if there is no single one.

    `config` are the settings of a part of it; those that are not known are placeholders such as
    MODEL, and "..." stands for prompts that are too long to show. Sampling options are left out.
    The work directory `work` is included if it is given.
    """
    top, _, rest = name.partition("/")
    settings, place = config or {}, f" --work {shlex.quote(work)}" if work else ""
    if top in DEPTHS:
        rest = stage_folder(name).partition("/")[2]
    quoted = shlex.quote(rest)
    if top in (CAPTIONS, ANNOTATIONS) and settings.get("model") == VIEW:
        return VIEW + place
    if top == CAPTIONS and INPUT_SOURCES in settings:
        given = settings[INPUT_SOURCES]
        names = ",".join(map(str, given)) if isinstance(given, list) else "SOURCES"
        source = f"{quoted} --from {shlex.quote(names)}"
        return f"capmix rewrite{place} --source {source}{_model(settings)}{_task(settings)}"
    if top == CAPTIONS and IMPORTED in settings:
        return f"capmix import captions FILES{place} --source {quoted}"
    if top == CAPTIONS:
        model = _model(settings) or " --model MODEL"
        return f"capmix caption{place} --source {quoted}{model}"
    if top == SCORES:
        scorer, _, source = map(shlex.quote, rest.partition("/"))
        if IMPORTED in settings:
            return f"capmix import scores FILES{place} --source {source} --scorer {scorer}"
        options = _model(settings) + _options(settings, "mask")
        return f"capmix score{place} --sources {source}{options}"
    if top == SUBSETS:
        return f"capmix mix{place} --recipe {_recipe(settings)} --out {quoted}"
    if top == METADATA:
        return annotate_command(shlex.quote(rest.partition("/")[0]), "concepts") + place
    if top in (MATCHES, ANNOTATIONS):
        method = "concepts" if top == MATCHES else str(settings.get("method", "METHOD"))
        return annotate_command(quoted, shlex.quote(method)) + place
    return ALONE[top] + place if top in ALONE else ""


def _model(settings: Mapping[str, Any]) -> str:
    """Return the option --model. Markers have only the last name of a local model, not its path."""
    model = settings.get("model")
    if not isinstance(model, str):
        return ""
    is_local = model.startswith(RUN) or not {*"/:"} & {*model}
    if is_local and model != "mini" and settings.get("weights"):
        model = "MODEL"
    prefix = f"{VLLM}:" if settings.get("engine") == VLLM else ""
    return f" --model {shlex.quote(prefix + model)}"


def _task(settings: Mapping[str, Any]) -> str:
    """Return the options that say how texts are rewritten."""
    prompts, preset = settings.get("prompt"), settings.get("preset")
    is_of_preset = any(one.name == preset and one.template for one in PRESETS)
    if is_of_preset or not isinstance(prompts, list):
        prompts = []
    shown = [
        shlex.quote(one) if len(one) <= LONGEST_PROMPT and one.isprintable() else "..."
        for one in map(str, prompts)
    ]
    options = _options(settings, "preset") + "".join(f" --prompt {one}" for one in shown)
    if settings.get("missing") == "skip":  # the default
        settings = {**settings, "missing": None}
    return options + _options(settings, "missing", "target")


def _options(settings: Mapping[str, Any], *names: str) -> str:
    """Return those of these options that the settings have."""
    given = [(one, settings.get(one)) for one in names]
    return "".join(f" --{one} {shlex.quote(str(value))}" for one, value in given if value)


def _recipe(settings: Mapping[str, Any]) -> str:
    """Return the recipe's name if capmix has a recipe of this name, else RECIPE."""
    recipe = settings.get("recipe")
    name = recipe.get("name") if isinstance(recipe, Mapping) else None
    shipped = (resources.files("capmix") / "mix" / "recipes").iterdir()
    return str(name) if f"{name}.yaml" in {one.name for one in shipped} else "RECIPE"
