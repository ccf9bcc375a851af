"""Options of `capmix eval`."""

from typing import Literal

from capmix.settings.base import Settings, option


class EvaluateSettings(Settings):
    """Which sets a model is evaluated on, and how."""

    evalsets: str = option("evalsets", "Directory of evaluation sets, or `embedded`.")
    tasks: str | None = option(
        None,
        "Comma-separated: `datacomp` (all 40 tasks), keys of its tasks, or paths of sets below "
        "--evalsets (default: datacomp; for embedded the embedded sets).",
    )
    out: str | None = option(
        None, "Directory for results (default: the run's, or below ./evaluations)."
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Precision.")
