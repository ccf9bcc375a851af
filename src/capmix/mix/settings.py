"""Options of `capmix mix`, beside the recipe and its parameters."""

from capmix.settings.base import Settings, option
from capmix.settings.values import Pairs

RECIPE = "Recipe"


class MixSettings(Settings):
    """How a recipe is applied, and what its subset is called."""

    where: str | None = option(
        None, "Additional condition for every clause.", group=RECIPE, metavar="SQL"
    )
    distinct: str | None = option(
        None, "Keep one sample per value of this column.", group=RECIPE, metavar="COLUMN"
    )
    uids: Pairs = option(
        dict,
        "Uid list for in_list('NAME'): DataComp's .npy, or a text file with one uid per line. May "
        "be repeated.",
        group=RECIPE,
        metavar="NAME=FILE",
        repeats=True,
    )
    scorer: str | None = option(
        None,
        "Whose scores S_score means, of all sources (default: the only scorer that has scored all "
        "sources whose scores the recipe names; of several such, the only one whose scores were "
        "not imported).",
        group=RECIPE,
    )
    strict: bool = option(
        False,
        "Stop where a threshold is undefined because fewer samples have a value than the fraction "
        "asks for (default: a warning).",
        group=RECIPE,
    )
    seed: int = option(0, "Random seed.")
    out: str | None = option(None, "Name of the subset (default: from the recipe).")
    npy: bool = option(
        False,
        "Also write DataComp's .npy of uids for subsets with captions (raw subsets always have "
        "it).",
    )
    texts: bool = option(
        False,
        "Also write uid, key and text of each row into the subset's file, for other tools. Without "
        "it, rows refer to the texts of the pool and of the captions.",
    )

    @property
    def changes(self) -> dict[str, str]:
        """What is different from the recipe as it is written."""
        both = {"where": self.where, "distinct": self.distinct}
        return {name: value for name, value in both.items() if value is not None}
