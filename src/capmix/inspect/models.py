"""List the models with short names: purpose, requirements, and whether they are downloaded."""

from importlib.util import find_spec

from capmix.models.hub import is_downloaded
from capmix.models.known import KNOWN, KnownModel
from capmix.models.registry import find_backend, install_command
from capmix.settings.tables import table_lines

HEADS = ("name", "purpose", "size", "GPU", "licence", "extra", "state", "model")


def lines() -> list[str]:
    """Return one human-readable table of captioners and one of scorers."""
    found: list[str] = []
    for kind in dict.fromkeys(one.kind for one in KNOWN):
        rows = [_row(one) for one in KNOWN if one.kind == kind]
        found += [f"{kind}s", *table_lines(HEADS, rows, "llrrllll"), ""]
    return [
        *found,
        "--model accepts a value of the column name or model. size: parameters. GPU: memory of the "
        "smallest suitable GPU (estimate).",
        "For your training runs (run:DIRECTORY), other transformers and open_clip models, caption "
        "servers and your own classes, see "
        "docs/commands/models.md",
    ]


def state(one: KnownModel) -> str:
    """Return `downloaded`, `not downloaded`, or the command that installs missing packages."""
    backend = find_backend(one.group, one.model)
    if any(find_spec(name) is None for name in backend.packages):
        return install_command([], backend.extra)
    return "downloaded" if is_downloaded(one.hub_id) else "not downloaded"


def _row(one: KnownModel) -> list[str]:
    size = f"{one.parameters / 1000:.1f} B" if one.parameters >= 1000 else f"{one.parameters} M"
    extra = find_backend(one.group, one.model).extra
    card = f"{one.gpu_gb} GB"
    return [one.name, one.about, size, card, one.licence, extra, state(one), one.model]
