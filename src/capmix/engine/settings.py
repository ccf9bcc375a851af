"""Settings of engines, and how a run treats failures and existing parts."""

from typing import Literal

from capmix.settings.base import Settings, option

HARDWARE, RESUME = "Hardware", "Resume and failures"
MAX_FAILURES = 0.01


class EngineSettings(Settings):
    """Settings of the engine.

    `local` runs in one process, or in one worker process per GPU. `ray` runs actors in a Ray
    cluster; each actor loads the model once.
    """

    name: Literal["local", "ray"] = option(
        "local", "Run on this machine or on a Ray cluster.", group=HARDWARE, name="engine"
    )
    workers: int | None = option(
        None,
        "Number of worker processes or Ray actors (default: one per GPU; without GPUs one process, "
        "for export up to one per core; with Ray as many actors as fit). For mix and measure: "
        "number of threads (default: one per core).",
        group=HARDWARE,
        ge=1,
    )
    address: str | None = option(
        None,
        "Address of the Ray cluster; `auto` connects to the cluster that this machine belongs to "
        "(default: RAY_ADDRESS; if unset, start Ray on this machine).",
        group=HARDWARE,
    )
    gpus_per_worker: float | None = option(
        None,
        "GPUs per Ray actor; with a fraction, several actors share a GPU (default: 1 if the model "
        "uses a GPU).",
        group=HARDWARE,
        ge=0,
    )
    cpus_per_worker: float = option(1.0, "CPUs per Ray actor.", group=HARDWARE, ge=0)


class RunSettings(Settings):
    """How a run treats failed rows and existing parts."""

    max_failures: float = option(
        MAX_FAILURES,
        "Stop when more than this fraction of the rows fails. Up to 10 failed rows are always "
        "allowed if they are at most half of all rows; 0 allows no failures.",
        group=RESUME,
        metavar="FRACTION",
        ge=0,
        le=1,
    )
    force: bool = option(
        False, "Overwrite outputs that were made with different settings.", group=RESUME
    )
    retry_failed: bool = option(False, "Retry samples that failed in earlier runs.", group=RESUME)
