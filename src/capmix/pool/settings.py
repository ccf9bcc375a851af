"""How a pool is opened."""

from capmix.settings.base import Settings, option


class PoolSettings(Settings):
    """What is read of a pool."""

    follow_links: bool | None = option(
        None,
        "Read what links lead to outside of a local pool, and linked folders (default: as the work "
        "directory remembers, else no).",
    )
