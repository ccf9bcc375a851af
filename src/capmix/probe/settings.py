"""Options of `capmix probe`."""

from capmix.settings.base import Settings, option
from capmix.settings.values import Names, Numbers


class ProbeSettings(Settings):
    """How many probes are trained of each subset, and what they are evaluated on."""

    subsets: Names | None = option(
        None, "Subsets to probe, comma-separated (default: all).", metavar="SUBSET,..."
    )
    seeds: Numbers = option(
        lambda: [0, 1, 2, 3, 4],
        "Seeds, comma-separated (default: 0,1,2,3,4).",
        metavar="N,...",
        min_length=1,
    )
    evalsets: Names = option(
        lambda: ["embedded"],
        "Evaluation sets, comma-separated paths (default: embedded).",
        metavar="PATH,...",
        min_length=1,
    )
