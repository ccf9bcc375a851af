"""The command that writes a folder of a work directory, for messages and `capmix status`."""

import shlex
from collections.abc import Mapping
from typing import Any

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
OTHERS = {
    SAMPLES: "any command on the pool",
    FIELDS: "capmix mix, with a recipe that names a field",
    EMBEDDINGS: "capmix caption, or capmix score --save-embeddings",
    MEASURES: "capmix measure",
    PROBES: "capmix probe, or capmix run",
    PROBE_RESULTS: "capmix probe, or capmix run",
    TUNES: "capmix tune",
    EVALSETS: "capmix probe, or capmix run",
}


def stage_folder(name: str) -> str:
    """Return the stage folder of a part; a stage folder is returned unchanged."""
    names = name.split("/")
    return "/".join(names[: DEPTHS.get(names[0], 0) + 1])


def command_of(name: str, config: Mapping[str, Any] | None = None, work: str = "") -> str:
    """Return the command that writes a part or a stage folder; "" for an unknown folder.

    `config` are the settings of a part of it; those that are not known are placeholders such as
    MODEL. The work directory `work` is included if it is given.
    """
    top, _, rest = name.partition("/")
    settings, place = config or {}, f" --work {shlex.quote(work)}" if work else ""
    if top in DEPTHS:
        rest = stage_folder(name).partition("/")[2]
    quoted = shlex.quote(rest)
    if top == CAPTIONS and INPUT_SOURCES in settings:
        given = settings[INPUT_SOURCES]
        names = ",".join(map(str, given)) if isinstance(given, list) else "SOURCES"
        source = f"{quoted} --from {shlex.quote(names)}"
        return f"capmix rewrite{place} --source {source}" + _model(settings)
    if top == CAPTIONS and IMPORTED in settings:
        return f"capmix import captions FILES{place} --source {quoted}"
    if top == CAPTIONS:
        model = shlex.quote(str(settings.get("model", "MODEL")))
        return f"capmix caption{place} --source {quoted} --model {model}"
    if top == SCORES:
        scorer, _, source = map(shlex.quote, rest.partition("/"))
        if IMPORTED in settings:
            return f"capmix import scores FILES{place} --source {source} --scorer {scorer}"
        return f"capmix score{place} --sources {source}" + _model(settings)
    if top == SUBSETS:
        return f"capmix mix{place} --recipe RECIPE --out {quoted}"
    if top == METADATA:
        return annotate_command(shlex.quote(rest.partition("/")[0]), "concepts") + place
    if top in (MATCHES, ANNOTATIONS):
        method = "concepts" if top == MATCHES else str(settings.get("method", "METHOD"))
        return annotate_command(quoted, shlex.quote(method)) + place
    return OTHERS.get(top, "")


def _model(settings: Mapping[str, Any]) -> str:
    model = settings.get("model")
    return f" --model {shlex.quote(model)}" if isinstance(model, str) else ""
