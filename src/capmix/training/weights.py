"""The weights that a run starts from: `--open-clip='--pretrained FILE'` or a tag of open_clip."""

import hashlib
from pathlib import Path

from capmix.errors import UserError
from capmix.training.scales import TrainSettings

OPTION = "--pretrained"


def pretrained(settings: TrainSettings) -> str | None:
    """Return the file or tag, if one is passed to open_clip's trainer."""
    found = None
    for number, argument in enumerate(settings.open_clip):
        if argument == OPTION:
            found = next(iter(settings.open_clip[number + 1 :]), None)
        elif argument.startswith(f"{OPTION}="):
            found = argument.removeprefix(f"{OPTION}=")
    return found or None


def weights_digest(settings: TrainSettings) -> str | None:
    """Return the SHA-256 of the file of pretrained weights; None without an existing file."""
    given = pretrained(settings)
    if given is None or not Path(given).is_file():
        return None
    with Path(given).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_pretrained(settings: TrainSettings) -> None:
    """Raise UserError if the pretrained weights are neither a file nor a tag of the model.

    `settings` have the name of an open_clip model.
    """
    import open_clip

    given, name = pretrained(settings), settings.in_full.model
    if given is None or Path(given).is_file() or open_clip.get_pretrained_cfg(name, given):
        return
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    raise UserError(
        f"{OPTION} {given}: no such file, and no open_clip tag of {name} (its tags: {tags})"
    )
