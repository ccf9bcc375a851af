"""Settings for opening a pool and its work directory, and for selecting samples."""

from capmix.settings.base import Settings, option

SAMPLES = "Samples"


class PoolSettings(Settings):
    """Settings for opening a pool."""

    follow_links: bool | None = option(
        None,
        "Follow links that leave a local pool, and links to folders (default: the last choice "
        "stored in the work directory, else no).",
    )


class OpenSettings(PoolSettings):
    """Settings for opening a pool with its work directory."""

    scratch: str | None = option(
        None,
        "Directory for temporary files that exceed memory (default: in the work directory; for a "
        "remote work directory, the system's temporary directory).",
        metavar="DIR",
    )


class SelectSettings(Settings):
    """Which samples to process. Other samples can be processed later; existing output is kept."""

    limit: int | None = option(
        None,
        "Process only the first N of the selected samples.",
        group=SAMPLES,
        metavar="N",
        ge=1,
    )
    where: str | None = option(
        None,
        "Process only samples that match this condition, written as in recipes: "
        "'raw_text is null'.",
        group=SAMPLES,
        metavar="SQL",
    )
    uids: str | None = option(
        None,
        "Process only the samples in this list: a text file of uids or keys, one per line, or a "
        ".npy file.",
        group=SAMPLES,
        metavar="FILE",
    )
