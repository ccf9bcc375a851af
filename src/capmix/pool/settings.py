"""How a pool and its work directory are opened, and which samples a stage is about."""

from capmix.settings.base import Settings, option

SAMPLES = "Samples"


class PoolSettings(Settings):
    """What is read of a pool."""

    follow_links: bool | None = option(
        None,
        "Read what links lead to outside of a local pool, and linked folders (default: no; a work "
        "directory remembers its last choice).",
    )


class OpenSettings(PoolSettings):
    """A pool with its work directory."""

    scratch: str | None = option(
        None,
        "Directory for what does not fit into memory (default: below the work directory; of a "
        "remote one the system's).",
        metavar="DIR",
    )


class SelectSettings(Settings):
    """Which samples are processed; the rest can follow later, and what is there is kept."""

    limit: int | None = option(
        None,
        "Only the first N samples (of those that are selected).",
        group=SAMPLES,
        metavar="N",
        ge=1,
    )
    where: str | None = option(
        None,
        "Only samples for which this condition holds, as in recipes: 'raw_text is null'.",
        group=SAMPLES,
        metavar="SQL",
    )
    uids: str | None = option(
        None,
        "Only samples in this list: a text file of uids or keys, one per line, or a .npy file.",
        group=SAMPLES,
        metavar="FILE",
    )
