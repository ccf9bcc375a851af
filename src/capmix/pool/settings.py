"""How a pool and its work directory are opened."""

from capmix.settings.base import Settings, option


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
