"""Options of `capmix probe`."""

from capmix.settings.base import Settings, option
from capmix.settings.values import Names, Numbers


class ProbeSettings(Settings):
    """Which subsets to train probes on, with which seeds, and on which sets to evaluate them."""

    subsets: Names | None = option(
        None, "Subsets to probe, comma-separated (default: all).", metavar="SUBSET,..."
    )
    seeds: Numbers = option(
        lambda: [0, 1, 2, 3, 4],
        "Seeds, comma-separated; one probe per seed and subset (default: 0,1,2,3,4).",
        metavar="N,...",
        min_length=1,
    )
    evalsets: Names = option(
        lambda: ["embedded"],
        "Paths of evaluation sets, comma-separated (default: embedded).",
        metavar="PATH,...",
        min_length=1,
    )
