"""Where the work is done, and what a run does with failures and existing parts."""

from typing import Literal

from capmix.settings.base import Settings, option

HARDWARE, RESUME = "Hardware", "Resume and failures"
MAX_FAILURES = 0.01


class EngineSettings(Settings):
    """`local`: one process, or one worker process per GPU. `ray`: actors of a Ray cluster, each of
    which loads the model once."""

    name: Literal["local", "ray"] = option(
        "local", "Run on this machine or on a Ray cluster.", group=HARDWARE, name="engine"
    )
    workers: int | None = option(
        None,
        "Processes, or Ray actors (default: one per GPU; without GPUs one process, for export one "
        "per core; with Ray as many actors as fit). For mix and measure: threads, one per core.",
        group=HARDWARE,
        ge=1,
    )
    address: str | None = option(
        None,
        "Address of the Ray cluster; `auto` is the one this machine belongs to (default: "
        "RAY_ADDRESS, else start Ray here).",
        group=HARDWARE,
    )
    gpus_per_worker: float | None = option(
        None,
        "GPUs per Ray actor; a fraction shares one (default: 1 where the model uses GPUs).",
        group=HARDWARE,
        ge=0,
    )
    cpus_per_worker: float = option(1.0, "CPUs per Ray actor.", group=HARDWARE, ge=0)


class RunSettings(Settings):
    """What a run does with rows that fail and with parts that exist."""

    max_failures: float = option(
        MAX_FAILURES,
        "Stop when more than this fraction of the rows has failed. Up to 10 failed rows are always "
        "allowed if they are at most half of all; 0 allows none.",
        group=RESUME,
        metavar="FRACTION",
        ge=0,
        le=1,
    )
    force: bool = option(
        False, "Overwrite outputs that were made with different settings.", group=RESUME
    )
    retry_failed: bool = option(False, "Process samples that failed before again.", group=RESUME)
