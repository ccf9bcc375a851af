"""Options of `capmix mix`, in addition to the recipe and its parameters."""

from capmix.settings.base import Settings, option
from capmix.settings.values import Pairs, Texts

RECIPE = "Recipe"


class MixSettings(Settings):
    """How a recipe is applied, and the name of its subset."""

    where: str | None = option(
        None, "Additional condition for every clause.", group=RECIPE, metavar="SQL"
    )
    distinct: str | None = option(
        None, "Keep one sample per value of this column.", group=RECIPE, metavar="COLUMN"
    )
    uids: Pairs = option(
        dict,
        "Uid list for in_list('NAME'): DataComp's .npy file, or a text file with one uid per "
        "line. May be repeated.",
        group=RECIPE,
        metavar="NAME=FILE",
        repeats=True,
    )
    exclude: Texts = option(
        list,
        "Leave out the samples that this file lists by uid, URL, SHA-256 or perceptual hash "
        "(opt-outs): a text, CSV or parquet file with such a column, or uid:FILE, url:FILE, "
        "sha256:FILE, phash:FILE. Thresholds and fractions are those of the other samples. May be "
        "repeated.",
        group=RECIPE,
        metavar="FILE",
        repeats=True,
    )
    scorer: str | None = option(
        None,
        "Scorer whose scores S_score refers to, for every source S (default: the only scorer that "
        "has scored all sources whose scores the recipe uses; of several, the only one whose "
        "scores were not imported).",
        group=RECIPE,
    )
    strict: bool = option(
        False,
        "Fail if a threshold is undefined because fewer samples have a value than the fraction "
        "requests (default: warn).",
        group=RECIPE,
    )
    seed: int = option(0, "Random seed.")
    out: str | None = option(None, "Name of the subset (default: from the recipe).")
    npy: bool = option(
        False,
        "Also write DataComp's .npy file of uids for subsets with captions (subsets of raw texts "
        "always have one if the uids are in DataComp's format).",
    )
    texts: bool = option(
        False,
        "Also write uid, key and text of each row to the subset's file, for other tools (default: "
        "rows refer to the texts in the pool and in the captions).",
    )

    @property
    def changes(self) -> dict[str, str]:
        """The options that change the recipe itself."""
        both = {"where": self.where, "distinct": self.distinct}
        return {name: value for name, value in both.items() if value is not None}
