"""Settings of the report."""

from capmix.settings.base import Settings, option
from capmix.settings.values import Names

EXAMPLES = 240


class ReportSettings(Settings):
    """The options of `capmix report`."""

    out: str | None = option(
        None, "Output file (default: report/report.html in the work directory)."
    )
    scorer: str | None = option(
        None, "Scorer to show (default: the only scorer, or the only one not imported)."
    )
    recipes: Names | None = option(
        None, "Subsets to show, comma-separated (default: all).", metavar="SUBSET,..."
    )
    results: str | None = option(
        None, "Show the trained runs of this `capmix run` work directory.", metavar="DIR"
    )
    figures: str | None = option(
        None, "Also write the figures as PDF, PNG and CSV to this directory.", metavar="DIR"
    )
    baseline: str = option("raw", "Subset to compare the others with.")
    examples: int = option(EXAMPLES, "Number of samples in the page.", ge=0)
    examples_of: str | None = option(
        None, "Subset to show samples of first (default: the first that mixes sources)."
    )
    order: Names = option(
        list,
        "Subsets in the expected order, lowest first; the report states whether it holds.",
        metavar="SUBSET,...",
    )
    published: bool = option(
        True, "Show DataComp's published baselines next to runs of the same scale and tasks."
    )
    note: str = option("", "Text for the top of the page.")

    def packages(self) -> list[str]:
        """Return the modules that this report needs beyond the base install."""
        return ["jinja2"] if self.figures is None else ["jinja2", "matplotlib"]
