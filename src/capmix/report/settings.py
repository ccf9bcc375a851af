"""Options of `capmix report`."""

from capmix.settings.base import Settings, option
from capmix.settings.values import Names

EXAMPLES = 240


class ReportSettings(Settings):
    """What the report shows."""

    out: str | None = option(
        None, "File of the page (default: report/report.html in the work directory)."
    )
    scorer: str | None = option(
        None, "Whose scores to show (default: the only scorer, or the only one not imported)."
    )
    recipes: Names | None = option(
        None, "Subsets to show, comma-separated (default: all).", metavar="SUBSET,..."
    )
    results: str | None = option(
        None, "Directory of `capmix run` whose trained runs are shown.", metavar="DIR"
    )
    figures: str | None = option(
        None, "Directory for PDF, PNG and CSV files of the figures.", metavar="DIR"
    )
    baseline: str = option("raw", "Subset that others are compared with.")
    examples: int = option(EXAMPLES, "Samples in the page.", ge=0)
    examples_of: str | None = option(
        None, "Subset whose samples are shown first (default: the first that mixes sources)."
    )
    order: Names = option(
        list,
        "Subsets expected to rise in this order; the report says whether they do.",
        metavar="SUBSET,...",
    )
    published: bool = option(
        True, "Show DataComp's published baselines beside runs of the same scale and tasks."
    )
    note: str = option("", "A sentence for the top of the page.")

    def packages(self) -> list[str]:
        """Modules that this report needs and the base install does not have."""
        return ["jinja2"] if self.figures is None else ["jinja2", "matplotlib"]
