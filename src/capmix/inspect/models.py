"""The models with short names: what they are for, what they take, and whether they are here."""

from importlib.util import find_spec

from capmix.models.hub import is_downloaded
from capmix.models.known import KNOWN, KnownModel
from capmix.models.registry import find_backend, install_command
from capmix.settings.tables import table_lines

HEADS = ("name", "what it is for", "size", "GPU", "licence", "extra", "state", "stands for")


def lines() -> list[str]:
    """A table of captioners and one of scorers, for people."""
    found: list[str] = []
    for kind in dict.fromkeys(one.kind for one in KNOWN):
        rows = [_row(one) for one in KNOWN if one.kind == kind]
        found += [f"{kind}s", *table_lines(HEADS, rows, "llrrllll"), ""]
    return [
        *found,
        "--model takes a name or what it stands for. Size: parameters. GPU: the smallest usual "
        "one, an estimate.",
        "Other models of transformers and open_clip, caption servers and classes of your own: "
        "docs/commands/models.md",
    ]


def state(one: KnownModel) -> str:
    """`downloaded`, `not downloaded`, or the command that installs what it needs."""
    backend = find_backend(one.group, one.model)
    if any(find_spec(name) is None for name in backend.packages):
        return install_command([], backend.extra)
    return "downloaded" if is_downloaded(one.hub_id) else "not downloaded"


def _row(one: KnownModel) -> list[str]:
    size = f"{one.parameters / 1000:.1f} B" if one.parameters >= 1000 else f"{one.parameters} M"
    extra = find_backend(one.group, one.model).extra
    card = f"{one.gpu_gb} GB"
    return [one.name, one.about, size, card, one.licence, extra, state(one), one.model]
