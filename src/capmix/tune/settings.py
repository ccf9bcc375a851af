"""Options of `capmix tune`, in addition to the recipe and its parameters."""

from capmix.probe.settings import TowerSettings
from capmix.settings.base import option
from capmix.settings.values import Names, Numbers


class TuneSettings(TowerSettings):
    """How many probes to train, and on which rows to choose and to report."""

    budget: int = option(
        20, "Probes to train at most, including those of the baselines.", ge=1, le=100_000
    )
    seeds: Numbers = option(
        lambda: [0, 1, 2],
        "Seeds of the probes, comma-separated: one round of halving per seed (default: 0,1,2).",
        metavar="N,...",
        min_length=1,
    )
    evalsets: Names = option(
        lambda: ["embedded"],
        "Paths of the evaluation sets to choose on, comma-separated (default: embedded).",
        metavar="PATH,...",
        min_length=1,
    )
    held_out: Names | None = option(
        None,
        "Paths of the evaluation sets to report on, comma-separated (default: half of the images "
        "of --evalsets, on which nothing is chosen).",
        metavar="PATH,...",
        min_length=1,
    )
    scorer: str | None = option(
        None, "Scorer whose scores the recipe uses (default: as in `capmix mix`)."
    )
    seed: int = option(0, "Random seed of the candidates and of the halves.")
    out: str | None = option(None, "Name of the results in tunes/ (default: the recipe's).")
