"""Options of `capmix eval`."""

from typing import Literal

from capmix.settings.base import Settings, option


class EvaluateSettings(Settings):
    """Options of an evaluation."""

    evalsets: str = option("evalsets", "Directory of evaluation sets, or `embedded`.")
    tasks: str | None = option(
        None,
        "Tasks, comma-separated: `datacomp` (all 40), keys of its tasks, or paths of sets relative "
        "to --evalsets (default: datacomp; with `embedded`, the embedded sets).",
    )
    out: str | None = option(
        None, "Directory for results (default: the run's, or ./evaluations/MODEL)."
    )
    classes: bool = option(
        False, "Show accuracy per class, and evaluate sets again whose earlier results lack it."
    )
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Precision.")
